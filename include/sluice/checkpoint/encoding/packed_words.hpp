/// packed_words: whole numbers in the columns of 32-bit words, as GPTQ and AWQ files have them: transposed, [in, out].
///
///                 GPTQ                                         AWQ "gemm"
///   qweight  I32  [inputs bits / 32, outputs]                  [inputs, outputs / 8]
///                 consecutive INPUTS in a word                 eight OUTPUTS in a word: 0 2 4 6 1 3 5 7 by nibble
///   qzeros   I32  [groups, outputs bits / 32], consecutive outputs in a word   [groups, outputs / 8], as the weights
///   scales        F16, BF16 or F32 [groups, outputs]
///   g_idx    I32  [inputs], the group of every input: with act-order in any order       none
///   bits          2, 3, 4 or 8; codes of three straddle words  4
///
///   w(o, i) = scale(g, o) (code - zero(g, o))
///
/// one rounding to float. GPTQ stores the zero less one ("gptq": a stored 2^bits - 1 is the zero 0) or as it is
/// ("gptq_v2"); AWQ as it is. Frantar et al. 2023, "GPTQ"; Lin et al. 2024, "AWQ".
#pragma once

#include <sluice/checkpoint/encoding/coded_matrix.hpp>
#include <sluice/checkpoint/encoding/packed_inputs.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace sluice::inline SLUICE_ISA {

class packed_words final : public coded_matrix {
public:
  enum class form { gptq, gptq_v2, awq };

  struct parts {
    const tensor_info& weight;
    const tensor_info& zeros;
    const tensor_info& scales;
    const tensor_info* group_of = nullptr;
  };

  /// `bits` and `group` as the config tells them; a group of -1 is all inputs, 0 is not told.
  packed_words(const parts& p, form how, index_t bits, index_t group)
      : coded_matrix(checked_shape(p, how, bits), {&p.weight, &p.zeros, &p.scales, p.group_of}),
        weight_(p.weight),
        zeros_(p.zeros),
        scales_(p.scales),
        form_(how) {
    bits_ = static_cast<int>(bits);
    has_zeros_ = true;
    groups_ = p.scales.shape[0];
    using enum data_type;
    group_ = group == 0 ? detail::pieces_of(inputs(), groups_) : detail::group_length(inputs(), group);
    group_of_ = detail::group_of_inputs(p.group_of, inputs(), groups_);
    if (const index_t groups = detail::pieces_of(inputs(), group_); group_of_.empty() && groups != groups_)
      throw unfit_parts(detail::described(scales_) + ", but " + std::to_string(inputs()) + " inputs in groups of " +
                        std::to_string(group_) + " make " + std::to_string(groups) + " groups");
    detail::expect_part(scales_, {groups_, rows()}, {f16, bf16, f32});
    detail::expect_part(zeros_, {groups_, detail::pieces_of(rows() * bits, 32)}, {i32});
  }

  std::uint8_t code(index_t row, index_t input) const noexcept override {
    return static_cast<std::uint8_t>(code_at(row, input));
  }
  float scale(index_t row, index_t group) const noexcept override {
    return detail::scale_in(scales_, group * rows() + row);
  }
  float zero(index_t row, index_t group) const noexcept override { return static_cast<float>(zero_at(row, group)); }

private:
  static std::vector<std::int64_t> checked_shape(const parts& p, form how, index_t bits) {
    const bool is_awq = how == form::awq;
    const bool known = is_awq ? bits == 4 : bits == 2 || bits == 3 || bits == 4 || bits == 8;
    if (bits == 0) throw unfit_parts("the config does not say how many bits codes have");
    if (!known)
      throw unfit_parts("codes of " + std::to_string(bits) + " bits; " +
                        (is_awq ? "AWQ weights have 4" : "GPTQ weights have 2, 3, 4 or 8"));
    const tensor_info& weight = p.weight;
    const std::string wanted =
        is_awq ? "I32 [inputs, outputs / 8]" : "I32 [inputs * " + std::to_string(bits) + " / 32, outputs]";
    if (weight.dtype != data_type::i32 || weight.shape.size() != 2 || p.scales.shape.size() != 2)
      throw unfit_parts(detail::described(weight) + " with scales " + detail::shape_text(p.scales.shape) +
                        ", must be " + wanted + " with scales [groups, outputs]");
    const std::int64_t down = weight.shape[0], across = weight.shape[1], outputs = p.scales.shape[1];
    const bool fits = is_awq ? across * 8 == outputs : across == outputs && down * 32 % bits == 0;
    if (!fits || down < 1 || across < 1 || p.scales.shape[0] < 1 || down > (std::int64_t{1} << 31))
      throw unfit_parts(detail::described(weight) + ", must be " + wanted + "; scales say " + std::to_string(outputs) +
                        " outputs in " + std::to_string(p.scales.shape[0]) + " groups");
    return {outputs, is_awq ? down : down * 32 / bits};
  }

  /// The nibble of a word that an output of AWQ is in.
  static constexpr std::array<std::uint32_t, 8> awq_place{0, 4, 1, 5, 2, 6, 3, 7};

  static std::uint32_t word_in(const tensor_info& tensor, index_t row, index_t col) noexcept {
    return detail::load_element<std::uint32_t>(tensor.bytes, as_size(row * tensor.shape[1] + col));
  }
  static std::uint32_t awq_code(const tensor_info& tensor, index_t row, index_t output) noexcept {
    return word_in(tensor, row, output / 8) >> (4 * awq_place[as_size(output % 8)]) & 15U;
  }

  std::uint32_t code_at(index_t output, index_t input) const noexcept {
    if (form_ == form::awq) return awq_code(weight_, input, output);
    return detail::code_in([&](index_t k) { return word_in(weight_, k, output); }, input, bits_);
  }
  std::uint32_t zero_at(index_t output, index_t g) const noexcept {
    if (form_ == form::awq) return awq_code(zeros_, g, output);
    const std::uint32_t stored = detail::code_in([&](index_t k) { return word_in(zeros_, g, k); }, output, bits_);
    return form_ == form::gptq ? (stored + 1U) & ((1U << bits_) - 1U) : stored;
  }

  void read_row(index_t output, index_t first, std::span<float> out) const noexcept override {
    read_whole_codes(output, first, out, [this](index_t r, index_t input) { return code_at(r, input); });
  }

  tensor_info weight_;
  tensor_info zeros_;
  tensor_info scales_;
  form form_;
};

}  // namespace sluice::inline SLUICE_ISA
