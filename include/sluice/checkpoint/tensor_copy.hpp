/// tensor_copy: moves a matrix between a parameter, in panels or not, and its place in a tensor of a file.
///
///   tensor_copy copy(parameter, place);     copy.from = &tensor;
///   copy.read(block, loss)                  file -> parameter, 64 rows at a time; blocks may run in parallel
///   copy.write(type, first, out)            parameter -> elements first .. of the tensor, those that are the parameter's
///
/// Elements that the file has in the parameter's own type are copied bit for bit; others are rounded once, to nearest.
/// State may be whole numbers in the file, I32 or I64, such as the experts in a table; those have to be exact. Whoever
/// wants to know what that costs asks before reading (read_losses) or while writing. Where a parameter is kept in
/// codes, blocks of a GGUF file that are of its own format, and codes with scales that it holds without changing a
/// number, are taken as they are; all else is rounded to codes, and read adds what that has cost to `loss`. A file may
/// lie transposed to the panels, so both ways go by small tiles that stay in the nearest cache.
#pragma once

#include <sluice/checkpoint/expert_layout.hpp>
#include <sluice/checkpoint/taken_rows.hpp>
#include <sluice/core/half.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/io/conversion_loss.hpp>
#include <sluice/io/model_file.hpp>
#include <sluice/io/safetensors_reader.hpp>
#include <sluice/kernel/encoded_matrix.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>

namespace sluice::inline SLUICE_ISA {

class tensor_copy {
public:
  static constexpr index_t tile = 64;

  template <typename Parameter>
    requires detail::is_parameter<Parameter>
  tensor_copy(Parameter& p, tensor_place where) : tensor_copy(std::addressof(p), std::move(where)) {
    if constexpr (requires { p.make_room(); }) p.make_room();
  }

  /// The same, only to be written to files.
  template <typename Parameter>
    requires detail::is_parameter<Parameter>
  tensor_copy(const Parameter& p, tensor_place where) : tensor_copy(const_cast<Parameter*>(&p), std::move(where)) {}

  tensor_place place;
  const tensor_info* from = nullptr;  ///< to read: a tensor of the place's shape, without an obstacle

  index_t blocks() const noexcept { return (rows_ + tile - 1) / tile; }
  index_t elements() const noexcept { return rows_ * cols_; }
  /// The type of the parameter's elements.
  data_type element_type() const noexcept { return element_type_; }
  std::uint64_t bytes() const noexcept { return static_cast<std::uint64_t>(elements()) * element_size_; }

  parameter_role role() const noexcept { return role_; }

  /// Why the tensor's elements cannot become the parameter's; empty if they can, or only some are too large.
  std::string obstacle(const tensor_info& tensor) const {
    if (detail::holds_weights(tensor.number_type())) return {};
    if (role_ == parameter_role::state && detail::holds_whole_numbers(tensor.dtype)) return strays(tensor);
    return "is " + detail::printable(tensor.type_name(), 40) + ", cannot be read as " +
           std::string(name_of(element_type_));
  }

  /// Adds what reading costs elements first .. first + count of the tensor.
  void read_losses(std::size_t first, std::size_t count, conversion_loss& loss) const {
    add_losses(*from, first, count, element_type_, loss);
  }

  void read(index_t block, conversion_loss& loss) const noexcept { read_(*this, block, loss); }

  /// Fills those of the elements `first` .. of the tensor that belong to this parameter; out holds whole elements of
  /// the type, F64, F32, BF16 or F16; of state also I32 or I64.
  void write(data_type type, index_t first, std::span<std::byte> out) const noexcept {
    write_(*this, type, first, out, nullptr);
  }

  /// The same, and adds what the conversion has cost these elements.
  void write(data_type type, index_t first, std::span<std::byte> out, conversion_loss& loss) const noexcept {
    write_(*this, type, first, out, &loss);
  }

private:
  template <typename Parameter>
  tensor_copy(Parameter* p, tensor_place where)
      : place(std::move(where)),
        rows_(p->rows()),
        cols_(p->cols()),
        element_type_(detail::file_type_of<typename Parameter::element>()),
        element_size_(sizeof(typename Parameter::element)),
        role_(p->role()),
        parameter_(p),
        read_(&read_block<Parameter>),
        write_(&write_elements<Parameter>) {}

  template <typename Parameter>
  static void read_block(const tensor_copy& c, index_t block, conversion_loss& loss) noexcept {
    using element = typename Parameter::element;
    if constexpr (detail::HasFileBlocks<Parameter>)
      if (detail::take_rows(*static_cast<Parameter*>(c.parameter_), *c.from, c.place, block * tile,
                            (std::min)(block * tile + tile, c.rows_)))
        return;
    if (c.from->dtype == c.element_type_)
      c.read_tiles<Parameter, element>(block, loss, [](const tensor_info& t, index_t first, std::span<element> run) {
        std::memcpy(run.data(), t.bytes.data() + static_cast<std::size_t>(first) * sizeof(element), run.size_bytes());
      });
    else if (c.from->dtype == data_type::f64)
      c.read_numbers<Parameter, double>(block, loss);  // a float between would round twice
    else if (detail::holds_whole_numbers(c.from->dtype))
      c.read_numbers<Parameter, std::int64_t>(block, loss);
    else
      c.read_numbers<Parameter, typename Parameter::scalar>(block, loss);
  }

