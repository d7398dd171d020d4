/// Product-key router: each head sends a token to the k best of n² experts, found by looking at 2n keys.
///
///   x [T,D]   query_weight [2·heads·d, D], outputs ordered (half, head, d)   keys [heads, n, 2, d]
///   q = x query_weight^T;   score_h(i n + j) = <q[0,h], keys[h,i,0]> + <q[1,h], keys[h,j,1]>;   S = the k best
///   w = softmax of the scores over S (the choices of a head compete), or max(score, 0)
///
/// The search is exact (gate/product_keys.hpp). Equal scores: the lower expert. A NaN in a token, among its
/// similarities or among its k best scores makes it invalid. Padding is not routed and may hold anything. T = 0 gives
/// an empty plan.
/// Heads choose on their own and may agree: equal choices of a token share one assignment with the sum of their weights
/// (joined_choices.hpp). With separate_experts, head h has experts h n² ... of its own, heads·n² in all.
/// Choices of weight max(score, 0) = 0 send no output and no gradient and are left out of the plan.
/// Work per token is 2·heads·n·d for the search and 2·heads·d·D for the queries, whatever E is; of length E are only
/// the counters of the statistics. For one token that is the time to read keys and query_weight. For many, which share
/// that reading, it is arithmetic: with D = 512, n = 1024, 8 heads 6.3 million products, against 16 · 8 · 2 · D =
/// 131072 numbers of single-neuron experts that are a token's own. Initial values: query_weight normal with deviation
/// 1/sqrt(D), keys 0.02. He 2024 (PEER), arXiv:2407.04153.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/token_screen.hpp>
#include <sluice/gate/product_keys.hpp>
#include <sluice/kernel/linear.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/router/tokens_choose/joined_choices.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

/// What the heads chose: column h·k + rank, best first. Padding has no_expert.
template <FloatOrDouble Scalar>
struct product_key_signals {
  index_t heads = 0;
  index_t top_k = 0;              ///< experts per head of this call
  matrix_buffer<index_t> expert;  ///< i n + j, without the offset of separate experts
  matrix_buffer<Scalar> scores;
  matrix_buffer<Scalar> weights;
};

template <FloatOrDouble Scalar>
struct product_key_gradients {
  matrix_buffer<Scalar> scores;  ///< from losses and callers, besides what comes through the weights

  void zero_like(const product_key_signals<Scalar>& seen) {
    scores.set_zero(seen.scores.rows(), seen.scores.cols());
  }
};

enum class product_key_weights { softmax, relu };

template <FloatOrDouble Scalar>
class product_key_router {
public:
  using scalar = Scalar;
  using plan = sparse_plan<Scalar>;

  struct options {
    index_t heads = 8;
    index_t top_k = 16;      ///< experts per head
    index_t key_width = 0;   ///< d; 0 means D/2
    index_t candidates = 0;  ///< keys of each half that are paired; 0 means min(k, n). Fewer make the search inexact
    product_key_weights weights = product_key_weights::softmax;
    bool separate_experts = false;
  };

  struct tape {
    product_key_signals<Scalar> seen;
    product_key_gradients<Scalar> dseen;
    token_screen<Scalar> screen;    ///< who is routed, and what the queries are made of
    matrix_buffer<Scalar> queries;  ///< [T, 2·heads·d]
    joined_choices place;           ///< which assignment of its token a choice has
    typename product_keys<Scalar>::tape search;
    matrix_buffer<Scalar> dscores;
    matrix_buffer<Scalar> dqueries;
  };

  /// n keys a half, hence n² experts (times heads if separate). Throws std::invalid_argument if a count is below 1,
  /// k > n², or the candidates are more than n or too few for k pairs.
  product_key_router(index_t inputs, index_t keys, options o = {})
      : options_(o), keys_(o.heads, keys, o.key_width == 0 ? (std::max<index_t>)(1, inputs / 2) : o.key_width) {
    if (inputs < 1) throw_invalid("product_key_router needs D >= 1, not ", inputs);
    if (o.candidates < 0) throw_invalid("product_key_router cannot pair ", o.candidates, " candidates");
    validate_call(o.top_k);
    query_weight_ = {{2 * heads() * keys_.width(), inputs},
                     parameter_role::weight,
                     initial_values::normal(1 / std::sqrt(static_cast<double>(inputs)))};
  }

  index_t inputs() const noexcept { return query_weight_.cols(); }
  index_t experts() const noexcept { return options_.separate_experts ? heads() * keys_.pairs() : keys_.pairs(); }
  index_t heads() const noexcept { return keys_.heads(); }
  index_t top_k() const noexcept { return options_.top_k; }

