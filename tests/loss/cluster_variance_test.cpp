#include <sluice/loss/cluster_variance.hpp>

#include "loss_case.hpp"

using namespace sluice;

TEST_CASE("cluster_variance_loss: alike within clusters costs nothing, apart pays", "[loss]") {
  test::loss_case<double> c;
  matrix<double> logits(2, 4);
  logits << 1, 1, 3, 3, 0, 0, 0, 0;
  c.set_clean(logits);
  CHECK(std::abs(c.evaluate(cluster_variance_loss{.coefficient = 1, .cluster_size = 2})) < 1e-16);
  // Cluster means of the first token: a/2 and (1-a)/2, a = 1 / (1 + exp(2)); of the second 1/4 each.
  const double a = 1 / (1 + std::exp(2.0)), variance = (a / 2 - .25) * (a / 2 - .25);
  CHECK(c.evaluate(cluster_variance_loss{.coefficient = 1, .cluster_size = 2, .between = 3}) ==
        Approx(-3 * variance / 2).epsilon(1e-14));
  // One cluster of everybody: the variance of p over the experts.
  const double high = (1 - a) / 2, low = a / 2;
  CHECK(c.evaluate(cluster_variance_loss{.coefficient = 1, .cluster_size = 4}) ==
        Approx(((high - .25) * (high - .25) + (low - .25) * (low - .25)) / 2 / 2).epsilon(1e-14));
}

TEST_CASE("cluster_variance_loss: gradients equal central differences", "[loss][gradient]") {
  const double between = GENERATE(0.0, 0.7);
  auto c = test::random_case(9, 6, 95);
  c.mask.assign(9, 1);
  c.mask[3] = 0;
  const auto report = c.check(cluster_variance_loss{.coefficient = .6, .cluster_size = 3, .between = between});
  INFO(report.describe());
  CHECK(report.checked == 108);
  CHECK(report.largest_error < 1e-6);
  CHECK_THROWS_WITH(c.evaluate(cluster_variance_loss{.cluster_size = 4}),
                    Catch::Matchers::Contains("not of 4 with E = 6"));
}
