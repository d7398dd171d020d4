#include <sluice/expert/softmax_output.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/gate/transformed.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/train/cross_entropy.hpp>

#include "router/layer_checks.hpp"

using namespace sluice;

namespace {

using classifier = softmax_output<ffn<double, gelu>>;

auto probability_mixture() {
  moe_layer layer{dense_softmax_router<double, transformed_gate<linear_gate<double>>>(
                      transformed_gate{linear_gate<double>(4, 3, {.bias = true})}),
                  expert_bank<classifier>(3, classifier{ffn<double, gelu>{4, 5, {.outputs = 6, .bias = true}}})};
  initialize(layer, 1);
  return layer;
}

}  // namespace

TEST_CASE("softmax_output: rows are probabilities, gradients equal central differences", "[expert][gradient]") {
  auto layer = probability_mixture();
  const matrix<double> x = test::random_matrix<double>(7, 4, 2);
  matrix<double> y(7, 6);
  decltype(layer)::workspace ws;
  layer.forward(x, y, ws);
  CHECK(y.minCoeff() > 0);
  CHECK(test::largest_difference(matrix<double>(y.rowwise().sum()), matrix<double>::Ones(7, 1)) <=
        test::bound<double>(18));
  const auto report = test::layer_gradients(layer, x, {});
  INFO(report.describe());
  CHECK(report.checked > 100);
  CHECK(report.largest_error < test::gradient_tolerance);
}

TEST_CASE("probability_cross_entropy: the gate of a mixture of distributions gets weight minus responsibility",
          "[train][cross_entropy]") {
  auto layer = probability_mixture();
  const index_t T = 5;
  const matrix<double> x = test::random_matrix<double>(T, 4, 3);
  const std::vector<index_t> labels{0, 5, 2, 2, 4};
  const probability_cross_entropy<double> loss{.over_rows = reduction::sum};
  matrix<double> y(T, 6), dy(T, 6), dx(T, 4);
  decltype(layer)::tape tape;
  const auto value = [&] {
    layer.forward(x, y, tape);
    return loss(y, labels, dy).loss;
  };
  const double before = value();
  zero_gradients(layer);
  layer.backward(dy, dx, tape);
  double expected = 0;
  for (index_t t = 0; t < T; ++t) {
    const index_t label = labels[static_cast<std::size_t>(t)];
    expected -= std::log(y(t, label));
    double sum = 0;
    for (index_t e = 0; e < 3; ++e) {
      matrix<double> own(1, 6), saved(1, layer.bank().expert(e).saved_columns());
      layer.bank().expert(e).forward(x.row(t), own, saved);
      const double w = tape.plan.weight(e, t), responsibility = w * own(0, label) / y(t, label);
      CHECK(tape.router.dlogits(t, e) == Approx(w - responsibility).margin(1e-13));
      sum += responsibility;
    }
    CHECK(sum == Approx(1).epsilon(1e-13));
  }
  CHECK(before == Approx(expected).epsilon(1e-13));
  // Identical experts leave the gate nothing to learn.
  for (index_t e = 1; e < 3; ++e) layer.bank().expert(e) = layer.bank().expert(0);
  value();
  layer.backward(dy, dx, tape);
  CHECK(tape.router.dlogits.map().isZero(test::bound<double>(6)));
}

TEST_CASE("probability_cross_entropy: means, ignored rows, NaN, impossible labels", "[train][cross_entropy]") {
  matrix<double> p(4, 2), dp(4, 2), expected(4, 2);
  p << .25, .75, .5, .5, .9, .1, 0, 1;
  const probability_cross_entropy<double> loss;
  const std::vector<index_t> labels{0, -1, 0, 1};
  const auto r = loss(p, labels, dp);
  expected << -4 / 3., 0, 0, 0, -1 / 2.7, 0, 0, -1 / 3.;
  CHECK(r.loss == Approx((std::log(4) - std::log(.9)) / 3).epsilon(1e-14));
  CHECK((r.labelled == 3 && r.correct == 2));
  CHECK(test::largest_difference(dp, expected) < 1e-14);
  const std::vector<index_t> impossible{0, -1, 0, 0};
  CHECK(loss(p, impossible, dp).loss == std::numeric_limits<double>::infinity());
  CHECK(dp.allFinite());
  p(2, 1) = quiet_nan<double>();
  const auto broken = loss(p, labels, dp);
  CHECK((is_nan(broken.loss) && broken.invalid == 1));
  CHECK(dp.row(2).isZero(0));
  CHECK_THROWS_AS(loss(p, std::vector<index_t>{0, 1, 2, 0}, dp), std::invalid_argument);
}
