// Mixtures of classifiers by EM: worked numbers, gradients, iterations that never lose, rates of estimates.
#include <sluice/statistics/multinomial_mixture.hpp>

#include "support.hpp"

#include <array>

using namespace sluice;

namespace {

template <typename Features = plain_features>
multinomial_mixture<Features> drawn_classifiers(index_t inputs, index_t classes, index_t experts, std::uint64_t seed) {
  multinomial_mixture<Features> m(inputs, classes, experts);
  m.gate() = test::random_matrix<double>(experts - 1, inputs + 1, seed);
  for (index_t k = 0; k < experts; ++k)
    m.expert(k) = test::random_matrix<double>(classes - 1, inputs + 1, seed + 1 + static_cast<std::uint64_t>(k));
  return m;
}
template <typename Mixture>
std::vector<index_t> labels_of(const Mixture& m, const matrix<double>& x, std::uint64_t seed) {
  const random_source random(seed);
  const matrix<double> p = m.predict(x);
  std::vector<index_t> labels;
  for (index_t i = 0; i < x.rows(); ++i) {
    double rest = random.uniform(random_site::user_site, i);
    index_t s = 0;
    while (s + 1 < p.cols() && rest >= p(i, s)) rest -= p(i, s++);
    labels.push_back(s);
  }
  return labels;
}

}  // namespace

TEST_CASE("multinomial_mixture: worked numbers", "[statistics]") {
  // Gate .3 and .7, classes .8 .2 and .1 .9, whatever x is.
  multinomial_mixture<> m(1, 2, 2);
  m.gate()(0, 0) = std::log(0.3 / 0.7);
  m.expert(0)(0, 0) = std::log(0.8 / 0.2);
  m.expert(1)(0, 0) = std::log(0.1 / 0.9);
  const matrix<double> x = matrix<double>::Constant(1, 1, 5);
  const std::array<index_t, 1> labels{0};
  CHECK_THAT(m.predict(x)(0, 0), Catch::WithinAbs(0.31, 1e-12));
  CHECK_THAT(m.predict(x)(0, 1), Catch::WithinAbs(0.69, 1e-12));
  CHECK_THAT(m.responsibilities(x, labels)(0, 0), Catch::WithinAbs(0.774194, 1e-6));
  CHECK_THAT(m.log_likelihood_gradient(x, labels).gate(0, 0), Catch::WithinAbs(0.474194, 1e-6));
}

TEST_CASE("multinomial_mixture: gradients equal central differences and rows add up to 1", "[statistics][gradient]") {
  auto m = drawn_classifiers<unit_features>(2, 3, 3, 5);
  const matrix<double> x = test::random_matrix<double>(20, 2, 6);
  const std::vector<index_t> labels = labels_of(m, x, 7);
  CHECK((m.predict(x).rowwise().sum().array() - 1).abs().maxCoeff() < 1e-14);
  const auto gradient = m.log_likelihood_gradient(x, labels);
  const auto slope = [&](double& place) {
    const double kept = place, h = 1e-5;
    place = kept + h;
    const double above = m.log_likelihood(x, labels);
    place = kept - h;
    const double below = m.log_likelihood(x, labels);
    place = kept;
    return (above - below) / (2 * h);
  };
  for (index_t i = 0; i < m.gate().size(); ++i)
    CHECK_THAT(gradient.gate.data()[i], Catch::WithinAbs(slope(m.gate().data()[i]), 1e-7));
  for (index_t k = 0; k < 3; ++k)
    for (index_t i = 0; i < m.expert(k).size(); ++i)
      CHECK_THAT(gradient.experts[as_size(k)].data()[i], Catch::WithinAbs(slope(m.expert(k).data()[i]), 1e-7));
}

