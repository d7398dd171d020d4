/// A matrix of weights as small codes with a scale for a group of inputs: what quantisers make, what loaders of GPTQ,
/// AWQ, compressed-tensors, FP8 and FP4 files read, and what storages take without changing a number.
///
///   w(o, i) = s (m(q) - z) + b     q = codes(o, i);  s, z, b of output o and of the group of input i
///
///   codes  [outputs, inputs]   unsigned; m says what one stands for: itself, or a small float (kernel/format/small_floats)
///   scales [outputs, groups]   s = tensor_scale scales(o, g), rounded once if tensor_scale is not 1
///   zeros  [outputs, groups]   whole numbers as floats, or nothing: 0
///   minima [outputs, groups]   or nothing: 0. Added with one rounding at the end
///   group                      inputs of a group, the last may be shorter
///   group_of [inputs]          the group of every input, in any order (act-order); or nothing: input i is in group i / group
///
/// Everything is evaluated in float: m(q) - z is exact for whole numbers below 2^24, its product with s is rounded
/// once, and so is the sum with b. Empty matrices are valid. NaN in a scale makes its group NaN.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/types.hpp>
#include <sluice/kernel/format/small_floats.hpp>

#include <cmath>
#include <cstdint>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// What a code stands for.
enum class code_meaning : std::uint8_t { whole, e2m1, e4m3 };

constexpr float meant_by(code_meaning meaning, std::uint8_t code) {
  switch (meaning) {
    case code_meaning::e2m1:
      return e2m1_to_float(code);
    case code_meaning::e4m3:
      return e4m3_to_float(code);
    case code_meaning::whole:
      break;
  }
  return static_cast<float>(code);
}

struct grouped_codes {
  matrix<std::uint8_t> codes;
  matrix<float> scales;
  matrix<float> zeros;
  matrix<float> minima;
  index_t group = 0;
  std::vector<std::int32_t> group_of;
  int bits = 8;  ///< a code is below 2^bits
  code_meaning meaning = code_meaning::whole;
  float tensor_scale = 1;

  index_t outputs() const noexcept { return codes.rows(); }
  index_t inputs() const noexcept { return codes.cols(); }
  index_t groups() const noexcept { return scales.cols(); }

  index_t group_at(index_t input) const noexcept {
    return group_of.empty() ? input / group : static_cast<index_t>(group_of[as_size(input)]);
  }
  float scale_at(index_t output, index_t input) const noexcept {
    return scales(output, group_at(input)) * tensor_scale;
  }
  float value(index_t output, index_t input) const noexcept {
    const index_t g = group_at(input);
    const float zero = zeros.size() == 0 ? 0.0F : zeros(output, g);
    const float number = meant_by(meaning, codes(output, input)) - zero, scale = scale_at(output, input);
    return minima.size() == 0 ? scale * number : std::fma(scale, number, minima(output, g));
  }
  matrix<float> to_matrix() const {
    matrix<float> w(outputs(), inputs());
    for (index_t o = 0; o < outputs(); ++o)
      for (index_t i = 0; i < inputs(); ++i) w(o, i) = value(o, i);
    return w;
  }

  /// Throws std::invalid_argument unless shapes agree and every code and group is there.
  void validate() const {
    if (bits < 1 || bits > 8) throw_invalid("codes of ", bits, " bits are not 1 to 8");
    if (meaning == code_meaning::e4m3 && bits != 8) throw_invalid("codes of e4m3 have 8 bits, not ", bits);
    if (meaning == code_meaning::e2m1 && bits != 4) throw_invalid("codes of e2m1 have 4 bits, not ", bits);
    if (scales.rows() != outputs()) throw_invalid("codes have ", outputs(), " outputs and scales ", scales.rows());
    for (const matrix<float>* some : {&zeros, &minima})
      if (some->size() != 0 && (some->rows() != outputs() || some->cols() != groups()))
        throw_invalid("zeros or minima [", some->rows(), ", ", some->cols(), "] do not fit scales [", outputs(), ", ",
                      groups(), "]");
    if (group_of.empty()) {
      if (inputs() > 0 && (group < 1 || (inputs() - 1) / group + 1 != groups()))
        throw_invalid(inputs(), " inputs in groups of ", group, " do not make ", groups(), " groups");
    } else {
      if (static_cast<index_t>(group_of.size()) != inputs())
        throw_invalid("codes have ", inputs(), " inputs and groups are told of ",
                      static_cast<index_t>(group_of.size()));
      for (const std::int32_t g : group_of)
        if (g < 0 || g >= groups()) throw_invalid("an input is in group ", g, " of ", groups());
    }
    const int largest = codes.size() == 0 ? 0 : static_cast<int>(codes.maxCoeff());
    if (largest >= 1 << bits) throw_invalid("code ", largest, " has more than ", bits, " bits");
  }
};

}  // namespace sluice::inline SLUICE_ISA
