/// What experts need to know of a plan: whose rows are whose, where they come from and where they go.
///
///   rows of expert e: offsets[e] .. offsets[e+1]
///   row i reads input_scale(i) * x[token(i)] and adds weight(i) * f_e(row i) to y[token(i)]
///
/// A view; the arrays belong to the plan. Rows that were gathered before are not routed: row i is token i with weight
/// and scale 1, and only the rows offsets.front() .. offsets.back() of y are written. A token has an expert at most
/// once.
#pragma once

#include <sluice/core/types.hpp>

#include <cstddef>
#include <span>

namespace sluice::inline SLUICE_ISA {

template <typename Scalar>
struct routed_rows {
  std::span<const index_t> offsets;
  bool is_routed = false;
  const index_t* tokens = nullptr;
  const Scalar* weights = nullptr;
  const Scalar* input_scales = nullptr;  ///< null: all 1

  index_t experts() const noexcept { return static_cast<index_t>(offsets.size()) - 1; }
  index_t begin() const noexcept { return offsets.front(); }
  index_t end() const noexcept { return offsets.back(); }
  index_t size() const noexcept { return end() - begin(); }
  index_t load(index_t e) const noexcept {
    return offsets[static_cast<std::size_t>(e) + 1] - offsets[static_cast<std::size_t>(e)];
  }
  index_t token(index_t i) const noexcept { return is_routed ? tokens[i] : i; }
  Scalar weight(index_t i) const noexcept { return is_routed ? weights[i] : Scalar(1); }
  Scalar input_scale(index_t i) const noexcept { return input_scales == nullptr ? Scalar(1) : input_scales[i]; }
};

}  // namespace sluice::inline SLUICE_ISA
