/// Soft routing plan: every slot is a mixture of the tokens of its group, every token a mixture of its group's slots.
///
///   T tokens in G groups, E experts with P slots each per group, S = E·P
///   dispatch [T,S], combine [T,S]; token t meets the S slots of its own group
///   z[e,g,p] = sum over tokens t of group g of dispatch[t, e·P+p] * x[t]      (rows of expert e: g-major, then p)
///   y[t]     = sum over s of combine[t,s] * f(z)[s of the group of t]
///
/// A token whose row of a matrix is all zero is left out of that sum, not multiplied by zero, so its NaN or garbage
/// (padding) reaches no slot. Invalid tokens (NaN in their logits) have both rows zero and output NaN. A plan is a
/// value: copy it, save it, look into it, change its matrices, use it again. Puigcerver et al. 2024, arXiv:2308.00951.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/context.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/expert_rows.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <concepts>
#include <span>

namespace sluice::inline SLUICE_ISA {

/// Gradients with respect to a soft plan, both [T,S].
template <FloatOrDouble Scalar>
struct soft_plan_gradient {
  matrix_buffer<Scalar> dispatch;
  matrix_buffer<Scalar> combine;
};

template <FloatOrDouble Scalar>
class soft_plan {
public:
  using scalar = Scalar;
  using gradient = soft_plan_gradient<Scalar>;

  /// Makes room for a batch; dispatch and combine are unset. Memory is kept.
  void reset(index_t tokens, index_t experts, index_t slots_per_expert, const routing_context<Scalar>& context) {
    if (tokens < 0 || experts < 1 || slots_per_expert < 1)
      throw_invalid("a soft plan needs T >= 0, E >= 1 and slots >= 1, not T = ", tokens, ", E = ", experts,
                    ", slots = ", slots_per_expert);
    experts_ = experts;
    slots_per_expert_ = slots_per_expert;
    groups_.clear();
    group_of_.resize(tokens);
    for (index_t g = 0; g < context.group_count(); ++g) {
      groups_.push_back(context.group(g, tokens));
      for (index_t t = groups_[g].begin; t < groups_[g].end; ++t) group_of_[t] = g;
    }
    offsets_.resize(experts + 1);
    for (index_t e = 0; e <= experts; ++e) offsets_[e] = e * groups_.size() * slots_per_expert;
    dispatch_.resize(tokens, experts * slots_per_expert);
    combine_.resize(tokens, experts * slots_per_expert);
    invalid_.clear();
    invalid_.reserve(tokens);
  }

  /// Marks a token whose logits held NaN and takes it out of every slot. Call it when the matrices have been filled.
  void mark_invalid(index_t token) {
    leave_out(token);
    invalid_.push_back(token);
  }
  /// Sets both rows of a token to zero: no slot sees it, and its output is zero.
  void leave_out(index_t token) noexcept {
    std::fill_n(dispatch_.row(token), slot_count(), Scalar(0));
    std::fill_n(combine_.row(token), slot_count(), Scalar(0));
  }

  index_t tokens() const noexcept { return dispatch_.rows(); }
  index_t experts() const noexcept { return experts_; }
  index_t slot_count() const noexcept { return experts_ * slots_per_expert_; }
  index_t slots_per_expert() const noexcept { return slots_per_expert_; }
  index_t rows() const noexcept { return groups_.size() * slot_count(); }
  /// The most rows that a batch of this size can have: always the same.
  index_t most_rows() const noexcept { return rows(); }
  std::span<const token_range> groups() const noexcept { return groups_.span(); }
  index_t group_of(index_t token) const noexcept { return group_of_[token]; }
  /// The row of slot s (0 .. E·P) of a group in the experts' input.
  index_t row(index_t group, index_t slot) const noexcept {
    return offsets_[slot / slots_per_expert_] + group * slots_per_expert_ + slot % slots_per_expert_;
  }
  /// Who has which rows. Every expert has as many.
  expert_rows by_expert() const noexcept { return offsets_.span(); }
  std::span<const index_t> invalid_tokens() const noexcept { return invalid_.span(); }

  matrix_buffer<Scalar>& dispatch() noexcept { return dispatch_; }
  const matrix_buffer<Scalar>& dispatch() const noexcept { return dispatch_; }
  matrix_buffer<Scalar>& combine() noexcept { return combine_; }
  const matrix_buffer<Scalar>& combine() const noexcept { return combine_; }

private:
  index_t experts_ = 0;
  index_t slots_per_expert_ = 0;
  buffer<token_range> groups_;
  buffer<index_t> group_of_;
  buffer<index_t> offsets_;
  matrix_buffer<Scalar> dispatch_;
  matrix_buffer<Scalar> combine_;
  buffer<index_t> invalid_;
};

}  // namespace sluice::inline SLUICE_ISA
