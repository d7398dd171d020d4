#include <sluice/router/fixed/hash.hpp>

#include <sluice/core/parameter.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router hash_in_table("hash_router", [] {
  return test::made(hash_router<double>{no_gate<double>(6, 4), random_hash(8, 4, 2, random_source(3))}, {.k = 2});
});

using plain_hash = hash_router<double>;
using scored_rule = hash_rule<double, sigmoid_rule<double>>;
template <typename Gate>
using scored_hash = hash_router<double, Gate, sigmoid_rule<double>>;

matrix<index_t> hash_table(index_t ids, const std::vector<index_t>& experts) {
  return Eigen::Map<const matrix<index_t>>(experts.data(), ids, static_cast<index_t>(experts.size()) / ids);
}

routing_context<double> with_ids(const std::vector<index_t>& ids) {
  routing_context<double> context = test::training();
  context.token_ids = ids;
  return context;
}

/// Experts of all tokens, one after another.
std::vector<index_t> experts_by_id(const sparse_plan<double>& plan) {
  std::vector<index_t> experts;
  for (index_t t = 0; t < plan.tokens(); ++t)
    for (const index_t i : plan.of_token(t)) experts.push_back(plan.expert(i));
  return experts;
}

std::vector<index_t> cycling_ids(index_t tokens, index_t ids) {
  std::vector<index_t> all;
  for (index_t t = 0; t < tokens; ++t) all.push_back((3 * t + t / 5) % ids);
  return all;
}

}  // namespace

TEST_CASE("hash: the table says which experts an id has, and they weigh the same", "[router][hash]") {
  const plain_hash router(no_gate<double>(4, 3), hash_table(4, {2, 0, 1, 2, 0, 1, 2, 1}));
  const matrix<double> x = test::random_matrix<double>(5, 4, 3);
  const std::vector<index_t> ids{3, 1, 0, 2, 1};
  auto context = with_ids(ids);
  const auto result = test::route(router, x, context);
  CHECK(experts_by_id(result.plan) == std::vector<index_t>{2, 1, 1, 2, 2, 0, 0, 1, 1, 2});
  for (index_t i = 0; i < result.plan.size(); ++i) CHECK(result.plan.weight(i) == 0.5);
  context.top_k = 1;
  const auto first = test::route(router, x, context);
  CHECK(experts_by_id(first.plan) == std::vector<index_t>{2, 1, 2, 0, 1});
  for (index_t i = 0; i < first.plan.size(); ++i) CHECK(first.plan.weight(i) == 1);
  context.top_k = 3;
  CHECK_THROWS_WITH(test::route(router, x, context),
                    test::contains("has 2 experts a token") && test::contains("k = 3"));

  std::vector<std::string> names;
  for_each_parameter(router, [&](const std::string& name, const auto& p) {
    names.push_back(name);
    CHECK(p.role() == parameter_role::state);
  });
  CHECK(names == std::vector<std::string>{"rule.table"});
  CHECK(plain_hash::causal);
}

TEST_CASE("hash: ids that the table does not have are refused by number, padding may have any", "[router][hash]") {
  const plain_hash router(no_gate<double>(4, 3), hash_table(4, {2, 0, 1, 2}));
  matrix<double> x = test::random_matrix<double>(5, 4, 3);
  CHECK_THROWS_WITH(test::route(router, x), test::contains("token_ids") && test::contains("5 tokens"));
  CHECK(test::route(router, matrix<double>(0, 4)).plan.size() == 0);
  for (const index_t strange : {index_t{4}, index_t{-1}, (std::numeric_limits<index_t>::max)()}) {
    CAPTURE(strange);
    const std::vector<index_t> ids{3, 1, strange, 0, 1};
    auto context = with_ids(ids);
    CHECK_THROWS_WITH(test::route(router, x, context),
                      test::contains("token 2 has id " + std::to_string(strange)) && test::contains("ids 0 to 3"));
    const std::vector<std::uint8_t> mask{1, 1, 0, 1, 1};
    context.token_mask = mask;
    x(2, 1) = quiet_nan<double>();
    CHECK(experts_by_id(test::route(router, x, context).plan) == std::vector<index_t>{2, 0, 2, 0});
  }
  const std::vector<index_t> ids{3, 1, 2, 0, 1};
  const auto result = test::route(router, x, with_ids(ids));  // token 2 holds NaN
  CHECK(experts_by_id(result.plan) == std::vector<index_t>{2, 0, 2, 0});
  CHECK(std::ranges::equal(result.plan.invalid_tokens(), std::vector<index_t>{2}));
}

