#include <sluice/attention/routed_value_attention.hpp>
#include <sluice/loss/entropy.hpp>
#include <sluice/router/every_expert/dense.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../io/messages.hpp"
#include "../support.hpp"

using namespace sluice;

namespace {

constexpr index_t value_heads = 2, experts_of_head = 3;

template <typename Scalar>
switch_head<Scalar, entropy_loss> switch_head_of(index_t top_k, double dropout = 0, index_t rotary = 2) {
  const head_router routing{sigmoid_router<Scalar>(8, value_heads * experts_of_head,
                                                   switch_head_routing<Scalar>(value_heads, top_k, dropout)),
                            entropy_loss{.coefficient = 0.1, .parts = value_heads}};
  switch_head<Scalar, entropy_loss> layer(
      routing, routing, layer_norm<Scalar>(8),
      {.heads = value_heads, .key_width = 4, .value_width = 5, .rotary = {.width = rotary}});
  initialize(layer, 3);
  return layer;
}

}  // namespace

static_assert(TrainableLayer<switch_head<float>> && is_causal<switch_head<float>>);

TEST_CASE("routed_value_attention: every promise of a layer", "[attention][conformance]") {
  const auto passes = [](const auto& layer) {
    const auto report = check_layer(layer, {.seed = 5});
    INFO(report.describe());
    CHECK(report.passed());
    CHECK(report.find("gradients")->result == outcome::passed);
  };
  passes(switch_head_of<double>(2, 0.2));
  using gated = routed_value_attention<head_router<dense_router<double>>, head_router<sigmoid_router<double>>,
                                       no_norm<double>, attention_order::bidirectional>;
  gated layer(head_router{dense_router<double>(6, 3)},
              head_router{sigmoid_router<double>(6, 3, switch_head_routing<double>(3, 1))}, no_norm<double>{},
              {.heads = 3, .key_width = 3});
  initialize(layer, 3);
  passes(layer);
}

TEST_CASE("routed_value_attention: values and results are weighed and choices read normalised tokens", "[attention]") {
  auto layer = switch_head_of<double>(2, 0, 0);
  const index_t T = 7;
  const matrix<double> x = test::random_matrix<double>(T, 8, 1);
  matrix<double> y(T, 8), n(T, 8);
  decltype(layer)::workspace ws;
  layer.forward(x, y, ws);
  for (index_t t = 0; t < T; ++t) {
    const auto centred = x.row(t).array() - x.row(t).mean();
    n.row(t) = centred / std::sqrt(centred.square().mean() + 1e-5);
  }
  const auto sigmoids = [&](auto& routing) {
    const matrix<double> logits = n * routing.router().gate().weight().to_matrix().transpose();
    return matrix<double>(1 / (1 + (-logits.array()).exp()));
  };
  const matrix<double> into = sigmoids(layer.value_router()), out_of = sigmoids(layer.output_router());
  /// Whether an expert is one of the two largest of its head.
  const auto is_chosen = [&](const matrix<double>& s, index_t t, index_t e) {
    index_t larger = 0;
    for (index_t other = e / 3 * 3; other < e / 3 * 3 + 3; ++other) larger += s(t, other) > s(t, e);
    return larger < 2;
  };
  const matrix<double> q = n * layer.query().to_matrix().transpose(), k = n * layer.key().to_matrix().transpose();
  matrix<double> expected = matrix<double>::Zero(T, 8);
  for (index_t a = 0; a < value_heads; ++a) {
    matrix<double> v = matrix<double>::Zero(T, 5);
    for (index_t t = 0; t < T; ++t)
      for (index_t e = 3 * a; e < 3 * a + 3; ++e)
        if (is_chosen(into, t, e))
          v.row(t) += into(t, e) * x.row(t) * layer.value().expert(e).weight().to_matrix().transpose();
    for (index_t t = 0; t < T; ++t) {
      matrix<double> p =
          (q.row(t).middleCols(4 * a, 4) * k.topRows(t + 1).middleCols(4 * a, 4).transpose() / 2).array().exp();
      const matrix<double> head = p / p.sum() * v.topRows(t + 1);
      for (index_t e = 3 * a; e < 3 * a + 3; ++e)
        if (is_chosen(out_of, t, e))
          expected.row(t) += out_of(t, e) * head * layer.output().expert(e).weight().to_matrix().transpose();
    }
  }
  CHECK(test::largest_difference(y, expected) < test::bound<double>(30, 4));
}

