/// A weight matrix that is only read, encoded in panels: what a linear map holds whose storage has no elements.
///
///   W [rows, cols]   panel p holds rows p L .. p L + L - 1, in whole blocks of columns, as the storage encodes them
///
/// It is visited like a parameter and is never learned: no gradient, nothing for an optimiser. What is written is
/// rounded to what the storage can hold; fill and assign write all of it. Files hold its numbers as floats, row by row;
/// packed ones (io/packed_file.hpp) hold the panels.
///
/// Memory is taken by the first write: a matrix that nobody has set has none, and one that borrows its panels, from a
/// mapped file say, takes its own when it is written to.
#pragma once

#include <sluice/core/function_ref.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/storage.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Bytes of a panel of so many inputs.
template <WeightStorage Storage>
constexpr index_t panel_bytes(index_t inputs) {
  const index_t blocks = (inputs + block_inputs<Storage>() - 1) / block_inputs<Storage>();
  return Storage::bytes(blocks * Storage::block);
}

}  // namespace detail

template <WeightStorage Storage>
class encoded_matrix {
public:
  using scalar = typename Storage::scalar;
  using element = scalar;  ///< what it is read and written as
  static constexpr bool is_trainable = false;
  static constexpr index_t lanes = kernel::simd_width<scalar>;

  encoded_matrix() = default;
  /// Filled where the initial values are a constant. Throws std::invalid_argument if a size is negative or too large.
  encoded_matrix(index_t rows, index_t cols, initial_values initial = {}, Storage format = {})
      : layout_(rows, cols, {lanes, block_columns}), format_(format), initial_(initial) {
    panel_bytes_ = detail::panel_bytes<Storage>(cols);
    static_cast<void>(checked_product(panels(), panel_bytes_));
    has_values_ = size() == 0;
    if (initial.distribution == initial_values::kind::constant)
      fill([&](index_t) { return static_cast<scalar>(initial.scale); });
  }

  std::span<const index_t> shape() const noexcept { return shape_; }
  index_t rows() const noexcept { return layout_.rows(); }
  index_t cols() const noexcept { return layout_.cols(); }
  index_t size() const noexcept { return rows() * cols(); }
  parameter_role role() const noexcept { return parameter_role::weight; }
  bool is_learned() const noexcept { return false; }
  const initial_values& initial() const noexcept { return initial_; }
  std::uint64_t id() const noexcept { return identity_.number(); }
  void set_frozen(bool) noexcept {}
  bool has_values() const noexcept { return has_values_; }

  /// The panels as they lie; none if nobody has set them.
  std::span<const std::byte> value() const noexcept { return {data(), data() == nullptr ? 0 : as_size(panel_bytes())}; }
  const std::byte* data() const noexcept { return borrowed_ != nullptr ? borrowed_ : bytes_.data(); }
  std::byte* data() {
    make_room();
    has_values_ = true;
    return bytes_.data();
  }
  /// Of all panels.
  index_t panel_bytes() const noexcept { return panels() * panel_bytes_; }
  /// Takes panels that lie elsewhere, panel_bytes() of them, for as long as `owner` keeps them.
  void borrow(const std::byte* panels, std::shared_ptr<const void> owner) noexcept {
    bytes_ = {};
    borrowed_ = panels;
    owner_ = std::move(owner);
    has_values_ = true;
  }
  /// Memory of its own, with what has been there; so that a write cannot fail.
  void make_room() {
    if (borrowed_ == nullptr && bytes_.size() == panel_bytes()) return;
    buffer<std::byte> own(panel_bytes(), std::byte{0});
    if (borrowed_ != nullptr) std::copy_n(borrowed_, own.size(), own.data());
    bytes_.swap(own);
    borrowed_ = nullptr;
    owner_.reset();
  }

  bool has_gradient() const noexcept { return false; }
  void ensure_gradient() noexcept {}
  std::span<const scalar> gradient() const noexcept { return {}; }
  void zero_gradient() noexcept {}