  template <typename Parameter, StorableValue Cell>
  void read_numbers(index_t block, conversion_loss& loss) const noexcept {
    read_tiles<Parameter, Cell>(block, loss, [](const tensor_info& t, index_t first, std::span<Cell> run) {
      safetensors_reader::copy(t, static_cast<std::size_t>(first), run);
    });
  }

  template <typename Parameter, typename Cell, typename ReadRun>
  void read_tiles(index_t block, conversion_loss& loss, ReadRun&& read_run) const noexcept {
    using element = typename Parameter::element;
    auto& p = *static_cast<Parameter*>(parameter_);
    // Weights in codes take whole tiles of whole blocks: until one is complete its numbers wait here.
    constexpr bool waits = requires { Parameter::block_columns; };
    constexpr index_t widest = widest_tile<Parameter>();
    std::array<element, waits ? as_size(tile * widest) : 1> waiting;
    const matrix_layout layout = layout_to_read(p);
    const bool by_row = place.is_by_row(cols_);
    const index_t width = waits || (by_row && from->decoder != nullptr) ? widest : tile;
    const index_t inner_stride = by_row ? place.col_stride : place.row_stride;
    const index_t outer_stride = by_row ? place.row_stride : place.col_stride;
    const index_t row0 = block * tile;
    const index_t row_count = (std::min)(tile, rows_ - row0);
    std::array<index_t, tile> row_place;
    std::array<index_t, as_size(widest)> col_place;
    std::array<Cell, as_size(2 * widest)> run;
    for (index_t r = 0; r < row_count; ++r) row_place[as_size(r)] = layout.place_of_row(waits ? r : row0 + r);
    for (index_t col0 = 0; col0 < cols_; col0 += width) {
      const index_t col_count = (std::min)(width, cols_ - col0);
      for (index_t c = 0; c < col_count; ++c) col_place[as_size(c)] = layout.place_of_column(waits ? c : col0 + c);
      if constexpr (waits) waiting.fill(element{});
      const index_t* const inner_place = by_row ? col_place.data() : row_place.data();
      const index_t* const outer_place = by_row ? row_place.data() : col_place.data();
      const index_t inner_count = by_row ? col_count : row_count;
      const index_t outer_count = by_row ? row_count : col_count;
      const index_t first = place.offset + row0 * place.row_stride + col0 * place.col_stride;
      for (index_t o = 0; o < outer_count; ++o) {
        read_run(*from, first + o * outer_stride,
                 std::span(run).first(static_cast<std::size_t>((inner_count - 1) * inner_stride + 1)));
        element* to;
        if constexpr (waits)
          to = waiting.data() + outer_place[o];
        else
          to = p.data() + outer_place[o];
        for (index_t i = 0; i < inner_count; ++i)
          to[inner_place[i]] = converted<element>(run[static_cast<std::size_t>(i * inner_stride)]);
      }
      if constexpr (waits) {
        p.assign_part(row0, col0, tile, widest, waiting.data());
        std::array<element, as_size(tile * widest)> rounded;
        p.copy_part(row0, col0, tile, widest, rounded.data());
        for (index_t r = 0; r < row_count; ++r)
          for (index_t c = 0; c < col_count; ++c) {
            const auto at = as_size(row_place[as_size(r)] + col_place[as_size(c)]);
            detail::add_change(static_cast<double>(waiting[at]), static_cast<double>(rounded[at]), loss);
          }
      }
    }
  }

  /// Columns of a tile: whole blocks of a parameter in codes, and as many inputs as a block of a file may have.
  template <typename Parameter>
  static constexpr index_t widest_tile() {
    if constexpr (requires { Parameter::block_columns; }) return std::lcm(index_t{256}, Parameter::block_columns);
    return 256;
  }

  /// Where the elements of a tile go: to their places in the parameter, or in panels of the tile's own.
  template <typename Parameter>
  static matrix_layout layout_to_read(const Parameter& p) noexcept {
    if constexpr (requires { p.layout(); })
      return p.layout();
    else
      return matrix_layout(tile, widest_tile<Parameter>(), {Parameter::lanes});
  }

  template <typename Element, typename Cell>
  static Element converted(Cell value) noexcept {
    if constexpr (std::same_as<Element, Cell>)
      return value;
    else if constexpr (std::integral<Cell>)
      return to_element<Element>(static_cast<double>(value));
    else
      return to_element<Element>(value);
  }

