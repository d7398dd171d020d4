/// take_rows: rows of a matrix that a file has as a storage keeps them, taken over without changing a number.
///
///   coded_storage<Format>   blocks of the GGUF type that has the format; codes with scales that the format holds exactly
///   grid_storage<Format>    blocks of the GGUF type
///
/// False, and nothing is written, where the file has something else or the rows lie otherwise: then numbers are read
/// and rounded (tensor_copy.hpp). Rows are taken from a multiple of 64 on, so that panels are whole.
#pragma once

#include <sluice/checkpoint/encoding/coded_matrix.hpp>
#include <sluice/checkpoint/expert_layout.hpp>
#include <sluice/io/tensor_info.hpp>
#include <sluice/kernel/encoded_matrix.hpp>
#include <sluice/kernel/format/ggml_blocks.hpp>
#include <sluice/kernel/format/grid_storage.hpp>
#include <sluice/kernel/format/group_blocks.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>

namespace sluice::inline SLUICE_ISA::detail {

/// The format of a parameter that is kept in coded blocks.
template <typename Parameter>
struct format_of {};
template <typename Format, arithmetic By>
struct format_of<encoded_matrix<coded_storage<Format, By>>> {
  using type = Format;
};
/// The same of one that has a file's blocks as they are (kernel/format/grid_storage.hpp).
template <typename Parameter>
struct grid_of {};
template <typename Format>
struct grid_of<encoded_matrix<grid_storage<Format>>> {
  using type = Format;
};
template <typename Parameter>
concept HasFileBlocks =
    requires { typename format_of<Parameter>::type; } || requires { typename grid_of<Parameter>::type; };

template <typename Parameter>
bool take_grid_blocks(Parameter& p, const tensor_place& place, const element_decoder::typed_blocks& blocks,
                      index_t first, index_t last) noexcept {
  using format = typename grid_of<Parameter>::type;
  using storage = grid_storage<format>;
  if (blocks.type != format::type || p.cols() % storage::block != 0) return false;
  const index_t row_blocks = p.cols() / storage::block;
  const auto row_of = [&](index_t row) {
    return blocks.bytes.data() + (place.offset + row * place.row_stride) / storage::block * format::block_bytes;
  };
  std::byte* const panels = p.data();
  for (index_t n = first / storage::lanes; n * storage::lanes < last; ++n)
    storage::pack_rows(
        [&](index_t lane) { return n * storage::lanes + lane < last ? row_of(n * storage::lanes + lane) : nullptr; }, 0,
        row_blocks, panels + n * panel_bytes<storage>(p.cols()));
  return true;
}

template <typename Parameter>
bool take_ggml_blocks(Parameter& p, const tensor_place& place, const element_decoder::typed_blocks& blocks,
                      index_t first, index_t last) noexcept {
  using format = typename format_of<Parameter>::type;
  bool taken = false;
  with_ggml_layout(blocks.type, [&]<typename Layout>(Layout) {
    if constexpr (std::same_as<typename Layout::format, format>) {
      const index_t size = find_ggml_type(static_cast<std::uint32_t>(blocks.type))->bytes;
      p.fill_coded_rows(first, last, [&](index_t row, index_t col) {
        const index_t at = place.offset + row * place.row_stride + col;
        const std::byte* const bytes = blocks.bytes.data() + as_size(at / format::inputs * size);
        return unpack_ggml_block<Layout>(reinterpret_cast<const std::uint8_t*>(bytes));
      });
      taken = true;
    }
  });
  return taken;
}

template <typename Parameter>
bool take_codes(Parameter& p, const tensor_place& place, const coded_matrix& codes, index_t first,
                index_t last) noexcept {
  using format = typename format_of<Parameter>::type;
  const coded_rows rows(codes);
  const auto row_in_file = [&](index_t row) { return (place.offset + row * place.row_stride) / p.cols(); };
  for (index_t row = first; row < last; ++row)
    for (index_t col = 0; col < p.cols(); col += format::inputs)
      if (changed_by_format<format>(rows, row_in_file(row), col)) return false;
  p.fill_coded_rows(first, last,
                    [&](index_t row, index_t col) { return group_block<format>(rows, row_in_file(row), col); });
  return true;
}

/// Rows first .. last - 1 of the parameter, which is all columns of the tensor wide.
template <typename Parameter>
bool take_rows(Parameter& p, const tensor_info& from, const tensor_place& place, index_t first, index_t last) noexcept {
  if (from.decoder == nullptr || from.shape.empty() || from.shape.back() != p.cols() || place.col_stride != 1 ||
      place.offset % p.cols() != 0 || place.row_stride % p.cols() != 0)
    return false;
  if constexpr (requires { typename grid_of<Parameter>::type; }) {
    const auto blocks = from.decoder->blocks();
    return blocks.has_value() && take_grid_blocks(p, place, *blocks, first, last);
  } else {
    if (const auto blocks = from.decoder->blocks()) return take_ggml_blocks(p, place, *blocks, first, last);
    if (const coded_matrix* const codes = from.decoder->coded()) return take_codes(p, place, *codes, first, last);
    return false;
  }
}

}  // namespace sluice::inline SLUICE_ISA::detail
