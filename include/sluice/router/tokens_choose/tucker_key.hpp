/// Tucker product-key router: each head takes k of n² pairs of keys, weighed by their scores, one for each of M cores.
///
///   x [T,D]   query_weight [2d, D]   (q1, q2) = x query_weight^T, for all heads   scores, search: gate/tucker_keys.hpp
///   experts M n²: expert m n² + i n + j has for every token that chose (i, j) the weight score_m(i n + j), raw
///
/// UltraMem's memory layer. There a pair is a value of a table, cut into M pieces: piece m is the expert m n² + pair,
/// which puts out that piece whatever the token is (expert/value_table.hpp, with implicit value expansion).
/// Heads choose on their own and may agree; equal choices of a token share M assignments with the sums of their
/// weights (joined_choices.hpp). Weights may be negative and do not sum to 1. The search rests on u and v, which
/// router.keys().update_vectors() makes anew from the cores, before training and now and then within it; core_penalty
/// is a loss on parameters, to be called beside backward. A token with NaN, or among whose similarities or scores there
/// is NaN, is invalid. Padding is not routed. Equal scores: the lower pair. T = 0 gives an empty plan. Work per token
/// 2 heads n r d, and as much a call for the norm of the keys, which folded() does away with. Initial values:
/// query_weight normal with deviation 1/sqrt(D).
/// Huang et al. 2024, "Ultra-Sparse Memory Network", arXiv:2411.12364.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/token_screen.hpp>
#include <sluice/gate/tucker_keys.hpp>
#include <sluice/kernel/linear.hpp>
#include <sluice/router/tokens_choose/joined_choices.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

/// What the heads chose: column h·k + rank, best first, and for each M scores. Padding has no_expert.
template <FloatOrDouble Scalar>
struct tucker_key_signals {
  matrix_buffer<index_t> pair;
  matrix_buffer<Scalar> scores;
};

template <FloatOrDouble Scalar>
struct tucker_key_gradients {
  matrix_buffer<Scalar> scores;  ///< from losses and callers, besides what comes through the weights

  void zero_like(const tucker_key_signals<Scalar>& seen) { scores.set_zero(seen.scores.rows(), seen.scores.cols()); }
};

template <FloatOrDouble Scalar, RowNorm QueryNorm = rms_norm<Scalar>, RowNorm KeyNorm = QueryNorm>
class tucker_key_router {
public:
  using scalar = Scalar;
  using plan = sparse_plan<Scalar>;

  struct options {
    index_t heads = 2;
    index_t top_k = 16;     ///< pairs per head
    index_t key_width = 0;  ///< d; 0 means D/2
    index_t rank = 2;       ///< r
    index_t cores = 1;      ///< M
  };

  struct tape {
    tucker_key_signals<Scalar> seen;
    tucker_key_gradients<Scalar> dseen;
    token_screen<Scalar> screen;    ///< who is routed, and what the queries are made of
    matrix_buffer<Scalar> queries;  ///< [T, 2d]
    joined_choices place;           ///< which of its token's pairs a choice is
    typename tucker_keys<Scalar, QueryNorm, KeyNorm>::tape search;
    matrix_buffer<Scalar> dscores;
    matrix_buffer<Scalar> dqueries;
  };

  /// n keys a half, hence M n² experts. Norms of queries and keys have width d. Throws std::invalid_argument if a count
  /// is below 1 or k > min(k, n)².
  tucker_key_router(index_t inputs, index_t keys, options o, QueryNorm query_norm, KeyNorm key_norm)
      : options_(o),
        keys_(o.heads, keys, width_of(inputs, o), o.rank, o.cores, std::move(query_norm), std::move(key_norm)) {
    if (inputs < 1) throw_invalid("tucker_key_router needs D >= 1, not ", inputs);
    keys_.validate(o.top_k, candidates(o.top_k));
    query_weight_ = {{2 * keys_.width(), inputs},
                     parameter_role::weight,
                     initial_values::normal(1 / std::sqrt(static_cast<double>(inputs)))};
  }
  tucker_key_router(index_t inputs, index_t keys, options o = {})
      : tucker_key_router(inputs, keys, o, QueryNorm(width_of(inputs, o)), KeyNorm(width_of(inputs, o))) {}

