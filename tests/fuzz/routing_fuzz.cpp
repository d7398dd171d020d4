// Any bytes are a batch, its logits among them bit by bit, and a router: every rule of token choice with every gate,
// noise and capacity policy, and all routers that are classes of their own. Whatever the logits hold, NaN, infinities and
// ties too,
//   plans are consistent: ids in range, at most k distinct ones a token, experts' rows in order, capacities respected
//   choices and weights are those of the rule, worked out in double, and no weight of a valid token is NaN
//   invalid are the tokens with NaN, nobody else; neither what they hold nor what padding holds reaches anything
//   one thread and three give the same bits, forward and backward
//   backward gives finite numbers, and none for padding and invalid tokens
//   the layer's output is that of the readable reference, NaN for invalid tokens and nobody else
#include <sluice/core/numeric.hpp>
#include <sluice/exec/thread_pool.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/constant.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/reference/naive_moe.hpp>
#include <sluice/router/every_expert/dense.hpp>
#include <sluice/router/every_expert/dense_entmax.hpp>
#include <sluice/router/every_expert/dense_sigmoid.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/every_expert/gumbel_softmax.hpp>
#include <sluice/router/every_expert/soft_moe.hpp>
#include <sluice/router/experts_choose/expert_choice.hpp>
#include <sluice/router/experts_choose/expert_preferred.hpp>
#include <sluice/router/fixed/given.hpp>
#include <sluice/router/fixed/random_partition.hpp>
#include <sluice/router/masked/offered.hpp>
#include <sluice/router/over_training/compete.hpp>
#include <sluice/router/over_training/dense_to_sparse.hpp>
#include <sluice/router/over_training/dselect_k.hpp>
#include <sluice/router/over_training/mean_active.hpp>
#include <sluice/router/residual_weights.hpp>
#include <sluice/router/threshold/dynmoe.hpp>
#include <sluice/router/threshold/relu.hpp>
#include <sluice/router/tokens_choose/product_key.hpp>
#include <sluice/router/tokens_choose/tucker_key.hpp>
#include <sluice/train/conformance/plan_words.hpp>

#include "../router/any_router.hpp"
#include "byte_reader.hpp"
#include "routing_cases.hpp"

#include <cmath>
#include <limits>
#include <optional>
#include <vector>

using namespace sluice;
using namespace sluice::test;

namespace {

using context_t = routing_context<float>;
using sparse = sparse_plan<float>;
using soft = soft_plan<float>;
using dense = dense_plan<float>;
using any_sparse = any_router<float, sparse>;
using any_soft = any_router<float, soft>;
using any_dense = any_router<float, dense>;

constexpr double eps = std::numeric_limits<float>::epsilon();

bool is_finite(float v) {
  return (std::abs)(order_key(v)) < order_key(std::numeric_limits<float>::infinity()) && !is_nan(v);
}
template <typename Numbers>
bool all_finite(const Numbers& numbers) {
  return std::all_of(numbers.begin(), numbers.end(), is_finite);
}
bool all_finite(const matrix<float>& m) { return std::all_of(m.data(), m.data() + m.size(), is_finite); }
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}
bool same_bits(const matrix<float>& a, const matrix<float>& b) {
  return a.rows() == b.rows() && a.cols() == b.cols() &&
         (a.size() == 0 || std::memcmp(a.data(), b.data(), as_size(a.size()) * sizeof(float)) == 0);
}

// ---- three threads --------------------------------------------------------------------------------------------------

/// Cuts work as three threads would, and runs the parts one after another from the last to the first.
struct three_in_turn {
  template <typename Body>
  void parallel_for(index_t n, Body&& body) {
    for (index_t task = n - 1; task >= 0; --task) body(task);
  }
  index_t concurrency() const noexcept { return 3; }
  index_t smallest_work() const noexcept { return 0; }
};

/// Three threads, which cost more to wake than most cases to run.
struct three_threads : thread_pool {
  three_threads() : thread_pool(3) {}
  index_t smallest_work() const noexcept { return 0; }
};

// ---- the batch ------------------------------------------------------------------------------------------------------

/// One byte a common number, so that ties are common, or a marker and four bytes of any bit pattern.
float draw_logit(byte_reader& bytes) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  constexpr float most = (std::numeric_limits<float>::max)();
  constexpr float special[] = {0, -0.0F, 1, -1, inf, -inf, most, -most, 1e-45F, 88, -88, 1e20F, -1e20F, 104, -104};
  const std::uint8_t b = bytes.byte();
  if (b < std::size(special)) return special[b];
  if (b == std::size(special)) return quiet_nan<float>();
  return b < 192 ? static_cast<float>(b - 104) / 16 : bytes.bits<float>();
}

struct batch {
  index_t tokens, experts, width;
  matrix<float> features;  ///< [T,E] what the gates of most routers take for logits
  matrix<float> x;         ///< [T,D]
  std::vector<std::uint8_t> mask;
  std::vector<index_t> groups;
  matrix<float> previous;          ///< [T,E] logits of the layer before, for gates that read them
  std::vector<index_t> token_ids, modality_ids;  ///< for routers that read them
  matrix<index_t> expert_ids;      ///< [T,K] for routers that follow
  bool training;
  random_source random;
  bool is_wild = false;  ///< x may hold infinities and numbers whose squares overflow

  explicit batch(byte_reader& bytes) {
    constexpr index_t counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17, 33};
    tokens = bytes.below(11);
    experts = bytes.one_of(counts);
    width = bytes.between(1, 5);
    const std::uint8_t flags = bytes.byte();
    training = flags & 1;
    random = random_source(bytes.byte());
    x = matrix<float>(tokens, width);
    bit_stream bits(bytes.byte());
    for (index_t i = 0; i < x.size(); ++i)
      x.data()[i] = flags & 2 ? std::nearbyint(float(bits.uniform())) : float(bits.uniform());
    if (flags & 4 && tokens > 0) x(bytes.byte() % tokens, bytes.byte() % width) = quiet_nan<float>();
    if (flags & 8)
      for (index_t t = 0; t < tokens; ++t) mask.push_back(bytes.below(4) != 1);
    if (flags & 16) {
      groups = {0, tokens};
      for (index_t cuts = bytes.below(3); cuts > 0; --cuts) groups.push_back(bytes.byte() % (tokens + 1));
      std::sort(groups.begin(), groups.end());
    }
    features = matrix<float>(tokens, experts);
    for (index_t i = 0; i < features.size(); ++i) features.data()[i] = draw_logit(bytes);
    if (flags & 32)  // tokens that are all alike
      for (index_t t = 1; t < tokens; ++t) features.row(t) = features.row(0);
  }
  /// x of any bits as well, for routers that read it themselves.
  void make_wild(byte_reader& bytes) {
    is_wild = true;
    for (index_t i = 0; i < x.size(); ++i) x.data()[i] = draw_logit(bytes);
  }
  void draw_previous(byte_reader& bytes) {
    previous = matrix<float>(tokens, experts);
    bit_stream bits(bytes.byte());
    for (index_t i = 0; i < previous.size(); ++i) previous.data()[i] = float(bits.uniform());
    if (bytes.flag() && tokens > 0) previous(bytes.byte() % tokens, bytes.byte() % experts) = quiet_nan<float>();
  }

  context_t context(executor_ref executor = {}) const {
    context_t c;
    c.training = training, c.random = random, c.token_mask = mask, c.groups = groups, c.features = features;
    c.token_ids = token_ids, c.modality_ids = modality_ids;
    if (expert_ids.cols() > 0) c.expert_ids = expert_ids;
    if (previous.cols() > 0) c.previous_logits = previous;
    c.executor = executor;
    return c;
  }
  bool is_padding(index_t t) const { return !mask.empty() && mask[as_size(t)] == 0; }
  bool holds_nan(index_t t, bool reads_features) const {
    return any_nan(&x(t, 0), width) || (reads_features && any_nan(&features(t, 0), experts)) || previous_holds_nan(t);
  }
  bool previous_holds_nan(index_t t) const { return previous.cols() > 0 && any_nan(&previous(t, 0), experts); }
  /// The same batch, but padding and tokens that hold NaN hold something else.
  batch with_other_garbage() const {
    batch other = *this;
    for (index_t t = 0; t < tokens; ++t) {
      const float filler = is_padding(t) ? (t % 2 == 0 ? quiet_nan<float>() : 1e30F) : quiet_nan<float>();
      if (is_padding(t) || any_nan(&x(t, 0), width)) other.x.row(t).setConstant(filler);
      if (is_padding(t) || any_nan(&features(t, 0), experts)) other.features.row(t).setConstant(filler);
      if (previous.cols() > 0 && (is_padding(t) || previous_holds_nan(t))) other.previous.row(t).setConstant(filler);
      for (auto* ids : {&other.token_ids, &other.modality_ids})
        if (!ids->empty() && is_padding(t)) (*ids)[as_size(t)] = t % 2 == 0 ? -1 : 1000000;
      if (expert_ids.cols() > 0 && is_padding(t)) other.expert_ids.row(t).setConstant(1000000);
    }
    return other;
  }
};

// ---- one call of a router -------------------------------------------------------------------------------------------

