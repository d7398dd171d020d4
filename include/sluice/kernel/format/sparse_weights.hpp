/// The few weights of a matrix that are kept as they are, beside codes for all others.
///
///   S [outputs, inputs]   output o has the weights values[first[o] .. first[o+1]] at the inputs in `input`, ascending
///
/// Where a weight stands here, what stands beside it decodes to 0. Empty matrices, and outputs without any, are valid.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/types.hpp>

#include <cstdint>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct sparse_weights {
  index_t inputs = 0;
  std::vector<index_t> first{0};  ///< [outputs + 1]
  std::vector<std::int32_t> input;
  std::vector<float> values;

  index_t outputs() const noexcept { return static_cast<index_t>(first.size()) - 1; }
  index_t size() const noexcept { return static_cast<index_t>(values.size()); }

  /// Puts the weights into their places of a matrix.
  void put_into(matrix<float>& w) const {
    for (index_t o = 0; o < outputs(); ++o)
      for (index_t k = first[as_size(o)]; k < first[as_size(o + 1)]; ++k) w(o, input[as_size(k)]) = values[as_size(k)];
  }

  /// Throws std::invalid_argument unless places ascend and are inside the matrix.
  void validate() const {
    if (first.empty() || first.front() != 0 || first.back() != size() || input.size() != values.size())
      throw_invalid("there are ", size(), " sparse weights at ", input.size(), " inputs");
    for (index_t o = 0; o < outputs(); ++o) {
      const index_t begin = first[as_size(o)], end = first[as_size(o + 1)];
      if (begin > end || end > size())
        throw_invalid("output ", o, " has the sparse weights ", begin, " to ", end, " of ", size());
      for (index_t k = begin; k < end; ++k)
        if (input[as_size(k)] < 0 || input[as_size(k)] >= inputs ||
            (k > begin && input[as_size(k - 1)] >= input[as_size(k)]))
          throw_invalid("output ", o, " has a sparse weight at input ", input[as_size(k)], " of ", inputs,
                        ", or not in order");
    }
  }
};

}  // namespace sluice::inline SLUICE_ISA