  index_t inputs() const noexcept { return query_weight_.cols(); }
  index_t experts() const noexcept { return keys_.cores() * keys_.pairs(); }
  index_t top_k() const noexcept { return options_.top_k; }

  void route(tokens_in<Scalar> x, const routing_context<Scalar>& context, plan& p, tape& t) const {
    check_tokens(x, inputs(), context);
    const index_t k = context.top_k == 0 ? top_k() : context.top_k;
    keys_.validate(k, candidates(k));
    t.queries.resize(x.rows(), query_weight_.rows());
    t.screen.score(
        x, context,
        [&](tokens_in<Scalar> seen) {
          linear_forward(seen, query_weight_, t.queries.map(), context.executor);
          keys_.search(t.queries, k, candidates(k), t.seen.pair, t.seen.scores, t.search, context.executor);
        },
        [&](index_t token) { return t.search.invalid[token] != 0; });
    t.place.resize(x.rows(), t.seen.pair.cols());
    context.executor.parallel_each(x.rows(), 16 * t.place.choices(), [&](index_t token) { join(t, token, k); });
    fill(t, k, p);
  }

  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<Scalar> dx) {
    const index_t M = keys_.cores();
    t.dscores = t.dseen.scores;
    for (index_t token = 0; token < x.rows(); ++token) {
      const auto own = p.of_token(token);
      for (index_t c = 0; c < t.place.choices(); ++c)
        for (index_t m = 0; m < M && t.place(token, c) >= 0; ++m)
          t.dscores(token, c * M + m) += dplan.weight[own[as_size(t.place(token, c) * M + m)]];
    }
    keys_.backward(t.queries, t.seen.pair, t.dscores, t.dqueries, t.search, context.executor);
    linear_backward(t.screen.of(x), query_weight_, t.dqueries.map(), dx, context.executor);
  }

  /// The same router, with the same bits, whose keys are normalised already: for inference, in which a call then reads
  /// keys for its search only.
  auto folded() const {
    tucker_key_router<Scalar, QueryNorm, no_norm<Scalar>> other(
        inputs(), keys_.keys(), {keys_.heads(), top_k(), keys_.width(), keys_.rank(), keys_.cores()});
    other.query_weight() = query_weight_;
    other.keys() = keys_.folded();
    return other;
  }

  parameter<Scalar>& query_weight() noexcept { return query_weight_; }
  tucker_keys<Scalar, QueryNorm, KeyNorm>& keys() noexcept { return keys_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("query_weight", self.query_weight_);
    visit("keys", self.keys_);
  }

private:
  static index_t width_of(index_t inputs, const options& o) {
    return o.key_width == 0 ? (std::max<index_t>)(1, inputs / 2) : o.key_width;
  }
  index_t candidates(index_t k) const noexcept { return (std::min)(k, keys_.keys()); }

  /// Who is not routed chose nothing.
  static void join(tape& t, index_t token, index_t k) {
    index_t* pair = t.seen.pair.row(token);
    if (t.screen.is_routed(token)) return t.place.join(token, pair, k, [](index_t) { return true; });
    std::fill_n(pair, t.seen.pair.cols(), no_expert);
    std::fill_n(t.seen.scores.row(token), t.seen.scores.cols(), Scalar(0));
    t.place.leave_out(token);
  }

  void fill(const tape& t, index_t k, plan& p) const {
    const index_t M = keys_.cores();
    p.reset(t.place.tokens(), experts(), t.place.tokens() * t.place.choices() * M);
    for (index_t token = 0; token < t.place.tokens(); ++token) {
      t.place.for_each_place(token, [&](index_t place, index_t first) {
        for (index_t m = 0; m < M; ++m) {
          const Scalar weight =
              t.place.sum(token, first, k, [&](index_t choice) { return t.seen.scores(token, choice * M + m); });
          p.add(token, m * keys_.pairs() + t.seen.pair(token, first), weight, place * M + m);
        }
      });
      if (t.screen.is_invalid(token)) p.mark_invalid(token);
    }
    p.finish();
  }

  options options_;
  tucker_keys<Scalar, QueryNorm, KeyNorm> keys_;
  parameter<Scalar> query_weight_;
};

static_assert(DifferentiableRouter<tucker_key_router<float>>);
static_assert(DifferentiableRouter<tucker_key_router<double, layer_norm<double>>>);

}  // namespace sluice::inline SLUICE_ISA