  /// Element i of the row-major order.
  scalar element_at(index_t i) const noexcept {
    if (data() == nullptr) return 0;
    std::array<scalar, as_size(lanes)> column;
    format_.decode(panel(i / cols() / lanes), i % cols(), i % cols() + 1, column.data());
    return column[as_size(i / cols() % lanes)];
  }
  /// Sets element i of the row-major order to f(i), rounded; with an executor f is called for many at once.
  template <typename F>
  void fill(F&& f, const executor_ref& executor = {}) {
    make_room();
    executor.parallel_blocks(panels(), 1, 16 * lanes * cols(), [&](index_t p, index_t) {
      std::array<scalar, as_size(block_columns * lanes)> numbers;
      for (index_t first = 0; first < blocks() * block_columns; first += block_columns) {
        for (index_t c = 0; c < block_columns; ++c)
          for (index_t l = 0; l < lanes; ++l) {
            const index_t row = p * lanes + l, col = first + c;
            numbers[as_size(c * lanes + l)] =
                row < rows() && col < cols() ? static_cast<scalar>(f(row * cols() + col)) : 0;
          }
        format_.encode(numbers.data(), first, first + block_columns, bytes_.data() + p * panel_bytes_);
      }
    });
    has_values_ = true;
  }
  /// Takes the blocks of a storage of coded blocks as they are (kernel/format/coded_storage.hpp): block_of(row, first)
  /// is that of the row's columns from `first` on.
  template <typename BlockOf>
  void fill_coded(BlockOf&& block_of) {
    make_room();
    fill_coded_rows(0, rows(), block_of);
  }
  /// The same for some rows, from a multiple of L on up to another one or the last, after make_room().
  template <typename BlockOf>
  void fill_coded_rows(index_t first_row, index_t last_row, BlockOf&& block_of) {
    using format = typename Storage::format;
    const decltype(format::get(data(), 0)) nothing{};
    auto taken = nothing;
    for (index_t p = first_row / lanes; p * lanes < last_row; ++p)
      for (index_t first = 0; first < cols(); first += block_columns)
        format::put(
            [&](index_t lane) -> const auto& {
              const index_t row = p * lanes + lane;
              return row < rows() ? taken = block_of(row, first) : nothing;
            },
            bytes_.data() + p * panel_bytes_ + Storage::bytes(first));
    has_values_ = true;
  }
  /// The block of a row's columns from `first` on, and back.
  auto coded_block_at(index_t row, index_t first) const {
    return Storage::format::get(panel(row / lanes) + Storage::bytes(first / block_columns * block_columns),
                                row % lanes);
  }
  /// Columns of a block: what is written is whole ones.
  static constexpr index_t block_columns = detail::block_inputs<Storage>();
  /// Sets a part, of which rows are a multiple of L and columns one of a block's, and its place too: `numbers` are
  /// panels of its own, [height / L][width][L], zero beyond the matrix. After make_room().
  void assign_part(index_t row, index_t col, index_t height, index_t width, const scalar* numbers) noexcept {
    has_values_ = true;
    const index_t last_col = (std::min)(col + width, blocks() * block_columns);
    for (index_t p = row / lanes; p < (std::min)((row + height) / lanes, panels()); ++p, numbers += width * lanes)
      format_.encode(numbers, col, last_col, bytes_.data() + p * panel_bytes_);
  }
  /// And what became of it; beyond the matrix nothing is written.
  void copy_part(index_t row, index_t col, index_t height, index_t width, scalar* numbers) const noexcept {
    const index_t last_col = (std::min)(col + width, cols());
    for (index_t p = row / lanes; p < (std::min)((row + height) / lanes, panels()); ++p, numbers += width * lanes)
      format_.decode(panel(p), col, last_col, numbers);
  }
  /// Takes a matrix of the same shape. Throws std::invalid_argument for another shape.
  void assign(const detail::input_ref<scalar>& values) {
    if (values.rows() != rows() || values.cols() != cols())
      throw_invalid("a weight [", rows(), ", ", cols(), "] cannot take [", values.rows(), ", ", values.cols(), "]");
    fill([&](index_t i) { return values(i / cols(), i % cols()); });
  }
  matrix<scalar> to_matrix() const {
    matrix<scalar> m = matrix<scalar>::Zero(rows(), cols());
    if (data() == nullptr) return m;
    std::array<scalar, as_size(block_columns * lanes)> numbers;
    for (index_t p = 0; p < panels(); ++p)
      for (index_t first = 0; first < cols(); first += block_columns) {
        const index_t last = (std::min)(first + block_columns, cols());
        format_.decode(panel(p), first, last, numbers.data());
        for (index_t l = 0; l < (std::min)(lanes, rows() - p * lanes); ++l)
          for (index_t c = first; c < last; ++c) m(p * lanes + l, c) = numbers[as_size((c - first) * lanes + l)];
      }
    return m;
  }
  matrix<scalar> gradient_matrix() const { return matrix<scalar>::Zero(rows(), cols()); }

private:
  index_t panels() const noexcept { return layout_.panel_count(); }
  index_t blocks() const noexcept { return (cols() + block_columns - 1) / block_columns; }
  const std::byte* panel(index_t p) const noexcept { return data() + p * panel_bytes_; }

