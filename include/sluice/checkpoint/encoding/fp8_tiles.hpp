/// fp8_tiles: float8 e4m3 weights with a scale a tile, as DeepSeek-V3, Qwen3, MiniMax-M2 and others are released.
///
///   weight           F8_E4M3 (or U8) [..., rows, inputs]
///   weight_scale_inv [..., ceil(rows / 128), ceil(inputs / 128)]   F32, BF16, F16, or exponents: F8_E8M0, U8
///
///   w(o, i) = e4m3(weight(o, i)) scale(o / 128, i / 128)
///
/// one rounding to float. The scale MULTIPLIES, whatever its name says. Tiles at the edges are partial; their size is
/// the config's weight_block_size. A scale a row [rows, 1] and one for all, [] or [1], are tiles too. Codes 0x7F and
/// 0xFF are NaN. DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", section 3.3.
#pragma once

#include <sluice/checkpoint/encoding/coded_matrix.hpp>
#include <sluice/kernel/format/small_floats.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace sluice::inline SLUICE_ISA {

class fp8_tiles final : public coded_matrix {
public:
  fp8_tiles(const tensor_info& weight, const tensor_info& scale, index_t tile_rows, index_t tile_inputs)
      : coded_matrix(checked_shape(weight), {&weight, &scale}),
        weight_(weight),
        scale_(scale),
        outputs_(weight.shape[weight.shape.size() - 2]) {
    const bool is_one = scale.elements() == 1 && scale.shape.size() <= 1;
    const bool is_per_row =
        tile_rows == 0 && weight.shape.size() == 2 && scale.shape == std::vector<std::int64_t>{outputs_, 1};
    tile_rows_ = is_one ? outputs_ : is_per_row ? 1 : tile_rows > 0 ? tile_rows : 128;
    tile_inputs_ = is_one || is_per_row ? inputs() : tile_inputs > 0 ? tile_inputs : 128;
    if (is_one && weight.shape.size() > 2) throw unfit_parts(detail::described(scale) + ", must have a scale a matrix");
    down_ = detail::pieces_of(outputs_, tile_rows_);
    group_ = tile_inputs_;
    groups_ = detail::pieces_of(inputs(), tile_inputs_);
    meaning_ = code_meaning::e4m3;
    std::vector<std::int64_t> wanted = scale.shape;
    if (!is_one) {
      wanted = weight.shape;
      wanted[wanted.size() - 2] = down_;
      wanted.back() = groups_;
    }
    using enum data_type;
    detail::expect_part(scale, wanted, {f32, bf16, f16, f8_e8m0, u8});
  }

  std::uint8_t code(index_t row, index_t input) const noexcept override {
    return std::to_integer<std::uint8_t>(weight_.bytes[as_size(row * inputs() + input)]);
  }
  float scale(index_t row, index_t group) const noexcept override {
    const index_t stacked = row / outputs_, output = row % outputs_;
    return detail::scale_in(scale_, (stacked * down_ + output / tile_rows_) * groups_ + group);
  }
  float zero(index_t, index_t) const noexcept override { return 0; }

private:
  static std::vector<std::int64_t> checked_shape(const tensor_info& weight) {
    const bool is_matrix = (weight.shape.size() == 2 || weight.shape.size() == 3) && weight.elements() > 0;
    if (!is_matrix || (weight.dtype != data_type::f8_e4m3 && weight.dtype != data_type::u8))
      throw unfit_parts(detail::described(weight) + ", must be F8_E4M3 of two or three axes, none empty");
    return weight.shape;
  }

  void read_row(index_t row, index_t first, std::span<float> out) const noexcept override {
    for (std::size_t i = 0; i < out.size();) {
      const index_t input = first + static_cast<index_t>(i);
      const float factor = scale(row, group_at(input));
      const std::size_t end = (std::min)(out.size(), i + as_size(tile_inputs_ - input % tile_inputs_));
      const auto* const codes = weight_.bytes.data() + as_size(row * inputs() + first);
      for (; i < end; ++i) out[i] = e4m3_to_float(std::to_integer<std::uint8_t>(codes[i])) * factor;
    }
  }

  tensor_info weight_;
  tensor_info scale_;
  index_t outputs_;  // of one matrix of a stack
  index_t tile_rows_ = 0;
  index_t tile_inputs_ = 0;
  index_t down_ = 0;  // tiles of a matrix
};

}  // namespace sluice::inline SLUICE_ISA
