#include <sluice/loss/switch_balance.hpp>

#include "loss_case.hpp"

#include <array>

using namespace sluice;

namespace {

constexpr std::array every_share{
    balance_share::first_choice,     balance_share::first_choice_kept, balance_share::first_choice_or_zero,
    balance_share::per_slot,         balance_share::per_token,         balance_share::survivors,
    balance_share::survivors_of_both};

double value_of(test::loss_case<double>& c, balance_share share) {
  return c.evaluate(switch_balance{.coefficient = 1, .share = share});
}

// Mean probabilities of fixture F.
constexpr double p[4] = {0.481849, 0.341700, 0.100159, 0.076292};

}  // namespace

TEST_CASE("switch_balance: fixture F", "[loss]") {
  auto c = test::fixture_f(2);
  CHECK(value_of(c, balance_share::first_choice) == Approx(1.787246).margin(test::six_decimals));
  const double expected[4] = {0.133833, -0.069207, -0.047246, -0.017381};
  for (index_t e = 0; e < 4; ++e) CHECK(c.gradients.clean(0, e) == Approx(expected[e]).margin(test::six_decimals));
  CHECK(value_of(c, balance_share::per_slot) == Approx(1.323549).margin(test::six_decimals));
  CHECK(value_of(c, balance_share::per_token) == Approx(2 * 1.323549).margin(2 * test::six_decimals));
  // Nothing is dropped, so those who count survivors agree with those who do not.
  CHECK(value_of(c, balance_share::first_choice_kept) == value_of(c, balance_share::first_choice));
  CHECK(value_of(c, balance_share::first_choice_or_zero) == value_of(c, balance_share::first_choice));
  CHECK(value_of(c, balance_share::survivors) == Approx(value_of(c, balance_share::per_slot)).epsilon(1e-14));
}

TEST_CASE("switch_balance: dropped choices count as each share says", "[loss]") {
  // First choices of fixture F: e0, e0, e1, e0. With room for one, tokens 1 and 3 are dropped by e0.
  auto c = test::fixture_f(1);
  c.choose(1, 1);
  REQUIRE(c.plan.dropped().size() == 2);
  const double margin = 4 * 4 * test::six_decimals;
  CHECK(value_of(c, balance_share::first_choice) == Approx(1.787246).margin(test::six_decimals));
  CHECK(value_of(c, balance_share::first_choice_kept) == Approx(4 * 0.25 * (p[0] + p[1])).margin(margin));
  CHECK(value_of(c, balance_share::per_slot) == Approx(1.787246).margin(test::six_decimals));
  CHECK(value_of(c, balance_share::survivors) == Approx(4 * 0.5 * (p[0] + p[1])).margin(margin));
  CHECK(value_of(c, balance_share::survivors_of_both) == Approx(4 * 0.5 * 2 * (p[0] + p[1])).margin(margin));
  CHECK(value_of(c, balance_share::first_choice_or_zero) == Approx(1.787246).margin(test::six_decimals));
  // Now e1 refuses token 2: the quirk counts it for e0.
  c.plan.reset(4, 4);
  for (const index_t t : {0, 1, 3}) c.plan.add(t, 0, 1.0);
  c.plan.add_dropped({2, 1, 0, 4, 1.0});
  c.plan.finish();
  CHECK(value_of(c, balance_share::first_choice_or_zero) == Approx(4 * p[0]).margin(margin));
  CHECK(value_of(c, balance_share::first_choice) == Approx(1.787246).margin(test::six_decimals));
}

TEST_CASE("switch_balance: second choices are no first choices, kept or dropped", "[loss]") {
  auto c = test::fixture_f(2);
  c.choose(2, 1);  // drops first and second choices
  bool dropped_second = false;
  for (const auto& d : c.plan.dropped()) dropped_second |= d.rank == 1;
  REQUIRE(dropped_second);
  CHECK(value_of(c, balance_share::first_choice) == Approx(1.787246).margin(test::six_decimals));
  CHECK(value_of(c, balance_share::per_slot) == Approx(1.323549).margin(test::six_decimals));
}

TEST_CASE("switch_balance: even probabilities give 1, or k where f sums to k", "[loss]") {
  test::loss_case<double> c;
  c.set_clean(matrix<double>::Constant(6, 4, 0.3));
  c.choose(2, 6);
  for (const auto share : every_share) {
    CAPTURE(static_cast<int>(share));
    CHECK(value_of(c, share) == Approx(share == balance_share::per_token           ? 2
                                       : share == balance_share::survivors_of_both ? 0.5
                                                                                   : 1)
                                    .epsilon(1e-14));
  }
}

TEST_CASE("switch_balance: falls below 1 where choices and probabilities disagree", "[loss]") {
  auto c = test::fixture_f(1);
  c.plan.reset(4, 4);
  for (index_t t = 0; t < 4; ++t) c.plan.add(t, 3, 1.0);
  c.plan.finish();
  CHECK(value_of(c, balance_share::first_choice) == Approx(4 * p[3]).margin(4 * test::six_decimals));
}

