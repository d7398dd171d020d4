/// Expert-preferred router: experts fill their shares of a group in turn, the last expert first; each token has one.
///
///   L = gate(X) [T,E]   p = softmax(L[t])   budgets k[e] = floor(share[e] T)   T without padding and NaN tokens
///   for e = E-1 ... 1: expert e takes the k[e] tokens with the largest p[t,e] that nobody has taken
///   expert 0 takes the rest                         w = p[t,e] of the expert that a token has
///
/// Made for experts of growing cost, such as MoNE's nested ones (expert/nested_bank.hpp): the largest is given its
/// tokens first, and nothing is dropped. Equal p: the lower token. The gradient, the assignment being constant, is that
/// of a softmax, dl[j] = w g (1[j = e] - p[j]). The choice looks at the whole group: not causal. Training and inference
/// are alike; other shares may be used at any time (set_shares), so one model runs at many costs.
///
/// MoNE routes once, in front of its first layer, and weighs a branch by 1 + alpha p with alpha learned from 0: a
/// residual_weights_router (router/residual_weights.hpp) around this one. Later layers run on the same plan
/// (forward_planned). nested_shares() turns an effective capacity into shares.
/// Jain et al. 2024, "Mixture of Nested Experts: Adaptive Processing of Visual Tokens", arXiv:2407.19985.
#pragma once

#include <sluice/capacity/dropless.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/router/experts_choose/token_queues.hpp>
#include <sluice/router/token_choice.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// How nested_shares() divides.
struct nested_share_options {
  double delta = 2;  ///< each expert counts so many times as much as the one before it; the paper prints 1/2
  double beta = 10;  ///< weight of the entropy: how even shares are
};

/// Shares c[0..E) of nested experts of relative costs d[i] = 2^(i-E+1) that cost `effective` together: they maximise
/// sum of c[i] delta^i + beta H(c) under sum c = 1 and sum c d = effective. c = softmax((delta^i + mu d) / beta), mu by
/// bisection. Throws std::invalid_argument unless d[0] < effective < 1 and E >= 2, delta and beta > 0.
inline std::vector<double> nested_shares(index_t experts, double effective, nested_share_options o = {}) {
  if (experts < 2 || experts > 60 || !is_between(o.delta, 1e-3, 1e3) || !is_between(o.beta, 1e-3, 1e6))
    throw_invalid("nested shares need E = 2 to 60, delta = 0.001 to 1000 and beta > 0, not E = ", experts,
                  ", delta = ", o.delta, ", beta = ", o.beta);
  const double smallest = std::ldexp(1.0, 1 - static_cast<int>(experts));
  if (is_nan(effective) || !(effective > smallest && effective < 1))
    throw_invalid("an effective capacity of E = ", experts, " nested experts lies between ", smallest,
                  " and 1, not at ", effective);
  const auto count = static_cast<std::size_t>(experts);
  std::vector<double> shares(count);
  const auto cost_at = [&](double mu) {
    double largest = 0, sum = 0, cost = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const double d = std::ldexp(1.0, static_cast<int>(i) + 1 - static_cast<int>(experts));
      shares[i] = (std::pow(o.delta, static_cast<double>(i)) + mu * d) / o.beta;
      largest = i == 0 ? shares[i] : (std::max)(largest, shares[i]);
    }
    for (double& share : shares) sum += share = std::exp(share - largest);
    for (std::size_t i = 0; i < count; ++i) {
      shares[i] /= sum;
      cost += shares[i] * std::ldexp(1.0, static_cast<int>(i) + 1 - static_cast<int>(experts));
    }
    return cost;
  };
  double low = -1, high = 1;  // the cost grows with mu
  while (cost_at(low) > effective && low > -1e300) low *= 2;
  while (cost_at(high) < effective && high < 1e300) high *= 2;
  for (int step = 0; step < 200; ++step) {
    const double middle = low + (high - low) / 2;
    (cost_at(middle) < effective ? low : high) = middle;
  }
  cost_at(high);
  return shares;
}