TEST_CASE("multinomial_mixture: no iteration lowers the penalised log-likelihood", "[statistics]") {
  const auto truth = drawn_classifiers(2, 3, 2, 11);
  const matrix<double> x = test::random_matrix<double>(120, 2, 12);
  const std::vector<index_t> labels = labels_of(truth, x, 13);
  for (const double penalty : {0.0, 2.0}) {
    multinomial_mixture<> m(2, 3, 2);
    const em_report report = m.fit(x, labels, {.penalty = penalty, .em = {.iterations = 20}});
    for (std::size_t i = 1; i < report.objective.size(); ++i)
      CHECK(report.objective[i] >= report.objective[i - 1] - 1e-8);
  }
}

TEST_CASE("multinomial_mixture: one expert is logistic regression", "[statistics]") {
  const auto truth = drawn_classifiers(2, 3, 1, 21);
  const matrix<double> x = test::random_matrix<double>(150, 2, 22);
  const std::vector<index_t> labels = labels_of(truth, x, 23);
  multinomial_mixture<> m(2, 3, 1);
  m.fit(x, labels);
  // At the maximum of a concave likelihood the gradient is 0.
  CHECK(m.log_likelihood_gradient(x, labels).experts[0].cwiseAbs().maxCoeff() < 1e-6);
  CHECK(m.log_likelihood(x, labels) >= truth.log_likelihood(x, labels));
}

TEST_CASE("multinomial_mixture: with a gate of bounded features the error falls as a power of n", "[statistics]") {
  // An expert without slopes, where the plain gate's estimates are slow. From the truth on, mean squared error of P.
  multinomial_mixture<squeezed_features> truth(1, 2, 2);
  truth.gate() << 0.5, 3;
  truth.expert(0) << 1.5, 0;
  truth.expert(1) << -1, 2;
  const matrix<double> at = Eigen::VectorXd::LinSpaced(41, -2, 2);
  const auto error = [&](index_t n) {
    double sum = 0;
    for (std::uint64_t repeat = 0; repeat < 4; ++repeat) {
      const matrix<double> x = test::random_matrix<double>(n, 1, 100 + repeat);
      auto m = truth;
      m.improve(x, labels_of(truth, x, 200 + repeat), {.em = {.iterations = 20, .tolerance = 1e-6}});
      sum += (m.predict(at) - truth.predict(at)).norm() / std::sqrt(41.0);
    }
    return sum / 4;
  };
  const double slope = std::log(error(1600) / error(100)) / std::log(16.0);
  CHECK(slope < -0.3);
  CHECK(slope > -0.75);
}

TEST_CASE("multinomial_mixture: data that do not fit are refused with a sentence", "[statistics]") {
  multinomial_mixture<> m(1, 2, 2);
  const matrix<double> x = matrix<double>::Ones(3, 1);
  const std::array<index_t, 3> wrong{0, 1, 2};
  CHECK_THROWS_WITH(multinomial_mixture<>(1, 1, 2), Catch::Contains("classes >= 2"));
  CHECK_THROWS_WITH(m.fit(x, wrong), Catch::Contains("label 2 is 2, there are 2 classes"));
  CHECK_THROWS_WITH(m.fit(x, std::span(wrong).first(2)), Catch::Contains("3 rows, 2 answers"));
  const matrix<double> wide = matrix<double>::Zero(3, 2);
  CHECK_THROWS_WITH(m.predict(wide), Catch::Contains("1 inputs, x has 2 columns"));
  CHECK_THROWS_WITH(m.gate_probabilities(wide), Catch::Contains("1 inputs, x has 2 columns"));
  CHECK_THROWS_WITH(m.log_likelihood(x, wrong), Catch::Contains("label 2 is 2"));
  CHECK_THROWS_WITH(m.responsibilities(x, std::span(wrong).first(2)), Catch::Contains("3 rows, 2 answers"));
  const std::array<index_t, 3> right{0, 1, 0};
  CHECK_THROWS_WITH(m.step(x, right, -1), Catch::Contains("penalty >= 0, not -1"));
  CHECK_THROWS_WITH(m.fit(x, right, {.penalty = std::numeric_limits<double>::quiet_NaN()}),
                    Catch::Contains("penalty >= 0, not nan"));
  CHECK_THROWS_WITH(m.improve(x, right, {.em = {.iterations = -2}}), Catch::Contains("not -2 and"));
}
