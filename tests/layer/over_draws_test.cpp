#include <sluice/layer/over_draws.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/lambda.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/every_expert/gumbel_softmax.hpp>
#include <sluice/router/tokens_choose/noisy_top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

#include <atomic>

using namespace sluice;

namespace {

/// GG MoE: experts without biases, three outputs.
auto gg_moe(double temperature) {
  moe_layer layer{
      gumbel_softmax_router<double>{linear_gate<double>(5, 4, {.bias = true}), {.temperature = temperature}},
      expert_bank<ffn<double>>{4, 5, 6, {.outputs = 3}}};
  initialize(layer, 3);
  layer.router().gate().bias().fill([](index_t e) { return 0.3 * double(e); });
  return layer;
}

template <typename Layer, typename Finish = rows_as_they_are>
matrix<double> mean_of(const Layer& layer, const matrix<double>& x, index_t draws, const Finish& finish = {},
                       const routing_context<double>& context = {}) {
  matrix<double> y(x.rows(), layer.outputs());
  over_draws<Layer> memory;
  memory.mean(layer, x, y, {.draws = draws}, finish, context);
  return y;
}

/// The mean of training forward calls, one a draw.
template <typename Layer, typename Finish = rows_as_they_are>
matrix<double> mean_by_calls(const Layer& layer, const matrix<double>& x, index_t draws, const Finish& finish = {},
                             routing_context<double> context = {}) {
  matrix<double> sum = matrix<double>::Zero(x.rows(), layer.outputs()), y = sum;
  const random_source random = context.random;
  context.training = true;
  for (index_t m = 0; m < draws; ++m) {
    typename Layer::tape tape;
    context.random = random.split(m);
    layer.forward(x, y, tape, context);
    for (index_t t = 0; t < x.rows(); ++t) finish(std::span<double>(y.row(t).data(), 3));
    sum += y / double(draws);
  }
  return sum;
}

}  // namespace

TEST_CASE("over_draws: the mean of as many calls - of outputs and of probabilities, which differ", "[layer][draws]") {
  const auto layer = gg_moe(0.5);
  const matrix<double> x = 3 * test::random_matrix<double>(9, 5, 1);
  const double bound = test::bound<double>(10 * 6, 30.0);
  CHECK(test::largest_difference(mean_of(layer, x, 10), mean_by_calls(layer, x, 10)) < bound);
  const matrix<double> p = mean_of(layer, x, 10, softmax_of_rows{});
  CHECK(test::largest_difference(p, mean_by_calls(layer, x, 10, softmax_of_rows{})) < bound);
  CHECK(test::largest_difference(p.rowwise().sum().eval(), matrix<double>::Ones(9, 1)) < bound);
  matrix<double> of_mean = mean_of(layer, x, 10);
  for (index_t t = 0; t < 9; ++t) softmax_of_rows{}(std::span<double>(of_mean.row(t).data(), 3));
  CHECK(test::largest_difference(p, of_mean) > 0.01);
  // A different source draws otherwise; the same one says the same.
  routing_context<double> other;
  other.random = random_source(8);
  CHECK(test::largest_difference(mean_of(layer, x, 10, rows_as_they_are{}, other), mean_of(layer, x, 10)) > 1e-3);
  CHECK(test::same_bits(mean_of(layer, x, 10), mean_of(layer, x, 10)));
}

TEST_CASE("over_draws: with given noise it is the mixture of shifted logits", "[layer][draws]") {
  const auto layer = gg_moe(0.5);
  const matrix<double> x = test::random_matrix<double>(4, 5, 1), xi = test::random_matrix<double>(4, 4, 2);
  routing_context<double> context;
  context.random.replay(gumbel_softmax_weights<double>::site, test::span_of(xi));
  const matrix<double> y = mean_of(layer, x, 3, rows_as_they_are{}, context);
  moe_layer plain{dense_softmax_router<double>{linear_gate<double>(5, 4, {.bias = true})},
                  expert_bank<ffn<double>>{layer.bank()}};
  auto gate = layer.router().gate();
  for (index_t t = 0; t < 4; ++t) {  // a token at a time: its own shift is a bias of the gate
    plain.router().gate().weight().fill([&](index_t i) { return gate.weight().element_at(i) / 0.5; });
    plain.router().gate().bias().fill([&](index_t e) { return (gate.bias().element_at(e) + xi(t, e)) / 0.5; });
    matrix<double> expected(1, 3);
    typename decltype(plain)::workspace workspace;
    plain.forward(x.middleRows(t, 1), expected, workspace);
    CHECK(test::largest_difference(matrix<double>(y.row(t)), expected) < test::bound<double>(6, 10.0));
  }
}