template <typename Plan>
struct outcome {
  Plan plan;
  any_router_tape<float> tape;
  std::vector<float> words;  ///< all that the plan says
  matrix<float> dx;
  matrix<float> dlogits;  ///< of a gate that reads features
  std::vector<float> gradients;
};

void draw_gradient(const sparse& plan, bit_stream& bits, sparse::gradient& g) {
  g.weight.resize(plan.size());
  g.input_scale.resize(plan.has_input_scale() ? plan.size() : 0);
  for (auto* numbers : {&g.weight, &g.input_scale})
    for (float& v : *numbers) v = static_cast<float>(bits.uniform());
}
void draw_gradient(const dense& plan, bit_stream& bits, dense::gradient& g) {
  g.weight.resize(plan.rows());
  for (float& v : g.weight) v = static_cast<float>(bits.uniform());
}
void draw_gradient(const soft& plan, bit_stream& bits, soft::gradient& g) {
  for (auto* m : {&g.dispatch, &g.combine}) {
    m->resize(plan.tokens(), plan.slot_count());
    for (index_t i = 0; i < m->size(); ++i) m->data()[i] = static_cast<float>(bits.uniform());
  }
}

template <typename Plan>
outcome<Plan> call(const any_router<float, Plan>& original, const batch& b, const context_t& context,
                   matrix<float>* dlogits) {
  any_router<float, Plan> router = original;
  outcome<Plan> o;
  check_context(context, b.tokens);
  router.route(b.x, context, o.plan, o.tape);
  o.words = sluice::detail::words_of(o.plan);
  if (b.is_wild) return o;  // numbers that overflow have no finite gradient
  o.tape.dseen.zero_like(o.tape.seen);
  typename Plan::gradient gradient;
  bit_stream bits(7);
  draw_gradient(o.plan, bits, gradient);
  o.dx = matrix<float>::Zero(b.tokens, b.width);
  ensure_gradients(router);
  router.backward(b.x, context, o.plan, gradient, o.tape, o.dx);
  if (dlogits != nullptr) o.dlogits = *dlogits;
  o.gradients = sluice::detail::parameter_gradients(router);
  return o;
}

/// What holds for every router and plan: equal bits for any threads, whatever hidden tokens hold, and finite gradients.
template <typename Plan>
outcome<Plan> check_call(byte_reader& bytes, const any_router<float, Plan>& router, const batch& b, index_t top_k,
                         matrix<float>* dlogits) {
  static three_threads threads;
  three_in_turn in_turn;
  context_t context = b.context();
  context.top_k = top_k;
  outcome<Plan> o = call(router, b, context, dlogits);

  const batch other = b.with_other_garbage();
  context_t threaded = other.context(bytes.below(64) == 1 ? executor_ref(threads) : executor_ref(in_turn));
  threaded.top_k = top_k;
  const outcome<Plan> again = call(router, other, threaded, dlogits);
  demand(same_bits(o.words, again.words));
  demand(same_bits(o.dx, again.dx) && same_bits(o.dlogits, again.dlogits) && same_bits(o.gradients, again.gradients));

  demand(o.plan.tokens() == b.tokens && o.plan.experts() == b.experts);
  index_t rows = 0, next_expert = 0;
  for (const auto& [expert, begin, end] : o.plan.by_expert()) {
    demand(expert >= next_expert && expert < b.experts && begin == rows && end > begin);
    next_expert = expert + 1;
    rows = end;
  }
  demand(rows == o.plan.rows() && o.plan.by_expert().experts() == b.experts);

  std::vector<std::uint8_t> is_hidden(as_size(b.tokens), 0);
  for (const index_t t : o.plan.invalid_tokens()) {
    demand(t >= 0 && t < b.tokens && is_hidden[as_size(t)] == 0 && !b.is_padding(t));
    is_hidden[as_size(t)] = 1;
  }
  for (index_t t = 0; t < b.tokens; ++t) {
    if (!b.is_padding(t) && b.holds_nan(t, dlogits != nullptr)) demand(is_hidden[as_size(t)] != 0);
    if (b.is_padding(t)) is_hidden[as_size(t)] = 1;
  }
  if (b.is_wild) return o;
  demand(all_finite(o.dx) && all_finite(o.dlogits) && all_finite(o.gradients));
  for (index_t t = 0; t < b.tokens; ++t) {
    if (is_hidden[as_size(t)] == 0) continue;
    demand(o.dx.row(t).isZero(0));
    if (o.dlogits.size() > 0) demand(o.dlogits.row(t).isZero(0));
  }
  return o;
}

/// Tokens with NaN are invalid and nobody else is.
template <typename Plan>
void check_only_nan_is_invalid(const outcome<Plan>& o, const batch& b, bool reads_features) {
  for (const index_t t : o.plan.invalid_tokens()) demand(b.holds_nan(t, reads_features));
}

/// A sparse plan lists every assignment once by expert and once by token, and a token has at most k experts, all
/// different, kept and dropped ones together.
void check_consistency(const outcome<sparse>& o, const batch& b, index_t most_choices) {
  const sparse& plan = o.plan;
  std::vector<index_t> asked(as_size(b.tokens * b.experts), 0), of_token(as_size(b.tokens), 0);
  for (index_t e = 0; e < b.experts; ++e)
    for (index_t i = plan.by_expert().of(e).begin; i < plan.by_expert().of(e).end; ++i) {
      demand(plan.expert(i) == e && plan.token(i) >= 0 && plan.token(i) < b.tokens);
      ++asked[as_size(plan.token(i) * b.experts + e)];
      ++of_token[as_size(plan.token(i))];
      demand(!is_nan(plan.weight(i)) && !is_nan(plan.input_scale(i)));
    }
  for (const auto& d : plan.dropped()) {
    demand(d.token >= 0 && d.token < b.tokens && d.expert >= 0 && d.expert < b.experts && !is_nan(d.weight));
    ++asked[as_size(d.token * b.experts + d.expert)];
    ++of_token[as_size(d.token)];
  }
  for (const index_t times : asked) demand(times <= 1);
  index_t listed = 0;
  for (index_t t = 0; t < b.tokens; ++t) {
    demand(of_token[as_size(t)] <= most_choices);
    if (b.is_padding(t) || b.holds_nan(t, false)) demand(of_token[as_size(t)] == 0);
    index_t last_rank = -1;
    for (const index_t i : plan.of_token(t)) {
      demand(plan.token(i) == t && plan.rank(i) > last_rank);
      last_rank = plan.rank(i);
      ++listed;
    }
  }
  demand(listed == plan.size());
  for (const index_t t : plan.invalid_tokens()) demand(of_token[as_size(t)] == 0);
}

// ---- the layer ------------------------------------------------------------------------------------------------------

using bank = expert_bank<ffn<float>>;
using mixed_bank = expert_union<bank, expert_bank<constant_expert<float>>, expert_bank<identity_expert<float>>>;

template <typename Experts>
Experts filled(byte_reader& bytes, Experts experts) {
  bit_stream bits(bytes.byte());
  sluice::detail::for_each_unnamed_parameter(experts,
                                             [&](auto& p) { p.fill([&](index_t) { return float(bits.uniform()); }); });
  return experts;
}

/// Of three experts or more, some each.
mixed_bank draw_mixed_bank(byte_reader& bytes, const batch& b, index_t hidden) {
  const index_t first = bytes.between(1, b.experts - 2), second = bytes.between(1, b.experts - first - 1);
  return filled(bytes, mixed_bank(bank(first, ffn<float>(b.width, hidden, {.bias = bytes.flag()})),
                                  expert_bank<constant_expert<float>>(second, b.width),
                                  expert_bank<identity_expert<float>>(b.experts - first - second, b.width)));
}

/// How large |y| and its rounding error can be: |W| <= 1 and |x| <= 1, so an expert's hidden numbers are at most (D +
/// 1) s and its outputs at most H (D + 1) s + 1 with inputs times s. Sums of T, D, H and K terms round once a term.
/// Outputs of constant experts and copies are smaller.
double error_bound(const sparse& plan, index_t inputs, index_t hidden, index_t t) {
  double bound = 0;
  const double d = double(inputs), h = double(hidden);
  for (const index_t i : plan.of_token(t))
    bound +=
        std::abs(double(plan.weight(i))) * (h * (d + 1) * std::max(1.0, std::abs(double(plan.input_scale(i)))) + 1);
  return 2 * (d + h + double(plan.of_token(t).size()) + 8) * eps * bound;
}
double error_bound(const dense& plan, index_t inputs, index_t hidden, index_t) {
  const double d = double(inputs), h = double(hidden);
  return 2 * (d + h + double(plan.experts()) + 8) * eps * (h * (d + 1) + 1);
}
double error_bound(const soft& plan, index_t inputs, index_t hidden, index_t) {
  const double d = double(inputs), h = double(hidden);
  return 2 * (double(plan.tokens()) + d + h + double(plan.slot_count()) + 8) * eps * (h * (d + 1) + 1);
}