/// The rule of expert-preferred routing.
template <FloatOrDouble Scalar>
class expert_preferred_rule {
public:
  using candidate = token_candidate<Scalar>;
  struct tape {
    buffer<candidate> queue;
  };

  /// One share an expert, each >= 0, at most 1 together up to rounding; that of expert 0 is not looked at otherwise.
  explicit expert_preferred_rule(std::vector<double> shares) { set_shares(std::move(shares)); }

  index_t top_k() const noexcept { return 1; }
  const std::vector<double>& shares() const noexcept { return shares_; }

  /// Throws std::invalid_argument if they are no shares.
  void set_shares(std::vector<double> shares) {
    double sum = 0;
    for (const double share : shares) {
      if (is_nan(share) || share < 0 || share > 1) throw_invalid("an expert's share of the tokens cannot be ", share);
      sum += share;
    }
    if (sum > 1 + 1e-3) throw_invalid("experts cannot share ", sum, " of the tokens, only 1");
    shares_ = std::move(shares);
  }

  void validate(index_t experts) const {
    if (static_cast<index_t>(shares_.size()) != experts)
      throw_invalid("there are shares for ", shares_.size(), " experts, the router has E = ", experts);
  }
  void validate_call(const choice_call<Scalar>& call) const {
    validate(call.experts);
    if (call.k != 1) throw_invalid("every token has one nested expert; the call asks for k = ", call.k);
  }

  void score(const choice_row<Scalar>& row, Scalar* scores) const { kernel::softmax(row.logits, scores, row.experts); }

  void reserve(const choice_call<Scalar>& call, tape& t) const { t.queue.reserve(call.tokens); }
  void assign(const choice_batch<Scalar>& batch, choice_table<Scalar>& choices, tape& t) const {
    const auto tokens = static_cast<index_t>(batch.routable.size());
    t.queue.resize(tokens);
    for (index_t i = 0; i < tokens; ++i) t.queue[i].token = batch.routable[static_cast<std::size_t>(i)];
    candidate* first = t.queue.begin();  // of those that nobody has taken
    for (index_t e = batch.experts - 1; e > 0; --e) {
      const double budget = shares_[static_cast<std::size_t>(e)] * static_cast<double>(tokens);
      const index_t count = (std::min)(static_cast<index_t>(budget), t.queue.end() - first);
      for (candidate* c = first; c != t.queue.end(); ++c) c->key = order_key(batch.scores(c->token, e));
      std::partial_sort(first, first + count, t.queue.end());
      for (candidate* const end = first + count; first != end; ++first) choices.ids(first->token)[0] = e;
    }
    for (; first != t.queue.end(); ++first) choices.ids(first->token)[0] = 0;
  }

  void weigh(const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) const {
    weights[0] = row.scores[ids[0]];
  }
  void backward(const choice_row<Scalar>& row, const weighed_experts<Scalar>& weighed, Scalar* dlogits) const {
    const Scalar inner = weighed.weights[0] * weighed.dweights[0];
    dlogits[weighed.ids[0]] += inner;
    for (index_t e = 0; e < row.experts; ++e) dlogits[e] -= row.scores[e] * inner;
  }

private:
  std::vector<double> shares_;
};

/// sluice::expert_preferred_router<float> router(64, sluice::nested_shares(4, 0.3));
template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>, typename Noise = no_noise<Scalar>>
class expert_preferred_router : public token_choice_router<GateType, expert_preferred_rule<Scalar>, Noise> {
  using base = token_choice_router<GateType, expert_preferred_rule<Scalar>, Noise>;

public:
  /// A linear gate with a bias.
  expert_preferred_router(index_t inputs, std::vector<double> shares)
    requires std::same_as<GateType, linear_gate<Scalar>>
      : expert_preferred_router(GateType(inputs, static_cast<index_t>(shares.size()), {.bias = true}), shares) {}
  expert_preferred_router(GateType gate, std::vector<double> shares, Noise noise = {})
      : base(std::move(gate), expert_preferred_rule<Scalar>(std::move(shares)), std::move(noise)) {}
};

static_assert(explain_choice_rule<expert_preferred_rule<float>, float>());
static_assert(DifferentiableRouter<expert_preferred_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
