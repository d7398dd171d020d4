/// mxfp4_rows: four-bit floats with an exponent for 32 inputs, as GPT-OSS and DeepSeek-V4 are released (MXFP4).
///
///   GPT-OSS      blocks U8 [E, rows, G, 16]      scales U8 [E, rows, G]           G = inputs / 32
///   DeepSeek-V4  weight U8 or I8 [rows, inputs/2]  scale F8_E8M0 [rows, inputs / 32]
///
///   w(o, i) = e2m1(code) 2^(scale(o, i / 32) - 127)
///
/// exactly, also where that is a subnormal float; an exponent of 255 is NaN. Byte b holds inputs 2b, its low nibble,
/// and 2b + 1: neighbours, where ggml has inputs j and j + 16 in a byte. In gate_up of GPT-OSS rows alternate, gate
/// first. OCP Microscaling Formats (MX) Specification 1.0.
#pragma once

#include <sluice/checkpoint/encoding/coded_matrix.hpp>
#include <sluice/kernel/format/small_floats.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// e2m1(code) 2^(exponent - 127) on bits: nothing is flushed to zero, whatever the program's flags are.
constexpr float mxfp4_value(std::uint8_t code, std::uint8_t exponent) {
  if (exponent == 255U) return std::bit_cast<float>(0x7FC00000U);
  const std::uint32_t sign = (code & 8U) << 28U;
  const auto doubled = static_cast<std::uint32_t>(e2m1_doubled[code & 7U]);
  if (doubled == 0) return std::bit_cast<float>(sign);
  const std::uint32_t leading = 31U - unsigned(std::countl_zero(doubled));  // doubled = 1.f * 2^leading
  const std::int32_t field = static_cast<std::int32_t>(leading + exponent) - 1;   // of the float's exponent
  const std::uint32_t significand = doubled << (23U - leading);
  if (field >= 255) return std::bit_cast<float>(sign | 0x7F800000U);
  if (field > 0)
    return std::bit_cast<float>(sign | (static_cast<std::uint32_t>(field) << 23U) | (significand & 0x7FFFFFU));
  return std::bit_cast<float>(sign | (significand >> static_cast<std::uint32_t>(1 - field)));
}
static_assert(mxfp4_value(7, 127) == 6 && mxfp4_value(9, 128) == -1 && mxfp4_value(2, 127) == 1);
static_assert(std::bit_cast<std::uint32_t>(mxfp4_value(1, 0)) == 0x00200000U);  // 2^-128

}  // namespace detail

class mxfp4_rows final : public coded_matrix {
public:
  mxfp4_rows(const tensor_info& codes, const tensor_info& exponents)
      : coded_matrix(checked_shape(codes, exponents), {&codes, &exponents}), codes_(codes), exponents_(exponents) {
    bits_ = 4;
    meaning_ = code_meaning::e2m1;
    group_ = 32;
    groups_ = inputs() / 32;
  }

  std::uint8_t code(index_t row, index_t input) const noexcept override {
    const auto byte = std::to_integer<std::uint32_t>(codes_.bytes[as_size((row * inputs() + input) / 2)]);
    return static_cast<std::uint8_t>(input % 2 == 0 ? byte & 15U : byte >> 4U);
  }
  float scale(index_t row, index_t group) const noexcept override {
    return e8m0_to_float(exponent_at(row, 32 * group));
  }
  float zero(index_t, index_t) const noexcept override { return 0; }

private:
  static std::vector<std::int64_t> checked_shape(const tensor_info& codes, const tensor_info& exponents) {
    using enum data_type;
    std::vector<std::int64_t> shape = codes.shape;
    const bool in_blocks = shape.size() == 4 && shape.back() == 16;
    if (in_blocks) {
      shape.pop_back();
      shape.back() *= 16;
    }
    const bool is_bytes = codes.dtype == u8 || codes.dtype == i8;
    if (!is_bytes || shape.size() < 2 || shape.size() > 3 || shape.back() % 16 != 0 || shape.back() == 0)
      throw unfit_parts(detail::described(codes) + ", must be U8 [experts, rows, groups, 16] or [rows, inputs / 2]");
    shape.back() *= 2;
    std::vector<std::int64_t> of_scales = shape;
    of_scales.back() /= 32;
    detail::expect_part(exponents, of_scales, {u8, f8_e8m0});
    return shape;
  }

  std::uint8_t exponent_at(index_t row, index_t input) const noexcept {
    return std::to_integer<std::uint8_t>(exponents_.bytes[as_size((row * inputs() + input) / 32)]);
  }

  void read_row(index_t row, index_t first, std::span<float> out) const noexcept override {
    for (std::size_t i = 0; i < out.size(); ++i) {
      const index_t input = first + static_cast<index_t>(i);
      out[i] = detail::mxfp4_value(code(row, input), exponent_at(row, input));
    }
  }

  tensor_info codes_;
  tensor_info exponents_;
};

}  // namespace sluice::inline SLUICE_ISA
