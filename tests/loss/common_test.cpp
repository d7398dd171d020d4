// Promises that every loss keeps: those of the kit, coefficient, mask, groups, dead experts, memory.
#include <sluice/loss/common.hpp>

#include <sluice/loss/chosen_balance.hpp>
#include <sluice/loss/entropy.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/loss/load.hpp>
#include <sluice/loss/router_z.hpp>
#include <sluice/loss/sparsity.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/tokens_choose/noisy_top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "any_loss.hpp"
#include "loss_case.hpp"

using namespace sluice;

namespace {

/// f(name, loss) for every loss that works on fixed noise.
template <typename F>
void for_each_loss(F&& f) {
  f("importance", importance_loss{.coefficient = 0.9});
  f("importance, unbiased, sparse",
    importance_loss{.source = importance_source::sparse_gates, .form = variance::unbiased});
  f("load", load_loss{.coefficient = 0.7});
  f("load, Tutel", load_loss{.noise = load_form::scores_over_logits, .form = variance::unbiased});
  f("balance, first choice", switch_balance{});
  f("balance, kept first choice", switch_balance{.share = balance_share::first_choice_kept});
  f("balance, quirk", switch_balance{.share = balance_share::first_choice_or_zero});
  f("balance, per slot", switch_balance{.share = balance_share::per_slot, .logits = loss_logits::clean});
  f("balance, per token", switch_balance{.share = balance_share::per_token});
  f("balance, survivors", switch_balance{.share = balance_share::survivors});
  f("balance, survivors of both", switch_balance{.share = balance_share::survivors_of_both});
  f("balance, sigmoid", switch_balance{.probability = loss_probability::normalized_sigmoid});
  f("balance, near rivals", switch_balance{.probability = loss_probability::near_rivals, .jitter = 0.3});
  f("chosen balance", chosen_balance{.logits = loss_logits::noisy, .temperature = 0.7});
  f("router z", router_z_loss{});
  f("entropy", entropy_loss{});
  f("entropy of tokens", entropy_loss{.of = entropy_of::tokens});
  f("entropy, threshold", entropy_loss{.threshold = 3});
  f("sparsity", sparsity_loss{});
}

}  // namespace

TEST_CASE("losses: coefficient 0 means not evaluated", "[loss]") {
  auto c = test::random_case(6, 4, 101);
  c.seen.clean.map().setConstant(quiet_nan<double>());
  c.seen.sigma = 0;  // load_loss would throw
  for_each_loss([&](const char* name, auto loss) {
    CAPTURE(name);
    loss.coefficient = 0;
    if constexpr (requires { loss.cost; }) loss.cost = {1.0};  // switch_balance would throw
    score_gradients<double> untouched;                         // not even sized: any access would be out of bounds
    CHECK(loss(c.seen, c.plan, c.context(), untouched) == 0);
    CHECK(untouched.row_scratch.size() == 0);
    CHECK(untouched.sum_scratch.size() == 0);
  });
}

TEST_CASE("losses: a coefficient that is not finite is refused with its value", "[loss]") {
  auto c = test::random_case(6, 4, 101);
  for_each_loss([&](const char* name, auto loss) {
    CAPTURE(name);
    loss.coefficient = quiet_nan<double>();
    CHECK_THROWS_WITH(c.evaluate(loss), Catch::Matchers::Contains("finite coefficient, not nan"));
    loss.coefficient = std::numeric_limits<double>::infinity();
    CHECK_THROWS_WITH(c.evaluate(loss), Catch::Matchers::Contains("finite coefficient, not inf"));
    if constexpr (requires { loss.cost; }) {
      loss.coefficient = 1;
      loss.cost = {1, 1, quiet_nan<double>(), 1};
      CHECK_THROWS_WITH(c.evaluate(loss), Catch::Matchers::Contains("cost of nan for expert 2"));
    }
  });
  CHECK_THROWS_WITH(c.evaluate(switch_balance{.jitter = -1}), Catch::Matchers::Contains("jitter >= 0, not -1"));
  CHECK_THROWS_WITH(c.evaluate(entropy_loss{.threshold = quiet_nan<double>()}),
                    Catch::Matchers::Contains("threshold nan"));
}