/// Inference against the reference, and a step of training.
template <typename Router, typename Experts>
void check_layer_of(const Router& router, const Experts& experts, index_t hidden, const batch& b, index_t top_k) {
  moe_layer layer{router, experts};
  typename decltype(layer)::workspace workspace;
  matrix<float> y(b.tokens, layer.outputs());
  context_t context = b.context();
  context.top_k = top_k;
  layer.forward(b.x, y, workspace, context);
  const auto expected = reference::forward(workspace.plan, layer.bank(), b.x);
  const auto invalid = workspace.plan.invalid_tokens();
  for (index_t t = 0; t < b.tokens; ++t) {
    const bool is_invalid = std::find(invalid.begin(), invalid.end(), t) != invalid.end();
    const double bound = error_bound(workspace.plan, b.width, hidden, t);
    for (index_t d = 0; d < y.cols(); ++d) {
      if (is_invalid)
        demand(is_nan(y(t, d)));
      else if (bound < 1e30)  // else a weight or its product with an output is infinite
        demand(!is_nan(y(t, d)) && std::abs(double(y(t, d)) - double(expected.y(t, d))) <= bound);
      if (b.is_padding(t)) demand(y(t, d) == 0);
    }
  }
  // In other tasks, the same bits.
  three_in_turn in_turn;
  matrix<float> again(b.tokens, layer.outputs());
  context.executor = in_turn;
  layer.forward(b.x, again, workspace, context);
  demand(same_bits(y, again));

  for (const float w : sluice::detail::words_of(workspace.plan))
    if (!is_finite(w) || std::abs(w) > 1e6F) return;  // what follows from infinite weights is not finite
  typename decltype(layer)::tape tape;
  matrix<float> dy(b.tokens, layer.outputs()), dx(b.tokens, b.width);
  bit_stream bits(3);
  for (index_t i = 0; i < dy.size(); ++i) dy.data()[i] = float(bits.uniform());
  layer.forward(b.x, y, tape, context);
  for (const float w : sluice::detail::words_of(tape.plan))
    if (!is_finite(w) || std::abs(w) > 1e6F) return;
  layer.backward(dy, dx, tape);
  demand(all_finite(dx) && all_finite(sluice::detail::parameter_gradients(layer)));
  for (index_t t = 0; t < b.tokens; ++t)
    if (b.is_padding(t) || b.holds_nan(t, false)) demand(dx.row(t).isZero(0));
}

/// Of every fourth case.
template <typename Router>
void check_layer(byte_reader& bytes, const Router& router, const batch& b, index_t top_k) {
  if (b.is_wild || bytes.below(4) != 1) return;
  const index_t hidden = bytes.between(1, 9);
  if constexpr (std::same_as<Router, any_sparse>)
    if (b.experts >= 3 && bytes.flag())
      return check_layer_of(router, draw_mixed_bank(bytes, b, hidden), hidden, b, top_k);
  const ffn<float> expert(b.width, hidden, {.outputs = bytes.between(1, 6), .bias = bytes.flag()});
  check_layer_of(router, filled(bytes, bank(b.experts, expert)), hidden, b, top_k);
}

// ---- token choice ---------------------------------------------------------------------------------------------------

struct drawn_k {
  index_t own;
  index_t of_call;  ///< 0: the rule's own
  index_t used() const { return of_call == 0 ? own : of_call; }
};
drawn_k draw_k(byte_reader& bytes, index_t least, index_t most) {
  const index_t own = bytes.between(least, most);
  return {own, bytes.flag() ? bytes.between(least, most) : 0};
}

group_limit draw_groups(byte_reader& bytes, index_t experts) {
  group_limit limit;
  limit.groups = bytes.between(1, (std::min<index_t>)(experts, 4));
  while (experts % limit.groups != 0) --limit.groups;
  limit.kept = bytes.between(1, limit.groups);
  if (experts / limit.groups >= 2 && bytes.flag()) limit.score = group_limit::group_score::sum_of_two;
  return limit;
}
index_t room(const group_limit& limit, index_t experts) {
  return limit.limits() ? limit.kept * (experts / limit.groups) : experts;
}

/// k under the limit, and whether every kept group gives as many of it.
drawn_k draw_k(byte_reader& bytes, index_t experts, group_limit& limit) {
  const drawn_k k = draw_k(bytes, index_t(1), room(limit, experts));
  limit.evenly = k.own % limit.kept == 0 && k.of_call % limit.kept == 0 && bytes.flag();
  return k;
}

choice_policy<float> draw_policy(byte_reader& bytes) {
  constexpr further_choices policies[] = {further_choices::random, further_choices::all, further_choices::none,
                                          further_choices::threshold};
  constexpr float thresholds[] = {0.2F, 0, 0.5F, 1};
  return {.policy = bytes.one_of(policies),
          .threshold = {bytes.one_of(thresholds)},
          .sampled = bytes.flag(),
          .one_draw_a_group = bytes.flag()};
}

any_rule draw_rule(byte_reader& bytes, const batch& b, drawn_k& k) {
  constexpr float scalings[] = {1, 2.5F, -1};
  constexpr float guards[] = {0, 1e-20F, 1e-9F, 0.5F};
  const auto weights = [&](expert_scores scores) {
    return sigmoid_rule<float>(b.experts, {.top_k = k.own, .renormalize = false, .selection_bias = false, .scores = scores});
  };
  switch (bytes.below(b.experts < 2 ? 15 : 16)) {
    case 0: {
      constexpr weighting weightings[] = {weighting::pre, weighting::post, weighting::renorm};
      softmax_rule<float>::options o{.weights = bytes.one_of(weightings), .constant_weight = true};
      o.smallest_sum = bytes.one_of(guards), o.added_to_sum = bytes.one_of(guards), o.scaling = bytes.one_of(scalings);
      o.groups = draw_groups(bytes, b.experts);
      k = draw_k(bytes, b.experts, o.groups);
      o.top_k = k.own;
      return any_rule(softmax_rule<float>(o));
    }
    case 1: {
      constexpr expert_scores scores[] = {expert_scores::sigmoid, expert_scores::sqrt_softplus, expert_scores::softmax};
      sigmoid_rule<float>::options o{
          .renormalize = bytes.flag(), .constant_weight = true, .selection_bias = bytes.flag()};
      o.added_to_sum = bytes.one_of(guards), o.smallest_sum = bytes.one_of(guards), o.scaling = bytes.one_of(scalings);
      o.scores = bytes.one_of(scores);
      o.groups = draw_groups(bytes, b.experts);
      k = draw_k(bytes, b.experts, o.groups);
      o.top_k = k.own;
      sigmoid_rule<float> rule(b.experts, o);
      bit_stream bits(bytes.byte());
      for (float& v : rule.bias()) v = float(bits.uniform());
      return any_rule(std::move(rule));
    }
    case 2: {
      constexpr float jitters[] = {0.01F, 0, 0.5F, 100};
      k = draw_k(bytes, 1, b.experts);
      return any_rule(sparse_mixer_rule<float>(
          {.top_k = k.own,
           .jitter = bytes.one_of(jitters),
           .version = bytes.flag() ? sparse_mixer_version::one : sparse_mixer_version::two}));
    }
    case 3: {
      k = draw_k(bytes, 1, b.experts);
      moe_plus_plus_rule<float>::options o{.top_k = k.own, .constant_weight = true};
      o.weights = bytes.flag() ? moe_plus_plus_weights::mixtral : moe_plus_plus_weights::released;
      o.zero_experts = bytes.between(0, b.experts);
      if (b.experts >= 2 && bytes.flag()) o.target_deviation = 1;
      return any_rule(moe_plus_plus_rule<float>(o));
    }
    case 4:
      k = draw_k(bytes, 1, b.experts);
      return any_rule(balanced_rule<float>{k.own, bytes.flag()});
    case 5: {
      constexpr weighting weightings[] = {weighting::pre, weighting::post, weighting::renorm};
      constexpr float thresholds[] = {0.9F, 0, 0.4F, 1};
      k = draw_k(bytes, 1, b.experts);
      return any_rule(top_p_rule<float>(
          b.experts, {.threshold = bytes.one_of(thresholds), .top_k = k.own, .weights = bytes.one_of(weightings)}));
    }
    case 6: {
      constexpr float ratios[] = {0.5F, 0, 1, 0.01F};
      k = draw_k(bytes, 1, b.experts);
      return any_rule(skipping_rule<float>(softmax_rule<float>({.top_k = k.own, .constant_weight = true}),
                                           {.ratio = bytes.one_of(ratios), .in_training = bytes.flag()}));
    }
    case 7: {
      k = draw_k(bytes, 1, b.experts);
      const sinkhorn_options forms[] = {sinkhorn_options::vmoe(), sinkhorn_options::megatron(),
                                        sinkhorn_options::blackmamba(), sinkhorn_options::s_base()};
      const sinkhorn_options form = bytes.one_of(forms);
      const bool by_entries = bytes.flag() && !form.subtracts;
      return any_rule(any_rule::sinkhorn_rule(sinkhorn_coupling<float>(form), weights(expert_scores::softmax),
                                              {.top_k = k.own,
                                               .training_only = !by_entries && bytes.flag(),
                                               .weigh_by_coupling = by_entries,
                                               .weigh_clean = bytes.flag()}));
    }
    case 8:
      k = draw_k(bytes, 1, b.experts);
      return any_rule(any_rule::sparse_rule(sparse_row_coupling<float>(), weights(expert_scores::softmax),
                                            {.top_k = k.own, .weigh_clean = bytes.flag()}));
    case 9:
      k = draw_k(bytes, 1, 1);
      return any_rule(balanced_assignment_rule<float>(b.experts));
    case 10:
      k = draw_k(bytes, 1, b.experts);
      return any_rule(straight_through_rule<float>(b.experts, {.top_k = k.own}));
    case 11:
      k = draw_k(bytes, 1, b.experts);
      k.of_call = k.own;  // it has no smaller one
      return any_rule(chosen_ranks_rule<float>(softmax_rule<float>({.top_k = k.own, .constant_weight = true}), {k.own - 1}));
    case 12: {
      constexpr float epsilons[] = {1e-6F, 1e-30F, 1};
      k = draw_k(bytes, 1, b.experts);
      return any_rule(position_share_rule<float>({.top_k = k.own, .epsilon = bytes.one_of(epsilons)}));
    }
    case 13:
      k = draw_k(bytes, 1, b.experts);
      return any_rule(score_weighted_rule<float>({.top_k = k.own}));
    case 14: {
      constexpr weighting weightings[] = {weighting::pre, weighting::post, weighting::renorm};
      k = draw_k(bytes, 1, b.experts);
      const softmax_rule<float> rule({.top_k = k.own, .weights = bytes.one_of(weightings), .constant_weight = true});
      return any_rule(drawn_tail_rule<float>(rule, bytes.between(1, k.own)));
    }
    default: {
      k = draw_k(bytes, 2, b.experts);
      gshard_rule<float>::options o{.top_k = k.own, .training = draw_policy(bytes), .inference = draw_policy(bytes)};
      o.smallest_sum = bytes.one_of(guards), o.added_to_sum = bytes.one_of(guards);
      return any_rule(gshard_rule<float>(o));
    }
  }
}

