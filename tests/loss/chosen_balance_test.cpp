#include <sluice/loss/chosen_balance.hpp>

#include "loss_case.hpp"

using namespace sluice;

TEST_CASE("chosen_balance: mean weights of what was chosen, with gradients", "[loss][chosen_balance][gradient]") {
  auto c = test::fixture_f(2);
  const auto& logits = c.seen.clean;
  double expected = 0, mass[4] = {}, share[4] = {};
  for (index_t t = 0; t < 4; ++t) {
    std::vector<double> p(4);
    kernel::softmax(logits.row(t), p.data(), 4);
    for (const index_t i : c.plan.of_token(t)) {
      mass[c.plan.expert(i)] += p[as_size(c.plan.expert(i))] / 4;
      share[c.plan.expert(i)] += 0.25;
    }
  }
  for (int e = 0; e < 4; ++e) expected += 4 * mass[e] * share[e];
  CHECK(c.evaluate(chosen_balance{.coefficient = 1}) == Approx(expected).epsilon(1e-14));

  for (const auto which : {loss_logits::clean, loss_logits::noisy}) {
    auto random = test::random_case(9, 5, 95);
    random.groups = {0, 4, 9};
    random.mask.assign(9, 1);
    random.mask[2] = 0;
    random.choose(2, 1);  // with choices that are dropped
    REQUIRE(!random.plan.dropped().empty());
    const auto report = random.check(chosen_balance{.coefficient = .5, .logits = which, .temperature = .7});
    INFO(report.describe());
    CHECK(report.checked == 90);
    CHECK(report.largest_error < 1e-6);
  }
  CHECK_THROWS_AS(c.evaluate(chosen_balance{.temperature = 0}), std::invalid_argument);
}
