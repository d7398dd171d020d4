#include <sluice/loss/expert_target.hpp>

#include "../io/messages.hpp"
#include "loss_case.hpp"

using namespace sluice;

namespace {

/// The loss in a context that has these targets.
struct with_targets {
  expert_target_loss loss;
  std::vector<index_t> targets;

  template <typename Seen, typename Plan, typename Scalar, typename Gradients>
  Scalar operator()(const Seen& seen, const Plan& plan, routing_context<Scalar> context, Gradients& gradients) const {
    context.cluster_ids = targets;
    return loss(seen, plan, context, gradients);
  }
};

}  // namespace

TEST_CASE("expert_target_loss: fixture F", "[loss]") {
  auto c = test::fixture_f(1);
  // -log of 0.643914, 0.167405, 0.789137, 0.106798
  const double expected = -(std::log(0.643914) + std::log(0.167405) + std::log(0.789137) + std::log(0.106798)) / 4;
  CHECK(c.evaluate(with_targets{{.coefficient = 1}, {0, 2, 1, 3}}) == Approx(expected).margin(10 * test::six_decimals));
  CHECK(c.gradients.clean(0, 0) == Approx((0.643914 - 1) / 4).margin(test::six_decimals));
  CHECK(c.gradients.clean(0, 1) == Approx(0.236883 / 4).margin(test::six_decimals));
}

TEST_CASE("expert_target_loss: what probabilities lack, squared", "[loss]") {
  auto c = test::fixture_f(1);
  const double p[] = {0.643914, 0.167405, 0.789137, 0.106798};
  double expected = 0;
  for (const double one : p) expected += (1 - one) * (1 - one) / 4;
  CHECK(c.evaluate(with_targets{{.coefficient = 1, .form = target_form::squared_shortfall}, {0, 2, 1, 3}}) ==
        Approx(expected).margin(10 * test::six_decimals));
  CHECK(c.gradients.clean(0, 0) == Approx(-2 * (1 - p[0]) * (1 - p[0]) * p[0] / 4).margin(test::six_decimals));
}

TEST_CASE("expert_target_loss: padding and tokens without a target do not count", "[loss]") {
  auto c = test::fixture_f(1);
  c.mask = {1, 0, 1, 1};
  const double expected = -(std::log(0.643914) + std::log(0.106798)) / 2;
  CHECK(c.evaluate(with_targets{{.coefficient = 1}, {0, 2, -1, 3}}) ==
        Approx(expected).margin(10 * test::six_decimals));
  CHECK(c.gradients.clean.map().row(1).isZero(0));
  CHECK(c.gradients.clean.map().row(2).isZero(0));
  CHECK(c.evaluate(with_targets{{.coefficient = 1}, {-1, -1, 4, 9}}) == 0);
  CHECK_THROWS_WITH(c.evaluate(expert_target_loss{}), test::contains("cluster_ids"));
}

TEST_CASE("expert_target_loss: gradients equal central differences", "[loss][gradient]") {
  const auto logits = GENERATE(loss_logits::clean, loss_logits::noisy);
  const auto form = GENERATE(target_form::cross_entropy, target_form::squared_shortfall);
  auto c = test::random_case(9, 5, 191);
  c.groups = {0, 4, 4, 9};
  const auto report =
      c.check(with_targets{{.coefficient = 0.7, .logits = logits, .form = form}, {0, 4, 2, 1, 1, 3, -1, 0, 2}});
  INFO(report.describe());
  CHECK(report.checked == 90);
  CHECK(report.largest_error < 1e-6);
}