any_noise draw_noise(byte_reader& bytes, const batch& b) {
  switch (bytes.below(6)) {
    case 5:
      return any_noise(uniform_noise<float>(bytes.flag() ? 1.0F : 1e3F));
    case 3:
      return any_noise(gumbel_noise<float>());
    case 4:
      return any_noise(logistic_noise<float>(bytes.flag() ? 1.0F : 1e3F));
    case 1:
      return any_noise(gaussian_noise<float>(bytes.flag() ? 1.0F : 1e3F));
    case 2: {
      learned_noise<float> noise(b.width, b.experts);
      bit_stream bits(bytes.byte());
      for (float& v : noise.weight().value()) v = float(bits.uniform());
      return any_noise(std::move(noise));
    }
    default:
      return any_noise();
  }
}

capacity_limit draw_limit(byte_reader& bytes) {
  constexpr double factors[] = {1, 0.25, 1.25, 3};
  const double cf = bytes.one_of(factors);
  switch (bytes.below(7)) {
    case 0:
      return capacity_limit::fixed(bytes.between(1, 4), bytes.between(1, 4));
    case 1:
      return capacity_limit::vmoe(cf, bytes.flag() ? capacity_rounding::up : capacity_rounding::half_to_even)
          .at_least(1);
    case 2:
      return capacity_limit::gshard(cf, 1);
    case 3:
      return capacity_limit::st_moe(cf, 1);
    case 4:
      return capacity_limit::fastmoe(cf).at_least(1);
    case 5:
      return capacity_limit::token_fraction(cf);
    default:
      return capacity_limit::tutel(bytes.flag() ? -cf : bytes.flag() ? 0.0 : cf).at_least(1);
  }
}

struct drawn_capacity {
  any_capacity policy;
  std::optional<capacity_limit> limit;
};
drawn_capacity draw_capacity(byte_reader& bytes) {
  const index_t kind = bytes.below(5);
  if (kind == 0) return {any_capacity(), std::nullopt};
  const capacity_limit limit = draw_limit(bytes);
  switch (kind) {
    case 1:
      return {any_capacity(position_capacity(
                  limit, bytes.flag() ? position_order::by_token : position_order::by_rank)),
              limit};
    case 2:
      return {any_capacity(batch_priority_capacity(
                  limit, bytes.flag() ? batch_priority::sum_of_weights : batch_priority::best_score)),
              limit};
    case 3:
      return {any_capacity(probability_capacity(limit)), limit};
    default:
      return {any_capacity(random_capacity(limit)), limit};
  }
}

/// Of every expert in every group: never more than the limit, and nothing dropped below it.
void check_capacity(const outcome<sparse>& o, const batch& b, index_t k, const std::optional<capacity_limit>& limit) {
  if (!limit) {
    demand(o.plan.dropped().empty());
    return;
  }
  const context_t context = b.context();
  for (index_t g = 0; g < context.group_count(); ++g) {
    const token_range group = context.group(g, b.tokens);
    const auto is_in = [&](index_t t) { return t >= group.begin && t < group.end; };
    std::vector<index_t> kept(as_size(b.experts), 0), refused(as_size(b.experts), 0);
    capacity_request request{0, k, b.experts, b.training, 0};
    for (index_t t = group.begin; t < group.end; ++t) request.tokens += !b.is_padding(t);
    for (index_t i = 0; i < o.plan.size(); ++i)
      if (is_in(o.plan.token(i))) ++kept[as_size(o.plan.expert(i))];
    for (const auto& d : o.plan.dropped())
      if (is_in(d.token)) ++refused[as_size(d.expert)];
    index_t total = 0;
    for (std::size_t e = 0; e < kept.size(); ++e) {
      request.largest_load = (std::max)(request.largest_load, kept[e] + refused[e]);
      total += kept[e] + refused[e];
    }
    if (total == 0) continue;
    const index_t most = limit->of(request);
    for (std::size_t e = 0; e < kept.size(); ++e) demand(kept[e] == (std::min)(most, kept[e] + refused[e]));
  }
}

/// exp(v - largest) over its sum; infinities share the mass.
std::vector<double> exact_softmax(const float* row, const std::vector<index_t>& ids) {
  std::vector<double> p;
  index_t best = ids.front();
  for (const index_t e : ids)
    if (order_key(row[e]) > order_key(row[best])) best = e;
  double sum = 0;
  for (const index_t e : ids) {
    p.push_back(order_key(row[e]) == order_key(row[best]) ? 1.0 : std::exp(double(row[e]) - double(row[best])));
    sum += p.back();
  }
  for (double& v : p) v /= sum;
  return p;
}

std::vector<index_t> all_experts(index_t count) {
  std::vector<index_t> ids;
  for (index_t e = 0; e < count; ++e) ids.push_back(e);
  return ids;
}

/// A token's k best experts by the logits that its rule saw: the largest first, of equals the lower.
std::vector<index_t> best_experts(const float* row, index_t experts, index_t k) {
  std::vector<index_t> ids = all_experts(experts);
  std::stable_sort(ids.begin(), ids.end(), [&](index_t a, index_t b) { return order_key(row[a]) > order_key(row[b]); });
  ids.resize(as_size(k));
  return ids;
}

/// s / d for the scores of the weighed experts, d = max(sum, smallest) + added, 1 for 0. Rounding errors of 64 eps a
/// score are magnified by d; where little is left of the scores, weights are only checked to be within what they can
/// be.
void check_renormalized(const std::vector<double>& scores, double smallest, double added, double scaling,
                        const std::vector<float>& weights) {
  double sum = 0;
  for (const double s : scores) sum += s;
  const double guarded = (sum < smallest ? smallest : sum) + added;
  for (std::size_t j = 0; j < scores.size(); ++j) {
    demand(std::abs(double(weights[j])) <= std::abs(scaling) * (1 + 1e-4));
    if (guarded < 1e-3 || std::abs(sum - smallest) < 1e-3) continue;
    demand(std::abs(double(weights[j]) - scaling * scores[j] / guarded) <=
           64 * eps * double(scores.size() + 2) * (1 + sum) * std::abs(scaling) / (guarded * std::min(1.0, guarded)));
  }
}

/// The softmax weights of one token.
void check_weights(const float* logits, index_t experts, const std::vector<index_t>& ids,
                   const std::vector<float>& weights, const softmax_rule<float>::options& o) {
  const std::vector<double> p = exact_softmax(logits, all_experts(experts));
  std::vector<double> scores;
  for (const index_t e : ids) scores.push_back(p[as_size(e)]);
  const double scaling = o.scaling;
  switch (o.weights) {
    case weighting::renorm:
    case weighting::renorm_detached:
      return check_renormalized(scores, o.smallest_sum, o.added_to_sum, scaling, weights);
    case weighting::post:
      scores = exact_softmax(logits, ids);
      break;
    case weighting::pre:
      break;
    case weighting::one:
      scores.assign(ids.size(), 1.0);
      break;
  }
  for (std::size_t j = 0; j < ids.size(); ++j)
    demand(std::abs(double(weights[j]) - scaling * scores[j]) <= 64 * eps * std::abs(scaling));
}

