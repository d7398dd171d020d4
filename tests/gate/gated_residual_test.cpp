#include <sluice/gate/gated_residual.hpp>

#include "gate_check.hpp"

using namespace sluice;

namespace {

/// Cox and de Boor, straight from the definition.
double naive_spline(const std::vector<double>& knots, index_t i, index_t k, double z) {
  const auto at = [&](index_t j) { return knots[static_cast<std::size_t>(j)]; };
  if (k == 0) return at(i) <= z && z < at(i + 1) ? 1 : 0;
  return (z - at(i)) / (at(i + k) - at(i)) * naive_spline(knots, i, k - 1, z) +
         (at(i + k + 1) - z) / (at(i + k + 1) - at(i + 1)) * naive_spline(knots, i + 1, k - 1, z);
}

/// The splines of z: outputs of a map whose spline weights are the identity and whose base weights are zero.
template <typename Map>
matrix<double> splines_of(Map& map, const std::vector<double>& z) {
  matrix<double> x(static_cast<index_t>(z.size()), 1), y(x.rows(), map.splines());
  for (index_t r = 0; r < x.rows(); ++r) x(r, 0) = z[static_cast<std::size_t>(r)];
  map.spline().map().setIdentity();
  typename Map::tape tape;
  map.forward(x, y, tape, executor_ref());
  return y;
}

}  // namespace

TEST_CASE("spline_map: splines by the definition, inside, at knots and beyond", "[gate][spline_map]") {
  const index_t order = GENERATE(1, 2, 3);
  const std::vector<double> own{-4, -3, -1, 0, .5, 1, 1.5, 2, 5, 6};
  std::vector<double> knots;
  for (int i = 0; i < 3 + 2 * static_cast<int>(order) + 1; ++i)
    knots.push_back(order == 3 ? own[static_cast<std::size_t>(i)] : -1 + (i - static_cast<int>(order)) * 2 / 3.);
  spline_map<double> map(1, 3 + order, {.order = order, .knots = order == 3 ? own : std::vector<double>{}});
  std::vector<double> z{-9, -2.9, -1, -.4, 0, .3, .99, 1, 2.5, 5.5, 9};
  z.push_back(knots[2]);
  const matrix<double> y = splines_of(map, z);
  for (index_t r = 0; r < y.rows(); ++r)
    for (index_t g = 0; g < y.cols(); ++g) {
      CAPTURE(order, z[static_cast<std::size_t>(r)], g);
      CHECK(std::abs(y(r, g) - naive_spline(knots, g, order, z[static_cast<std::size_t>(r)])) <=
            test::bound<double>(8));
    }
  // On the grid itself the splines share 1.
  if (order < 3) CHECK(y.row(3).sum() == Approx(1).epsilon(1e-14));
}

TEST_CASE("spline_map: refuses what makes no splines", "[gate][spline_map]") {
  CHECK_THROWS_WITH((spline_map<double>(0, 2)), Catch::Matchers::Contains("not 0, 2, 3 and 3"));
  const index_t most = (std::numeric_limits<index_t>::max)();
  CHECK_THROWS_WITH((spline_map<double>(2, 2, {.intervals = most})), Catch::Matchers::Contains("not 2, 2, 92233720"));
  CHECK_THROWS_WITH((spline_map<double>(2, 2, {.low = 1})),
                    Catch::Matchers::Contains("finite low < high, not 1 and 1"));
  CHECK_THROWS_AS((spline_map<double>(2, 2, {.high = std::numeric_limits<double>::infinity()})), std::invalid_argument);
  CHECK_THROWS_WITH((spline_map<double>(1, 2, {.knots = {0, 1, 1}})),
                    Catch::Matchers::Contains("10 ascending knots; it has 3"));
  CHECK_THROWS_AS((spline_map<double>(1, 2, {.low = 1, .high = -1})), std::invalid_argument);
}

TEST_CASE("gated_residual_gate: without its branch it is a normalised skip", "[gate]") {
  grkan_gate<double> gate(4, 3, 5);
  initialize(gate, 1);
  gate.gate_map().weight().map().setZero();
  const matrix<double> x = test::random_matrix<double>(6, 4, 2);
  const matrix<double> h = (x * gate.hidden_map().weight().to_matrix().transpose()).cwiseMax(0);
  const matrix<double> skip = h * gate.skip_map().weight().to_matrix().transpose();
  const matrix<double> logits = test::score(gate, x);
  for (index_t t = 0; t < 6; ++t) {
    const double mean = skip.row(t).mean();
    const double variance = (skip.row(t).array() - mean).square().mean();
    for (index_t e = 0; e < 3; ++e)
      CHECK(std::abs(logits(t, e) - (skip(t, e) - mean) / std::sqrt(variance + 1e-3)) <= test::bound<double>(9, 32.0));
  }
}

TEST_CASE("gated_residual_gate: gradients equal central differences", "[gate][gradient]") {
  const auto check = [](auto gate) {
    initialize(gate, 31);
    const auto report =
        test::check_gate(gate, test::random_matrix<double>(5, 4, 32), 33, test::training_context<double>());
    INFO(report.describe());
    CHECK(report.checked > 80);
    CHECK(report.largest_error < 1e-6);
  };
  check(grkan_gate<double>(4, 3, 2));
  check(grn_gate<double>(4, 3, 5));
}

TEST_CASE("gated_residual_gate: executors, NaN, no tokens", "[gate]") {
  grkan_gate<float> gate(7, 5);
  initialize(gate, 35);
  test::check_gate_promises(gate, 36);
  CHECK_THROWS_WITH((grn_gate<float>(4, dense_map<float, elu>(3, 2), dense_map<float>(3, 3))),
                    Catch::Matchers::Contains("gives 2 numbers, the second reads 3"));
}