  matrix_layout layout_;
  std::array<index_t, 2> shape_{layout_.rows(), layout_.cols()};
  SLUICE_NO_UNIQUE_ADDRESS Storage format_{};
  initial_values initial_;
  index_t panel_bytes_ = 0;
  bool has_values_ = true;
  buffer<std::byte> bytes_;
  const std::byte* borrowed_ = nullptr;
  std::shared_ptr<const void> owner_;
  identity identity_;
};

namespace detail {

template <typename Storage>
inline constexpr bool is_parameter<encoded_matrix<Storage>> = true;

/// What a linear map of this storage holds.
template <typename Storage>
struct weight_of {
  using type = encoded_matrix<Storage>;
  static type make(index_t outputs, index_t inputs, initial_values initial, const Storage& format) {
    return {outputs, inputs, initial, format};
  }
};
template <typename Storage>
  requires requires { typename Storage::element; }
struct weight_of<Storage> {
  using type = parameter<typename Storage::scalar, typename Storage::element>;
  static type make(index_t outputs, index_t inputs, initial_values initial, const Storage&) {
    return {{outputs, inputs}, parameter_role::weight, initial, {kernel::simd_width<typename Storage::scalar>}};
  }
};

/// Fills a map by panels: numbers_of(p, numbers) gives the weights [inputs][L] of panel p.
template <typename To>
void encode_panels(To& to, function_ref<void(index_t, typename To::scalar*)> numbers_of) {
  constexpr index_t lanes = kernel::simd_width<typename To::scalar>;
  constexpr index_t block = block_inputs<typename To::storage>();
  const index_t padded = (to.inputs() + block - 1) / block * block;
  buffer<typename To::scalar> numbers(padded * lanes, 0);
  auto* const panels = reinterpret_cast<std::byte*>(to.weight().data());
  for (index_t p = 0; p < to.panels(); ++p) {
    numbers_of(p, numbers.data());
    to.format().encode(numbers.data(), 0, padded, panels + p * panel_bytes<typename To::storage>(to.inputs()));
  }
}

/// The weights of one map rounded to the storage of another of the same shape. Decoding knows one storage and encoding
/// the other, so that N storages are compiled N times and not N^2.
template <typename From, typename To>
void reencode(const From& from, To& to) {
  if constexpr (std::same_as<typename From::scalar, typename To::scalar>) {
    encode_panels(to, [&](index_t p, typename To::scalar* numbers) {
      from.format().decode(from.panel(p), 0, from.inputs(), numbers);
    });
  } else {
    const matrix<typename From::scalar> numbers = from.weight().to_matrix();
    to.weight().fill([&](index_t i) { return numbers.data()[i]; });
  }
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
