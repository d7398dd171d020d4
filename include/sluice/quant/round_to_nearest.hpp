/// Rounds a matrix of weights to codes, each weight on its own, with a scale for every group of inputs of an output.
///
///   w [out, in] -> codes, scales, zeros (kernel/format/grouped_codes.hpp); the last group may be shorter
///
///   const grouped_codes codes = round_to_nearest(w, {.bits = 4, .group = 64});
///
/// quant/code_range.hpp says which values a group has and what becomes of zeros and ties. With one scale an output and
/// code_range::full this is MoQE; with groups, FineQuant's (quant/adaptive_group.hpp finds their length). Nothing is
/// asked of activations. Throws std::invalid_argument for NaN, infinity or more than 2^126 (65504, if scales are
/// float16) among the weights. Empty matrices are valid. Equal bits for any thread count.
#pragma once

#include <sluice/core/executor.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/format/grouped_codes.hpp>
#include <sluice/quant/code_range.hpp>

#include <vector>

namespace sluice::inline SLUICE_ISA {

struct rounding_options {
  int bits = 4;
  index_t group = 0;  ///< inputs that share a scale; 0: all of an output
  code_range range = code_range::full;
  scale_type scales = scale_type::float32;
};

namespace detail {

/// Codes that are to be filled, of zeros that are no whole numbers there are none.
inline grouped_codes codes_to_fill(index_t outputs, index_t inputs, index_t group, int bits) {
  check_code_bits(bits);
  if (group < 0) throw_invalid("a scale cannot be that of ", group, " inputs");
  grouped_codes out;
  out.bits = bits;
  out.group = group == 0 ? (std::max<index_t>)(1, inputs) : group;
  out.codes.resize(outputs, inputs);
  out.scales.resize(outputs, (inputs + out.group - 1) / out.group);
  out.zeros.resize(outputs, out.scales.cols());
  return out;
}

/// Throws std::invalid_argument for a matrix with NaN, infinity or what is close to it.
inline void check_finite_weights(tokens_in<float> w, const executor_ref& executor,
                                 scale_type type = scale_type::float32) {
  std::vector<std::uint8_t> is_bad(as_size(w.rows()), 0);
  executor.parallel_each(w.rows(), w.cols() / 2, [&](index_t r) {
    is_bad[as_size(r)] = any_bits_above(w.data() + r * w.outerStride(), w.cols(), bits_of(largest_weight(type)));
  });
  const auto bad = std::find(is_bad.begin(), is_bad.end(), std::uint8_t{1}) - is_bad.begin();
  for (index_t c = 0; bad < w.rows() && c < w.cols(); ++c)
    if (!is_between(w(bad, c), -largest_weight(type), largest_weight(type)))
      throw_invalid("the weight of output ", bad, " and input ", c, " is ", w(bad, c), " and has no code");
}

}  // namespace detail

inline grouped_codes round_to_nearest(tokens_in<float> w, rounding_options o = {}, const executor_ref& executor = {}) {
  grouped_codes out = detail::codes_to_fill(w.rows(), w.cols(), o.group, o.bits);
  detail::check_finite_weights(w, executor, o.scales);
  executor.parallel_each(w.rows(), w.cols(), [&](index_t r) {
    for (index_t g = 0; g < out.groups(); ++g) {
      const index_t first = g * out.group, count = (std::min)(out.group, w.cols() - first);
      const float* const weights = w.data() + r * w.outerStride() + first;
      const kernel::code_grid grid = fit_code_grid(kernel::range_with_zero(weights, count), o.range, o.bits, o.scales);
      kernel::round_to_codes(weights, count, grid, &out.codes(r, first));
      out.scales(r, g) = grid.scale;
      out.zeros(r, g) = grid.zero;
    }
  });
  return out;
}

}  // namespace sluice::inline SLUICE_ISA
