/// Dense routing plan: every routed token goes to every expert, with a weight of its own for each.
///
///   tokens T, experts E, of the tokens n are routed; padding and invalid tokens are not
///   row e n + j: the j-th routed token at expert e            weights [E,n]: those of an expert stand together
///   y[t] = sum over e of weight(e, j) * f_e(x[t]),  t = routed_tokens()[j]
///
/// It is to gates that use every expert what sparse_plan is to those that choose: nothing is sorted, and as long as the
/// same tokens are routed only the weights change from batch to batch. A bank runs it like any other (routed()). A
/// token with NaN in its logits is invalid: its output is NaN. A token that is not routed has output zero. A plan is a
/// value, as sparse_plan is.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/checked_size.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/expert_rows.hpp>
#include <sluice/core/routed_rows.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <span>

namespace sluice::inline SLUICE_ISA {

/// Gradients with respect to a dense plan, one entry a row in plan order.
template <FloatOrDouble Scalar>
struct dense_plan_gradient {
  buffer<Scalar> weight;
  buffer<Scalar> input_scale;  ///< empty: inputs are as they are
};

template <FloatOrDouble Scalar>
class dense_plan {
public:
  using scalar = Scalar;
  using gradient = dense_plan_gradient<Scalar>;

  /// Empties the plan for a batch. Memory is kept, and made for all T tokens at every expert.
  void reset(index_t tokens, index_t experts) {
    if (tokens < 0 || experts < 1)
      throw_invalid("a plan needs T >= 0 and E >= 1, not T = ", tokens, " and E = ", experts);
    const index_t most = checked_product(tokens, experts);
    tokens_ = tokens;
    experts_ = experts;
    is_finished_ = false;
    routed_.clear();
    invalid_.clear();
    routed_.reserve(tokens);
    invalid_.reserve(tokens);
    token_.reserve(most);
    weight_.reserve(most);
    offsets_.reserve(experts + 1);
  }

  /// Routes a token, to every expert.
  void add(index_t token) { routed_.push_back(token); }
  /// Marks a token whose logits held NaN.
  void mark_invalid(index_t token) { invalid_.push_back(token); }

  /// Lays out the rows; call it once after the last add, then write the weights, which are unset. Throws
  /// std::invalid_argument if a token is outside T: a router's mistake must not become a write outside the layer's
  /// memory.
  void finish() {
    for (const auto* list : {&routed_, &invalid_})
      for (const index_t token : *list)
        if (token < 0 || token >= tokens_) throw_invalid("a plan cannot route token ", token, " with T = ", tokens_);
    const index_t n = routed_.size();
    weight_.resize(n * experts_);
    is_finished_ = true;
    const bool is_laid_out = token_.size() == n * experts_ && offsets_.size() == experts_ + 1 &&
                             std::equal(routed_.begin(), routed_.end(), token_.begin());
    if (is_laid_out) return;
    token_.resize(n * experts_);
    offsets_.resize(experts_ + 1);
    for (index_t e = 0; e < experts_; ++e) {
      offsets_[e] = e * n;
      std::copy(routed_.begin(), routed_.end(), token_.begin() + e * n);
    }
    offsets_[experts_] = experts_ * n;
  }

  index_t tokens() const noexcept { return tokens_; }
  index_t experts() const noexcept { return experts_; }
  index_t rows() const noexcept { return by_expert().rows(); }
  /// The most rows that a batch of this size can have.
  index_t most_rows() const noexcept { return tokens_ * experts_; }
  /// Who has which rows. Of no experts before finish().
  expert_rows by_expert() const noexcept { return is_finished_ ? expert_rows(offsets_.span()) : expert_rows(); }

  std::span<const index_t> routed_tokens() const noexcept { return routed_.span(); }
  std::span<const index_t> invalid_tokens() const noexcept { return invalid_.span(); }

  /// The row of the j-th routed token at an expert.
  index_t row(index_t expert, index_t j) const noexcept { return expert * routed_.size() + j; }
  Scalar& weight(index_t expert, index_t j) noexcept { return weight_[row(expert, j)]; }
  Scalar weight(index_t expert, index_t j) const noexcept { return weight_[row(expert, j)]; }
  /// All weights, in the order of the rows.
  std::span<Scalar> weights() noexcept { return weight_.span(); }
  std::span<const Scalar> weights() const noexcept { return weight_.span(); }

  /// What a bank needs to run the plan.
  routed_rows<Scalar> routed() const noexcept { return {by_expert(), true, token_.data(), weight_.data(), nullptr}; }

  /// The weights as [T,E]: zero for tokens that are not routed.
  matrix<Scalar> dense_weights() const {
    matrix<Scalar> dense = matrix<Scalar>::Zero(tokens_, experts_);
    for (index_t j = 0; j < routed_.size(); ++j)
      for (index_t e = 0; e < experts_; ++e) dense(routed_[j], e) = weight(e, j);
    return dense;
  }

private:
  index_t tokens_ = 0;
  index_t experts_ = 0;
  bool is_finished_ = false;
  buffer<index_t> routed_;
  buffer<index_t> invalid_;
  buffer<index_t> offsets_;  ///< E + 1
  buffer<index_t> token_;    ///< of each row; a change of the routed tokens lays it out again
  buffer<Scalar> weight_;
};

}  // namespace sluice::inline SLUICE_ISA