TEST_CASE("switch_balance: gradients equal central differences", "[loss][gradient]") {
  const auto share = GENERATE(from_range(every_share.begin(), every_share.end()));
  const auto probability =
      GENERATE(loss_probability::softmax, loss_probability::normalized_sigmoid, loss_probability::near_rivals,
               loss_probability::none);
  const auto logits = GENERATE(loss_logits::clean, loss_logits::noisy);
  auto c = test::random_case(11, 5, 61);
  REQUIRE_FALSE(c.plan.dropped().empty());
  const auto report = c.check(switch_balance{.coefficient = 0.8,
                                             .share = share,
                                             .logits = logits,
                                             .probability = probability,
                                             .cost = {1, 2, 0.5, 1, 3},
                                             .jitter = 0.4});
  INFO(report.describe());
  CHECK(report.checked == 110);
  CHECK(report.largest_error < 1e-6);
  // Only the logits that it was told to read have a gradient.
  CHECK((logits == loss_logits::clean ? c.gradients.noisy : c.gradients.clean).map().isZero(0));
}

TEST_CASE("switch_balance: costs and the factor E", "[loss]") {
  auto c = test::fixture_f(2);
  const double plain = value_of(c, balance_share::first_choice);
  CHECK(c.evaluate(switch_balance{.coefficient = 1, .times_experts = false}) == Approx(plain / 4).epsilon(1e-14));
  // f = (3/4, 1/4, 0, 0).
  CHECK(c.evaluate(switch_balance{.coefficient = 1, .cost = {2, 3, 5, 7}}) ==
        Approx(4 * (2 * 0.75 * p[0] + 3 * 0.25 * p[1])).margin(10 * test::six_decimals));
  CHECK(c.evaluate(switch_balance{.coefficient = 1, .cost = {1, 1, 1, 1}}) == Approx(plain).epsilon(1e-14));
  CHECK_THROWS_WITH(c.evaluate(switch_balance{.cost = {1, 1}}), Catch::Matchers::Contains("2 costs for 4 experts"));
}

TEST_CASE("switch_balance: by device, only the devices' loads count", "[loss][gradient]") {
  auto c = test::fixture_f(2);
  const switch_balance loss{.coefficient = 1, .share = balance_share::first_choice, .device_experts = 2};
  // f = (3/4, 1/4, 0, 0): both experts of the first device count (3/4 + 1/4) / 2.
  CHECK(c.evaluate(loss) == Approx(4 * 0.5 * (p[0] + p[1])).margin(4 * test::six_decimals));
  CHECK(c.evaluate(switch_balance{.coefficient = 1, .device_experts = 4}) == Approx(1).epsilon(1e-14));
  auto random = test::random_case(11, 6, 62);
  const auto report = random.check(switch_balance{.coefficient = 0.8, .share = balance_share::per_slot, .device_experts = 3});
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
  CHECK_THROWS_WITH(c.evaluate(switch_balance{.device_experts = 3}),
                    Catch::Matchers::Contains("4 experts into devices of 3"));
}

TEST_CASE("switch_balance: sequence-wise balance of sigmoid scores", "[loss]") {
  auto c = test::random_case(8, 4, 71);
  c.groups = {0, 3, 8};
  double expected = 0;
  for (const token_range g : {token_range{0, 3}, token_range{3, 8}}) {
    const auto tokens = static_cast<double>(g.size());
    double share[4] = {}, mean[4] = {};
    for (index_t t = g.begin; t < g.end; ++t) {
      double s[4], sum = 0;
      for (index_t e = 0; e < 4; ++e) sum += s[e] = 1 / (1 + std::exp(-c.seen.clean(t, e)));
      index_t ids[2];
      kernel::top_k(c.seen.noisy().row(t), 4, 2, ids);
      for (index_t e = 0; e < 4; ++e) mean[e] += s[e] / sum / tokens;
      for (const index_t e : ids) share[e] += 4 / (2 * tokens);
    }
    for (index_t e = 0; e < 4; ++e) expected += share[e] * mean[e] / 2;
  }
  const switch_balance loss{.coefficient = 1,
                            .share = balance_share::per_slot,
                            .logits = loss_logits::clean,
                            .probability = loss_probability::normalized_sigmoid};
  CHECK(c.evaluate(loss) == Approx(expected).epsilon(1e-12));
}

TEST_CASE("switch_balance: no choice at all gives nothing", "[loss]") {
  auto c = test::random_case(5, 3, 81);
  c.plan.reset(5, 3);
  c.plan.finish();
  for (const auto share : every_share) {
    CHECK(value_of(c, share) == 0);
    CHECK(c.gradients.noisy.map().isZero(0));
  }
}