  template <typename Parameter>
  static void write_elements(const tensor_copy& c, data_type type, index_t first, std::span<std::byte> out,
                             conversion_loss* loss) noexcept {
    using element = typename Parameter::element;
    if (type == c.element_type_)
      c.write_runs<Parameter, element>(first, out, [](element value) { return value; });
    else if (type == data_type::f64)
      c.write_numbers<Parameter, double>(type, first, out, loss);
    else if (type == data_type::f32)
      c.write_numbers<Parameter, float>(type, first, out, loss);
    else if (type == data_type::bf16)
      c.write_numbers<Parameter, bfloat16>(type, first, out, loss);
    else if (type == data_type::i32)
      c.write_numbers<Parameter, std::int32_t>(type, first, out, loss);
    else if (type == data_type::i64)
      c.write_numbers<Parameter, std::int64_t>(type, first, out, loss);
    else
      c.write_numbers<Parameter, float16>(type, first, out, loss);
  }

  template <typename Parameter, typename Stored>
  void write_numbers(data_type type, index_t first, std::span<std::byte> out, conversion_loss* loss) const noexcept {
    if (detail::is_within(element_type_, type)) loss = nullptr;
    write_runs<Parameter, Stored>(first, out, [loss](typename Parameter::element v) {
      if constexpr (std::integral<Stored>) return whole<Stored>(static_cast<double>(to_number(v)), loss);
      if (loss != nullptr) detail::add_loss<Stored>(static_cast<double>(to_number(v)), *loss);
      return to_element<Stored>(to_number(v));
    });
  }

  /// A number of state, which should be whole, as one.
  template <std::integral Whole>
  static Whole whole(double before, conversion_loss* loss) noexcept {
    constexpr double limit = sizeof(Whole) == 4 ? 0x1p31 : 0x1p63;
    const bool fits = !is_nan(before) && before >= -limit && before < limit;
    const Whole after = fits ? static_cast<Whole>(before) : Whole(0);
    if (loss == nullptr) return after;
    ++loss->elements;
    const double error = before - static_cast<double>(after);
    if (!fits) {
      ++loss->beyond;
    } else if (error < 0 || error > 0) {
      ++loss->rounded;
      loss->largest_error = (std::max)(loss->largest_error, error < 0 ? -error : error);
    }
    return after;
  }

  template <typename Parameter, typename Stored, typename Convert>
  void write_runs(index_t first, std::span<std::byte> out, Convert&& convert) const noexcept {
    const auto& p = *static_cast<const Parameter*>(parameter_);
    const index_t last = first + static_cast<index_t>(out.size() / sizeof(Stored));
    place.for_each_run(rows_, cols_, first, last, [&](const tensor_place::run& run) {
      const auto element = [&, start = start_of(p, run)](index_t i) {
        if constexpr (requires { p.layout(); })
          return start[run.along_row ? p.layout().place_of_column(run.col + i) : p.layout().place_of_row(run.row + i)];
        else
          return p.element_at(run.along_row ? run.row * cols_ + run.col + i : (run.row + i) * cols_ + run.col);
      };
      for (index_t i = 0; i < run.count; ++i) {
        const Stored value = convert(element(i));
        std::memcpy(out.data() + static_cast<std::size_t>(run.at + i * run.step) * sizeof(Stored), &value,
                    sizeof value);
      }
    });
  }

  /// Where the row or column of a run begins, of a parameter whose elements lie each in a place of its own.
  template <typename Parameter>
  static auto start_of(const Parameter& p, const tensor_place::run& run) noexcept {
    if constexpr (requires { p.layout(); })
      return p.data() + (run.along_row ? p.layout().place_of_row(run.row) : p.layout().place_of_column(run.col));
    else
      return nullptr;
  }

  /// Whole numbers that the parameter's type would round; empty if there are none.
  std::string strays(const tensor_info& tensor) const {
    const std::int64_t largest = std::int64_t{1} << (element_type_ == data_type::f64   ? 53
                                                     : element_type_ == data_type::f32 ? 24
                                                     : element_type_ == data_type::f16 ? 11
                                                                                       : 8);
    for (std::size_t i = 0; i < tensor.elements(); ++i) {
      std::int64_t value = 0;
      safetensors_reader::copy(tensor, i, std::span(&value, 1));
      if (value < -largest || value > largest)
        return "element " + std::to_string(i) + " is " + std::to_string(value) + ", which no " +
               std::string(name_of(element_type_)) + " is";
    }
    return {};
  }

  index_t rows_;
  index_t cols_;
  data_type element_type_;
  std::size_t element_size_;
  parameter_role role_;
  void* parameter_;
  void (*read_)(const tensor_copy&, index_t block, conversion_loss&) noexcept;
  void (*write_)(const tensor_copy&, data_type, index_t first, std::span<std::byte>, conversion_loss*) noexcept;
};

}  // namespace sluice::inline SLUICE_ISA
