#include <sluice/router/threshold/skip.hpp>

#include <sluice/capacity/position.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router skipping_in_table("skipping_router", [] {
  return test::made(skipping_router<double>{linear_gate<double>(6, 4), softmax_rule<double>({.top_k = 2}), {.ratio = 0.5}},
                    {.k = 2});
});

template <typename Inner = softmax_rule<double>, typename Capacity = dropless>
using given_skipping = skipping_router<double, Inner, copy_gate<double>, no_noise<double>, Capacity>;

softmax_rule<double> top_two(weighting weights = weighting::renorm) {
  return softmax_rule<double>({.top_k = 2, .weights = weights});
}

given_skipping<> skipping_top_two(double ratio, weighting weights = weighting::renorm) {
  return {copy_gate<double>(4, 4), top_two(weights), {.ratio = ratio}};
}

}  // namespace

TEST_CASE("skip: the second expert goes where it weighs less than the ratio", "[router][skip]") {
  // Fixture F: w2 / w1 = exp(-1), exp(-0.5), exp(-2), exp(-2).
  const matrix<double> logits = test::fixture_f<double>();
  const auto sizes = [&](double ratio) {
    const auto plan = test::route(skipping_top_two(ratio), logits).plan;
    std::vector<std::size_t> found;
    for (index_t t = 0; t < 4; ++t) found.push_back(plan.of_token(t).size());
    return found;
  };
  CHECK(sizes(0) == std::vector<std::size_t>{2, 2, 2, 2});
  CHECK(sizes(std::exp(-1) - 1e-9) == std::vector<std::size_t>{2, 2, 1, 1});
  CHECK(sizes(std::exp(-1) + 1e-9) == std::vector<std::size_t>{1, 2, 1, 1});
  CHECK(sizes(1) == std::vector<std::size_t>{1, 1, 1, 1});
}

TEST_CASE("skip: what is left is weighed as the rule weighs", "[router][skip]") {
  const matrix<double> logits = test::fixture_f<double>();
  const auto normalized = test::route(skipping_top_two(0.5), logits).plan;
  CHECK(normalized.dense_weights()(0, 0) == 1);
  CHECK(std::abs(normalized.dense_weights()(1, 0) - 0.622459) < test::printed);
  const auto raw = test::route(skipping_top_two(0.5, weighting::pre), logits).plan;
  CHECK(std::abs(raw.dense_weights()(0, 0) - 0.643914) < test::printed);
}

TEST_CASE("skip: ratio 0 is the rule itself, equals of the best stay", "[router][skip][ties]") {
  const matrix<double> logits = test::random_matrix<double>(30, 4, 211);
  const top_k_router<double, dynamic, dynamic, copy_gate<double>> plain(4, 4, {.top_k = 2});
  CHECK(test::plan_bits(test::route(skipping_top_two(0), logits).plan) ==
        test::plan_bits(test::route(plain, logits).plan));
  CHECK(test::route(skipping_top_two(1), matrix<double>::Zero(3, 4)).plan.size() == 6);
  // MC-MoE's check: an infinite ratio is top 1 with weight 1, among equals too.
  for (const double ratio : {1.5, std::numeric_limits<double>::infinity()}) {
    const auto plan = test::route(skipping_top_two(ratio), matrix<double>::Zero(3, 4)).plan;
    REQUIRE(plan.size() == 3);
    for (index_t i = 0; i < 3; ++i) CHECK((plan.expert(i) == 0 && plan.weight(i) == 1));
    CHECK(test::route(skipping_top_two(ratio), logits).plan.size() == 30);
  }
}

