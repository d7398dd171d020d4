#include <sluice/adapter/context_information.hpp>

#include "../support.hpp"

#include <array>

using namespace sluice;

namespace {

const std::vector<index_t> three_topics{0, 3, 4, 5};
const std::vector<std::uint8_t> one_topic_hidden{1, 1, 0, 1, 1};

struct topics {
  matrix<double> x = (matrix<double>(5, 2) << 1, .5, -.3, 2, .2, -1, 1.5, .4, 0, .7).finished();
  matrix<double> about = (matrix<double>(3, 2) << .8, -.2, .1, .9, -.5, .3).finished();
  routing_context<double> context{.token_mask = one_topic_hidden, .groups = three_topics};
};

}  // namespace

TEST_CASE("context_information: the formula, and its gradients by differences", "[adapter][context_information]") {
  // By the formula as MixPHM's program adds it up, in NumPy: the means of two masked matrices.
  topics b;
  context_information<double> loss;
  CHECK(std::abs(loss.evaluate(b.x, b.about, b.context) - 0.260732952813) < 1e-11);
  CHECK(std::abs(loss.evaluate(b.x, b.about, b.context, -0.5) + 0.260732952813 / 2) < 1e-11);
  matrix<double> dx = matrix<double>::Zero(5, 2), dabout = matrix<double>::Zero(3, 2);
  loss.backward(b.x, b.about, dx, dabout);
  const auto value = [&] { return context_information<double>().evaluate(b.x, b.about, b.context, -0.5); };
  for (index_t i = 0; i < b.x.size(); ++i)
    CHECK(std::abs(test::slope_at(b.x.data()[i], value) - dx.data()[i]) < 1e-8);
  for (index_t i = 0; i < b.about.size(); ++i)
    CHECK(std::abs(test::slope_at(b.about.data()[i], value) - dabout.data()[i]) < 1e-8);
  CHECK(dx.row(2).isZero(0));
}

TEST_CASE("context_information: hidden tokens, one sequence, none, and shapes", "[adapter][context_information]") {
  topics b;
  context_information<double> loss;
  const double without = loss.evaluate(b.x, b.about, b.context);
  b.x.row(2).setConstant(quiet_nan<double>());
  b.context.token_mask = {};
  CHECK(loss.evaluate(b.x, b.about, b.context) == without);  // NaN is as if it were not there
  matrix<double> dx = matrix<double>::Zero(5, 2), dabout = matrix<double>::Zero(3, 2);
  loss.backward(b.x, b.about, dx, dabout);
  CHECK((dx.allFinite() && dabout.allFinite() && dx.row(2).isZero(0)));

  // One sequence has no others: what is left is log(1 + exp(-s)) - log 2.
  const matrix<double> token = matrix<double>::Constant(1, 2, 1), topic = matrix<double>::Constant(1, 2, 2);
  CHECK(std::abs(loss.evaluate(token, topic, {}) - std::log1p(std::exp(-4.0)) + std::log(2.0)) < 1e-14);
  CHECK(loss.evaluate(matrix<double>(0, 2), topic, {}) == 0);
  CHECK(loss.evaluate(matrix<double>::Zero(1, 2), topic, {}) == 0);
  CHECK_THROWS_WITH(loss.evaluate(token, b.about, {}), Catch::Contains("of 1 sequences") && Catch::Contains("[3, 2]"));
}
