#include <sluice/router/masked/per_sample.hpp>

#include <sluice/capacity/position.hpp>
#include <sluice/loss/expert_target.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;

namespace {

const test::table_router mobile_vmoe_in_table("mobile_vmoe_router", [] {
  return test::made(
      mobile_vmoe_router<double>{per_group_gate<linear_gate<double>>(6, 4), {.top_k = 1, .weights = weighting::pre}},
      {.k = 1});
});
const test::table_router instance_in_table("instance_router", [] {
  using gate = per_group_gate<linear_gate<double>, group_source::group_vector>;
  return test::made(instance_router<double>{gate(6, linear_gate<double>(5, 4)), {.top_k = 2}}, {.k = 2});
});
const test::table_router advmoe_in_table("advmoe_router", [] {
  using gate = per_group_gate<identity_gate<double>, group_source::group_vector>;
  return test::made(advmoe_router<double>{gate(5, identity_gate<double>(3))}, {.k = 1, .feature_width = 3, .seed = 0});
});
const test::table_router mocle_in_table("mocle_router", [] {
  const mocle_gate<double> gate(6, 4, 3, 5, {.temperature = 0.5, .noise_std = 0.5});
  return test::made(mocle_router<double>{gate, {.top_k = 2, .weights = weighting::pre}}, {.k = 2});
});
const test::table_router universal_in_table("universal_expert_router", [] {
  using inner = top_k_router<double>;
  return test::made(universal_expert_router<inner>{inner(6, 4, {.top_k = 2})}, {.k = 3});
});
const test::table_router straight_through_in_table("straight_through_router", [] {
  return test::made(straight_through_router<double>{6, 4, {.top_k = 2}}, {.k = 2});
});

const std::vector<index_t> sample_borders{0, 4, 9, 12};

routing_context<double> of_samples(bool training = true) {
  routing_context<double> context = test::training(21);
  context.training = training;
  context.groups = sample_borders;
  return context;
}

/// All tokens of a sample have the same experts with the same weights.
void check_one_decision(const sparse_plan<double>& plan) {
  const matrix<double> dense = plan.dense_weights();
  for (std::size_t g = 0; g + 1 < sample_borders.size(); ++g)
    for (index_t t = sample_borders[g]; t < sample_borders[g + 1]; ++t)
      CHECK(test::same_bits(matrix<double>(dense.row(t)), matrix<double>(dense.row(sample_borders[g]))));
}

}  // namespace