TEST_CASE("over_draws: at a high temperature experts count alike, and its own inference is another such mean",
          "[layer][draws]") {
  const matrix<double> x = test::random_matrix<double>(5, 5, 1);
  const auto hot = gg_moe(1e9);
  const auto even = gg_moe(1e9);
  matrix<double> expected = matrix<double>::Zero(5, 3);
  for (index_t e = 0; e < 4; ++e) {
    auto expert = even.bank().expert(e);
    expected += (x * expert.up().to_matrix().transpose()).cwiseMax(0.0) * expert.down().to_matrix().transpose() / 4;
  }
  CHECK(test::largest_difference(mean_of(hot, x, 2), expected) < 1e-7);
  // Over many draws both are the mean over all noise: within six deviations, which at most half the spread of four
  // experts' outputs makes 3 spread / sqrt(draws).
  auto warm = gg_moe(0.5);
  const index_t draws = 4000;
  gumbel_softmax_weights<double> many(4, {.temperature = 0.5, .samples = draws, .seed = 5});
  warm.router().weights() = many;
  matrix<double> own(5, 3);
  typename decltype(warm)::workspace workspace;
  warm.forward(x, own, workspace);
  CHECK(test::largest_difference(mean_of(warm, x, draws), own) <
        3 * own.cwiseAbs().maxCoeff() / std::sqrt(double(draws)) * 2);
}

TEST_CASE("over_draws: experts run once, and sparse plans are drawn as well", "[layer][draws]") {
  std::atomic<index_t> rows{0};
  const auto expert = make_expert<double>(5, 3, [&](tokens_in<double> x, tokens_out<double> y) {
    rows += x.rows();
    y = 2 * x.leftCols(3);
    y.col(0).array() += x.col(4).array().square();
  });
  moe_layer layer{noisy_top_k_router<double>{5, 4, {.top_k = 2}}, expert_bank(4, expert)};
  initialize(layer, 2);
  const matrix<double> x = test::random_matrix<double>(6, 5, 3);
  const matrix<double> y = mean_of(layer, x, 7, softmax_of_rows{});
  CHECK(rows == 4 * 6);
  CHECK(test::largest_difference(y, mean_by_calls(layer, x, 7, softmax_of_rows{})) < test::bound<double>(70, 30.0));
}

TEST_CASE("over_draws: padding, NaN, no tokens, in place, threads, what it refuses", "[layer][draws]") {
  const auto layer = gg_moe(0.7);
  matrix<double> x = test::random_matrix<double>(70, 5, 1);
  const matrix<double> clean = mean_of(layer, x, 4, softmax_of_rows{});
  x(2, 1) = quiet_nan<double>();
  x(5, 0) = quiet_nan<double>();
  std::vector<std::uint8_t> mask(70, 1);
  mask[5] = 0;
  routing_context<double> context;
  context.token_mask = mask;
  const matrix<double> y = mean_of(layer, x, 4, softmax_of_rows{}, context);
  for (index_t t = 0; t < 70; ++t) {
    if (t == 2)
      CHECK((is_nan(y(t, 0)) && is_nan(y(t, 2))));
    else if (t == 5)
      CHECK(y.row(t).isZero(0));
    else
      CHECK(test::largest_difference(matrix<double>(y.row(t)), matrix<double>(clean.row(t))) < 1e-14);
  }
  test::shuffled_threads threads(3);
  context.executor = threads;
  CHECK(test::same_bits(mean_of(layer, x, 4, softmax_of_rows{}, context), y));
  CHECK(mean_of(layer, matrix<double>(0, 5), 4).rows() == 0);
  CHECK_THROWS_WITH(mean_of(layer, x, 0), Catch::Contains("needs one, not 0"));
  CHECK_THROWS_WITH(mean_of(layer, matrix<double>(2, 4), 1), Catch::Contains("x is [2, 4]"));

  moe_layer square{gumbel_softmax_router<double>{5, 4}, expert_bank<ffn<double>>{4, 5, 6}};
  over_draws<decltype(square)> memory;
  matrix<double> place = test::random_matrix<double>(6, 5, 1), apart(6, 5);
  CHECK_THROWS_AS(memory.mean(square, place, apart), std::invalid_argument);  // nobody has initialised it
  initialize(square, 1);
  memory.mean(square, place, apart);
  memory.mean(square, place, place);
  CHECK(test::same_bits(place, apart));
}
