#include <sluice/router/fixed/random_partition.hpp>

#include <sluice/expert/ffn.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/train/average_experts.hpp>

#include "router/any_router.hpp"
#include "router/layer_checks.hpp"
#include "router/router_table.hpp"

using namespace sluice;

namespace {

const test::table_router random_partition_in_table("random_partition_router", [] {
  return test::made(random_partition_router<double>{6, 4}, {.training_capacity = 12});
});

/// Where every token went; -1 where it went nowhere.
std::vector<index_t> parts_of(const sparse_plan<double>& plan) {
  std::vector<index_t> parts(static_cast<std::size_t>(plan.tokens()), -1);
  for (index_t i = 0; i < plan.size(); ++i) {
    CHECK(plan.weight(i) == 1);
    parts[static_cast<std::size_t>(plan.token(i))] = plan.expert(i);
  }
  return parts;
}

sparse_plan<double> partitioned(const random_partition_router<double>& router, const matrix<double>& x,
                                const routing_context<double>& context) {
  sparse_plan<double> plan;
  random_partition_router<double>::tape tape;
  router.route(x, context, plan, tape);
  return plan;
}

}  // namespace

TEST_CASE("random_partition: every expert gets as many tokens, the first ones those that are left over",
          "[router][random_partition]") {
  const random_partition_router<double> router{3, 4};
  const matrix<double> x = test::random_matrix<double>(23, 3, 5);
  for (const index_t tokens : {0, 1, 3, 4, 8, 22, 23}) {
    CAPTURE(tokens);
    const auto plan = partitioned(router, x.topRows(tokens), test::in_training(3));
    REQUIRE(plan.size() == tokens);
    for (index_t e = 0; e < 4; ++e) CHECK(plan.load(e) == tokens / 4 + (e < tokens % 4 ? 1 : 0));
  }
  const auto once = parts_of(partitioned(router, x, test::in_training(3)));
  CHECK(parts_of(partitioned(router, x, test::in_training(3))) == once);
  CHECK(parts_of(partitioned(router, x, test::in_training(4))) != once);
  static_assert(!is_causal<random_partition_router<double>>);
}

TEST_CASE("random_partition: any token meets any expert equally often", "[router][random_partition]") {
  const random_partition_router<double> router{2, 3};
  const matrix<double> x = matrix<double>::Zero(6, 2);
  matrix<double> met = matrix<double>::Zero(6, 3);
  constexpr std::uint64_t times = 3000;
  for (std::uint64_t seed = 0; seed < times; ++seed)
    met += partitioned(router, x, test::in_training(seed)).dense_weights();
  const double deviation = std::sqrt(double(times) * (1.0 / 3) * (2.0 / 3));
  CHECK((met.array() - double(times) / 3).abs().maxCoeff() < 5 * deviation);
}

TEST_CASE("random_partition: padding and NaN are in no part, groups are cut apart", "[router][random_partition][nan]") {
  const random_partition_router<double> router{3, 2};
  matrix<double> x = test::random_matrix<double>(9, 3, 5);
  x(7, 1) = quiet_nan<double>();
  const std::vector<std::uint8_t> mask{1, 0, 1, 1, 1, 1, 1, 1, 1};
  const std::vector<index_t> groups{0, 5, 9};
  auto context = test::in_training(2);
  context.token_mask = mask;
  context.groups = groups;
  const auto plan = partitioned(router, x, context);
  const auto parts = parts_of(plan);
  CHECK(parts[1] == -1);
  CHECK(parts[7] == -1);
  CHECK(std::count(parts.begin(), parts.begin() + 5, 0) == 2);
  CHECK(std::count(parts.begin(), parts.begin() + 5, 1) == 2);
  CHECK(std::count(parts.begin() + 5, parts.end(), 0) == 2);
  CHECK(std::count(parts.begin() + 5, parts.end(), 1) == 1);
  CHECK(std::ranges::equal(plan.invalid_tokens(), std::vector<index_t>{7}));
}

TEST_CASE("random_partition: at inference the mean of all experts", "[router][random_partition]") {
  const random_partition_router<double> router{3, 4};
  const matrix<double> x = test::random_matrix<double>(5, 3, 5);
  const auto plan = partitioned(router, x, {});
  CHECK((plan.dense_weights().array() == 0.25).all());
  for (const bool training : {true, false}) {
    routing_context<double> context;
    context.training = training;
    context.top_k = 2;
    CHECK_THROWS_WITH(partitioned(router, x, context),
                      std::string("sluice: a random partition gives a token ") +
                          (training ? "1 of 4 experts in training" : "4 of 4 experts at inference") +
                          "; the call asks for k = 2");
  }
  CHECK_THROWS_WITH(partition_rule<double>(0), "sluice: a random partition needs E >= 1, not E = 0");
  CHECK_THROWS_WITH((token_choice_router(no_gate<double>(3, 4), partition_rule<double>(5))),
                    "sluice: the random partition is for 5 experts, the router has E = 4");
}

TEST_CASE("random_partition: equal experts make the layer one expert, whatever the parts",
          "[router][random_partition]") {
  ffn<double> expert(3, 4, {.bias = true});
  initialize(expert, 3);
  moe_layer layer{random_partition_router<double>{3, 4}, expert_bank<ffn<double>>(4, expert)};
  const dense_layer<ffn<double>> one{mean_expert(layer.bank())};
  const matrix<double> x = test::random_matrix<double>(11, 3, 5);
  matrix<double> y(11, 3), alone(11, 3);
  decltype(layer)::workspace ws;
  dense_layer<ffn<double>>::workspace own;
  one.forward(x, alone, own);
  for (const std::uint64_t seed : {std::uint64_t{1}, std::uint64_t{2}, std::uint64_t{3}}) {
    layer.forward(x, y, ws, test::in_training(seed));
    CHECK(test::largest_difference(y, alone) <= test::bound<double>(8, alone.cwiseAbs().maxCoeff()));
  }
}

TEST_CASE("random_partition: keeps every promise", "[router][random_partition]") {
  const auto report = test::conformance(random_partition_router<double>{4, 3});
  INFO(report.describe());
  CHECK(report.passed());
}
