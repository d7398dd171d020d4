#include <sluice/attention/routed_query_attention.hpp>
#include <sluice/core/half.hpp>
#include <sluice/kernel/storage.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/loss/router_z.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../io/messages.hpp"
#include "../support.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
using query_router = top_k_router<Scalar>;
template <typename Scalar>
using head_mixture = routed_query_attention<query_router<Scalar>>;

const routed_query_options two_heads{
    .key_heads = 2, .head_width = 6, .output_bias = true, .rotary = {.width = 4, .base = 50}};

template <typename Layer>
Layer with_values(Layer layer) {
  initialize(layer, 3);
  for_each_parameter(layer, [](const std::string& name, auto& p) {
    if (name == "output_bias")
      p.fill([](index_t i) { return static_cast<typename Layer::scalar>(0.1 * static_cast<double>(i % 5 - 2)); });
  });
  return layer;
}

/// softmax(q k^T / sqrt(d)) v of one query of token t, for heads that are not turned.
matrix<double> attend_plainly(const matrix<double>& q, const matrix<double>& k, const matrix<double>& v, index_t t) {
  matrix<double> weights = (q * k.topRows(t + 1).transpose() / std::sqrt(static_cast<double>(q.cols()))).array().exp();
  return weights / weights.sum() * v.topRows(t + 1);
}

}  // namespace

static_assert(TrainableLayer<head_mixture<float>>);
static_assert(is_causal<head_mixture<float>>);
static_assert(!is_causal<mixture_of_attention_heads<float>>);

TEST_CASE("routed_query_attention: every promise of a layer", "[attention][conformance]") {
  const auto passes = [](const auto& layer) {
    const auto report = check_layer(layer, {.seed = 5});
    INFO(report.describe());
    CHECK(report.passed());
    CHECK(report.find("gradients")->result == outcome::passed);
  };
  passes(with_values(
      head_mixture<double>(query_router<double>(8, 5, {.top_k = 2, .weights = weighting::post}), two_heads)));
  passes(with_values(mixture_of_attention_heads<double, attention_order::bidirectional, importance_loss, switch_balance,
                                                router_z_loss>(
      query_router<double>(7, 4, {.top_k = 3, .weights = weighting::pre}), {.head_width = 3}, {}, {}, {})));
}

TEST_CASE("routed_query_attention: each chosen expert asks and puts its weighed answer out", "[attention]") {
  auto layer = with_values(head_mixture<double>(query_router<double>(8, 5, {.top_k = 3, .weights = weighting::pre}),
                                                {.key_heads = 2, .head_width = 6, .output_bias = true}));
  const index_t T = 9;
  const matrix<double> x = test::random_matrix<double>(T, 8, 1);
  matrix<double> y(T, 8);
  head_mixture<double>::workspace ws;
  layer.forward(x, y, ws);
  const matrix<double> k = x * layer.key().to_matrix().transpose(), v = x * layer.value().to_matrix().transpose();
  for (index_t t = 0; t < T; ++t) {
    matrix<double> expected = layer.output_bias().to_matrix().transpose();
    for (const index_t i : ws.plan.of_token(t)) {
      const index_t e = ws.plan.expert(i);
      const matrix<double> q = x.row(t) * layer.query().expert(e).weight().to_matrix().transpose();
      matrix<double> heads(1, 12);
      for (index_t h = 0; h < 2; ++h)
        heads.middleCols(6 * h, 6) =
            attend_plainly(q.middleCols(6 * h, 6), k.middleCols(6 * h, 6), v.middleCols(6 * h, 6), t);
      expected += ws.plan.weight(i) * heads * layer.output().expert(e).weight().to_matrix().transpose();
    }
    CHECK(test::largest_difference(matrix<double>(y.row(t)), expected) < test::bound<double>(20 + T, 4));
  }
}

TEST_CASE("routed_query_attention: two tokens worked out by hand", "[attention]") {
  // Expert i asks with coordinate i and puts out to coordinate i; the router prefers by 2 the expert of a token's own.
  mixture_of_attention_heads<double> layer(query_router<double>(2, 2, {.top_k = 1, .weights = weighting::pre}),
                                           {.head_width = 1});
  layer.router().gate().weight().assign(matrix<double>{{2, 0}, {0, 2}});
  for (index_t e = 0; e < 2; ++e) {
    matrix<double> unit = matrix<double>::Zero(1, 2);
    unit(0, e) = 1;
    layer.query().expert(e).weight().assign(unit);
    layer.output().expert(e).weight().assign(matrix<double>(unit.transpose()));
  }
  layer.key().assign(matrix<double>{{1, 2}});
  layer.value().assign(matrix<double>{{1, -1}});
  matrix<double> y(2, 2);
  decltype(layer)::workspace ws;
  layer.forward(matrix<double>(matrix<double>::Identity(2, 2)), y, ws);
  const matrix<double> expected{{-0.407031, 0}, {0, -0.407031}};
  CHECK(test::largest_difference(y, expected) < 1e-6);
}

TEST_CASE("routed_query_attention: equal experts whose weights sum to 1 are ordinary attention", "[attention]") {
  auto layer = with_values(head_mixture<double>(query_router<double>(8, 4, {.top_k = 2}),
                                                {.key_heads = 2, .head_width = 6, .rotary = {.width = 6}}));
  self_attention<double> plain(8, {.heads = 2, .head_width = 6, .rotary = {.width = 6}});
  initialize(plain, 4);
  for (index_t e = 0; e < 4; ++e) {
    layer.query().expert(e).weight().assign(plain.query().to_matrix());
    layer.output().expert(e).weight().assign(plain.output().to_matrix());
  }
  layer.key() = plain.key(), layer.value() = plain.value();
  const matrix<double> x = test::random_matrix<double>(11, 8, 1);
  matrix<double> y(11, 8), expected(11, 8);
  decltype(layer)::workspace ws;
  self_attention<double>::workspace plain_ws;
  layer.forward(x, y, ws);
  plain.forward(x, expected, plain_ws);
  CHECK(test::largest_difference(y, expected) < test::bound<double>(30, 4));
}

