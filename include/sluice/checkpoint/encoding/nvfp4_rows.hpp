/// nvfp4_rows: four-bit floats with an e4m3 scale for 16 inputs and one scale for all (NVFP4).
///
///   compressed-tensors  weight_packed U8 [rows, inputs/2]  weight_scale F8_E4M3 [rows, inputs/16]  weight_global_scale F32
///   ModelOpt            weight        U8 [rows, inputs/2]  weight_scale F8_E4M3 [rows, inputs/16]  weight_scale_2 F32
///
///   w(o, i) = e2m1(code) (e4m3(weight_scale(o, i / 16)) s)      s = 1 / weight_global_scale, or weight_scale_2
///
/// The global scale DIVIDES where the other multiplies. In float: s, its product with a group's scale, and that with
/// the code are rounded one after the other. Byte b holds inputs 2b, its low nibble, and 2b + 1. NVIDIA 2025,
/// "Pretraining Large Language Models with NVFP4".
#pragma once

#include <sluice/checkpoint/encoding/coded_matrix.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/format/small_floats.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace sluice::inline SLUICE_ISA {

class nvfp4_rows final : public coded_matrix {
public:
  enum class global_scale { divides, multiplies };

  nvfp4_rows(const tensor_info& codes, const tensor_info& scales, const tensor_info& global, global_scale use)
      : coded_matrix(checked_shape(codes, scales, global), {&codes, &scales, &global}), codes_(codes), scales_(scales) {
    bits_ = 4;
    meaning_ = code_meaning::e2m1;
    group_ = 16;
    groups_ = inputs() / 16;
    const float value = detail::scale_in(global, 0);
    tensor_scale_ = use == global_scale::divides ? 1.0F / value : value;
    if (!is_finite(value) || !is_finite(tensor_scale_) || !(value > 0))
      throw unfit_parts(detail::described(global) + " of value " + detail::short_text(static_cast<double>(value)) +
                        ", must be above 0 and finite");
  }

  std::uint8_t code(index_t row, index_t input) const noexcept override {
    const auto byte = std::to_integer<std::uint32_t>(codes_.bytes[as_size((row * inputs() + input) / 2)]);
    return static_cast<std::uint8_t>(input % 2 == 0 ? byte & 15U : byte >> 4U);
  }
  float scale(index_t row, index_t group) const noexcept override {
    return e4m3_to_float(std::to_integer<std::uint8_t>(scales_.bytes[as_size(row * groups_ + group)]));
  }
  float zero(index_t, index_t) const noexcept override { return 0; }

private:
  static std::vector<std::int64_t> checked_shape(const tensor_info& codes, const tensor_info& scales,
                                                 const tensor_info& global) {
    using enum data_type;
    std::vector<std::int64_t> shape = codes.shape;
    if (codes.dtype != u8 || shape.size() < 2 || shape.size() > 3 || shape.back() % 8 != 0 || shape.back() == 0)
      throw unfit_parts(detail::described(codes) + ", must be U8 [rows, inputs / 2] of groups of 16 inputs");
    shape.back() *= 2;
    std::vector<std::int64_t> of_scales = shape;
    of_scales.back() /= 16;
    detail::expect_part(scales, of_scales, {f8_e4m3, u8});
    if (global.elements() != 1 || global.dtype != f32) detail::expect_part(global, {1}, {f32});
    return shape;
  }

  void read_row(index_t row, index_t first, std::span<float> out) const noexcept override {
    for (std::size_t i = 0; i < out.size(); ++i) {
      const index_t input = first + static_cast<index_t>(i);
      out[i] = e2m1_to_float(code(row, input)) * (scale(row, group_at(input)) * tensor_scale_);
    }
  }

  tensor_info codes_;
  tensor_info scales_;
};

}  // namespace sluice::inline SLUICE_ISA