  void route(tokens_in<Scalar> x, const routing_context<Scalar>& context, plan& p, tape& t) const {
    check_tokens(x, inputs(), context);
    const index_t k = context.top_k == 0 ? top_k() : context.top_k;
    validate_call(k);
    t.seen.heads = heads();
    t.seen.top_k = k;
    t.queries.resize(x.rows(), query_weight_.rows());
    t.screen.score(
        x, context,
        [&](tokens_in<Scalar> seen) {
          linear_forward(seen, query_weight_, t.queries.map(), context.executor);
          keys_.search(t.queries, k, candidates(k), t.seen.expert, t.seen.scores, t.search, context.executor);
        },
        [&](index_t token) { return t.search.invalid[token] != 0; });
    t.seen.weights.resize(x.rows(), heads() * k);
    t.place.resize(x.rows(), heads() * k);
    context.executor.parallel_each(x.rows(), 16 * t.place.choices(), [&](index_t token) {
      if (t.screen.is_routed(token))
        weigh(t.seen, token);
      else
        erase(t.seen, token);
      join(t, token);
    });
    fill(t, p);
  }

  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<Scalar> dx) {
    t.dscores = t.dseen.scores;
    context.executor.parallel_each(x.rows(), 16 * t.place.choices(),
                                   [&](index_t token) { add_score_gradients(p, dplan, t, token); });
    keys_.backward(t.queries, t.seen.expert, t.dscores, t.dqueries, context.executor);
    linear_backward(t.screen.of(x), query_weight_, t.dqueries.map(), dx, context.executor);
  }

  /// s1 (half 0) or s2 (half 1) of one head for all tokens of the last call, [T,n]: route() does not keep them.
  matrix<Scalar> similarities(const tape& t, index_t head, index_t half) const {
    if (head < 0 || head >= heads() || half < 0 || half > 1)
      throw_invalid("there is no half ", half, " of head ", head, " among ", heads(), " heads");
    matrix<Scalar> out(t.queries.rows(), keys_.keys());
    keys_.similarities(t.queries, head, half, 0, out.rows(), out.data());
    return out;
  }

  parameter<Scalar>& query_weight() noexcept { return query_weight_; }
  parameter<Scalar>& keys() noexcept { return keys_.array(); }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("query_weight", self.query_weight_);
    visit("keys", self.keys_.array());
  }

private:
  index_t candidates(index_t k) const noexcept {
    return options_.candidates == 0 ? (std::min)(k, keys_.keys()) : options_.candidates;
  }
  void validate_call(index_t k) const { keys_.validate(k, candidates(k)); }

  static void erase(product_key_signals<Scalar>& s, index_t token) {
    std::fill_n(s.expert.row(token), s.expert.cols(), no_expert);
    std::fill_n(s.scores.row(token), s.scores.cols(), Scalar(0));
    std::fill_n(s.weights.row(token), s.weights.cols(), Scalar(0));
  }

  void weigh(product_key_signals<Scalar>& s, index_t token) const {
    for (index_t first = 0; first < s.scores.cols(); first += s.top_k) {
      const Scalar* scores = s.scores.row(token) + first;
      Scalar* weights = s.weights.row(token) + first;
      if (options_.weights == product_key_weights::softmax)
        kernel::softmax(scores, weights, s.top_k);
      else
        for (index_t r = 0; r < s.top_k; ++r) weights[r] = scores[r] < 0 ? Scalar(0) : scores[r];
    }
  }

  /// Heads with experts of their own never agree.
  index_t block(index_t k) const noexcept { return options_.separate_experts ? heads() * k : k; }

  void join(tape& t, index_t token) const {
    t.place.join(token, t.seen.expert.row(token), block(t.seen.top_k), [&](index_t s) {
      const bool is_zero = options_.weights == product_key_weights::relu && t.seen.weights(token, s) == Scalar(0);
      return t.seen.expert(token, s) != no_expert && !is_zero;
    });
  }

  void fill(const tape& t, plan& p) const {
    const index_t k = t.seen.top_k;
    p.reset(t.place.tokens(), experts(), t.place.tokens() * t.place.choices());
    for (index_t token = 0; token < t.place.tokens(); ++token) {
      const Scalar* weights = t.seen.weights.row(token);
      t.place.for_each_place(token, [&](index_t place, index_t s) {
        const Scalar weight = t.place.sum(token, s, block(k), [&](index_t choice) { return weights[choice]; });
        const index_t first_expert = options_.separate_experts ? s / k * keys_.pairs() : 0;
        p.add(token, first_expert + t.seen.expert(token, s), weight, place);
      });
      if (t.screen.is_invalid(token)) p.mark_invalid(token);
    }
    p.finish();
  }

  /// Adds what comes through the weights to dscores.
  void add_score_gradients(const plan& p, const typename plan::gradient& dplan, tape& t, index_t token) const {
    const index_t k = t.seen.top_k;
    const auto own = p.of_token(token);
    const auto dweight = [&](index_t s) {
      const index_t place = t.place(token, s);
      return place < 0 ? Scalar(0) : dplan.weight[own[static_cast<std::size_t>(place)]];
    };
    for (index_t first = 0; first < t.place.choices(); first += k) {
      if (options_.weights == product_key_weights::relu) {
        for (index_t s = first; s < first + k; ++s) t.dscores(token, s) += dweight(s);
        continue;
      }
      const Scalar* w = t.seen.weights.row(token);
      Scalar inner = 0;
      for (index_t s = first; s < first + k; ++s) inner += w[s] * dweight(s);
      for (index_t s = first; s < first + k; ++s) t.dscores(token, s) += w[s] * (dweight(s) - inner);
    }
  }

  options options_;
  product_keys<Scalar> keys_;
  parameter<Scalar> query_weight_;
};

static_assert(DifferentiableRouter<product_key_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