TEST_CASE("routed_query_attention: sequences keep to themselves", "[attention]") {
  const auto layer = with_values(head_mixture<double>(query_router<double>(8, 5), two_heads));
  const matrix<double> x = test::random_matrix<double>(30, 8, 11);
  matrix<double> together(30, 8), first(11, 8), second(19, 8);
  head_mixture<double>::workspace ws;
  const std::vector<index_t> borders{0, 11, 30};
  layer.forward(x, together, ws, {.sequences = borders});
  layer.forward(x.topRows(11), first, ws);
  layer.forward(x.bottomRows(19), second, ws);
  CHECK(test::same_bits(together.topRows(11), first));
  CHECK(test::same_bits(together.bottomRows(19), second));
}

TEST_CASE("routed_query_attention: a token whose logits overflow gets NaN and spoils nothing", "[attention]") {
  auto layer = with_values(head_mixture<double>(query_router<double>(8, 5), two_heads));
  matrix<double> x = test::random_matrix<double>(6, 8, 1);
  x.leftCols(2).setZero();
  x.row(3).head(2).setConstant(1e3);  // the gate makes of these two infinities of both signs
  layer.router().gate().weight().fill([](index_t i) { return i % 8 == 0 ? 1e308 : i % 8 == 1 ? -1e308 : 0.1; });
  matrix<double> y(6, 8), dx(6, 8), dy = test::random_matrix<double>(6, 8, 2);
  dy.row(3).setConstant(quiet_nan<double>());
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  REQUIRE(tape.plan.invalid_tokens().size() == 1);
  layer.backward(dy, dx, tape);
  for (index_t c = 0; c < 8; ++c) CHECK(is_nan(y(3, c)));
  CHECK(!any_nan(y.data(), 3 * 8));
  for_each_parameter(layer, [](const std::string& name, auto& p) {
    CAPTURE(name);
    CHECK(!any_nan(p.gradient().data(), p.size()));
  });
}

TEMPLATE_TEST_CASE("routed_query_attention: token by token with a cache has the bits of whole sequences", "[attention]",
                   float, double) {
  using Scalar = TestType;
  auto layer = with_values(head_mixture<Scalar>(query_router<Scalar>(8, 5), two_heads));
  const std::vector<index_t> borders{0, 30, 50};
  const matrix<Scalar> x = test::random_matrix<Scalar>(50, 8, 11);
  matrix<Scalar> whole(50, 8);
  typename head_mixture<Scalar>::workspace ws;
  layer.forward(x, whole, ws, {.sequences = borders});

  key_value_cache<Scalar> cache(layer, 2, 30);
  index_t done[] = {0, 0};
  for (const index_t step : {5, 1, 1, 10, 1, 12}) {  // the second sequence ends first
    const index_t more[] = {step, std::min<index_t>(20 - done[1], step)};
    const std::vector<index_t> some{0, more[0], more[0] + more[1]};
    matrix<Scalar> part(some[2], 8), y(some[2], 8), expected(some[2], 8);
    part << x.middleRows(done[0], more[0]), x.middleRows(30 + done[1], more[1]);
    expected << whole.middleRows(done[0], more[0]), whole.middleRows(30 + done[1], more[1]);
    layer.forward_cached(part, y, cache, ws, {.sequences = some});
    CHECK(test::same_bits(y, expected));
    for (index_t s = 0; s < 2; ++s) CHECK(cache.length(s) == (done[s] += more[s]));
  }
  matrix<Scalar> y(1, 8);
  const std::vector<index_t> one_more{0, 1, 1};
  CHECK_THROWS_WITH(layer.forward_cached(x.topRows(1), y, cache, ws, {.sequences = one_more}),
                    test::contains("sequence 0 has 30 of 30"));
}

TEST_CASE("routed_query_attention: experts in another storage", "[attention]") {
  const auto layer = with_values(head_mixture<float>(query_router<float>(8, 5), two_heads));
  const auto small = layer.stored_as<bfloat16_storage>();
  const matrix<float> x = test::random_matrix<float>(9, 8, 1);
  matrix<float> y(9, 8), rounded(9, 8);
  head_mixture<float>::workspace ws;
  decltype(small)::workspace small_ws;
  layer.forward(x, y, ws);
  small.forward(x, rounded, small_ws);
  CHECK(test::largest_difference(y, rounded) > 0);
  CHECK(test::largest_difference(y, rounded) < 0.1F);  // three digits of numbers of about 1, through two maps
}

TEST_CASE("routed_query_attention: what makes no sense is refused", "[attention]") {
  const auto made = [](routed_query_options o) { head_mixture<float>(query_router<float>(8, 5), o); };
  CHECK_THROWS_WITH(made({.key_heads = 0}), test::contains("0 key heads"));
  CHECK_THROWS_WITH(made({.head_width = 6, .rotary = {.width = 8}}), test::contains("not 8"));
  head_mixture<float> scaled(query_router<float>(linear_gate<float>(8, 5), {}, {}, {}, {.use = weight_use::input}),
                             two_heads);
  initialize(scaled, 1);
  matrix<float> x = test::random_matrix<float>(3, 8, 1), y(3, 8);
  head_mixture<float>::workspace ws;
  CHECK_THROWS_WITH(scaled.forward(x, y, ws), test::contains("heads are weighed"));
}
