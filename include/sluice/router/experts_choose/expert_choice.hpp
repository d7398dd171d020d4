/// Expert-choice router: every expert takes the C tokens of a group that like it most.
///
///   X [T,D]   gate E x D   L = gate(X) [T,E]   L' = noise(L)   p = softmax of L'[t] over the experts, or sigmoid(L')
///   expert e takes the C tokens with the largest p[t,e], best first (slots in that order)
///   y[t] = sum over the experts that took t of p[t,e] * f_e(x[t])          weights are not renormalised
///
/// C comes from the group's T without padding: C = ceil(cf T / E), where cf is the mean number of experts a token gets,
/// 2 in the paper (capacity_limit::vmoe, which can also raise it to a multiple); C < 1 throws, and C beyond the group's
/// tokens means all of them. The load is even by construction; a token may get no expert (output zero) or all of them.
/// Of a token's experts the one with the lowest index has rank 0.
/// Gradients, the choice being constant, with R the experts that took t and g the gradients of its weights:
///   softmax  dl[t,j] = p[t,j] (g[t,j] 1[j in R] - sum over R of p g)
///   sigmoid  dl[t,j] = p[t,j] (1 - p[t,j]) g[t,j] for j in R
///
/// Equal scores: the lower token. Padding is never taken, so an expert that runs out of tokens leaves slots empty. A
/// token with NaN among its logits counts as -infinity, is never taken either, and has output NaN. The choice depends
/// on all tokens of the group, later ones too: not causal. A call may not name a k.
/// Zhou et al. 2022, "Mixture-of-Experts with Expert Choice Routing", arXiv:2202.09368; noise and capacity
/// rounding as in V-MoE, arXiv:2106.05974; sigmoid scores as in MoMa, arXiv:2407.21770.
#pragma once

#include <sluice/capacity/capacity_limit.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/signals.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/token_screen.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/kernel/logistic.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/router/noise.hpp>

#include <algorithm>
#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, typename GateType = linear_gate<Scalar>, typename Noise = no_noise<Scalar>>
class expert_choice_router {
  static_assert(explain_differentiable_gate<GateType>());
  static_assert(explain_noise<Noise, Scalar>());

public:
  using scalar = Scalar;
  using plan = sparse_plan<Scalar>;
  static constexpr bool causal = false;
  static constexpr bool exact_gradient = has_exact_gradient<GateType>;

  enum class score { softmax, sigmoid };
  struct options {
    capacity_limit capacity = capacity_limit::vmoe(2.0, capacity_rounding::up, 0);
    score scores = score::softmax;
  };

  /// A token that an expert could take.
  struct candidate {
    ordered_bits<Scalar> key;
    index_t token;
    /// Best first; of equals the lower token.
    bool operator<(const candidate& other) const noexcept {
      return key != other.key ? key > other.key : token < other.token;
    }
  };

  struct tape {
    score_signals<Scalar> seen;
    score_gradients<Scalar> dseen;
    token_screen<Scalar> screen;  ///< who is routed, and what the gate saw
    typename GateType::tape gate;
    typename Noise::tape noise;
    matrix_buffer<Scalar> scores;  ///< p [T,E]
    matrix_buffer<Scalar> dnoisy;
    matrix_buffer<Scalar> dclean;
    matrix_buffer<candidate> queue;  ///< [E,T] scratch: the group's tokens, those that the expert takes in front
    buffer<index_t> valid;           ///< scratch: tokens of the group that may be taken
    buffer<index_t> rank;            ///< scratch: experts that each token has so far
  };

  /// A linear gate without bias.
  expert_choice_router(index_t inputs, index_t experts, options o = {})
    requires std::constructible_from<GateType, index_t, index_t>
      : expert_choice_router(GateType(inputs, experts), std::move(o)) {}
  explicit expert_choice_router(GateType gate, options o = {}, Noise noise = Noise{})
      : gate_(std::move(gate)), noise_(std::move(noise)), options_(std::move(o)) {}

  index_t inputs() const noexcept { return gate_.inputs(); }
  index_t experts() const noexcept { return gate_.experts(); }

  /// Tokens that expert e takes from a group with this many tokens.
  index_t capacity(index_t tokens, bool training, index_t e = 0) const {
    return (std::min)(tokens, options_.capacity.of({tokens, 1, experts(), training, tokens}, e));
  }

