// Mixtures of regressions by EM: what theory says of every iteration, known lines found again, the Lasso, bad data.
#include <sluice/statistics/regression_mixture.hpp>

#include "support.hpp"

#include <array>

using namespace sluice;

namespace {

struct regression_sample {
  matrix<double> x;
  Eigen::VectorXd y;
};
/// Two lines, 2x + 1 and -3x + 0.5, which a gate of slope 6 tells apart; `more` inputs say nothing.
regression_sample two_lines(index_t n, std::uint64_t seed, index_t more = 0) {
  const random_source random(seed);
  regression_sample s{test::random_matrix<double>(n, 1 + more, seed + 1), Eigen::VectorXd(n)};
  for (index_t i = 0; i < n; ++i) {
    const double x = s.x(i, 0) = 2 * random.uniform(random_site::user_site, 2 * i) - 1;
    const bool first = random.uniform(random_site::user_site, 2 * i + 1) < 1 / (1 + std::exp(-6 * x));
    const double noise = 0.1 * random.normal(random_site("noise"), i);
    s.y[i] = (first ? 2 * x + 1 : -3 * x + 0.5) + noise;
  }
  return s;
}
/// The expert whose slope is the larger.
index_t rising(const regression_mixture& m) { return m.coefficients()(0, 1) > m.coefficients()(1, 1) ? 0 : 1; }

regression_mixture drawn_regression(index_t inputs, index_t experts, std::uint64_t seed,
                                    error_variance variance = error_variance::of_all) {
  regression_mixture m(inputs, experts, variance);
  m.gate() = test::random_matrix<double>(experts - 1, inputs + 1, seed);
  m.coefficients() = test::random_matrix<double>(experts, inputs + 1, seed + 1);
  m.variance() = 0.7;
  if (variance == error_variance::of_each)
    for (index_t k = 1; k < experts; ++k) m.variance(k) = 0.7 + 0.4 * static_cast<double>(k);
  return m;
}

}  // namespace

TEST_CASE("regression_mixture: two lines and their gate are found again", "[statistics]") {
  const auto [x, y] = two_lines(600, 5);
  regression_mixture m(1, 2);
  const em_report report = m.fit(x, y, {.em = {.tolerance = 1e-7}, .starts = 4});
  CHECK(report.converged);
  const index_t up = rising(m), down = 1 - up;
  // Standard errors of a line over 300 points of noise 0.1 are 0.01 at most.
  CHECK_THAT(m.coefficients()(up, 0), Catch::WithinAbs(1.0, 0.04));
  CHECK_THAT(m.coefficients()(up, 1), Catch::WithinAbs(2.0, 0.04));
  CHECK_THAT(m.coefficients()(down, 0), Catch::WithinAbs(0.5, 0.04));
  CHECK_THAT(m.coefficients()(down, 1), Catch::WithinAbs(-3.0, 0.04));
  CHECK_THAT(std::sqrt(m.variance()), Catch::WithinAbs(0.1, 0.015));
  CHECK_THAT(m.gate()(0, 1) * (up == 0 ? 1 : -1), Catch::WithinAbs(6.0, 2.0));
}

TEST_CASE("regression_mixture: no iteration lowers the penalised log-likelihood", "[statistics]") {
  const auto [x, y] = two_lines(60, 9, 2);
  const double penalty = GENERATE(0.0, 3.0);
  for (const auto variance : {error_variance::of_all, error_variance::of_each}) {
    regression_mixture m = drawn_regression(3, 3, 20, variance);
    const em_report report =
        m.improve(x, y, {.expert_penalty = penalty, .gate_penalty = penalty, .em = {.iterations = 25}});
    REQUIRE(report.iterations() > 5);
    for (std::size_t i = 1; i < report.objective.size(); ++i)
      CHECK(report.objective[i] >= report.objective[i - 1] - 1e-8);
  }
}

