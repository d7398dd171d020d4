/// Top k whose weights are shares: how much of an expert a token has among those that stand at the same place.
///
///   p = softmax(L[t]);  S = the k largest of L[t]
///   w[t,e] = c p[t,e] / (sum of p[s,e] over the tokens s at t's place that chose e, itself too, + epsilon),  e in S
///   c = trunc(capacity_factor B)
///
/// The place of a token is its number in its sequence (context.sequences), B is the number of sequences that its group
/// has, and a sequence that does not reach the place has no part in the sum. Without sequences every token is one of
/// its own: all tokens of the group stand at one place. The sum of an expert's weights at a place is about c, whatever
/// the gate says, so that every expert is used to the same extent: Union of Experts' data selection. Nothing is
/// dropped.
///
/// Gradients, S a constant, d = the denominator:  dp[t,e] = c / d (g[t,e] - sum over s of g[s,e] p[s,e] / d), then the
/// softmax over all experts. Equal logits: the lower expert. Not causal. NaN, padding, T = 0 as in
/// router/token_choice.hpp; padding has no part in sums, but a sequence of padding counts in B. c < 1 throws. Yang et
/// al. 2025 (UoE), arXiv:2503.02495; released code.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/kernel/vector_math.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/weight_application.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <span>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class position_share_rule {
public:
  struct options {
    index_t top_k = 2;
    double capacity_factor = 1;
    Scalar epsilon = Scalar(1e-6);
  };

  /// Of one group.
  struct tape {
    buffer<index_t> place;              ///< [T] of the group's tokens
    matrix_buffer<Scalar> sums, pulls;  ///< [places,E] of p, and of g p
    index_t sequences = 0;              ///< B
  };

  /// Throws std::invalid_argument if an option makes no sense.
  explicit position_share_rule(options o) : options_(o) {
    if (!detail::is_usable(o.epsilon) || !(o.epsilon > Scalar(0)) || !detail::is_usable(o.capacity_factor) ||
        !(o.capacity_factor > 0))
      throw_invalid("shares need a capacity factor and an epsilon above 0, not ", o.capacity_factor, " and ",
                    o.epsilon);
  }

  index_t top_k() const noexcept { return options_.top_k; }

  void score(const choice_row<Scalar>& row, Scalar* scores) const { kernel::softmax(row.logits, scores, row.experts); }

  void reserve(const choice_call<Scalar>& call, tape& t) const {
    t.place.reserve(call.tokens);
    for (auto* m : {&t.sums, &t.pulls}) m->reserve(call.tokens, call.experts);
  }
  void assign(const choice_batch<Scalar>& batch, choice_table<Scalar>& choices, tape& t) const {
    for (const index_t token : batch.routable)
      kernel::top_k(batch.logits.row(token), batch.experts, batch.k, choices.ids(token));
    add_up(batch, choices, t);
    const Scalar factor = factor_of(t);
    for (const index_t token : batch.routable)
      for (index_t j = 0; j < batch.k; ++j) {
        const index_t e = choices.ids(token)[j];
        choices.weights(token)[j] = factor * batch.scores(token, e) / (t.sums(t.place[token], e) + options_.epsilon);
      }
  }

  /// All is done for the group together.
  void weigh(const choice_row<Scalar>&, std::span<const index_t>, Scalar*) const {}
  void backward(const choice_row<Scalar>&, const weighed_experts<Scalar>&, Scalar*) const {}

  void assign_backward(const choice_batch<Scalar>& batch, choice_table<Scalar>& choices,
                       const matrix_buffer<Scalar>& dweights, tape& t, matrix_buffer<Scalar>& dlogits) const {
    add_up(batch, choices, t);
    t.pulls.set_zero(t.sums.rows(), batch.experts);
    for (const index_t token : batch.routable)
      for (index_t j = 0; j < batch.k; ++j) {
        const index_t e = choices.ids(token)[j];
        t.pulls(t.place[token], e) += dweights(token, j) * batch.scores(token, e);
      }
    const Scalar factor = factor_of(t);
    for (const index_t token : batch.routable) {
      Scalar inner = 0;
      for (index_t j = 0; j < batch.k; ++j) {
        const index_t e = choices.ids(token)[j], place = t.place[token];
        const Scalar sum = t.sums(place, e) + options_.epsilon;
        const Scalar moved = batch.scores(token, e) * factor / sum * (dweights(token, j) - t.pulls(place, e) / sum);
        dlogits(token, e) += moved;
        inner += moved;
      }
      kernel::add_scaled(-inner, batch.scores.row(token), dlogits.row(token), batch.experts);
    }
  }

private:
  /// Places and the sums of what was chosen there.
  void add_up(const choice_batch<Scalar>& batch, choice_table<Scalar>& choices, tape& t) const {
    t.place.resize(batch.tokens);
    index_t places = 1;
    if (batch.context.sequences.empty()) {
      t.sequences = batch.group.size();
      std::fill_n(t.place.data() + batch.group.begin, batch.group.size(), index_t{0});
    } else {
      t.sequences = 0;
      for (index_t s = 0; s < batch.context.sequence_count(); ++s) {
        const token_range range = batch.context.sequence(s, batch.tokens);
        const index_t begin = (std::max)(range.begin, batch.group.begin), end = (std::min)(range.end, batch.group.end);
        if (begin >= end) continue;
        ++t.sequences;
        places = (std::max)(places, end - range.begin);
        for (index_t token = begin; token < end; ++token) t.place[token] = token - range.begin;
      }
    }
    t.sums.set_zero(places, batch.experts);
    for (const index_t token : batch.routable)
      for (index_t j = 0; j < batch.k; ++j) {
        const index_t e = choices.ids(token)[j];
        t.sums(t.place[token], e) += batch.scores(token, e);
      }
  }

  /// c
  Scalar factor_of(const tape& t) const {
    const double whole = std::trunc(options_.capacity_factor * static_cast<double>(t.sequences));
    if (whole < 1)
      throw_invalid("a capacity factor of ", options_.capacity_factor, " leaves nothing of ", t.sequences,
                    " sequences");
    return static_cast<Scalar>(whole);
  }

  options options_;
};

/// sluice::position_share_router<float> router{64, 8, {.top_k = 4}};
template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>>
class position_share_router : public token_choice_router<GateType, position_share_rule<Scalar>> {
  using base = token_choice_router<GateType, position_share_rule<Scalar>>;

public:
  using options = typename position_share_rule<Scalar>::options;

  /// A linear gate without bias.
  position_share_router(index_t inputs, index_t experts,
                        options o = {}) requires std::constructible_from<GateType, index_t, index_t>
      : position_share_router(GateType(inputs, experts), o) {}
  explicit position_share_router(GateType gate, options o = {})
      : base(std::move(gate), position_share_rule<Scalar>(o)) {}
};

static_assert(DifferentiableRouter<position_share_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