TEST_CASE("losses: value and gradient are linear in the coefficient, and gradients add up", "[loss]") {
  auto c = test::random_case(8, 5, 103);
  for_each_loss([&](const char* name, auto loss) {
    CAPTURE(name);
    loss.coefficient = 1;
    const double one = c.evaluate(loss);
    const matrix<double> clean = c.gradients.clean.map();
    const matrix<double> noisy = c.gradients.noisy.map();
    loss.coefficient = 4;
    CHECK(c.evaluate(loss) == Approx(4 * one).epsilon(1e-14));
    CHECK(loss(c.seen, c.plan, c.context(), c.gradients) == Approx(4 * one).epsilon(1e-14));
    const double bound = test::bound<double>(8 * 5);
    CHECK(test::largest_difference(matrix<double>(c.gradients.clean.map()), 8 * clean) < bound);
    CHECK(test::largest_difference(matrix<double>(c.gradients.noisy.map()), 8 * noisy) < bound);
  });
}

TEST_CASE("losses: padding is in no sum and no mean", "[loss][mask]") {
  // The same batch with two tokens of garbage put in between.
  const auto plain = test::random_case(7, 4, 105);
  for_each_loss([&](const char* name, const auto& loss) {
    CAPTURE(name);
    auto c = plain;
    c.choose(2, 3);
    auto padded = plain;
    const index_t source[9] = {0, 1, -1, 2, 3, 4, 5, -1, 6};
    matrix<double> clean = matrix<double>::Constant(9, 4, quiet_nan<double>());
    matrix<double> noisy = clean;
    padded.mask.assign(9, 0);
    for (index_t t = 0; t < 9; ++t)
      if (source[t] >= 0) {
        clean.row(t) = c.seen.clean.map().row(source[t]);
        noisy.row(t) = c.seen.noisy_storage.map().row(source[t]);
        padded.mask[static_cast<std::size_t>(t)] = 1;
      }
    padded.set_clean(clean);
    padded.seen.noisy_storage.resize(9, 4);
    padded.seen.noisy_storage.map() = noisy;
    padded.choose(2, 3);
    CHECK(padded.evaluate(loss) == c.evaluate(loss));
    for (index_t t = 0; t < 9; ++t)
      for (index_t e = 0; e < 4; ++e) {
        CHECK(padded.gradients.clean(t, e) == (source[t] < 0 ? 0 : c.gradients.clean(source[t], e)));
        CHECK(padded.gradients.noisy(t, e) == (source[t] < 0 ? 0 : c.gradients.noisy(source[t], e)));
      }
  });
}

TEST_CASE("losses: groups are averaged, groups without tokens left out", "[loss][groups]") {
  auto c = test::random_case(10, 4, 107);
  REQUIRE_FALSE(c.plan.dropped().empty());
  c.groups = {0, 4, 4, 7, 10};              // the second is empty
  c.mask = {1, 1, 1, 1, 0, 0, 0, 1, 1, 0};  // the third is all padding
  c.choose(2, 2);
  for_each_loss([&](const char* name, auto loss) {
    CAPTURE(name);
    const double all = c.evaluate(loss);
    const matrix<double> clean = c.gradients.clean.map();
    const matrix<double> noisy = c.gradients.noisy.map();
    c.gradients.zero_like(c.seen);
    double values[4];
    for (index_t g = 0; g < 4; ++g)
      values[g] = loss.group_value(c.seen, c.plan, c.context(), g, loss.coefficient / 2, c.gradients);
    CHECK(values[1] == 0);
    CHECK(values[2] == 0);
    CHECK(values[0] != values[3]);
    CHECK(all == Approx(values[0] + values[3]).epsilon(1e-14));
    CHECK(test::largest_difference(matrix<double>(c.gradients.clean.map()), clean) < test::bound<double>(10));
    CHECK(test::largest_difference(matrix<double>(c.gradients.noisy.map()), noisy) < test::bound<double>(10));

    // A group alone has the value of a batch of its own.
    auto alone = c;
    alone.groups.clear();
    alone.mask.clear();
    alone.set_clean(c.seen.clean.map().topRows(4));
    alone.seen.noisy_storage.resize(4, 4);
    alone.seen.noisy_storage.map() = c.seen.noisy_storage.map().topRows(4);
    alone.plan.reset(4, 4);
    for (index_t t = 0; t < 4; ++t)
      for (const index_t i : c.plan.of_token(t)) alone.plan.add(t, c.plan.expert(i), c.plan.weight(i), c.plan.rank(i));
    for (const auto& d : c.plan.dropped())
      if (d.token < 4) alone.plan.add_dropped(d);
    alone.plan.finish();
    CHECK(alone.evaluate(loss) == Approx(2 * values[0]).epsilon(1e-14));
  });
}

