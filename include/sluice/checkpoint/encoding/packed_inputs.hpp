/// packed_inputs: whole numbers of 4 or 8 bits, the inputs of a row side by side, as compressed-tensors has them under
/// "pack-quantized" (Kimi-K2, and w4a16 and w8a16 releases).
///
///   weight_packed     I32 [rows, ceil(inputs bits / 32)]    consecutive INPUTS in a word, the lowest bits first
///   weight_scale      BF16, F16 or F32 [rows, groups]
///   weight_shape      I32 or I64 [2]: rows, inputs
///   weight_zero_point I32 [ceil(rows bits / 32), groups]    if asymmetric: consecutive OUTPUTS in a word
///   weight_g_idx      I32 [inputs]                          if activation order was used: the group of every input
///
///   w(o, i) = scale(o, g) (code - zero)     zero = 2^(bits - 1), or that of the output and group
///
/// Codes and zeros are stored with 2^(bits - 1) added, which cancels where there is a zero. One rounding to float.
#pragma once

#include <sluice/checkpoint/encoding/coded_matrix.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// The group of every input by a tensor of the file, which must be one of `groups`; none if there is no tensor, or if
/// all it says is -1, as where inputs are not reordered.
inline std::vector<std::int32_t> group_of_inputs(const tensor_info* tensor, index_t inputs, index_t groups) {
  std::vector<std::int32_t> group_of;
  if (tensor == nullptr) return group_of;
  expect_part(*tensor, {inputs}, {data_type::i32});
  group_of.resize(as_size(inputs));
  safetensors_reader::copy<std::int32_t>(*tensor, group_of);
  if (std::ranges::all_of(group_of, [](std::int32_t group) { return group == -1; })) return {};
  for (std::size_t i = 0; i < group_of.size(); ++i)
    if (group_of[i] < 0 || group_of[i] >= groups)
      throw unfit_parts('"' + printable(tensor->name) + "\" has input " + std::to_string(i) + " in group " +
                        std::to_string(group_of[i]) + " of " + std::to_string(groups));
  return group_of;
}

}  // namespace detail

class packed_inputs final : public coded_matrix {
public:
  struct parts {
    const tensor_info& packed;
    const tensor_info& scale;
    const tensor_info& shape;
    const tensor_info* zero_point = nullptr;
    const tensor_info* group_of = nullptr;
  };

  /// `bits` and `group` as the config tells them; a group of -1 is a whole row. 0 is not told, as where groups of the
  /// config differ: then bits are those whose words make rows of this length.
  packed_inputs(const parts& p, index_t bits, index_t group)
      : coded_matrix(shape_in(p.shape), {&p.packed, &p.scale, p.zero_point, p.group_of}),
        packed_(p.packed),
        scale_(p.scale) {
    has_zeros_ = true;
    using enum data_type;
    if (bits == 0) bits = bits_by_length(packed_, inputs());
    if (bits == 0) throw unfit_parts("neither the config nor its length says how many bits codes have");
    bits_ = static_cast<int>(bits);
    if (bits != 4 && bits != 8)
      throw unfit_parts("codes of " + std::to_string(bits) + " bits; pack-quantized weights have 4 or 8");
    words_ = detail::pieces_of(inputs() * bits, 32);
    detail::expect_part(packed_, {rows(), words_}, {i32});
    groups_ = scale_.shape.size() == 2 ? scale_.shape[1] : 0;
    group_ = detail::group_length(inputs(), group);
    group_of_ = detail::group_of_inputs(p.group_of, inputs(), groups_);
    if (group_of_.empty()) groups_ = detail::pieces_of(inputs(), group_);
    detail::expect_part(scale_, {rows(), groups_}, {bf16, f16, f32});
    if (p.zero_point != nullptr) {
      detail::expect_part(*p.zero_point, {detail::pieces_of(rows() * bits, 32), groups_}, {i32});
      zero_point_ = *p.zero_point;
    }
  }

  std::uint8_t code(index_t row, index_t input) const noexcept override {
    return static_cast<std::uint8_t>(code_at(row, input));
  }
  float scale(index_t row, index_t group) const noexcept override {
    return detail::scale_in(scale_, row * groups_ + group);
  }
  float zero(index_t row, index_t group) const noexcept override { return static_cast<float>(zero_at(row, group)); }

private:
  static std::vector<std::int64_t> shape_in(const tensor_info& tensor) {
    std::vector<std::int64_t> shape(2);
    if (tensor.dtype != data_type::i64) detail::expect_part(tensor, {2}, {data_type::i32});
    detail::expect_part(tensor, {2}, {tensor.dtype});
    safetensors_reader::copy<std::int64_t>(tensor, shape);
    constexpr std::int64_t most = std::int64_t{1} << 31;
    if (shape[0] < 1 || shape[1] < 1 || shape[0] > most || shape[1] > most)
      throw unfit_parts('"' + detail::printable(tensor.name) + "\" says " + detail::shape_text(shape));
    return shape;
  }

  /// Of 4 and 8 the one that fits; 0 if that is neither, or both because rows are shorter than a word.
  static index_t bits_by_length(const tensor_info& packed, index_t inputs) {
    const index_t words = packed.shape.size() == 2 ? packed.shape[1] : 0;
    const bool is_4 = detail::pieces_of(inputs * 4, 32) == words, is_8 = detail::pieces_of(inputs * 8, 32) == words;
    return is_4 == is_8 ? 0 : is_4 ? 4 : 8;
  }

  std::uint32_t code_at(index_t row, index_t input) const noexcept {
    return detail::code_in(
        [&](index_t k) { return detail::load_element<std::uint32_t>(packed_.bytes, as_size(row * words_ + k)); }, input,
        bits_);
  }
  std::uint32_t zero_at(index_t row, index_t g) const noexcept {
    if (!zero_point_) return 1U << static_cast<unsigned>(bits_ - 1);
    return detail::code_in(
        [&](index_t k) { return detail::load_element<std::uint32_t>(zero_point_->bytes, as_size(k * groups_ + g)); },
        row, bits_);
  }

  void read_row(index_t row, index_t first, std::span<float> out) const noexcept override {
    read_whole_codes(row, first, out, [this](index_t r, index_t input) { return code_at(r, input); });
  }

  tensor_info packed_;
  tensor_info scale_;
  std::optional<tensor_info> zero_point_;
  index_t words_ = 0;  // of a row
};

}  // namespace sluice::inline SLUICE_ISA