/// Tokens of a group with the same scores have asked for the same experts.
void check_draws_of_groups(const outcome<sparse>& o, const batch& b, const gshard_rule<float>& rule, index_t k) {
  if (!(b.training ? rule.settings().training : rule.settings().inference).one_draw_a_group) return;
  const auto& choices = o.tape.choices;
  const context_t context = b.context();
  for (index_t g = 0; g < context.group_count(); ++g) {
    const token_range group = context.group(g, b.tokens);
    for (index_t t = group.begin; t < group.end; ++t)
      for (index_t other = group.begin; other < t; ++other) {
        const float *row = o.tape.seen.noisy().row(t), *same = o.tape.seen.noisy().row(other);
        const bool is_routed = choices.expert[t * k] != no_expert && choices.expert[other * k] != no_expert;
        if (!is_routed || std::memcmp(row, same, as_size(b.experts) * sizeof(float)) != 0) continue;
        for (index_t j = 0; j < k; ++j)
          demand(choices.expert[t * k + j] == choices.expert[other * k + j] &&
                 choices.asked[t * k + j] == choices.asked[other * k + j]);
      }
  }
}

void check_choices(const outcome<sparse>& o, const batch& b, const any_rule& rule, index_t k, bool of_kept) {
  const auto& choices = o.tape.choices;
  const auto* by_softmax = std::get_if<softmax_rule<float>>(&rule.held());
  const auto* with_drawn = std::get_if<drawn_tail_rule<float>>(&rule.held());
  if (with_drawn != nullptr) by_softmax = &with_drawn->inner();
  const bool by_scores = std::holds_alternative<score_weighted_rule<float>>(rule.held());
  const bool is_greedy = (by_softmax != nullptr && !by_softmax->settings().groups.limits()) || by_scores ||
                         std::holds_alternative<moe_plus_plus_rule<float>>(rule.held()) ||
                         (std::holds_alternative<sparse_mixer_rule<float>>(rule.held()) && !b.training);
  const index_t best = with_drawn != nullptr && b.training ? (std::max)(index_t{0}, k - with_drawn->drawn()) : k;
  demand(choices.top_k == k);
  if (const auto* by_draws = std::get_if<gshard_rule<float>>(&rule.held())) check_draws_of_groups(o, b, *by_draws, k);
  for (index_t t = 0; t < b.tokens; ++t) {
    const auto invalid = o.plan.invalid_tokens();
    if (b.is_padding(t) || std::find(invalid.begin(), invalid.end(), t) != invalid.end()) continue;
    const float* logits = o.tape.seen.noisy().row(t);
    std::vector<index_t> ids, weighed;
    std::vector<float> weights;
    for (index_t pair = t * k; pair < (t + 1) * k; ++pair) {
      const index_t e = choices.expert[pair];
      if (e == no_expert) continue;
      ids.push_back(e);
      if (of_kept && choices.kept[pair] == 0) continue;
      weighed.push_back(e);
      weights.push_back(choices.weight[pair]);
      demand(!is_nan(weights.back()));
    }
    if (is_greedy) {
      demand(index_t(ids.size()) == k);
      const std::vector<index_t> expected = best_experts(logits, b.experts, best);
      demand(std::equal(expected.begin(), expected.end(), ids.begin()));
    }
    for (std::size_t j = 0; by_scores && j < weighed.size(); ++j) demand(weights[j] == logits[weighed[j]]);
    if (by_softmax != nullptr && !weighed.empty())
      check_weights(logits, b.experts, weighed, weights, by_softmax->settings());
    if (std::holds_alternative<moe_plus_plus_rule<float>>(rule.held()) ||
        std::holds_alternative<gshard_rule<float>>(rule.held())) {
      double sum = 0;
      for (const float w : weights) {
        demand(w >= 0);
        sum += double(w);
      }
      demand(sum <= 1 + 1e-4);
    }
  }
}

struct drawn_gate {
  any_gate gate;
  bool reads_features = true;
};
drawn_gate draw_gate(byte_reader& bytes, batch& b, matrix<float>* dlogits) {
  const features_gate features(b.width, b.experts, dlogits);
  switch (bytes.below(16)) {
    case 1:
      return {any_gate(added_jitter_gate<features_gate>(features, bytes.flag() ? 0.5 : 0.0))};
    case 2:
      return {any_gate(scaled_jitter_gate<features_gate>(features, bytes.flag() ? 0.5 : 0.0))};
    case 3:
      if (b.experts < 2) return {any_gate(features)};
      return {any_gate(standardized_gate<features_gate>(features, bytes.flag() ? 1.0F : 100.0F))};
    case 4: {
      b.draw_previous(bytes);
      return {filled(bytes, any_gate(residual_gate<features_gate>(features)))};
    }
    case 5: {
      const linear_gate<float> linear(b.width, b.experts, {.bias = bytes.flag()});
      return {filled(bytes, any_gate(jittered_gate<linear_gate<float>>(linear, bytes.flag() ? 0.5 : 0.0))), false};
    }
    case 6: {
      const linear_gate<float> linear(b.width, b.experts);
      const rms_norm<float> norm(b.width, {.epsilon = 1e-3F});
      return {filled(bytes, any_gate(normalized_gate<linear_gate<float>, rms_norm<float>>(linear, norm))), false};
    }
    case 7:
      return {filled(bytes, any_gate(activated_gate<features_gate>(features)))};
    case 8:
      return {filled(bytes, any_gate(tempered_gate<linear_gate<float>>(linear_gate<float>(b.width, b.experts)))), false};
    case 9:
      return {filled(bytes, any_gate(frozen_gate<linear_gate<float>>(b.width, b.experts))), false};
    case 10:
      return {any_gate(random_gate<float>(b.width, b.experts)), false};
    case 11: {
      std::vector<std::uint8_t> connected(static_cast<std::size_t>(b.experts));
      for (auto& one : connected) one = bytes.flag();
      connected.back() = 1;
      return {any_gate(connected_gate<features_gate>(features, connected))};
    }
    case 12: {
      const linear_gate<float> linear(b.width, b.experts);
      return {filled(bytes, any_gate(per_group_gate<linear_gate<float>>(linear))), false};
    }
    case 13:
      return {any_gate(noisy_gate<features_gate>(features, {.temperature = 0.5F, .noise_std = 0.5F}))};
    case 14:
      return {filled(bytes, any_gate(neuron_magnitude_gate<float>(b.width, b.experts))), false};
    case 15: {
      const linear_gate<float> linear(b.width, b.experts, {.bias = bytes.flag()});
      const rms_norm<float> norm(b.width, {.epsilon = 1e-3F});
      return {filled(bytes, any_gate(normalized_weights_gate<float, rms_norm<float>>(linear, norm))), false};
    }
    default:
      return {any_gate(features)};
  }
}

struct drawn_engine {
  any_token_choice router;
  drawn_k k;
  std::optional<capacity_limit> limit;
  bool reads_features;
};
drawn_engine draw_engine(byte_reader& bytes, batch& b, matrix<float>* dlogits) {
  drawn_gate gate = draw_gate(bytes, b, dlogits);
  drawn_k k{};
  any_rule rule = draw_rule(bytes, b, k);
  any_noise noise = draw_noise(bytes, b);
  drawn_capacity capacity = draw_capacity(bytes);
  constexpr weight_use uses[] = {weight_use::output, weight_use::input, weight_use::straight_through};
  const weight_application<float> application{
      .use = bytes.one_of(uses), .input_factor = bytes.flag() ? 2.0F : 1.0F, .renormalize_after_drop = bytes.flag()};
  return {any_token_choice(std::move(gate.gate), std::move(rule), std::move(noise), std::move(capacity.policy),
                           application),
          k, capacity.limit, gate.reads_features};
}

void check_token_choice(byte_reader& bytes, batch& b) {
  matrix<float> dlogits;
  const drawn_engine engine = draw_engine(bytes, b, &dlogits);
  const any_sparse router(engine.router);
  const index_t k = engine.k.used();
  const auto o = check_call(bytes, router, b, engine.k.of_call, engine.reads_features ? &dlogits : nullptr);
  check_consistency(o, b, k);
  if (!o.tape.seen.has_noise) check_only_nan_is_invalid(o, b, engine.reads_features);
  check_capacity(o, b, k, engine.limit);
  check_choices(o, b, engine.router.rule(), k, engine.router.application().renormalize_after_drop);
  for (index_t i = 0; i < o.plan.size(); ++i) {
    const float w = o.tape.choices.weight[o.plan.token(i) * k + o.plan.rank(i)];
    demand(o.plan.weight(i) == engine.router.application().on_output(w));
    demand(o.plan.input_scale(i) == engine.router.application().on_input(w));
  }
  check_layer(bytes, router, b, engine.k.of_call);
}

void check_compete(byte_reader& bytes, batch& b) {
  matrix<float> dlogits;
  const drawn_engine engine = draw_engine(bytes, b, &dlogits);
  const compete_router router(engine.router, {.responses = bytes.flag() ? response::norm : response::mean_softplus,
                                              .frequency = bytes.flag() ? 1.0 : 0.5});
  const auto o = check_call(bytes, any_sparse(router), b, engine.k.of_call, engine.reads_features ? &dlogits : nullptr);
  check_consistency(o, b, router.competes(b.context()) ? b.experts : engine.k.used());
  if (!o.tape.seen.has_noise) check_only_nan_is_invalid(o, b, engine.reads_features);
  check_layer(bytes, router, b, engine.k.of_call);
}