TEST_CASE("hash: a table that names no expert, or one twice, is refused", "[router][hash]") {
  const auto make = [](const std::vector<index_t>& experts) {
    return plain_hash(no_gate<double>(4, 3), hash_table(2, experts));
  };
  CHECK_THROWS_WITH(make({0, 1, 2, 3}), test::contains("id 1 the expert 3, of E = 3"));
  CHECK_THROWS_WITH(make({0, -1, 2, 1}), test::contains("id 0 the expert -1"));
  CHECK_THROWS_WITH(make({0, 1, 2, 2}), test::contains("id 1 the expert 2 twice"));
  CHECK_THROWS_WITH(plain_hash(no_gate<double>(4, 3), hash_table(1, {0, 1, 2, 0})), test::contains("k = 4"));
  CHECK_THROWS_WITH(hash_rule<double>(4, 0), test::contains("K = 0"));
  const matrix<index_t> zeros = matrix<index_t>::Zero(2, 1);
  CHECK_THROWS_WITH((hash_router<float>(no_gate<float>(4, (index_t{1} << 24) + 1), zeros)), test::contains("precision"));

  // Written later, by a file or by hand: what is used is looked at.
  plain_hash router(no_gate<double>(4, 3), hash_rule<double>(3, 1));
  const matrix<double> x = test::random_matrix<double>(2, 4, 3);
  const std::vector<index_t> ids{0, 1};
  CHECK_THROWS_WITH(test::route(router, x, with_ids(ids)), test::contains("nobody has set the table"));
  for (const double wrong : {0.5, 3.0, -1.0, 1e300, quiet_nan<double>()}) {
    for_each_parameter(router, [&](const std::string&, auto& p) {
      p.fill([&](index_t i) { return i == 1 ? wrong : static_cast<double>(i); });
    });
    CAPTURE(wrong);
    CHECK_THROWS_WITH(test::route(router, x, with_ids(ids)), test::contains("the table gives id 1 the expert"));
    CHECK(test::route(router, x, with_ids({0, 2})).plan.size() == 2);
  }
}

TEST_CASE("hash: scores of a gate may weigh what the table chose", "[router][hash]") {
  // DeepSeek-V4: w = 1.5 sqrt(softplus(l)) over the sum of the chosen.
  const scored_hash<copy_gate<double>> router(
      copy_gate<double>(4, 4),
      scored_rule(hash_table(3, {0, 1, 3, 2, 1, 3}),
                  sigmoid_rule<double>(4, {.selection_bias = false, .scaling = 1.5,
                                           .scores = expert_scores::sqrt_softplus})));
  const matrix<double> logits = test::fixture_f<double>();
  const std::vector<index_t> ids{1, 0, 2, 1};
  const auto plan = test::route(router, logits, with_ids(ids)).plan;
  CHECK(experts_by_id(plan) == std::vector<index_t>{3, 2, 0, 1, 1, 3, 3, 2});
  const auto score = [&](index_t t, index_t e) { return std::sqrt(std::log1p(std::exp(logits(t, e)))); };
  for (index_t t = 0; t < 4; ++t) {
    const auto pairs = plan.of_token(t);
    const index_t a = plan.expert(pairs[0]), b = plan.expert(pairs[1]);
    const double sum = score(t, a) + score(t, b);
    CHECK(std::abs(plan.weight(pairs[0]) - 1.5 * score(t, a) / sum) <= 8 * test::bound<double>(2));
    CHECK(std::abs(plan.weight(pairs[1]) - 1.5 * score(t, b) / sum) <= 8 * test::bound<double>(2));
  }
}

