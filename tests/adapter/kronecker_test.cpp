#include <sluice/adapter/kronecker_adapters.hpp>

#include "io/messages.hpp"
#include "layer/layer_promises.hpp"
#include "router/layer_checks.hpp"

using namespace sluice;

namespace kronecker_test {

constexpr index_t D = 12, d = 6;

kronecker_adapters<double> phm(kronecker_use use, std::uint64_t seed, double redundancy = 0, double dropout = 0) {
  kronecker_adapters<double> layer(D, d,
                                   {.experts = 3,
                                    .terms = 2,
                                    .rank = 2,
                                    .scale = 0.5,
                                    .in_training = use,
                                    .at_inference = use,
                                    .dropout = dropout,
                                    .redundancy = redundancy});
  for_each_parameter(layer, [&](const std::string&, parameter<double>& p) { test::fill_normal(p, seed++, 0.7); });
  return layer;
}

matrix<double> phm_outputs(const kronecker_adapters<double>& layer, const matrix<double>& x) {
  matrix<double> y(x.rows(), D);
  kronecker_adapters<double>::workspace workspace;
  layer.forward(x, y, workspace);
  return y;
}

TEST_CASE("kronecker_sum: is the sum of Kronecker products", "[adapter][kronecker]") {
  const kronecker_shape shape{2, 6, 4, 3};
  const matrix<double> rule = test::random_matrix<double>(4, 2, 1), left = test::random_matrix<double>(6, 3, 2),
                       right = test::random_matrix<double>(6, 2, 3), x = test::random_matrix<double>(1, 6, 4);
  matrix<double> sum = matrix<double>::Zero(6, 4);
  buffer<double> scratch;
  add_kronecker_sum<double>(shape, {rule.data(), left.data(), right.data()}, 3.0, sum.data(), scratch);
  // The same map without the matrix: x as [N, I/N], through L_i and R_i, then S_i^T.
  const Eigen::Map<const matrix<double>> cut(x.data(), 2, 3);
  matrix<double> y = matrix<double>::Zero(2, 2);
  for (index_t i = 0; i < 2; ++i)
    y += rule.middleRows(2 * i, 2).transpose() * (cut * left.middleRows(3 * i, 3) * right.middleRows(3 * i, 3));
  const Eigen::Map<const matrix<double>> flat(y.data(), 1, 4);
  CHECK(test::largest_difference(matrix<double>(x * sum), matrix<double>(3 * flat)) < test::bound<double>(12, 64));

  // One term with the rule 1 is a plain matrix of low rank.
  const double one = 1;
  matrix<double> plain = matrix<double>::Zero(6, 2);
  add_kronecker_sum<double>({1, 6, 2, 3}, {&one, left.data(), right.data()}, 1.0, plain.data(), scratch);
  CHECK(test::largest_difference(plain, matrix<double>(left * right.topRows(3))) < test::bound<double>(3, 16));
  CHECK_THROWS_WITH((kronecker_adapters<float>{12, 6, {.terms = 4}}), test::contains("not N = 4, R = 8, 12 -> 6"));
  CHECK_THROWS_WITH((kronecker_adapters<float>{12, 6, {.terms = 2, .scale = quiet_nan<float>()}}),
                    test::contains("not nan and 0"));
  CHECK_THROWS_WITH((kronecker_adapters<float>{12, 6, {.terms = 2, .redundancy = quiet_nan<float>()}}),
                    test::contains("not 1 and nan"));
}

TEST_CASE("kronecker_adapters: drawn, soup and mean", "[adapter][kronecker]") {
  auto drawn = phm(kronecker_use::drawn, 11), soup = phm(kronecker_use::soup, 11), mean = phm(kronecker_use::mean, 11);
  const matrix<double> x = test::random_matrix<double>(5, D, 21);
  // The mean of matrices is the mean of outputs, over all that may be drawn.
  matrix<double> sum = matrix<double>::Zero(5, D), y(5, D);
  for (index_t e = 0; e < 3; ++e) {
    const double draw[] = {(static_cast<double>(e) + 0.5) / 3};
    routing_context<double> context;
    context.training = true;
    context.random.replay(kronecker_adapters_site, draw);
    kronecker_adapters<double>::tape tape;
    drawn.forward(x, y, tape, context);
    sum += y / 3;
    CHECK(tape.loss() == 0);
  }
  const matrix<double> of_mean = phm_outputs(mean, x), of_soup = phm_outputs(soup, x);
  CHECK(test::largest_difference(of_mean, sum) < test::bound<double>(D, 64));
  // A soup is something else, unless its experts are equal.
  CHECK(test::largest_difference(of_soup, sum) > 1e-3);
  for (auto* const layer : {&soup, &mean})
    for (auto* const p : {&layer->up_left(), &layer->up_right(), &layer->up_bias()}) {
      const matrix<double> first = p->to_matrix().row(0);
      p->fill([&](index_t i) { return first(0, i % p->cols()); });
    }
  CHECK(test::largest_difference(phm_outputs(soup, x), phm_outputs(mean, x)) < test::bound<double>(D, 64));
  // Nothing in the up map: the token as it came.
  soup.up_right().fill([](index_t) { return 0.0; });
  soup.up_bias().fill([](index_t) { return 0.0; });
  CHECK(test::same_bits(phm_outputs(soup, x), x));

  kronecker_adapters<float> fresh(D, d, {.terms = 2});
  initialize(fresh, 1);
  CHECK(fresh.rule().to_matrix().cwiseAbs().maxCoeff() <= 0.01f);
  CHECK(fresh.settings().in_training == kronecker_use::drawn);
}

TEST_CASE("kronecker_adapters: every promise of a layer", "[adapter][kronecker][conformance]") {
  for (const kronecker_use use : {kronecker_use::drawn, kronecker_use::soup, kronecker_use::mean}) {
    CAPTURE(static_cast<int>(use));
    const auto report = check_layer(phm(use, 31, use == kronecker_use::mean ? 0.0 : 0.3,
                                        use == kronecker_use::drawn ? 0.4 : 0.0),
                                    {.seed = 33, .gradients = {.most_entries = 100}});
    INFO(report.describe());
    CHECK(report.passed());
    CHECK(report.find("gradients")->result == outcome::passed);
  }
}

TEST_CASE("kronecker_adapters: dropout leaves out hidden numbers in training alone", "[adapter][kronecker]") {
  auto layer = phm(kronecker_use::mean, 31, 0, 0.5);
  const matrix<double> x = test::random_matrix<double>(40, D, 3);
  matrix<double> y(40, D);
  kronecker_adapters<double>::tape tape;
  layer.forward(x, y, tape, {.training = true});
  const index_t gone = (tape.h.map().array() == 0).count();
  CHECK(std::abs(double(gone) / double(40 * d) - 0.5) < 5 * std::sqrt(0.25 / double(40 * d)));
  CHECK(test::same_bits(phm_outputs(layer, x), phm_outputs(phm(kronecker_use::mean, 31), x)));
  CHECK_THROWS_AS(phm(kronecker_use::mean, 31, 0, 1.0), std::invalid_argument);
}

TEST_CASE("kronecker_adapters: a shared rule learns from every layer in one place", "[adapter][kronecker]") {
  auto owner = phm(kronecker_use::soup, 41), other = phm(kronecker_use::soup, 43), alone = other;
  other.share_rule(owner.rule());
  alone.rule().assign(owner.rule().to_matrix());
  index_t arrays = 0;
  for_each_parameter(other, [&](const std::string& name, const auto&) {
    CHECK(name != "rule");
    ++arrays;
  });
  CHECK(arrays == 7);
  const matrix<double> x = test::random_matrix<double>(5, D, 45), dy = test::random_matrix<double>(5, D, 46);
  matrix<double> dx(5, D), dx_alone(5, D), y(5, D);
  const auto run = [&](auto& layer, matrix<double>& to) {
    kronecker_adapters<double>::tape tape;
    layer.forward(x, y, tape);
    layer.backward(dy, to, tape);
  };
  run(owner, dx);
  const matrix<double> before = owner.rule().gradient_matrix();
  run(other, dx), run(alone, dx_alone);
  CHECK(test::same_bits(dx, dx_alone));
  const matrix<double> added = before + alone.rule().gradient_matrix();
  CHECK(test::largest_difference(owner.rule().gradient_matrix(), added) <
        test::bound<double>(D * d, added.cwiseAbs().maxCoeff()));
  kronecker_adapters<double> four(D, 4, {.terms = 4});
  CHECK_THROWS_WITH(other.share_rule(four.rule()),
                    test::contains("of 64 numbers cannot be shared by a layer of N = 2"));
}

TEST_CASE("redundancy: outputs that repeat the inputs' other numbers cost", "[adapter][redundancy]") {
  // Unit rows (1, 0) and (0.6, 0.8) of u, (0, 1) and (1, 0) of x: C = [[0.6, 1], [0.8, 0]]: 1 + 0.64.
  const matrix<double> u = (matrix<double>(3, 2) << 2, 0, 3, 4, 7, 7).finished();
  const matrix<double> x = (matrix<double>(3, 2) << 0, 5, 3, 0, 1, 2).finished();
  const std::uint8_t counts[] = {1, 1, 0};
  redundancy<double> loss;
  CHECK(std::abs(loss.evaluate(u, x, counts, 2, 0.5) - 0.25 * 1.64) < 1e-15);
  matrix<double> du = matrix<double>::Zero(3, 2), dx = matrix<double>::Zero(3, 2);
  loss.backward(du, dx);
  CHECK((du.row(2).isZero(0) && dx.row(2).isZero(0)));
  const auto value = [&](const matrix<double>& a, const matrix<double>& b) {
    redundancy<double> other;
    return other.evaluate(a, b, counts, 2, 0.5);
  };
  for (index_t i = 0; i < 4; ++i) {
    matrix<double> a = u, b = x;
    CHECK(std::abs(test::slope_at(a.data()[i], [&] { return value(a, x); }) - du.data()[i]) < 1e-8);
    CHECK(std::abs(test::slope_at(b.data()[i], [&] { return value(u, b); }) - dx.data()[i]) < 1e-8);
  }
  const std::uint8_t none[] = {0, 0, 0};
  CHECK(loss.evaluate(u, x, none, 1, 0.5) == 0);
}

}  // namespace kronecker_test