  void route(tokens_in<Scalar> x, const routing_context<Scalar>& context, plan& p, tape& t) const {
    check_tokens(x, inputs(), context);
    if (context.top_k != 0)
      throw_invalid("expert_choice_router has no k, its capacity says how much; the call asks for k = ", context.top_k);
    const index_t tokens = x.rows();
    detail::score_screened(gate_, noise_, x, context, t);
    score_tokens(context, t);
    p.reset(tokens, experts(), most_taken(context, tokens));
    t.rank.assign(tokens, 0);
    t.valid.reserve(tokens);
    t.queue.resize(experts(), tokens);
    for (index_t g = 0; g < context.group_count(); ++g) serve(context, context.group(g, tokens), p, t);
    for (index_t token = 0; token < tokens; ++token)
      if (t.screen.is_invalid(token)) p.mark_invalid(token);
    p.finish();
    // What losses may use as k: the mean number of experts a token got, rounded.
    t.seen.top_k = tokens == 0 ? 1 : (std::max<index_t>)(1, (2 * p.size() + tokens) / (2 * tokens));
  }

  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<Scalar> dx) {
    t.dnoisy = t.dseen.noisy_or_clean();
    context.executor.parallel_blocks(x.rows(), token_block, 8 * experts(), [&](index_t begin, index_t end) {
      for (index_t token = begin; token < end; ++token) {
        const Scalar* own = t.scores.row(token);
        Scalar* dl = t.dnoisy.row(token);
        Scalar inner = 0;
        for (const index_t i : p.of_token(token)) {
          const index_t e = p.expert(i);
          const Scalar slope = options_.scores == score::softmax ? Scalar(1) : 1 - own[e];
          dl[e] += own[e] * slope * dplan.weight[i];
          inner += own[e] * dplan.weight[i];
        }
        if (options_.scores == score::softmax && !p.of_token(token).empty())
          for (index_t e = 0; e < experts(); ++e) dl[e] -= own[e] * inner;
      }
    });
    t.screen.clear_hidden(t.dnoisy);
    t.dclean = t.dnoisy;
    if (t.seen.has_noise) {
      t.dclean.map() += t.dseen.clean.map();
      t.screen.clear_hidden(t.dclean);
      noise_.backward(t.screen.of(x), context, t.seen, t.dnoisy, t.dseen.noise_std, t.noise, dx);
    }
    gate_.backward(t.screen.of(x), context, t.dclean.map(), t.gate, dx);
  }

  GateType& gate() noexcept { return gate_; }
  const GateType& gate() const noexcept { return gate_; }
  Noise& noise() noexcept { return noise_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<GateType>) visit("gate", self.gate_);
    if constexpr (HasParameters<Noise>) visit("noise", self.noise_);
  }

private:
  static constexpr index_t token_block = 32;

  void score_tokens(const routing_context<Scalar>& context, tape& t) const {
    const matrix_buffer<Scalar>& logits = t.seen.noisy();
    t.scores.resize(logits.rows(), experts());
    context.executor.parallel_blocks(logits.rows(), token_block, 16 * experts(), [&](index_t begin, index_t end) {
      for (index_t token = begin; token < end; ++token) {
        const Scalar* row = logits.row(token);
        Scalar* own = t.scores.row(token);
        if (options_.scores == score::softmax)
          kernel::softmax(row, own, experts());
        else
          for (index_t e = 0; e < experts(); ++e) own[e] = kernel::logistic(row[e]);
      }
    });
  }

  /// What all experts take together if no token is padding.
  index_t most_taken(const routing_context<Scalar>& context, index_t tokens) const {
    index_t most = 0;
    for (index_t g = 0; g < context.group_count(); ++g) {
      const index_t size = context.group(g, tokens).size();
      for (index_t e = 0; e < experts(); ++e)
        most += (std::min)(size, options_.capacity.at({size, 1, experts(), context.training, size}, e));
    }
    return most;
  }

  /// All experts choose from one group.
  void serve(const routing_context<Scalar>& context, token_range group, plan& p, tape& t) const {
    index_t real = 0;
    t.valid.clear();
    for (index_t token = group.begin; token < group.end; ++token) {
      if (context.is_padding(token)) continue;
      ++real;
      if (t.screen.is_routed(token)) t.valid.push_back(token);
    }
    if (real == 0) return;
    const auto taken = [&](index_t e) { return (std::min)(capacity(real, context.training, e), t.valid.size()); };
    for (index_t e = 0; e < experts(); ++e) taken(e);  // throws here rather than in a task
    context.executor.for_work(4 * experts() * t.valid.size()).parallel_for(experts(), [&](index_t e) {
      candidate* queue = t.queue.row(e);
      for (index_t i = 0; i < t.valid.size(); ++i) queue[i] = {order_key(t.scores(t.valid[i], e)), t.valid[i]};
      // The order is total, so which candidates end up in front does not depend on the algorithm.
      std::partial_sort(queue, queue + taken(e), queue + t.valid.size());
    });
    for (index_t e = 0; e < experts(); ++e)
      for (index_t c = 0; c < taken(e); ++c) {
        const index_t token = t.queue(e, c).token;
        p.add(token, e, t.scores(token, e), t.rank[token]++);
      }
  }

  GateType gate_;
  Noise noise_;
  options options_;
};

static_assert(DifferentiableRouter<expert_choice_router<float>>);
static_assert(DifferentiableRouter<expert_choice_router<double, linear_gate<double>, gaussian_noise<double>>>);

}  // namespace sluice::inline SLUICE_ISA