TEST_CASE("skip: protected tokens keep all, and training does unless told otherwise", "[router][skip]") {
  const matrix<double> logits = test::fixture_f<double>();
  const std::vector<std::uint8_t> flags{0, 0, 1, 0};
  routing_context<double> context;
  context.protected_tokens = flags;
  const auto plan = test::route(skipping_top_two(1), logits, context).plan;
  CHECK(plan.size() == 5);
  CHECK(plan.of_token(2).size() == 2);
  CHECK(test::route(skipping_top_two(1), logits, test::training()).plan.size() == 8);
  const given_skipping<> always(copy_gate<double>(4, 4), top_two(), {.ratio = 1, .in_training = true});
  CHECK(test::route(always, logits, test::training()).plan.size() == 4);
}

TEST_CASE("skip: of several experts those far below the best score go, wherever they stand", "[router][skip]") {
  // A selection bias puts expert 3 first although its score is the lowest.
  sigmoid_rule<double> rule(4, {.top_k = 3, .selection_bias = true});
  rule.bias()[3] = 10;
  matrix<double> logits(1, 4);
  logits << 3, 2.9, -9, -2;
  const given_skipping<sigmoid_rule<double>> router(copy_gate<double>(4, 4), rule, {.ratio = 0.5});
  const auto plan = test::route(router, logits).plan;
  REQUIRE(plan.size() == 2);
  CHECK(plan.expert(0) == 0);
  CHECK(plan.expert(1) == 1);
}

TEST_CASE("skip: skipped experts leave their slots to others", "[router][skip]") {
  const given_skipping<softmax_rule<double>, position_capacity> router(
      copy_gate<double>(4, 4), top_two(), {.ratio = 0.5}, {}, position_capacity(capacity_limit::fixed(1)));
  matrix<double> logits = matrix<double>::Constant(2, 4, -9);
  logits.row(0) << 5, 0, -9, -9;  // its second choice, expert 1, is skipped
  logits.row(1) << -9, 5, 4.9, -9;
  const auto plan = test::route(router, logits).plan;
  CHECK(plan.dropped().empty());
  CHECK(plan.size() == 3);
}

TEST_CASE("skip: the calibrated ratio is the median, and skips half of the second experts", "[router][skip]") {
  const matrix<double> logits = test::random_matrix<double>(101, 4, 212);
  skip_calibration<double> calibration;
  CHECK_THROWS_WITH(calibration.ratio(), test::contains("no token"));
  const auto whole = test::route(skipping_top_two(0), logits);
  calibration.add(whole.tape.choices);
  CHECK(calibration.tokens() == 101);
  const auto skipped = test::route(skipping_top_two(calibration.ratio()), logits).plan;
  CHECK(skipped.size() == 101 + 51);  // those at the median and above keep two
  calibration.add(test::route(skipping_top_two(0), test::fixture_f<double>()).tape.choices);
  CHECK(calibration.tokens() == 105);

  skip_calibration<double> even;
  even.add(test::route(skipping_top_two(0), test::fixture_f<double>()).tape.choices);
  CHECK(std::abs(even.ratio() - (std::exp(-1) + std::exp(-2)) / 2) <= test::bound<double>(4));
}

TEST_CASE("skip: gradients are the rule's for what is left", "[router][skip][gradient]") {
  const skipping_router<double> router(linear_gate<double>(5, 6), softmax_rule<double>({.top_k = 3}),
                                       {.ratio = 0.6, .in_training = true});
  const auto report = test::check_router_gradients(router, 9, 213, test::training());
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("skip: keeps every promise", "[router][skip]") {
  skipping_router<double> router(linear_gate<double>(16, 8), softmax_rule<double>({.top_k = 3}), {.ratio = 0.6});
  initialize(router, 3);
  const conformance_report report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("skip: refuses what makes no sense", "[router][skip]") {
  CHECK_THROWS_WITH(skipping_top_two(-0.1), test::contains("-0.1"));
  CHECK_THROWS_WITH(skipping_top_two(quiet_nan<double>()), test::contains("nan"));
  routing_context<double> context;
  context.top_k = 5;  // the rule's own checks are asked
  CHECK_THROWS_WITH(test::route(skipping_top_two(0.5), test::fixture_f<double>(), context), test::contains("k = 5"));
}
