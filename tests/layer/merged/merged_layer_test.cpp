#include <sluice/layer/merged/merged_layer.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/gate/per_group.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../../support.hpp"

using namespace sluice;

namespace {

const std::vector<index_t> two_full_groups{0, 4, 4, 9};  // the second one is empty

template <typename Scalar>
auto merged_networks() {
  merged_layer layer{moe_layer{top_k_router<Scalar>{6, 4, {.top_k = 2}},
                               expert_bank<ffn<Scalar, silu>>{4, 6, 5, {.outputs = 3, .bias = true}},
                               importance_loss{}}};
  initialize(layer, 71);
  return layer;
}

template <typename Layer>
matrix<double> merged_outputs(const Layer& layer, const matrix<double>& x, const routing_context<double>& context) {
  matrix<double> y(x.rows(), layer.outputs());
  typename Layer::workspace workspace;
  layer.forward(x, y, workspace, context);
  return y;
}

/// One expert whose parameters are sums of the bank's by weight.
template <typename Bank>
auto expert_by_hand(const Bank& bank, const std::vector<double>& weights) {
  auto sum = bank.expert(0);
  std::vector<matrix<double>> total;
  for (index_t e = 0; e < bank.experts(); ++e) {
    std::size_t place = 0;
    for_each_parameter(bank.expert(e), [&](const std::string&, const auto& p) {
      const matrix<double> part = weights[std::size_t(e)] * p.to_matrix();
      if (e == 0)
        total.push_back(part);
      else
        total[place] += part;
      ++place;
    });
  }
  std::size_t place = 0;
  for_each_parameter(sum, [&](const std::string&, auto& p) { p.assign(total[place++]); });
  return sum;
}

}  // namespace

TEST_CASE("merged_layer: every group runs the sum of its experts", "[layer][merged]") {
  auto layer = merged_networks<double>();
  const matrix<double> x = test::random_matrix<double>(9, 6, 72);
  const matrix<double> y = merged_outputs(layer, x, {.groups = two_full_groups});
  const matrix<double> gate = layer.router().gate().weight().to_matrix();
  for (const token_range group : {token_range{0, 4}, token_range{4, 9}}) {
    const Eigen::RowVectorXd logits = x.middleRows(group.begin, group.size()).colwise().mean() * gate.transpose();
    std::vector<index_t> order{0, 1, 2, 3};
    std::sort(order.begin(), order.end(), [&](index_t a, index_t b) { return logits(a) > logits(b); });
    std::vector<double> weights(4, 0.0);
    const double a = std::exp(logits(order[0])), b = std::exp(logits(order[1]));
    weights[std::size_t(order[0])] = a / (a + b);
    weights[std::size_t(order[1])] = b / (a + b);
    const auto expert = expert_by_hand(layer.bank(), weights);
    const matrix<double> own = x.middleRows(group.begin, group.size());
    matrix<double> expected(own.rows(), 3), saved(own.rows(), 0);
    expert.forward(own, expected, saved);
    CHECK(test::largest_difference(matrix<double>(y.middleRows(group.begin, group.size())), expected) <=
          test::bound<double>(6 + 5 + 4, 16.0));
  }
}

TEST_CASE("merged_layer: merging is no mixing unless experts are linear or alone", "[layer][merged]") {
  // w1 = {1, -1}, w2 = {1, 1}, even gates, relu, x = 2: the outputs mix to 1, the merged expert gives 0.
  merged_layer relus{moe_layer{dense_softmax_router<double>{1, 2}, expert_bank<ffn<double>>{2, 1, index_t(1)}}};
  initialize(relus, 1);
  relus.router().gate().weight().fill([](index_t) { return 0.0; });
  relus.bank().expert(0).up().fill([](index_t) { return 1.0; });
  relus.bank().expert(1).up().fill([](index_t) { return -1.0; });
  for (const index_t e : {0, 1}) relus.bank().expert(e).down().fill([](index_t) { return 1.0; });
  const matrix<double> two = matrix<double>::Constant(1, 1, 2.0);
  CHECK(merged_outputs(relus, two, {})(0, 0) == 0);
  CHECK(merged_outputs(relus.layer(), two, {})(0, 0) == 1);

  // Linear experts: the mixture of outputs with one decision a group.
  per_group_gate gate{linear_gate<double>(6, 4)};
  moe_layer mixed{dense_softmax_router<double, decltype(gate)>{gate},
                  expert_bank<linear_expert<double>>(4, index_t(6), index_t(5))};
  initialize(mixed, 73);
  merged_layer merged{moe_layer{dense_softmax_router<double>{mixed.router().gate().inner()}, mixed.bank()}};
  const matrix<double> x = test::random_matrix<double>(9, 6, 74);
  CHECK(test::largest_difference(merged_outputs(merged, x, {.groups = two_full_groups}),
                                 merged_outputs(mixed, x, {.groups = two_full_groups})) <= test::bound<double>(10, 16.0));

  // One expert a token: the plain layer, weight 1, for any expert.
  const auto networks = merged_networks<double>();
  std::vector<index_t> every_token(10);
  for (index_t t = 0; t < 10; ++t) every_token[std::size_t(t)] = t;
  const routing_context<double> single{.top_k = 1, .groups = every_token};
  routing_context<double> plain = single;
  plain.groups = {};
  CHECK(test::same_bits(merged_outputs(networks, x, single), merged_outputs(networks.layer(), x, plain)));
}