TEST_CASE("losses: gradients with groups and padding equal central differences", "[loss][gradient]") {
  auto c = test::random_case(10, 4, 109);
  c.groups = {0, 3, 10};
  c.mask = {1, 1, 1, 1, 0, 1, 1, 1, 1, 0};
  c.choose(2, 3);
  for_each_loss([&](const char* name, const auto& loss) {
    CAPTURE(name);
    const auto report = c.check(loss);
    INFO(report.describe());
    CHECK(report.checked == 80);
    CHECK(report.largest_error < 1e-6);
  });
}

TEMPLATE_TEST_CASE("losses: stay finite with dead experts and with all tokens at one", "[loss]", float, double) {
  const auto only = GENERATE(-1, 0, 3);  // all tokens go there; -1: experts 1 and 3 are dead
  test::loss_case<TestType> c;
  matrix<TestType> logits = test::random_matrix<TestType>(9, 4, 113);
  if (only < 0) {
    logits.col(1).array() -= 300;
    logits.col(3).setConstant(-std::numeric_limits<TestType>::infinity());
  } else {
    logits.col(only).array() += 300;
  }
  c.set_clean(logits);
  c.set_fixed_noise(test::random_matrix<TestType>(9, 4, 114), TestType(0.5));
  c.choose(1, 2);
  for_each_loss([&](const char* name, const auto& loss) {
    CAPTURE(name, only);
    CHECK(std::isfinite(c.evaluate(loss)));
    CHECK(c.gradients.clean.map().allFinite());
    CHECK(c.gradients.noisy.map().allFinite());
  });
}

#if !defined(__FAST_MATH__)
TEST_CASE("losses: NaN in a token that counts is not hidden", "[loss]") {
  auto c = test::random_case(6, 4, 115);
  c.seen.clean.map().row(2).setConstant(quiet_nan<double>());
  c.seen.noisy_storage.map().row(2).setConstant(quiet_nan<double>());
  for_each_loss([&](const char* name, const auto& loss) {
    CAPTURE(name);
    CHECK(is_nan(c.evaluate(loss)));
  });
}
#endif

TEST_CASE("losses: no memory once warm", "[loss]") {
  auto c = test::random_case<float>(150, 7, 117);
  c.groups = {0, 70, 150};
  for_each_loss([&](const char* name, const auto& loss) {
    CAPTURE(name);
    const float value = c.evaluate(loss);
    const float* rows = c.gradients.row_scratch.data();
    CHECK(c.evaluate(loss) == value);
    CHECK(c.gradients.row_scratch.data() == rows);
  });
}

TEST_CASE("losses: float agrees with double", "[loss]") {
  auto exact = test::random_case<double>(40, 6, 119);
  test::loss_case<float> c;
  c.set_clean(exact.seen.clean.map().cast<float>());
  c.set_fixed_noise(matrix<float>::Zero(40, 6), 0.5f);
  c.seen.noisy_storage.map() = exact.seen.noisy_storage.map().cast<float>();
  c.choose(2, 3);
  for_each_loss([&](const char* name, const auto& loss) {
    CAPTURE(name);
    // Logits of order 1 rounded to float, 6 to a softmax; a load's density has slope 1/sigma = 2.
    const double bound = test::bound<float>(6, 4);
    CHECK(std::abs(static_cast<double>(c.evaluate(loss)) - exact.evaluate(loss)) < bound);
    CHECK(test::largest_difference(matrix<double>(c.gradients.clean.map().cast<double>()),
                                   matrix<double>(exact.gradients.clean.map())) < bound);
    CHECK(test::largest_difference(matrix<double>(c.gradients.noisy.map().cast<double>()),
                                   matrix<double>(exact.gradients.noisy.map())) < bound);
  });
}

TEST_CASE("losses: every promise of a loss, with groups", "[loss][conformance]") {
  const std::vector<index_t> groups{0, 5, 67};
  routing_context<double> context;
  context.groups = groups;
  noisy_top_k_router<double> router{6, 5, {.top_k = 2, .noise_std = 2}};
  initialize(router, 131);
  for_each_loss([&](const char* name, const auto& loss) { test::check_loss_promises(name, loss, router, context); });

  learned_noise_top_k_router<double> learned{6, 5, {.top_k = 2}};
  initialize(learned, 141);
  for_each_parameter(learned, [](const std::string& name, parameter<double>& p) {  // its noise starts at zero
    if (name == "noise.weight") p.fill([](index_t i) { return 0.3 * std::sin(static_cast<double>(i)); });
  });
  test::check_loss_promises("importance, learned noise",
                            importance_loss{.source = importance_source::sparse_gates, .form = variance::unbiased},
                            learned, context);
  test::check_loss_promises("load, learned noise",
                            load_loss{.noise = load_form::learned_noise, .form = variance::unbiased}, learned, context);
}