any_weights draw_weights(byte_reader& bytes, index_t experts, index_t k) {
  switch (bytes.below(3)) {
    case 0:
      return any_weights(even_weights<float>());
    case 1:
      return any_weights(softmax_rule<float>(
          {.top_k = k, .weights = bytes.flag() ? weighting::post : weighting::renorm, .constant_weight = true}));
    default: {
      constexpr expert_scores scores[] = {expert_scores::sigmoid, expert_scores::sqrt_softplus, expert_scores::softmax};
      return any_weights(sigmoid_rule<float>(experts, {.top_k = k,
                                                       .renormalize = bytes.flag(),
                                                       .constant_weight = true,
                                                       .selection_bias = false,
                                                       .scores = bytes.one_of(scores)}));
    }
  }
}

/// Experts are those of the row of the token's id, in its order.
void check_hash(byte_reader& bytes, batch& b) {
  matrix<float> dlogits;
  const index_t ids = bytes.between(1, 7);
  const drawn_k k = draw_k(bytes, 1, b.experts);
  for (index_t t = 0; t < b.tokens; ++t) b.token_ids.push_back(bytes.below(ids));
  matrix<index_t> table;
  if (bytes.flag()) {
    std::vector<index_t> occurrences;
    for (index_t id = 0; id < ids; ++id) occurrences.push_back(bytes.byte());
    table = balanced_hash(occurrences, b.experts, k.own);
  } else {
    table = random_hash(ids, b.experts, k.own, random_source(bytes.byte()));
  }
  const index_t used = k.of_call == 0 ? k.own : (std::min)(k.of_call, k.own);
  const hash_router<float, features_gate, any_weights> own(features_gate(b.width, b.experts, &dlogits),
                                                           {table, draw_weights(bytes, b.experts, k.own)});
  const any_sparse router(own);
  const auto o = check_call(bytes, router, b, used, &dlogits);
  check_consistency(o, b, used);
  check_only_nan_is_invalid(o, b, true);
  const auto& weights = own.rule().weights().held();
  for (index_t t = 0; t < b.tokens; ++t) {
    if (b.is_padding(t) || b.holds_nan(t, true)) continue;
    const auto assignments = o.plan.of_token(t);
    demand(index_t(assignments.size()) == used);
    std::vector<index_t> chosen;
    std::vector<float> given;
    for (const index_t i : assignments) {
      chosen.push_back(o.plan.expert(i));
      given.push_back(o.plan.weight(i));
      demand(chosen.back() == table(b.token_ids[as_size(t)], o.plan.rank(i)));
      if (weights.index() == 0) demand(given.back() == 1 / float(used));
    }
    if (const auto* by_softmax = std::get_if<softmax_rule<float>>(&weights))
      check_weights(&b.features(t, 0), b.experts, chosen, given, by_softmax->settings());
  }
  check_layer(bytes, router, b, used);
}

/// Experts are the best of those that were offered, all of them if they are fewer.
void check_offered(byte_reader& bytes, batch& b) {
  matrix<float> dlogits;
  const drawn_k k = draw_k(bytes, 1, b.experts);
  b.expert_ids = matrix<index_t>(b.tokens, bytes.between(1, 4));
  for (index_t i = 0; i < b.expert_ids.size(); ++i) b.expert_ids.data()[i] = bytes.between(no_expert, b.experts - 1);
  const any_sparse router(offered_router<float, features_gate>(features_gate(b.width, b.experts, &dlogits),
                                                               {.top_k = k.own, .constant_weight = true}));
  const auto o = check_call(bytes, router, b, k.of_call, &dlogits);
  check_consistency(o, b, k.used());
  check_only_nan_is_invalid(o, b, true);
  for (index_t t = 0; t < b.tokens; ++t) {
    if (b.is_padding(t) || b.holds_nan(t, true)) continue;
    matrix<float> seen = matrix<float>::Constant(1, b.experts, -std::numeric_limits<float>::infinity());
    for (index_t j = 0; j < b.expert_ids.cols() && b.expert_ids(t, j) != no_expert; ++j)
      seen(0, b.expert_ids(t, j)) = b.features(t, b.expert_ids(t, j));
    std::vector<index_t> expected = best_experts(seen.data(), b.experts, k.used()), chosen;
    std::erase_if(expected, [&](index_t e) { return seen(0, e) < std::numeric_limits<float>::lowest(); });
    std::vector<float> weights;
    for (const index_t i : o.plan.of_token(t)) {
      chosen.push_back(o.plan.expert(i));
      weights.push_back(o.plan.weight(i));
    }
    demand(chosen == expected);
    if (!chosen.empty())
      check_weights(seen.data(), b.experts, chosen, weights, {.top_k = k.own, .weights = weighting::post});
  }
  check_layer(bytes, router, b, k.of_call);
}

/// Equal parts in training, every expert at inference.
void check_partition(byte_reader& bytes, batch& b) {
  const any_sparse router(random_partition_router<float>(b.width, b.experts));
  const auto o = check_call(bytes, router, b, 0, nullptr);
  check_consistency(o, b, b.training ? 1 : b.experts);
  check_only_nan_is_invalid(o, b, false);
  const context_t context = b.context();
  for (index_t g = 0; g < context.group_count(); ++g) {
    index_t routed = 0;
    std::vector<index_t> part(as_size(b.experts), 0);
    for (index_t t = context.group(g, b.tokens).begin; t < context.group(g, b.tokens).end; ++t) {
      routed += !b.is_padding(t) && !b.holds_nan(t, false);
      for (const index_t i : o.plan.of_token(t)) ++part[as_size(o.plan.expert(i))];
    }
    for (index_t e = 0; e < b.experts; ++e)
      demand(part[as_size(e)] == (b.training ? routed / b.experts + (e < routed % b.experts) : routed));
  }
  check_layer(bytes, router, b, 0);
}

/// Experts are those that were given, up to the first that is none.
void check_given(byte_reader& bytes, batch& b) {
  matrix<float> dlogits;
  const drawn_k k = draw_k(bytes, 1, b.experts);
  b.expert_ids = random_hash(b.tokens, b.experts, k.own, random_source(bytes.byte()));
  for (index_t t = 0; t < b.tokens; ++t) b.expert_ids.row(t).tail(bytes.below(k.own + 1)).setConstant(no_expert);
  const index_t used = k.of_call == 0 ? k.own : (std::min)(k.of_call, k.own);
  const given_router<float, features_gate, any_weights> own(features_gate(b.width, b.experts, &dlogits),
                                                            draw_weights(bytes, b.experts, k.own));
  const any_sparse router(own);
  const auto o = check_call(bytes, router, b, used, &dlogits);
  check_consistency(o, b, used);
  check_only_nan_is_invalid(o, b, true);
  for (index_t t = 0; t < b.tokens; ++t) {
    if (b.is_padding(t) || b.holds_nan(t, true)) continue;
    index_t rank = 0;
    for (const index_t i : o.plan.of_token(t)) demand(o.plan.expert(i) == b.expert_ids(t, rank++));
    demand(rank == used || b.expert_ids(t, rank) == no_expert);
  }
  check_layer(bytes, router, b, used);
}

// ---- routers that are classes of their own --------------------------------------------------------------------------

