#include <sluice/adapter/adapted_feed_forward.hpp>

#include <sluice/adapter/adapted.hpp>
#include <sluice/adapter/low_rank.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>
#include <sluice/train/model_part.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

using biased_adapter = ffn<double, no_activation>;

template <typename Router, typename... Losses>
auto tuned_network(Router router, Losses... losses) {
  adapted_feed_forward layer{
      linear_expert<double>{5, 7, {.bias = true}},
      linear_expert<double>{7, 4, {.bias = true}},
      moe_layer{std::move(router), expert_bank<biased_adapter>{3, 5, 2, {.outputs = 7, .bias = true}}, losses...},
      expert_bank<biased_adapter>{3, 7, 2, {.outputs = 4, .bias = true}},
      0.5,
      quick_gelu{}};
  std::uint64_t seed = 200;
  for_each_parameter(layer, [&](const std::string&, auto& p) {
    p.assign(test::random_matrix<double>(p.rows(), p.cols(), ++seed) * 0.5);
  });
  return layer;
}

auto best_of_three() {
  return top_k_router<double>{5, 3, {.top_k = 1, .weights = weighting::post, .constant_weight = true}};
}

const switch_balance choice_balance{.coefficient = 0.01 / 3};

matrix<double> affine_map(const matrix<double>& x, auto& map) {
  matrix<double> y = x * map.weight().to_matrix().transpose();
  y.rowwise() += Eigen::RowVectorXd(map.bias().to_matrix().transpose());
  return y;
}
matrix<double> of_adapter(const biased_adapter& adapter, const matrix<double>& x) {
  matrix<double> y(x.rows(), adapter.outputs()), saved(x.rows(), 0);
  adapter.forward(x, y, saved);
  return y;
}

}  // namespace

TEST_CASE("adapted_feed_forward: one choice for both maps, inside of the activation", "[adapter][feed_forward]") {
  auto layer = tuned_network(best_of_three(), choice_balance);
  const matrix<double> x = test::random_matrix<double>(6, 5, 71);
  matrix<double> y(6, 4);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  const matrix<double> logits = x * layer.router().gate().weight().to_matrix().transpose();
  for (index_t t = 0; t < 6; ++t) {
    index_t e = 0;
    logits.row(t).maxCoeff(&e);
    const matrix<double> row = x.row(t);
    const matrix<double> z = affine_map(row, layer.first()) + 0.5 * of_adapter(layer.first_adapters().expert(e), row);
    const matrix<double> h = z.array() / (1 + (-1.702 * z.array()).exp());
    const matrix<double> expected = affine_map(h, layer.second()) + 0.5 * of_adapter(layer.second_adapters().expert(e), h);
    CHECK(test::largest_difference(matrix<double>(y.row(t)), expected) <= test::bound<double>(30, 16.0));
  }
}

TEST_CASE("adapted_feed_forward: keeps every promise of a layer", "[adapter][feed_forward][conformance][gradient]") {
  const auto check_it = [](auto layer) {
    const auto report = check_layer(layer);
    INFO(report.describe());
    CHECK(report.passed());
    CHECK(report.find("gradients")->result == outcome::passed);
  };
  check_it(tuned_network(best_of_three(), choice_balance));
  check_it(tuned_network(dense_softmax_router<double>{5, 3}));
}

TEST_CASE("adapted_feed_forward: the base stays, and the router of one choice learns from its balance alone",
          "[adapter][feed_forward]") {
  auto layer = tuned_network(best_of_three(), choice_balance);
  const matrix<double> x = test::random_matrix<double>(6, 5, 73), dy = test::random_matrix<double>(6, 4, 74);
  matrix<double> y(6, 4), dx(6, 5);
  decltype(layer)::tape tape;
  layer.layer().loss<0>().coefficient = 0;
  layer.forward(x, y, tape);
  layer.backward(dy, dx, tape);
  CHECK(layer.router().gate().weight().gradient_matrix().isZero(0));
  layer.layer().loss<0>().coefficient = 0.01 / 3;
  layer.forward(x, y, tape);
  layer.backward(dy, dx, tape);
  CHECK_FALSE(layer.router().gate().weight().gradient_matrix().isZero(0));
  CHECK(tape.loss() > 0);
  model_part adapters{layer, of_adapters};
  CHECK(adapters.arrays() == 1 + 2 * 3 * 4);
  for_each_parameter(layer, [](const std::string& name, const auto& p) {
    INFO(name);
    CHECK(p.is_learned() == !name.starts_with("base."));
  });
  CHECK_THROWS_AS((adapted_feed_forward{linear_expert<double>{5, 7}, linear_expert<double>{8, 4}, layer.layer(),
                                        layer.second_adapters()}),
                  std::invalid_argument);
}

TEST_CASE("adapted_feed_forward: a base in sixteen bits", "[adapter][feed_forward]") {
  moe_layer mixture{top_k_router<float>{5, 3, {.top_k = 2}},
                    expert_bank<low_rank_expert<float>>{3, 5, 2, {.outputs = 7}}};
  adapted_feed_forward layer{linear_expert<float>{5, 7}, linear_expert<float>{7, 4}, mixture,
                             expert_bank<low_rank_expert<float>>{3, 7, 2, {.outputs = 4}}};
  initialize(layer, 75);
  const auto small = layer.stored_as<bfloat16_storage>();
  const matrix<float> x = test::random_matrix<float>(6, 5, 76);
  matrix<float> y(6, 4), z(6, 4);
  decltype(layer)::workspace workspace;
  std::remove_cvref_t<decltype(small)>::workspace other;
  layer.forward(x, y, workspace);
  small.forward(x, z, other);
  CHECK(test::largest_difference(y, z) <= 2 * 0x1p-8F * (1 + y.cwiseAbs().maxCoeff()) * 3);
  CHECK_FALSE(test::same_bits(y, z));
}