TEST_CASE("regression_mixture: gradients of the log-likelihood equal central differences", "[statistics][gradient]") {
  const auto [x, y] = two_lines(25, 3, 1);
  const auto whose = GENERATE(error_variance::of_all, error_variance::of_each);
  regression_mixture m = drawn_regression(2, 3, 30, whose);
  const auto gradient = m.log_likelihood_gradient(x, y);
  const auto slope = [&, &x = x, &y = y](double& place) {
    const double kept = place, h = 1e-5;
    place = kept + h;
    const double above = m.log_likelihood(x, y);
    place = kept - h;
    const double below = m.log_likelihood(x, y);
    place = kept;
    return (above - below) / (2 * h);
  };
  for (index_t i = 0; i < m.gate().size(); ++i)
    CHECK_THAT(gradient.gate.data()[i], Catch::WithinAbs(slope(m.gate().data()[i]), 1e-6));
  for (index_t i = 0; i < m.coefficients().size(); ++i)
    CHECK_THAT(gradient.coefficients.data()[i], Catch::WithinAbs(slope(m.coefficients().data()[i]), 1e-6));
  REQUIRE(gradient.variance.size() == (whose == error_variance::of_each ? 3 : 1));
  for (index_t k = 0; k < gradient.variance.size(); ++k)
    CHECK_THAT(gradient.variance[k], Catch::WithinAbs(slope(m.variance(k)), 1e-6));
}

TEST_CASE("regression_mixture: a step in which every expert has a variance of its own", "[statistics]") {
  // Numbers of weighted least squares by hand: tau = g N / sum, b = (X'TX)^-1 X'Ty, s2 = sum tau r^2 / sum tau, in NumPy.
  matrix<double> x(6, 1);
  x << -2, -1, 0, 1, 2, 3;
  Eigen::VectorXd y(6);
  y << -3.5, -1.2, 1.1, 0.4, -5.0, -8.5;
  regression_mixture m(1, 2, error_variance::of_each);
  m.coefficients() << 1, 2, 0.5, -3;
  m.variance(0) = 0.5;
  m.variance(1) = 2;
  CHECK_THAT(m.log_likelihood(x, y), Catch::WithinAbs(-11.737131436030, 1e-11));
  m.step(x, y);
  const double expected[2][3] = {{1.004369261989, 2.232066323203, 0.058687684611},
                                 {3.027916757939, -3.805197115045, 0.865290180526}};
  for (index_t k = 0; k < 2; ++k) {
    CHECK_THAT(m.coefficients()(k, 0), Catch::WithinAbs(expected[k][0], 1e-11));
    CHECK_THAT(m.coefficients()(k, 1), Catch::WithinAbs(expected[k][1], 1e-11));
    CHECK_THAT(m.variance(k), Catch::WithinAbs(expected[k][2], 1e-11));
  }
  CHECK(m.parameters() == 2 + 4 + 2);
}

TEST_CASE("regression_mixture: two noises are told apart where each expert has its own", "[statistics]") {
  const random_source random(77);
  matrix<double> x(400, 1);
  Eigen::VectorXd y(400);
  for (index_t i = 0; i < 400; ++i) {
    x(i, 0) = 2 * random.uniform(random_site::user_site, i) - 1;
    y[i] = (x(i, 0) > 0 ? 3 * x(i, 0) : -3.0) + (x(i, 0) > 0 ? 0.05 : 0.5) * random.normal(random_site("noise"), i);
  }
  regression_mixture m(1, 2, error_variance::of_each);
  m.fit(x, y, {.em = {.tolerance = 1e-7}, .starts = 4});
  const index_t up = rising(m);  // deviations of 200 points are good to 1 / sqrt(400) of themselves, twice over
  CHECK_THAT(std::sqrt(m.variance(up)), Catch::WithinRel(0.05, 0.15));
  CHECK_THAT(std::sqrt(m.variance(1 - up)), Catch::WithinRel(0.5, 0.15));
}