void check_expert_choice(byte_reader& bytes, batch& b) {
  using router_type = expert_choice_router<float, features_gate, any_noise>;
  matrix<float> dlogits;
  router_type::options options;
  options.capacity = draw_limit(bytes);
  using score = router_type::score;
  constexpr score scores[] = {score::softmax, score::sigmoid, score::over_tokens, score::over_taken, score::even};
  options.scores = bytes.one_of(scores);
  const bool by_logits = options.scores == score::over_taken || options.scores == score::even;
  if (!by_logits) options.cap = {.most = bytes.below(4), .iterations = 5};
  const weight_application<float> application{.use = bytes.flag() ? weight_use::input : weight_use::output};
  if (b.experts >= 2 && bytes.flag()) {
    const index_t first = bytes.between(1, b.experts - 1);
    options.modalities = std::vector<index_t>{first, b.experts - first};
    for (index_t t = 0; t < b.tokens; ++t) b.modality_ids.push_back(bytes.below(2));
  }
  const bool is_capped = options.cap.limits(b.experts);
  const router_type own(features_gate(b.width, b.experts, &dlogits), options, draw_noise(bytes, b), application);
  const any_sparse router(own);
  const auto o = check_call(bytes, router, b, 0, &dlogits);
  check_consistency(o, b, is_capped ? options.cap.most : b.experts);
  if (!o.tape.seen.has_noise) check_only_nan_is_invalid(o, b, true);
  // Every expert takes as many tokens of every group as it may, and none that is worse than one it leaves.
  const context_t context = b.context();
  matrix<float> weights = o.plan.dense_weights();
  if (application.use == weight_use::input)
    for (index_t i = 0; i < o.plan.size(); ++i) weights(o.plan.token(i), o.plan.expert(i)) = o.plan.input_scale(i);
  for (index_t g = 0; g < context.group_count(); ++g) {
    const token_range group = context.group(g, b.tokens);
    for (index_t e = 0; e < b.experts; ++e) {
      const index_t modality = options.modalities.served_by(e);
      const auto [first, count] = options.modalities.of(modality, b.experts);
      index_t real = 0;
      std::vector<index_t> valid;
      for (index_t t = group.begin; t < group.end; ++t) {
        if (b.is_padding(t) || options.modalities.modality(context, t) != modality) continue;
        ++real;
        const auto invalid = o.plan.invalid_tokens();
        if (std::find(invalid.begin(), invalid.end(), t) == invalid.end()) valid.push_back(t);
      }
      if (real == 0) continue;
      double worst_taken = std::numeric_limits<double>::infinity(), best_left = -worst_taken;
      index_t taken = 0;
      std::vector<float> column, taken_column;
      std::vector<index_t> takers;
      const auto is_taken = [&](index_t t) {
        const auto own_experts = o.plan.of_token(t);
        return std::any_of(own_experts.begin(), own_experts.end(), [&](index_t i) { return o.plan.expert(i) == e; });
      };
      for (const index_t t : valid) {
        column.push_back(o.tape.seen.noisy()(t, e));
        if (is_taken(t)) taken_column.push_back(column.back()), takers.push_back(t);
      }
      const auto over_tokens =
          column.empty() ? std::vector<double>() : exact_softmax(column.data(), all_experts(index_t(column.size())));
      for (std::size_t i = 0; i < valid.size(); ++i) {
        const index_t t = valid[i];
        const float* row = o.tape.seen.noisy().row(t);
        const double own_score = options.scores == score::softmax
                                     ? exact_softmax(row + first, all_experts(count))[as_size(e - first)]
                                 : options.scores == score::sigmoid     ? 1 / (1 + std::exp(-double(row[e])))
                                 : options.scores == score::over_tokens ? over_tokens[i]
                                                                        : double(row[e]);
        taken += is_taken(t);
        if (is_taken(t))
          worst_taken = std::min(worst_taken, own_score);
        else
          best_left = std::max(best_left, own_score);
        if (is_taken(t) && !by_logits) demand(std::abs(double(weights(t, e)) - own_score) <= 64 * eps);
        if (is_taken(t) && options.scores == score::even) demand(weights(t, e) == 1);
      }
      if (options.scores == score::over_taken && !takers.empty()) {
        const auto expected = exact_softmax(taken_column.data(), all_experts(index_t(takers.size())));
        for (std::size_t i = 0; i < takers.size(); ++i)
          demand(std::abs(double(weights(takers[i], e)) - expected[i]) <= 64 * eps);
      }
      const index_t most = (std::min)(own.capacity(real, b.training, e), index_t(valid.size()));
      demand(is_capped ? taken <= most : taken == most);
      demand(is_capped || best_left <= worst_taken + 64 * eps);
    }
  }
  check_layer(bytes, router, b, 0);
}

/// Every valid token has one expert; experts have their budgets, and the first one the rest.
void check_expert_preferred(byte_reader& bytes, batch& b) {
  matrix<float> dlogits;
  std::vector<double> shares;
  double left = 1;
  for (index_t e = 0; e < b.experts; ++e) {
    shares.push_back(left * double(bytes.below(5)) / 4);
    left -= shares.back();
  }
  using inner = expert_preferred_router<float, features_gate>;
  residual_weights_router<inner> own(inner(features_gate(b.width, b.experts, &dlogits), shares),
                                     {.initial = bytes.flag() ? 0.5 : 0, .per_expert = bytes.flag()});
  const any_sparse router(own);
  const auto o = check_call(bytes, router, b, 0, &dlogits);
  check_consistency(o, b, 1);
  check_only_nan_is_invalid(o, b, true);
  const context_t context = b.context();
  for (index_t g = 0; g < context.group_count(); ++g) {
    const token_range group = context.group(g, b.tokens);
    std::vector<index_t> load(as_size(b.experts), 0);
    index_t valid = 0;
    for (index_t t = group.begin; t < group.end; ++t)
      for (const index_t i : o.plan.of_token(t)) ++valid, ++load[as_size(o.plan.expert(i))];
    index_t expected = 0;
    for (index_t t = group.begin; t < group.end; ++t) expected += !b.is_padding(t) && !b.holds_nan(t, true);
    demand(valid == expected);
    for (index_t e = 1; e < b.experts; ++e) {
      const auto budget = index_t(shares[as_size(e)] * double(valid));
      demand(load[as_size(e)] <= budget && (load[0] == 0 || load[as_size(e)] == budget));
    }
  }
  check_layer(bytes, router, b, 0);
}

/// By a coupling: the promises of every plan, and as many tokens as an expert may take.
template <typename Router>
void check_coupled_experts(byte_reader& bytes, batch& b, const Router& own, matrix<float>& dlogits) {
  const any_sparse router(own);
  const auto o = check_call(bytes, router, b, 0, &dlogits);
  check_consistency(o, b, b.experts);
  check_only_nan_is_invalid(o, b, true);
  check_layer(bytes, router, b, 0);
}
void check_sinkhorn_experts(byte_reader& bytes, batch& b) {
  using router_type = sinkhorn_expert_choice_router<float, features_gate>;
  matrix<float> dlogits;
  router_type::options options;
  options.capacity = draw_limit(bytes);
  check_coupled_experts(bytes, b, router_type(features_gate(b.width, b.experts, &dlogits), options), dlogits);
}
void check_sparse_experts(byte_reader& bytes, batch& b) {
  using router_type = sparse_expert_choice_router<float, features_gate>;
  matrix<float> dlogits;
  check_coupled_experts(
      bytes, b, router_type(features_gate(b.width, b.experts, &dlogits), {.capacity = draw_limit(bytes)}), dlogits);
}

void check_relu(byte_reader& bytes, batch& b) {
  matrix<float> dlogits;
  const any_sparse router(relu_router<float, features_gate>(features_gate(b.width, b.experts, &dlogits)));
  const auto o = check_call(bytes, router, b, 0, &dlogits);
  check_consistency(o, b, b.experts);
  check_only_nan_is_invalid(o, b, true);
  index_t positive = 0;
  for (index_t t = 0; t < b.tokens; ++t)
    for (index_t e = 0; e < b.experts && !b.is_padding(t) && !b.holds_nan(t, true); ++e)
      positive += b.features(t, e) > 0;
  demand(o.plan.size() == positive);
  for (index_t i = 0; i < o.plan.size(); ++i) demand(o.plan.weight(i) == b.features(o.plan.token(i), o.plan.expert(i)));
  check_layer(bytes, router, b, 0);
}

void check_dense(byte_reader& bytes, batch& b) {
  const any_sparse router(dense_router<float>(b.width, b.experts));
  const auto o = check_call(bytes, router, b, 0, nullptr);
  check_consistency(o, b, b.experts);
  check_only_nan_is_invalid(o, b, false);
  for (index_t t = 0; t < b.tokens; ++t)
    demand(index_t(o.plan.of_token(t).size()) == (b.is_padding(t) || b.holds_nan(t, false) ? 0 : b.experts));
  check_layer(bytes, router, b, 0);
}

void check_dense_softmax(byte_reader& bytes, batch& b) {
  matrix<float> dlogits;
  const any_dense router(dense_softmax_router<float, features_gate>(features_gate(b.width, b.experts, &dlogits)));
  const auto o = check_call(bytes, router, b, 0, &dlogits);
  check_only_nan_is_invalid(o, b, true);
  const matrix<float> weights = o.plan.dense_weights();
  for (index_t t = 0; t < b.tokens; ++t) {
    if (b.is_padding(t) || b.holds_nan(t, true)) {
      demand(weights.row(t).isZero(0));
      continue;
    }
    const std::vector<double> p = exact_softmax(&b.features(t, 0), all_experts(b.experts));
    for (index_t e = 0; e < b.experts; ++e) demand(std::abs(double(weights(t, e)) - p[as_size(e)]) <= 64 * eps);
  }
  check_layer(bytes, router, b, 0);
}

void check_dense_weights(byte_reader& bytes, batch& b) {
  matrix<float> dlogits;
  constexpr float temperatures[] = {1, 0.3F, 100};
  const features_gate gate(b.width, b.experts, &dlogits);
  const index_t kind = bytes.between(0, 2);
  const bool competes = kind != 0;
  const any_dense router =
      kind == 1   ? any_dense(gumbel_softmax_router<float, features_gate>(
                        gate, {.temperature = bytes.one_of(temperatures), .samples = bytes.between(1, 3)}))
      : kind == 2 ? any_dense(dense_entmax_router<float, features_gate>(gate))
                  : any_dense(dense_sigmoid_router<float, features_gate>(gate));
  const auto o = check_call(bytes, router, b, 0, &dlogits);
  check_only_nan_is_invalid(o, b, true);
  const matrix<float> weights = o.plan.dense_weights();
  for (index_t t = 0; t < b.tokens; ++t) {
    double sum = 0;
    for (index_t e = 0; e < b.experts; ++e) {
      demand(weights(t, e) >= 0 && weights(t, e) <= 1);
      sum += double(weights(t, e));
    }
    const bool is_hidden = b.is_padding(t) || b.holds_nan(t, true);
    if (is_hidden || competes) demand(std::abs(sum - (is_hidden ? 0 : 1)) <= 64 * eps);
  }
  check_layer(bytes, router, b, 0);
}