TEST_CASE("merged_layer: keeps every promise of a layer", "[layer][merged][conformance][gradient]") {
  const std::vector<index_t> borders{0, 5, 9, 9, 37};
  for (const bool one_group : {true, false}) {
    const auto layer = merged_networks<double>();
    layer_check_options<double> options{.seed = 75, .gradient_bound = 2e-6};
    if (!one_group) options.context.groups = borders;
    const auto report = check_layer(layer, options);
    INFO(report.describe());
    CHECK(report.passed());
    CHECK(report.find("gradients")->result == outcome::passed);
  }
  merged_layer first{moe_layer{dense_softmax_router<double>{4, 3}, expert_bank<ffn<double, gelu>>{3, 4, index_t(5)}}};
  using by_first = merged_layer<std::remove_cvref_t<decltype(first.layer())>, group_source::first_token>;
  by_first layer{first.layer()};
  initialize(layer, 76);
  const auto report = check_layer(layer);
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("merged_layer: more groups than are merged at once, and the same bits for any of them", "[layer][merged]") {
  const auto layer = merged_networks<double>();
  const matrix<double> x = test::random_matrix<double>(80, 6, 77);
  std::vector<index_t> pairs;
  for (index_t t = 0; t <= 80; t += 2) pairs.push_back(t);
  const matrix<double> y = merged_outputs(layer, x, {.groups = pairs});
  for (const index_t g : {0, 16, 39})
    CHECK(test::same_bits(matrix<double>(y.middleRows(2 * g, 2)), merged_outputs(layer, x.middleRows(2 * g, 2), {})));
  // Training keeps all of them: the same outputs.
  matrix<double> trained(80, 3);
  std::remove_cvref_t<decltype(layer)>::tape tape;
  layer.forward(x, trained, tape, {.training = true, .groups = pairs});
  CHECK(test::same_bits(trained, y));
  CHECK(tape.merged->experts() == 40);
}

TEST_CASE("merged_layer: a group that is not routed gets nothing or NaN, and no other one sees it", "[layer][merged]") {
  auto layer = merged_networks<double>();
  matrix<double> x = test::random_matrix<double>(9, 6, 78);
  const matrix<double> clean = merged_outputs(layer, x, {.groups = two_full_groups});
  x.middleRows(4, 5) *= 1e308;  // a mean that overflows: logits that are no numbers
  matrix<double> y(9, 3), dx(9, 6);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape, {.training = true, .groups = two_full_groups});
  CHECK(test::same_bits(matrix<double>(y.topRows(4)), matrix<double>(clean.topRows(4))));
  for (index_t t = 4; t < 9; ++t) CHECK(is_nan(y(t, 0)));
  layer.backward(matrix<double>::Ones(9, 3), dx, tape);
  CHECK(dx.bottomRows(5).isZero(0));
  for_each_parameter(layer, [](const std::string& name, auto& p) {
    INFO(name);
    CHECK(!any_nan(p.gradient().data(), p.size()));
  });
  const std::vector<std::uint8_t> mask{1, 1, 1, 1, 0, 0, 0, 0, 0};
  matrix<double> masked = merged_outputs(layer, x, {.token_mask = mask, .groups = two_full_groups});
  CHECK(test::same_bits(matrix<double>(masked.topRows(4)), matrix<double>(clean.topRows(4))));
  CHECK(masked.bottomRows(5).isZero(0));
}

TEST_CASE("merged_layer: frozen experts stay, and what is above them learns", "[layer][merged]") {
  auto layer = merged_networks<double>();
  for_each_parameter(layer.bank().expert(1), [](const std::string&, auto& p) { p.set_frozen(true); });
  auto free = merged_networks<double>();
  const matrix<double> x = test::random_matrix<double>(9, 6, 79), dy = test::random_matrix<double>(9, 3, 80);
  matrix<double> y(9, 3), dx(9, 6), dx_free(9, 6);
  decltype(layer)::tape tape, other;
  layer.forward(x, y, tape);
  layer.backward(dy, dx, tape);
  free.forward(x, y, other);
  free.backward(dy, dx_free, other);
  CHECK(test::same_bits(dx, dx_free));
  CHECK(test::same_bits(layer.router().gate().weight().gradient_matrix(),
                        free.router().gate().weight().gradient_matrix()));
  CHECK_FALSE(layer.bank().expert(1).up().has_gradient());
  CHECK(test::same_bits(layer.bank().expert(0).up().gradient_matrix(), free.bank().expert(0).up().gradient_matrix()));
}

TEST_CASE("merged_layer: experts that cannot be merged are refused with their number", "[layer][merged]") {
  std::vector<ffn<double>> unlike;
  unlike.emplace_back(4, 5);
  unlike.emplace_back(4, 6);
  moe_layer mixture{dense_softmax_router<double>{4, 2}, expert_bank<ffn<double>>(std::move(unlike))};
  CHECK_THROWS_AS(merged_layer{std::move(mixture)}, std::invalid_argument);
  const auto layer = merged_networks<double>();
  const std::vector<index_t> short_groups{0, 4};
  const matrix<double> x = test::random_matrix<double>(9, 6, 83), previous = test::random_matrix<double>(9, 4, 84);
  CHECK_THROWS_AS(merged_outputs(layer, x, {.groups = short_groups}), std::invalid_argument);
  CHECK_THROWS_WITH(merged_outputs(layer, x, {.groups = two_full_groups, .previous_logits = previous}),
                    Catch::Contains("previous_logits are of 9 tokens") && Catch::Contains("3 groups"));
}
