#include <sluice/router/fixed/given.hpp>

#include <sluice/expert/ffn.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "router/layer_checks.hpp"
#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;

namespace {

const test::table_router given_in_table("given_router", [] {
  return test::made(given_router<double>(no_gate<double>(6, 4)));
});

using follower = given_router<double>;
/// Follows, and weighs by a gate of its own.
using gated_follower = given_router<double, linear_gate<double>, softmax_rule<double>>;

matrix<index_t> rows_of_two(const std::vector<index_t>& experts) {
  return Eigen::Map<const matrix<index_t>>(experts.data(), static_cast<index_t>(experts.size()) / 2, 2);
}

routing_context<double> following(const matrix<index_t>& ids) {
  auto context = test::training();
  context.expert_ids = ids;
  return context;
}

}  // namespace

TEST_CASE("given: experts and weights are those of the context, fewer where a row ends early", "[router][given]") {
  const follower router(no_gate<double>(3, 4));
  const matrix<double> x = test::random_matrix<double>(3, 3, 1);
  const matrix<index_t> ids = rows_of_two({2, 0, 3, no_expert, no_expert, no_expert});
  auto context = following(ids);
  matrix<double> expected(3, 4);
  expected << .5, 0, .5, 0, 0, 0, 0, .5, 0, 0, 0, 0;
  CHECK(test::route(router, x, context).plan.dense_weights() == expected);
  matrix<double> weights(3, 2);
  weights << 3, -1, .25, 7, 8, 9;  // what stands beside no_expert is not read
  context.expert_weights = weights;
  expected << -1, 0, 3, 0, 0, 0, 0, .25, 0, 0, 0, 0;
  CHECK(test::route(router, x, context).plan.dense_weights() == expected);
  context.top_k = 1;
  expected << 0, 0, 3, 0, 0, 0, 0, .25, 0, 0, 0, 0;
  CHECK(test::route(router, x, context).plan.dense_weights() == expected);
  static_assert(is_causal<follower>);
}

TEST_CASE("given: a router follows another one, to the same plan", "[router][given]") {
  top_k_router<double> leader{5, 4, {.top_k = 2}};
  initialize(leader, 3);
  const matrix<double> x = test::random_matrix<double>(9, 5, 2);
  const auto led = test::route(leader, x, test::training());
  const auto& made = led.tape.choices;
  auto context = test::training();
  context.expert_ids = {made.expert.data(), made.tokens, made.top_k};
  context.expert_weights = {made.weight.data(), made.tokens, made.top_k};
  const auto followed = test::route(follower(no_gate<double>(5, 4)), x, context);
  CHECK(followed.plan.dense_weights() == led.plan.dense_weights());
  for (index_t i = 0; i < led.plan.size(); ++i) CHECK(followed.plan.rank(i) == led.plan.rank(i));
}

TEST_CASE("given: the gradient of given weights is left in the tape", "[router][given][gradient]") {
  moe_layer layer{follower(no_gate<double>(3, 4)), expert_bank<ffn<double>>(4, 3, 5)};
  initialize(layer, 5);
  const matrix<index_t> ids = rows_of_two({2, 0, 3, no_expert, 1, 2});
  const matrix<double> x = test::random_matrix<double>(3, 3, 1), dy = test::random_matrix<double>(3, 3, 2);
  matrix<double> weights = test::random_matrix<double>(3, 2, 4), y(3, 3), dx(3, 3);
  auto context = following(ids);
  decltype(layer)::tape tape;
  const auto value = [&] {
    context.expert_weights = weights;
    layer.forward(x, y, tape, context);
    return (y.array() * dy.array()).sum();
  };
  value();
  layer.backward(dy, dx, tape);
  const matrix<double> gradient = tape.router.dweights.map();
  for (index_t i = 0; i < weights.size(); ++i) {  // y is linear in the weights: a step of 1 is exact
    const double before = value();
    weights.data()[i] += 1;
    CHECK(std::abs(value() - before - gradient.data()[i]) <= 8 * test::bound<double>(5, std::abs(before)));
    weights.data()[i] -= 1;
  }
}

TEST_CASE("given: a gate of its own may weigh what was given", "[router][given][gradient]") {
  const gated_follower router(linear_gate<double>(4, 5), softmax_rule<double>({.top_k = 2, .weights = weighting::post}));
  std::vector<index_t> experts;
  for (index_t t = 0; t < 9; ++t) experts.insert(experts.end(), {t % 5, t % 3 == 0 ? no_expert : (t + 2) % 5});
  const matrix<index_t> ids = rows_of_two(experts);
  const auto report = test::check_router_gradients(router, 9, 93, following(ids));
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("given: what is no choice is refused by number", "[router][given]") {
  const follower router(no_gate<double>(3, 4));
  matrix<double> x = test::random_matrix<double>(2, 3, 1);
  CHECK_THROWS_WITH(test::route(router, x), test::contains("expert_ids") && test::contains("2 tokens"));
  CHECK(test::route(router, matrix<double>(0, 3)).plan.size() == 0);
  const auto refuses = [&](const std::vector<index_t>& experts, const char* why) {
    const matrix<index_t> ids = rows_of_two(experts);
    CHECK_THROWS_WITH(test::route(router, x, following(ids)), test::contains(why));
  };
  refuses({0, 1, 2, 4}, "token 1 is given expert 4, of E = 4");
  refuses({0, -2, 2, 1}, "token 0 is given expert -2, of E = 4");
  refuses({0, 1, 3, 3}, "token 1 is given expert 3 twice");
  refuses({no_expert, 1, 3, 0}, "token 0 is given an expert behind no_expert");
  refuses({0, 1, 3, 0, 1, 2}, "expert_ids has 3 rows for 2 tokens");
  matrix<index_t> ids = rows_of_two({0, 1, 9, 9});
  auto context = following(ids);
  const std::vector<std::uint8_t> mask{1, 0};
  context.token_mask = mask;
  CHECK(test::route(router, x, context).plan.size() == 2);  // padding may be given anything
  const matrix<double> weights = matrix<double>::Ones(2, 1);
  context.expert_weights = weights;
  CHECK_THROWS_WITH(test::route(router, x, context), test::contains("expert_weights is [2, 1], expert_ids [2, 2]"));
  context = following(ids);
  context.top_k = 3;
  CHECK_THROWS_WITH(test::route(router, x, context), test::contains("2 experts a token") && test::contains("k = 3"));
}

TEST_CASE("given: keeps every promise", "[router][given]") {
  matrix<index_t> ids(67, 2);
  for (index_t t = 0; t < 67; ++t) ids.row(t) << t % 3, t % 4 == 0 ? no_expert : (t + 1) % 3;
  const auto report = test::conformance(follower(no_gate<double>(4, 3)), following(ids));
  INFO(report.describe());
  CHECK(report.passed());
}