TEST_CASE("regression_mixture: the Lasso drops inputs that say nothing, and a large penalty all of them",
          "[statistics]") {
  // n log(sd of y / sd of noise) is what the slopes are worth; 225 times their sum of 5 is less, and more than what noise
  // of 0.1 can promise in 300 rows, 0.1 sqrt(300) / 0.01.
  const auto [x, y] = two_lines(600, 15, 3);
  regression_mixture m(4, 2);
  m.fit(x, y, {.starts = 4});
  m.improve(x, y, {.expert_penalty = 225, .gate_penalty = 5});  // a path: from no penalty on
  CHECK(m.coefficients().rightCols(3).cwiseAbs().maxCoeff() < 0.02);
  CHECK((m.coefficients().rightCols(3).array() == 0).count() >= 4);
  CHECK(m.coefficients()(rising(m), 1) > 1.5);
  CHECK(m.bayes_criterion(x, y) < m.log_likelihood(x, y));

  m.improve(x, y, {.expert_penalty = 1e7, .gate_penalty = 1e7});
  CHECK(m.coefficients().rightCols(4).isZero(0));
  CHECK(m.gate().rightCols(4).isZero(0));
  const matrix<double> g = m.gate_probabilities(x);
  CHECK((g.rowwise() - g.row(0)).cwiseAbs().maxCoeff() < 1e-15);
}

TEST_CASE("regression_mixture: one expert is least squares", "[statistics]") {
  const auto [x, y] = two_lines(40, 21, 2);
  regression_mixture m(3, 1);
  m.fit(x, y);
  matrix<double> design(40, 4);
  design << Eigen::VectorXd::Ones(40), x;
  // At the least squares errors are orthogonal to every column.
  CHECK((design.transpose() * (y - m.predict(x))).cwiseAbs().maxCoeff() < 1e-9);
  CHECK_THAT(m.variance(), Catch::WithinRel((y - m.predict(x)).squaredNorm() / 40, 1e-12));
}

TEST_CASE("regression_mixture: data that do not fit are refused with a sentence", "[statistics]") {
  auto [x, y] = two_lines(10, 1);
  regression_mixture m(1, 2);
  CHECK_THROWS_WITH(regression_mixture(0, 2), Catch::Contains("not 0 and 2"));
  CHECK_THROWS_WITH(m.fit(matrix<double>::Zero(10, 3), y), Catch::Contains("1 inputs, x has 3 columns"));
  CHECK_THROWS_WITH(m.fit(x, y.head(9)), Catch::Contains("10 rows, 9 answers"));
  CHECK_THROWS_WITH(m.fit(x.topRows(1), y.head(1)), Catch::Contains("of 2 experts needs as many rows"));
  CHECK_THROWS_WITH(m.fit(x, y, {.starts = 0}), Catch::Contains("needs a start"));
  const matrix<double> wide = matrix<double>::Zero(10, 3);
  CHECK_THROWS_WITH(m.predict(wide), Catch::Contains("1 inputs, x has 3 columns"));
  CHECK_THROWS_WITH(m.log_likelihood(wide, y), Catch::Contains("1 inputs, x has 3 columns"));
  CHECK_THROWS_WITH(m.responsibilities(x, y.head(9)), Catch::Contains("10 rows, 9 answers"));
  CHECK_THROWS_WITH(m.log_likelihood_gradient(x, y.head(9)), Catch::Contains("10 rows, 9 answers"));
  CHECK_THROWS_WITH(m.step(x, y.head(9)), Catch::Contains("10 rows, 9 answers"));
  CHECK(m.predict(matrix<double>(0, 1)).size() == 0);
  for (const double bad : {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    CHECK_THROWS_WITH(m.fit(x, y, {.expert_penalty = bad}), Catch::Contains("penalties and a least variance >= 0"));
    CHECK_THROWS_WITH(m.improve(x, y, {.gate_penalty = bad}), Catch::Contains("penalties and a least variance >= 0"));
    CHECK_THROWS_WITH(m.step(x, y, {.least_variance = bad}), Catch::Contains("penalties and a least variance >= 0"));
    CHECK_THROWS_WITH(m.fit(x, y, {.em = {.tolerance = bad}}), Catch::Contains("tolerance >= 0, not 1000 and"));
  }
  CHECK_THROWS_WITH(m.fit(x, y, {.em = {.iterations = -1}}), Catch::Contains("tolerance >= 0, not -1 and 1e-09"));
  y[3] = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(m.fit(x, y), Catch::Contains("answer 3"));
  y[3] = 0;
  x(4, 0) = std::numeric_limits<double>::infinity();
  CHECK_THROWS_WITH(m.fit(x, y), Catch::Contains("row 4"));
}
