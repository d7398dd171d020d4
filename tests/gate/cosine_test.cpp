#include <sluice/gate/cosine.hpp>

#include "gate_check.hpp"

using namespace sluice;

namespace {

cosine_gate<double> three_directions(cosine_gate<double>::options o) {
  cosine_gate<double> gate(2, 3, o);
  gate.sim_matrix().map() << 2, 0, 0, 0.5, -3, 0;
  return gate;
}

}  // namespace

TEST_CASE("cosine_gate: cosines do not depend on lengths, the scale multiplies them", "[gate]") {
  matrix<double> x(2, 2);
  x << 3, 4, 0.03, 0.04;
  matrix<double> expected(2, 3);
  expected << 0.6, 0.8, -0.6, 0.6, 0.8, -0.6;
  CHECK(test::largest_difference(test::score(three_directions({.scale = 1}), x), expected) < test::bound<double>(2));
  expected *= 4;
  CHECK(test::largest_difference(test::score(three_directions({.scale = 4}), x), expected) < test::bound<double>(2, 4));
}

TEST_CASE("cosine_gate: tokens as they are, vectors set to a length after every step", "[gate]") {
  const cosine_gate<double>::options o{
      .scale = 1, .trainable_scale = false, .unit_tokens = false, .vector_length = 1.5};
  auto gate = three_directions(o);
  matrix<double> x(2, 2);
  x << 3, 4, 0.03, 0.04;
  matrix<double> expected(2, 3);
  expected << 3, 4, -3, 0.03, 0.04, -0.03;
  CHECK(test::largest_difference(test::score(gate, x), expected) < test::bound<double>(2, 4));
  gate.sim_matrix().map().row(2).setZero();
  cosine_gate<double>::tape tape;
  gate.after_step({}, tape);
  matrix<double> vectors(3, 2);
  vectors << 1.5, 0, 0, 1.5, 0, 0;
  CHECK(test::largest_difference(matrix<double>(gate.sim_matrix().map()), vectors) < test::bound<double>(2));
  auto other = three_directions({});
  other.after_step({}, tape);
  CHECK(other.sim_matrix().data()[0] == 2);
  CHECK_THROWS_WITH(cosine_gate<float>(4, 3, {.vector_length = -1}), Catch::Matchers::Contains("-1"));
}

TEST_CASE("cosine_gate: theta counts up to log 100", "[gate]") {
  auto gate = three_directions({});
  gate.temperature().value()[0] = 1e3;
  CHECK(gate.scale() == Approx(100).epsilon(1e-14));
  const auto report = test::check_gate(gate, test::random_matrix<double>(4, 2, 1), 2, test::training_context<double>());
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
  CHECK(gate.temperature().gradient()[0] == 0);
}

TEST_CASE("cosine_gate: gradients equal central differences", "[gate][gradient]") {
  const auto o = GENERATE(cosine_gate<double>::options{}, cosine_gate<double>::options{.projected = 3},
                          cosine_gate<double>::options{.projected = 7, .projector_bias = false, .scale = 5},
                          cosine_gate<double>::options{.projected = 3, .unit_tokens = false},
                          cosine_gate<double>::options{.unit_tokens = false});
  cosine_gate<double> gate(5, 4, o);
  initialize(gate, 11);
  const auto report =
      test::check_gate(gate, test::random_matrix<double>(6, 5, 12), 13, test::training_context<double>());
  INFO(report.describe());
  const index_t p = o.projected == 0 ? 5 : o.projected;
  CHECK(gate.projected() == p);
  CHECK(report.checked == 30 + 4 * p + 1 + (o.projected == 0 ? 0 : 5 * p + (o.projector_bias ? p : 0)));
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("cosine_gate: vectors shorter than the smallest norm are divided by it", "[gate][gradient]") {
  // Token 1 and expert 2 are zero, token 2 and expert 0 are short: linear there, and so are the gradients.
  cosine_gate<double> gate(3, 4, {.scale = 3, .smallest_norm = 0.5});
  initialize(gate, 17);
  matrix<double> x = test::random_matrix<double>(5, 3, 18);
  x.row(1).setZero();
  x.row(2) *= 0.3 / x.row(2).norm();
  gate.sim_matrix().map() = test::random_matrix<double>(4, 3, 19);
  gate.sim_matrix().map().row(2).setZero();
  gate.sim_matrix().map().row(0) *= 0.4 / gate.sim_matrix().map().row(0).norm();
  CHECK(test::score(gate, x).row(1).isZero(0));
  CHECK(test::score(gate, x).col(2).isZero(0));
  const auto report = test::check_gate(gate, x, 20, test::training_context<double>());
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("cosine_gate: a zero token with the published guard", "[gate]") {
  auto gate = three_directions({.scale = 1});
  const matrix<double> x = matrix<double>::Zero(1, 2);
  CHECK(test::score(gate, x).isZero(0));
  matrix<double> dlogits(1, 3);
  dlogits << 1, 2, 3;
  cosine_gate<double>::tape tape;
  // dx = sum of dlogits[e] v[e]/|v[e]| / 1e-12 = (1 - 3, 2) 1e12.
  const matrix<double> dx = test::pull_back(gate, x, dlogits, test::training_context<double>(), tape);
  CHECK(dx(0, 0) == Approx(-2e12));
  CHECK(dx(0, 1) == Approx(2e12));
  CHECK(gate.sim_matrix().gradient_map().isZero(0));
}

TEST_CASE("cosine_gate: the scale may be fixed", "[gate]") {
  cosine_gate<float> fixed(4, 3, {.trainable_scale = false});
  CHECK_FALSE(fixed.temperature().is_learned());
  CHECK(cosine_gate<float>(4, 3).temperature().is_learned());
}

TEMPLATE_TEST_CASE("cosine_gate: executors, NaN, no tokens", "[gate]", float, double) {
  const index_t projected = GENERATE(index_t(0), index_t(9));
  cosine_gate<TestType> gate(13, 37, {.projected = projected});
  initialize(gate, 23);
  test::check_gate_promises(gate, 24);
}

TEST_CASE("cosine_gate: refuses what makes no sense", "[gate]") {
  CHECK_THROWS_AS(cosine_gate<float>(0, 4), std::invalid_argument);
  CHECK_THROWS_AS(cosine_gate<float>(4, 0), std::invalid_argument);
  CHECK_THROWS_AS(cosine_gate<float>(4, 4, {.projected = -1}), std::invalid_argument);
  CHECK_THROWS_AS(cosine_gate<float>(4, 4, {.scale = 0}), std::invalid_argument);
  CHECK_THROWS_AS(cosine_gate<float>(4, 4, {.smallest_norm = 0}), std::invalid_argument);
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK_THROWS_WITH(cosine_gate<float>(4, 4, {.scale = infinity}), Catch::Matchers::Contains("not inf, 100, 1e-12"));
  CHECK_THROWS_AS(cosine_gate<float>(4, 4, {.smallest_norm = infinity}), std::invalid_argument);
  CHECK_THROWS_AS(cosine_gate<float>(4, 4, {.largest_scale = quiet_nan<double>()}), std::invalid_argument);
  CHECK(cosine_gate<float>(4, 4, {.largest_scale = infinity}).experts() == 4);  // no cap
}