TEST_CASE("per_sample: all tokens of an image go where its mean goes", "[router][per_sample]") {
  mobile_vmoe_router<double> router(per_group_gate<linear_gate<double>>(5, 4), {.top_k = 1, .weights = weighting::pre});
  initialize(router, 3);
  const matrix<double> x = test::random_matrix<double>(12, 5, 22);
  const auto plan = test::route(router, x, of_samples()).plan;
  CHECK(plan.size() == 12);
  check_one_decision(plan);
  const auto report = test::check_router_gradients(router, 12, 23, of_samples());
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("per_sample: keeps every promise", "[router][per_sample]") {
  mobile_vmoe_router<double> router(per_group_gate<linear_gate<double>>(16, 6), {.top_k = 2});
  initialize(router, 3);
  const conformance_report report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("per_sample: a token that holds NaN changes nothing that padding would not", "[router][per_sample]") {
  mobile_vmoe_router<double> router(per_group_gate<linear_gate<double>>(5, 4), {.top_k = 2});
  initialize(router, 3);
  matrix<double> x = test::random_matrix<double>(12, 5, 24);
  x(6, 2) = quiet_nan<double>();
  auto context = of_samples();
  const auto spoiled = test::route(router, x, context).plan;
  std::vector<std::uint8_t> mask(12, 1);
  mask[6] = 0;
  context.token_mask = mask;
  CHECK(test::plan_bits(spoiled) == test::plan_bits(test::route(router, x, context).plan));
  REQUIRE(spoiled.invalid_tokens().size() == 1);
  CHECK(spoiled.invalid_tokens()[0] == 6);
}

TEST_CASE("per_sample: an instruction chooses two experts for its sample", "[router][per_sample]") {
  using gate = per_group_gate<linear_gate<double>, group_source::group_vector>;
  instance_router<double> router(gate(5, linear_gate<double>(7, 4)), {.top_k = 2, .added_to_sum = 1e-9});
  initialize(router, 3);
  const matrix<double> question = test::random_matrix<double>(3, 7, 25);
  auto context = of_samples();
  context.group_features = question;
  const auto plan = test::route(router, test::random_matrix<double>(12, 5, 26), context).plan;
  CHECK(plan.size() == 24);
  check_one_decision(plan);
  const auto report = test::check_router_gradients(router, 12, 27, context);
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("per_sample: samples of one cluster are routed alike without noise, and apart with it",
          "[router][per_sample]") {
  const mocle_gate<double> gate(5, 4, 2, 6, {.temperature = 0.3, .noise_std = 0.5});
  mocle_router<double> inner(gate, {.top_k = 1, .weights = weighting::pre});
  initialize(inner, 3);
  const std::vector<index_t> clusters{1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1};
  auto context = of_samples(false);
  context.cluster_ids = clusters;
  const matrix<double> x = test::random_matrix<double>(12, 5, 28);
  const matrix<double> still = test::route(inner, x, context).plan.dense_weights();
  CHECK(test::same_bits(matrix<double>(still.row(0)), matrix<double>(still.row(11))));
  context.training = true;
  const auto noisy = test::route(inner, x, context).plan;
  check_one_decision(noisy);
  CHECK_FALSE(noisy.dense_weights().row(0) == noisy.dense_weights().row(11));
  // Of no tokens there are no ids, and nobody misses them.
  CHECK(test::route(inner, matrix<double>(0, 5)).plan.size() == 0);

  // The universal expert has what the best leaves over.
  for (const bool by_best : {false, true}) {
    const universal_expert_router<mocle_router<double>> router(inner, {.by_best = by_best});
    CHECK(router.experts() == 5);
    const auto plan = test::route(router, x, context).plan;
    REQUIRE(plan.size() == 24);
    for (index_t t = 0; t < 12; ++t) {
      const auto own = plan.of_token(t);
      const double w = noisy.weight(noisy.of_token(t)[0]);
      CHECK(plan.expert(own[0]) == noisy.expert(noisy.of_token(t)[0]));
      CHECK(plan.weight(own[0]) == (by_best ? w * w : w));
      CHECK(plan.expert(own[1]) == 4);
      CHECK(plan.weight(own[1]) == 1 - w);
      CHECK(plan.rank(own[1]) == 1);
    }
    const auto report = test::check_router_gradients(router, 12, 29, context);
    INFO(report.describe());
    CHECK(report.largest_error < 1e-6);
  }
}

TEST_CASE("universal_expert: dropped choices, padding, NaN and several experts", "[router][universal_expert]") {
  using inner = top_k_router<double, dynamic, dynamic, test::copy_gate<double>, no_noise<double>, position_capacity>;
  const inner limited(test::copy_gate<double>(4, 4), {.top_k = 2}, {}, position_capacity(capacity_limit::fixed(1)));
  const universal_expert_router<inner> router(limited);
  matrix<double> logits = test::fixture_f<double>();
  auto plan = test::route(router, logits).plan;
  const auto own = test::route(limited, logits).plan;
  CHECK(plan.dropped().size() == own.dropped().size());
  CHECK(plan.load(4) == 4);
  CHECK(own.of_token(3).empty() == (plan.of_token(3).size() == 1));
  for (index_t t = 0; t < 4; ++t)
    if (own.of_token(t).empty()) CHECK(plan.weight(plan.of_token(t)[0]) == 1);
  logits(0, 0) = quiet_nan<double>();
  const std::vector<std::uint8_t> mask{1, 0, 1, 1};
  routing_context<double> context;
  context.token_mask = mask;
  plan = test::route(router, logits, context).plan;
  CHECK(plan.of_token(0).empty());
  CHECK(plan.of_token(1).empty());
  CHECK(plan.load(4) == 2);
  using learned = top_k_router<double>;
  universal_expert_router<learned> checked(learned(16, 6, {.top_k = 3, .weights = weighting::pre}), {.by_best = true});
  initialize(checked, 3);
  const conformance_report report = test::conformance(checked);
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("straight_through: weight 1, and scores learn as weights would", "[router][straight_through]") {
  using router_type = straight_through_router<double, test::copy_gate<double>>;
  const matrix<double> logits = test::fixture_f<double>();
  for (const bool all : {false, true}) {
    router_type router(test::copy_gate<double>(4, 4), {.all_experts = all});
    auto r = test::route(router, logits, test::training());
    CHECK(r.plan.size() == (all ? 16 : 4));
    const index_t best[] = {0, 0, 1, 0};
    for (index_t t = 0; t < 4; ++t)
      for (index_t e = 0; e < 4; ++e) CHECK(r.plan.dense_weights()(t, e) == (e == best[t] ? 1 : 0));
    r.tape.dseen.zero_like(r.tape.seen);
    sparse_plan_gradient<double> gradient;
    gradient.weight.resize(r.plan.size());
    for (index_t i = 0; i < r.plan.size(); ++i)
      gradient.weight[i] = double(10 * r.plan.token(i) + r.plan.expert(i) + 1);
    matrix<double> dx = matrix<double>::Zero(4, 4);
    router.backward(logits, test::training(), r.plan, gradient, r.tape, dx);
    for (index_t t = 0; t < 4; ++t)
      for (index_t e = 0; e < 4; ++e) CHECK(dx(t, e) == (all || e == best[t] ? double(10 * t + e + 1) : 0));
    CHECK(test::route(router, logits).plan.size() == 4);  // inference runs what it needs
    if (!all) continue;
    auto context = test::training();
    context.top_k = 2;
    CHECK_THROWS_WITH(test::route(router, logits, context), test::contains("k = 2"));
  }
  straight_through_router<double> checked(16, 6, {.top_k = 2, .all_experts = true});
  initialize(checked, 3);
  const conformance_report report = test::conformance(checked);
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("per_sample: scores from elsewhere choose one expert a sample", "[router][per_sample]") {
  using gate = per_group_gate<identity_gate<double>, group_source::group_vector>;
  const advmoe_router<double> router{gate(5, identity_gate<double>(3))};
  matrix<double> scores(3, 3);
  scores << 0, 1, 2, 5, 1, 1, 0, 0, -1;
  auto context = of_samples();
  context.group_features = scores;
  const auto plan = test::route(router, test::random_matrix<double>(12, 5, 30), context).plan;
  const index_t expected[] = {2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0};  // of equals the lower
  for (index_t t = 0; t < 12; ++t) CHECK(plan.expert(plan.of_token(t)[0]) == expected[t]);
}