TEST_CASE("routed_value_attention: all experts at even odds are half of their sum", "[attention]") {
  auto layer = switch_head_of<double>(3);
  for (auto* routing : {&layer.value_router(), &layer.output_router()})
    routing->router().gate().weight().fill([](index_t) { return 0.0; });
  self_attention<double> plain(8, {.heads = 2, .head_width = 4, .value_width = 5, .rotary = {.width = 2}});
  initialize(plain, 4);
  plain.query() = layer.query(), plain.key() = layer.key();
  matrix<double> value(10, 8), output = matrix<double>::Zero(8, 10);
  value.setZero();
  for (index_t e = 0; e < 6; ++e) {
    value.middleRows(e / 3 * 5, 5) += 0.5 * layer.value().expert(e).weight().to_matrix();
    output.middleCols(e / 3 * 5, 5) += 0.5 * layer.output().expert(e).weight().to_matrix();
  }
  // Ordinary attention has one input, so that the normalised tokens are compared.
  routed_value_attention same(layer.value_router(), layer.output_router(), no_norm<double>{},
                              {.heads = 2, .key_width = 4, .value_width = 5, .rotary = {.width = 2}});
  initialize(same, 1);
  same.query() = layer.query(), same.key() = layer.key();
  same.value() = layer.value(), same.output() = layer.output();
  plain.value().assign(value), plain.output().assign(output);
  const matrix<double> x = test::random_matrix<double>(9, 8, 1);
  matrix<double> y(9, 8), expected(9, 8);
  decltype(same)::workspace ws;
  self_attention<double>::workspace plain_ws;
  same.value_router() = layer.value_router(), same.output_router() = layer.output_router();
  same.forward(x, y, ws);
  plain.forward(x, expected, plain_ws);
  CHECK(test::largest_difference(y, expected) < test::bound<double>(30, 4));
}

TEST_CASE("routed_value_attention: sides leave out experts of their own and other ones the next time", "[attention]") {
  auto layer = switch_head_of<double>(2, 0.5);
  layer.output_router() = layer.value_router();
  const matrix<double> x = test::random_matrix<double>(20, 8, 1);
  matrix<double> y(20, 8);
  const auto chosen = [&](std::uint64_t step) {
    decltype(layer)::tape tape;
    layer.forward(x, y, tape, {.training = true, .random = random_source{5, step}});
    return std::pair{tape.value.plan.dense_weights(), tape.output.plan.dense_weights()};
  };
  const auto [values, outputs] = chosen(0);
  CHECK(!test::same_bits(values, outputs));
  CHECK(test::same_bits(values, chosen(0).first));
  CHECK(!test::same_bits(values, chosen(1).first));
}

TEMPLATE_TEST_CASE("routed_value_attention: token by token with a cache has the bits of whole sequences", "[attention]",
                   float, double) {
  using Scalar = TestType;
  auto layer = switch_head_of<Scalar>(2);
  const matrix<Scalar> x = test::random_matrix<Scalar>(30, 8, 11);
  matrix<Scalar> whole(30, 8), y(30, 8);
  typename switch_head<Scalar, entropy_loss>::workspace ws;
  layer.forward(x, whole, ws);
  key_value_cache<Scalar> cache(layer, 1, 30);
  for (index_t t = 0; t < 30; t += t == 0 ? 7 : 1) {
    const index_t count = t == 0 ? 7 : 1;
    layer.forward_cached(x.middleRows(t, count), y.middleRows(t, count), cache, ws);
  }
  CHECK(test::same_bits(y, whole));
  CHECK_THROWS_WITH(layer.forward_cached(x.topRows(1), y.topRows(1), cache, ws), test::contains("has 30 of 30"));
}

TEST_CASE("routed_value_attention: sequences keep to themselves", "[attention]") {
  const auto layer = switch_head_of<double>(2);
  const matrix<double> x = test::random_matrix<double>(30, 8, 11);
  matrix<double> together(30, 8), first(11, 8), second(19, 8);
  switch_head<double, entropy_loss>::workspace ws;
  const std::vector<index_t> borders{0, 11, 30};
  layer.forward(x, together, ws, {.sequences = borders});
  layer.forward(x.topRows(11), first, ws);
  layer.forward(x.bottomRows(19), second, ws);
  CHECK(test::same_bits(together.topRows(11), first));
  CHECK(test::same_bits(together.bottomRows(19), second));
}

TEST_CASE("routed_value_attention: what makes no sense is refused", "[attention]") {
  const head_router five{sigmoid_router<float>(8, 5)}, four{sigmoid_router<float>(8, 4)},
      other{sigmoid_router<float>(6, 4)};
  CHECK_THROWS_WITH((switch_head<float>(four, five, layer_norm<float>(8), {.heads = 2})),
                    test::contains("5 experts has not as many for each of 2 heads"));
  CHECK_THROWS_WITH((switch_head<float>(other, four, layer_norm<float>(8), {.heads = 2})),
                    test::contains("width 6, the output router of width 8"));
  CHECK_THROWS_WITH((switch_head<float>(four, four, layer_norm<float>(6), {.heads = 2})),
                    test::contains("rows of width 8; the norm is for width 6"));
}