/// Routers that choose many experts a token at first: EvoMoE's, and the form with one k for the batch.
void check_cooling(byte_reader& bytes, batch& b) {
  matrix<float> dlogits;
  constexpr double temperatures[] = {1, 0.3, 2};
  const temperature_schedule cooling{.first = bytes.one_of(temperatures)};
  const float threshold = bytes.flag() ? 1e-3F : 0;
  const features_gate gate(b.width, b.experts, &dlogits);
  const index_t k = bytes.between(1, b.experts);
  const bool by_batch = bytes.flag();
  const any_sparse router =
      by_batch ? any_sparse(mean_active_router<float, features_gate>(
                     gate, {.top_k = k, .temperature = cooling, .threshold = threshold}))
               : any_sparse(dense_to_sparse_router<float, features_gate>(
                     gate, {.temperature = cooling, .threshold = threshold, .gumbel_weights = bytes.flag()}));
  const auto o = check_call(bytes, router, b, 0, &dlogits);
  check_consistency(o, b, b.experts);
  if (!b.training) check_only_nan_is_invalid(o, b, true);
  const auto invalid = o.plan.invalid_tokens();
  for (index_t t = 0; t < b.tokens; ++t) {
    if (b.is_padding(t) || std::find(invalid.begin(), invalid.end(), t) != invalid.end()) continue;
    const auto own = o.plan.of_token(t);
    demand(index_t(own.size()) >= (by_batch ? k : 1) && (b.training || index_t(own.size()) == (by_batch ? k : 1)));
    double sum = 0;
    for (const index_t i : own) {
      demand(o.plan.weight(i) >= 0);
      sum += double(o.plan.weight(i));
    }
    demand(sum <= 1 + 64 * eps);
  }
  check_layer(bytes, router, b, 0);
}

void check_dselect(byte_reader& bytes, batch& b) {
  constexpr float gammas[] = {1, 0.1F, 100};
  const dselect_k_router<float, features_selectors> own(
      b.width, b.experts, {.selectors = bytes.between(1, 3), .gamma = bytes.one_of(gammas)});
  const index_t columns = own.selectors() * (own.bits() + 1);  // as many as it reads
  for (index_t t = 0; t < b.tokens; ++t)
    for (index_t c = columns; c < b.experts; ++c) b.features(t, c) = 0;
  const any_sparse router(own);
  const auto o = check_call(bytes, router, b, 0, nullptr);
  check_consistency(o, b, b.experts);
  check_only_nan_is_invalid(o, b, true);
  for (index_t t = 0; t < b.tokens; ++t) {
    double sum = 0;
    for (const index_t i : o.plan.of_token(t)) {
      demand(o.plan.weight(i) > 0);
      sum += double(o.plan.weight(i));
    }
    demand(sum <= 1 + 1e-4);
  }
  check_layer(bytes, router, b, 0);
}

/// Routers with parameters of their own, which read x: any bits, or numbers that a gradient can be taken of.
template <typename Router>
void fill_parameters(byte_reader& bytes, Router& router, batch& b) {
  bit_stream bits(bytes.byte());
  sluice::detail::for_each_unnamed_parameter(router, [&](auto& p) {
    if (p.role() != parameter_role::state) p.fill([&](index_t) { return float(bits.uniform()); });
  });
  if (bytes.flag()) b.make_wild(bytes);
}

void check_product_key(byte_reader& bytes, batch& b) {
  const index_t keys = bytes.between(1, 4), heads = bytes.between(1, 3);
  const bool separate = bytes.flag();
  const index_t k = bytes.between(1, keys * keys);
  product_key_router<float> own(b.width, keys,
                                {.heads = heads,
                                 .top_k = k,
                                 .key_width = bytes.between(1, 3),
                                 .weights = bytes.flag() ? product_key_weights::relu : product_key_weights::softmax,
                                 .separate_experts = separate});
  fill_parameters(bytes, own, b);
  b.experts = own.experts();
  b.features = matrix<float>::Zero(b.tokens, b.experts);
  const any_sparse router(own);
  const auto o = check_call(bytes, router, b, 0, nullptr);
  check_consistency(o, b, heads * k);
  if (!b.is_wild) check_only_nan_is_invalid(o, b, false);
  check_layer(bytes, router, b, 0);
}

void check_tucker_key(byte_reader& bytes, batch& b) {
  const index_t keys = bytes.between(1, 3), heads = bytes.between(1, 2), cores = bytes.between(1, 2);
  const index_t k = bytes.between(1, keys * keys);
  tucker_key_router<float> own(
      b.width, keys,
      {.heads = heads, .top_k = k, .key_width = bytes.between(1, 3), .rank = bytes.between(1, 3), .cores = cores});
  fill_parameters(bytes, own, b);
  own.keys().update_vectors();
  b.experts = own.experts();
  b.features = matrix<float>::Zero(b.tokens, b.experts);
  const any_sparse router(own);
  const auto o = check_call(bytes, router, b, 0, nullptr);
  check_consistency(o, b, heads * k * cores);
  if (!b.is_wild) check_only_nan_is_invalid(o, b, false);
  check_layer(bytes, router, b, 0);
}

void check_top_any(byte_reader& bytes, batch& b) {
  top_any_router<float> own(b.width, b.experts,
                            {.live = bytes.between(0, b.experts), .temperature = bytes.flag() ? 0.05 : 1.0});
  fill_parameters(bytes, own, b);
  const any_sparse router(own);
  const auto o = check_call(bytes, router, b, 0, nullptr);
  check_consistency(o, b, own.live_experts());
  if (!b.is_wild) check_only_nan_is_invalid(o, b, false);
  for (index_t i = 0; i < o.plan.size(); ++i) {
    demand(own.is_live(o.plan.expert(i)));
    demand(o.plan.weight(i) == 1 / static_cast<float>(o.plan.of_token(o.plan.token(i)).size()));
  }
  const auto invalid = o.plan.invalid_tokens();
  for (index_t t = 0; t < b.tokens && !b.training; ++t)
    if (!b.is_padding(t) && std::find(invalid.begin(), invalid.end(), t) == invalid.end())
      demand(!o.plan.of_token(t).empty());
  check_layer(bytes, router, b, 0);
}

void check_soft(byte_reader& bytes, batch& b) {
  soft_moe_router<float> own(b.width, b.experts,
                             {.slots_per_expert = bytes.between(1, 2), .noise_std = bytes.flag() ? 1.0F : 0.0F});
  fill_parameters(bytes, own, b);
  const any_soft router(own);
  const auto o = check_call(bytes, router, b, 0, nullptr);
  if (!b.is_wild) check_only_nan_is_invalid(o, b, false);
  const auto invalid = o.plan.invalid_tokens();
  const auto is_hidden = [&](index_t t) {
    return b.is_padding(t) || std::find(invalid.begin(), invalid.end(), t) != invalid.end();
  };
  for (index_t t = 0; t < b.tokens; ++t) {
    double sum = 0;
    for (index_t s = 0; s < o.plan.slot_count(); ++s) {
      demand(o.plan.combine()(t, s) >= 0 && o.plan.dispatch()(t, s) >= 0);
      if (is_hidden(t)) demand(o.plan.combine()(t, s) == 0 && o.plan.dispatch()(t, s) == 0);
      sum += double(o.plan.combine()(t, s));
    }
    demand(is_hidden(t) || std::abs(sum - 1) <= 64 * eps);
  }
  for (const token_range& group : o.plan.groups()) {
    index_t members = 0;
    for (index_t t = group.begin; t < group.end; ++t) members += !is_hidden(t);
    for (index_t s = 0; s < o.plan.slot_count(); ++s) {
      double sum = 0;
      for (index_t t = group.begin; t < group.end; ++t) sum += double(o.plan.dispatch()(t, s));
      demand(std::abs(sum - (members > 0 ? 1.0 : 0.0)) <= 64 * eps);
    }
  }
  check_layer(bytes, router, b, 0);
}

using check = void (*)(byte_reader&, batch&);
constexpr check checks[] = {&check_token_choice,  &check_expert_choice, &check_relu,          &check_dense,
                            &check_dselect,       &check_product_key,   &check_top_any,       &check_soft,
                            &check_compete,       &check_hash,          &check_dense_softmax, &check_token_choice,
                            &check_token_choice,  &check_dense_weights, &check_cooling,
                            &check_tucker_key,    &check_partition,     &check_given,
                            &check_sinkhorn_experts, &check_sparse_experts, &check_expert_preferred,
                            &check_offered};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  byte_reader bytes(data, size);
  const check chosen = bytes.one_of(checks);
  batch b(bytes);
  chosen(bytes, b);
  return 0;
}