TEST_CASE("hash: gradients of weights whose experts a table chose", "[router][hash][gradient]") {
  const std::vector<index_t> ids = cycling_ids(9, 5);
  const sigmoid_rule<double> weights(6, {.selection_bias = false, .scores = expert_scores::sqrt_softplus});
  const scored_hash<linear_gate<double>> router(linear_gate<double>(4, 6),
                                                scored_rule(random_hash(5, 6, 2, random_source(4)), weights));
  const auto report = test::check_router_gradients(router, 9, 92, with_ids(ids));
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("hash: random tables have distinct experts, all alike often", "[router][hash]") {
  const matrix<index_t> table = random_hash(4000, 8, 2, random_source(11));
  std::vector<index_t> first(8), second(8);
  for (index_t id = 0; id < 4000; ++id) {
    REQUIRE((table(id, 0) >= 0 && table(id, 0) < 8 && table(id, 1) >= 0 && table(id, 1) < 8));
    REQUIRE(table(id, 0) != table(id, 1));
    ++first[static_cast<std::size_t>(table(id, 0))];
    ++second[static_cast<std::size_t>(table(id, 1))];
  }
  const double deviation = std::sqrt(4000 * (1.0 / 8) * (7.0 / 8));
  for (const auto& counts : {first, second})
    for (const index_t count : counts) CHECK(std::abs(static_cast<double>(count) - 500) < 5 * deviation);
  CHECK(random_hash(4000, 8, 2, random_source(11)) == table);
  CHECK(random_hash(4000, 8, 2, random_source(12)) != table);
  CHECK(random_hash(10, 8, 2, random_source(11)) == table.topRows(10));
  matrix<index_t> all = random_hash(50, 5, 5, random_source(1));
  for (index_t id = 0; id < 50; ++id) {
    std::sort(&all(id, 0), &all(id, 0) + 5);
    for (index_t e = 0; e < 5; ++e) REQUIRE(all(id, e) == e);
  }
  CHECK(random_hash(0, 5, 1, random_source(1)).rows() == 0);
  CHECK_THROWS_WITH(random_hash(4, 2, 3, random_source(1)), test::contains("K = 3, E = 2"));
}

TEST_CASE("hash: balanced tables hand out the most frequent ids first, to whom has least", "[router][hash]") {
  // Loads: 5|0, 5|3, 5|6, 7|6, 7|7.
  const std::vector<index_t> five{2, 5, 3, 1, 3};
  CHECK(balanced_hash(five, 2) == hash_table(5, {0, 0, 1, 1, 1}));
  // Loads: 4 4 0, then 6 4 2, then 6 5 3.
  const std::vector<index_t> three{4, 2, 1};
  CHECK(balanced_hash(three, 3, 2) == hash_table(3, {0, 1, 2, 0, 2, 1}));

  std::vector<index_t> many;
  for (index_t id = 0; id < 500; ++id) many.push_back(20000 / (id + 1));  // as words of a language
  for (const index_t k : {1, 3}) {
    const matrix<index_t> table = balanced_hash(many, 16, k);
    std::vector<index_t> load(16, 0);
    for (index_t id = 0; id < 500; ++id)
      for (index_t j = 0; j < k; ++j)
        load[static_cast<std::size_t>(table(id, j))] += many[static_cast<std::size_t>(id)];
    CHECK(*std::ranges::max_element(load) - *std::ranges::min_element(load) <= many.front());
    CHECK_NOTHROW(plain_hash(no_gate<double>(4, 16), table));
  }
  CHECK(balanced_hash({}, 3).rows() == 0);
  const std::vector<index_t> negative{1, -2};
  CHECK_THROWS_WITH(balanced_hash(negative, 3), test::contains("id 1") && test::contains("-2"));
}

TEST_CASE("hash: both kinds of weights keep every promise", "[router][hash]") {
  const std::vector<index_t> ids = cycling_ids(67, 11);
  routing_context<double> context;
  context.token_ids = ids;
  const auto plain = test::conformance(
      plain_hash(no_gate<double>(4, 3), random_hash(11, 3, 2, random_source(3))), context);
  INFO(plain.describe());
  CHECK(plain.passed());

  const sigmoid_rule<double> weights(5, {.selection_bias = false});
  scored_hash<linear_gate<double>> router(linear_gate<double>(4, 5),
                                          scored_rule(random_hash(11, 5, 2, random_source(3)), weights));
  initialize(router, 7);
  const auto scored = test::conformance(router, context);
  INFO(scored.describe());
  CHECK(scored.passed());
}
