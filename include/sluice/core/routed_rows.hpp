/// What experts need to know of a plan: whose rows are whose, where they come from and where they go.
///
///   rows of expert e: by_expert.of(e)
///   row i reads input_scale(i) * x[token(i)] and adds weight(i) * f_e(row i) to y[target(i)]
///
/// The target is the token, unless y has rows of another kind: with targets of their own the choices of a token stay
/// apart (attention/head_router.hpp). A view; the arrays belong to the plan. Rows that were gathered before are not
/// routed: row i is token i with weight and scale 1, and the rows begin() .. end() of y are written instead. A token
/// has an expert at most once.
#pragma once

#include <sluice/core/expert_rows.hpp>
#include <sluice/core/types.hpp>

namespace sluice::inline SLUICE_ISA {

template <typename Scalar>
struct routed_rows {
  expert_rows by_expert;
  bool is_routed = false;
  const index_t* tokens = nullptr;
  const Scalar* weights = nullptr;       ///< null: all 1
  const Scalar* input_scales = nullptr;  ///< null: all 1
  const index_t* targets = nullptr;      ///< null: the tokens

  /// The rows of the experts first .. first + count, which keep their numbers (only) or are numbered from 0 (slice).
  /// They refer to the same tokens.
  routed_rows only(index_t first, index_t count) const noexcept { return with(by_expert.only(first, count)); }
  routed_rows slice(index_t first, index_t count) const noexcept { return with(by_expert.slice(first, count)); }

  index_t experts() const noexcept { return by_expert.experts(); }
  index_t begin() const noexcept { return by_expert.first_row(); }
  index_t end() const noexcept { return by_expert.last_row(); }
  index_t size() const noexcept { return by_expert.rows(); }
  index_t token(index_t i) const noexcept { return is_routed ? tokens[i] : i; }
  index_t target(index_t i) const noexcept { return targets == nullptr ? token(i) : targets[i]; }
  Scalar weight(index_t i) const noexcept { return weights == nullptr ? Scalar(1) : weights[i]; }
  Scalar input_scale(index_t i) const noexcept { return input_scales == nullptr ? Scalar(1) : input_scales[i]; }

private:
  routed_rows with(const expert_rows& some) const noexcept {
    routed_rows part = *this;
    part.by_expert = some;
    return part;
  }
};

}  // namespace sluice::inline SLUICE_ISA
