#include <sluice/router/experts_choose/expert_choice.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/loss/router_z.hpp>

#include "router/layer_checks.hpp"
#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;
using test::route;

namespace {

const test::table_router expert_choice_in_table("expert_choice_router", [] {
  return test::made(expert_choice_router<double>{6, 4}, {.training_capacity = 24});
});

template <typename Scalar>
using given_choosing = expert_choice_router<Scalar, copy_gate<Scalar>>;  // logits are the input

template <typename Router = expert_choice_router<double>>
typename Router::options fixed_capacity(index_t c) {
  return {.capacity = capacity_limit::fixed(c)};
}

/// The tokens that each expert takes from one group, from the definition.
template <typename Scalar>
std::vector<index_t> naive_expert_choice(const matrix_buffer<Scalar>& p, index_t expert, const std::vector<index_t>& tokens,
                                  index_t c) {
  std::vector<index_t> order = tokens;
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return p(a, expert) > p(b, expert); });
  order.resize(std::min(order.size(), static_cast<std::size_t>(c)));
  return order;
}

}  // namespace

TEST_CASE("expert_choice: the worked example", "[router][expert_choice]") {
  const given_choosing<double> router(4, 4, fixed_capacity<given_choosing<double>>(2));
  const auto r = route(router, test::fixture_f<double>());
  const index_t token[] = {3, 0, 2, 1, 1, 2, 3, 1};
  const double gate[] = {0.789137, 0.643914, 0.789137, 0.276004, 0.167405, 0.106798, 0.106798, 0.101536};
  REQUIRE(r.plan.size() == 8);
  for (index_t i = 0; i < 8; ++i) {
    CAPTURE(i);
    CHECK(r.plan.expert(i) == i / 2);
    CHECK(r.plan.slot(i) == i % 2);
    CHECK(r.plan.token(i) == token[i]);
    CHECK(std::abs(r.plan.weight(i) - gate[i]) < test::printed);
  }
  const std::size_t experts_of_token[] = {1, 3, 2, 2};
  for (index_t t = 0; t < 4; ++t) CHECK(r.plan.of_token(t).size() == experts_of_token[t]);
  CHECK(r.tape.seen.top_k == 2);
}

TEMPLATE_TEST_CASE("expert_choice: equals sorting by the definition", "[router][expert_choice]", float, double) {
  using S = TestType;
  using router_type = expert_choice_router<S>;
  struct shape {
    index_t t, d, e, groups;
    double factor;
  };
  const auto s = GENERATE(shape{1, 4, 3, 1, 2.0}, shape{7, 5, 1, 1, 1.0}, shape{33, 8, 6, 1, 2.0},
                          shape{60, 16, 8, 3, 1.5}, shape{24, 6, 5, 4, 9.0});
  CAPTURE(s.t, s.e, s.groups, s.factor);
  const auto scores = GENERATE(router_type::score::softmax, router_type::score::sigmoid);
  router_type router(s.d, s.e,
                     {.capacity = capacity_limit::vmoe(s.factor, capacity_rounding::up, 0), .scores = scores});
  initialize(router, 3);
  const matrix<S> x = test::random_matrix<S>(s.t, s.d, 4);
  std::vector<index_t> borders;
  for (index_t g = 0; g <= s.groups; ++g) borders.push_back(g * s.t / s.groups);
  routing_context<S> context;
  context.groups = borders;
  const auto r = route(router, x, context);
  r.plan.validate();

  for (index_t t = 0; t < s.t; ++t) {
    const auto p = test::naive_softmax(r.tape.seen.clean.row(t), s.e);
    for (index_t e = 0; e < s.e; ++e) {
      const double logit = r.tape.seen.clean(t, e);
      const double wanted = scores == router_type::score::softmax ? p[std::size_t(e)] : 1 / (1 + std::exp(-logit));
      CHECK(std::abs(r.tape.scores(t, e) - wanted) <= test::bound<S>(s.e));
    }
  }
  index_t assignments = 0;
  for (index_t e = 0; e < s.e; ++e) {
    index_t position = r.plan.by_expert().of(e).begin;
    for (index_t g = 0; g < s.groups; ++g) {
      std::vector<index_t> tokens;
      for (index_t t = borders[std::size_t(g)]; t < borders[std::size_t(g) + 1]; ++t) tokens.push_back(t);
      const auto size = static_cast<index_t>(tokens.size());
      const auto wanted = static_cast<index_t>(std::ceil(s.factor * double(size) / double(s.e)));
      const auto chosen = naive_expert_choice(r.tape.scores, e, tokens, wanted);
      CHECK(static_cast<index_t>(chosen.size()) == std::min(size, wanted));
      CHECK(router.capacity(size, false) == static_cast<index_t>(chosen.size()));
      for (const index_t t : chosen) {
        CHECK(r.plan.token(position) == t);
        CHECK(r.plan.weight(position) == r.tape.scores(t, e));
        ++position;
        ++assignments;
      }
    }
    CHECK(position == r.plan.by_expert().of(e).end);
  }
  CHECK(r.plan.size() == assignments);
}

TEST_CASE("expert_choice: gradients equal central differences", "[router][expert_choice][gradient]") {
  const auto scores =
      GENERATE(expert_choice_router<double>::score::softmax, expert_choice_router<double>::score::sigmoid);
  moe_layer layer{expert_choice_router<double>{6, 5, {.scores = scores}}, expert_bank<ffn<double, gelu>>{5, 6, 4}};
  initialize(layer, 11);
  const auto report = test::layer_gradients(layer, test::random_matrix<double>(13, 6, 12), {});
  INFO(report.describe());
  CHECK(report.checked > 300);
  CHECK(report.largest_error < test::gradient_tolerance);
}

TEST_CASE("expert_choice: gradients with noise, groups, padding and a loss", "[router][expert_choice][gradient]") {
  const std::vector<index_t> borders{0, 6, 6, 15};
  const std::vector<std::uint8_t> mask{1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1};
  auto context = test::in_training(21);
  context.groups = borders;
  context.token_mask = mask;
  const auto check = [&](auto noise) {
    using router_type = expert_choice_router<double, linear_gate<double>, decltype(noise)>;
    moe_layer layer{router_type{linear_gate<double>{6, 4}, {}, noise}, expert_bank<ffn<double, gelu>>{4, 6, 3},
                    router_z_loss{.coefficient = 0.1}};
    initialize(layer, 13);
    const auto report = test::layer_gradients(layer, test::random_matrix<double>(15, 6, 14), context);
    INFO(report.describe());
    CHECK(report.largest_error < test::gradient_tolerance);
  };
  check(gaussian_noise<double>(2.0));
  check(learned_noise<double>(6, 4));
}

TEST_CASE("expert_choice: noise moves choice and weights alike", "[router][expert_choice]") {
  using router_type = expert_choice_router<double, copy_gate<double>, gaussian_noise<double>>;
  const router_type router(copy_gate<double>(4, 4), fixed_capacity<router_type>(2), gaussian_noise<double>(4.0));
  const std::vector<double> recorded{-1,  0, 0, 0, 0, 0, 0, 0,
                                     2.5, 0, 0, 0, 0, 0, 0, 0};  // token 0 down by 1, token 2 up by 2.5
  auto context = test::in_training();
  context.random.replay(noise_site, recorded);
  const auto r = route(router, test::fixture_f<double>(), context);
  CHECK(r.plan.token(0) == 3);
  CHECK(r.plan.token(1) == 1);  // no longer token 0
  matrix<double> noisy = test::fixture_f<double>();
  noisy(0, 0) -= 1;
  noisy(2, 0) += 2.5;
  for (index_t i = 0; i < r.plan.size(); ++i) {
    const auto p = test::naive_softmax(noisy.row(r.plan.token(i)).data(), 4);
    CHECK(std::abs(r.plan.weight(i) - p[std::size_t(r.plan.expert(i))]) <= test::bound<double>(4));
  }
  CHECK(
      test::plan_bits(route(router, test::fixture_f<double>()).plan) ==
      test::plan_bits(
          route(given_choosing<double>(4, 4, fixed_capacity<given_choosing<double>>(2)), test::fixture_f<double>()).plan));
}

TEST_CASE("expert_choice: capacity of the whole group is the dense mixture", "[router][expert_choice]") {
  moe_layer layer{expert_choice_router<double>{5, 3, {.capacity = capacity_limit::fixed(99)}},
                  expert_bank<ffn<double>>{3, 5, 4}};
  initialize(layer, 31);
  const matrix<double> x = test::random_matrix<double>(8, 5, 32);
  decltype(layer)::workspace workspace;
  matrix<double> y(8, 5);
  layer.forward(x, y, workspace);
  CHECK(workspace.plan.size() == 24);
  matrix<double> dense = matrix<double>::Zero(8, 5);
  for (index_t e = 0; e < 3; ++e) {
    const auto& expert = layer.bank().expert(e);
    matrix<double> f(8, 5), saved(8, expert.saved_columns());
    expert.forward(x, f, saved);
    for (index_t t = 0; t < 8; ++t) dense.row(t) += workspace.router.scores(t, e) * f.row(t);
  }
  CHECK(test::largest_difference(y, dense) <= test::bound<double>(4 + 5 + 3, dense.cwiseAbs().maxCoeff()));
}

TEST_CASE("expert_choice: permuting tokens permutes outputs, away from ties", "[router][expert_choice]") {
  moe_layer layer{expert_choice_router<float>{6, 4}, expert_bank<ffn<float>>{4, 6, 5}};
  initialize(layer, 41);
  const matrix<float> x = test::random_matrix<float>(17, 6, 42);
  const auto order = test::some_order(17);
  decltype(layer)::workspace workspace;
  matrix<float> y(17, 6), z(17, 6);
  layer.forward(x, y, workspace);
  layer.forward(test::permuted(x, order), z, workspace);
  // A row of a product does not depend on its neighbours, and each token's sum runs in the order of experts: equal
  // bits.
  CHECK(test::same_bits(z, test::permuted(y, order)));
  STATIC_REQUIRE_FALSE(decltype(layer)::causal);
}

TEST_CASE("expert_choice: a later token changes an earlier one", "[router][expert_choice]") {
  const given_choosing<double> router(4, 4, fixed_capacity<given_choosing<double>>(2));
  matrix<double> logits = test::fixture_f<double>();
  const auto has_expert_0 = [&] {
    const auto plan = route(router, logits).plan;
    const auto own = plan.of_token(1);
    return std::any_of(own.begin(), own.end(), [&](index_t i) { return plan.expert(i) == 0; });
  };
  CHECK_FALSE(has_expert_0());  // tokens 3 and 0 like expert 0 more
  logits.row(3) = logits.row(2);
  CHECK(has_expert_0());
}

TEST_CASE("expert_choice: equal scores go to the lowest token", "[router][expert_choice][ties]") {
  const given_choosing<float> router(3, 3, fixed_capacity<given_choosing<float>>(2));
  const auto r = route(router, matrix<float>::Zero(5, 3));
  REQUIRE(r.plan.size() == 6);
  for (index_t i = 0; i < 6; ++i) CHECK(r.plan.token(i) == i % 2);
  // Scores that saturate are equal too.
  matrix<float> saturated = matrix<float>::Zero(4, 3);
  saturated.col(0) << 50, 200, 100, 300;
  const auto s = route(router, saturated);
  CHECK(s.plan.token(0) == 0);
  CHECK(s.plan.token(1) == 1);
}

TEST_CASE("expert_choice: padding is never taken, and does not count for the capacity", "[router][expert_choice]") {
  const std::vector<std::uint8_t> mask{1, 0, 0, 1, 0, 1};
  routing_context<double> context;
  context.token_mask = mask;
  matrix<double> logits = test::random_matrix<double>(6, 2, 51);
  logits.row(1).setConstant(quiet_nan<double>());
  logits.row(2).setConstant(100);
  const given_choosing<double> router(2, 2);  // factor 2 of E = 2: all three real tokens
  const auto r = route(router, logits, context);
  CHECK(r.plan.size() == 6);
  CHECK(r.plan.invalid_tokens().empty());
  for (index_t i = 0; i < r.plan.size(); ++i) CHECK(mask[std::size_t(r.plan.token(i))] == 1);
  const given_choosing<double> five(2, 2, fixed_capacity<given_choosing<double>>(5));
  CHECK(route(five, logits, context).plan.size() == 6);  // slots stay empty
  const std::vector<std::uint8_t> nobody(6, 0);
  context.token_mask = nobody;
  CHECK(route(router, logits, context).plan.size() == 0);
}

TEST_CASE("expert_choice: a NaN token is not taken, gets NaN, and leaves the rest as if it were absent",
          "[router][expert_choice]") {
  moe_layer layer{expert_choice_router<float>{4, 3, {.capacity = capacity_limit::fixed(3)}},
                  expert_bank<ffn<float>>{3, 4, 5}};
  initialize(layer, 61);
  matrix<float> x = test::random_matrix<float>(7, 4, 62);
  x(2, 1) = quiet_nan<float>();
  decltype(layer)::workspace workspace;
  matrix<float> y(7, 4), masked(7, 4);
  layer.forward(x, y, workspace);
  CHECK(workspace.plan.size() == 9);
  CHECK(workspace.plan.of_token(2).empty());
  REQUIRE(workspace.plan.invalid_tokens().size() == 1);
  for (index_t d = 0; d < 4; ++d) CHECK(is_nan(y(2, d)));
  const std::vector<std::uint8_t> mask{1, 1, 0, 1, 1, 1, 1};
  routing_context<float> context;
  context.token_mask = mask;
  layer.forward(x, masked, workspace, context);
  CHECK(masked.row(2).isZero(0));
  y.row(2).setZero();
  CHECK(test::same_bits(y, masked));
}

TEST_CASE("expert_choice: no tokens, one token, one expert", "[router][expert_choice]") {
  const given_choosing<double> three(3, 3);
  CHECK(route(three, matrix<double>(0, 3)).plan.size() == 0);
  CHECK(route(three, matrix<double>::Zero(1, 3)).plan.size() == 3);  // ceil(2 * 1 / 3) = 1 slot each
  const auto one = route(given_choosing<double>(1, 1), test::random_matrix<double>(5, 1, 71));
  CHECK(one.plan.size() == 5);
  for (const double w : one.plan.weights()) CHECK(w == 1);

  moe_layer layer{expert_choice_router<double>{4, 3}, expert_bank<ffn<double>>{3, 4, 5}, router_z_loss{}};
  initialize(layer, 72);
  decltype(layer)::tape tape;
  matrix<double> none(0, 4);
  layer.forward(none, none, tape);
  layer.backward(none, none, tape);
  CHECK(tape.loss() == 0);
}

TEST_CASE("expert_choice: infinite logits are values", "[router][expert_choice]") {
  const double infinity = std::numeric_limits<double>::infinity();
  const given_choosing<double> router(2, 2, fixed_capacity<given_choosing<double>>(1));
  matrix<double> logits = matrix<double>::Zero(3, 2);
  logits(1, 0) = infinity;
  logits(2, 0) = -infinity;
  const auto r = route(router, logits);
  CHECK(r.plan.token(0) == 1);
  CHECK(r.plan.weight(0) == 1);
  CHECK(r.plan.token(1) == 2);
  CHECK(r.plan.weight(1) == 1);
}

TEST_CASE("expert_choice: refuses what makes no sense", "[router][expert_choice]") {
  using Catch::Matchers::Contains;
  CHECK_THROWS_WITH(capacity_limit::fixed(0), Contains("0"));
  const given_choosing<double> tiny(4, 4, {.capacity = capacity_limit::vmoe(0.01, capacity_rounding::down, 0)});
  CHECK_THROWS_WITH(route(tiny, test::fixture_f<double>()), Contains("capacity 0"));
  routing_context<double> context;
  context.top_k = 2;
  CHECK_THROWS_WITH(route(given_choosing<double>(4, 4), test::fixture_f<double>(), context), Contains("k = 2"));
}

TEMPLATE_TEST_CASE("expert_choice: equal bits for every thread count", "[router][expert_choice][determinism]", float,
                   double) {
  using S = TestType;
  using router_type = expert_choice_router<S, linear_gate<S>, gaussian_noise<S>>;
  moe_layer layer{router_type{linear_gate<S>{12, 7}, {}, gaussian_noise<S>(1)}, expert_bank<ffn<S>>{7, 12, 9},
                  router_z_loss{}};
  initialize(layer, 81);
  const std::vector<index_t> borders{0, 50, 131};
  routing_context<S> context;
  context.training = true;
  context.groups = borders;
  test::check_equal_bits(layer, 131, context);
}

TEST_CASE("expert_choice: the layer equals the readable reference", "[router][expert_choice]") {
  moe_layer layer{expert_choice_router<float>{8, 5}, expert_bank<ffn<float>>{5, 8, 6}};
  initialize(layer, 91);
  const auto d = test::difference_from_reference(layer, test::random_matrix<float>(40, 8, 92));
  CHECK(d.magnitude > 0.1F);
  CHECK(d.difference <= test::bound<float>(8 + 6 + 5, d.magnitude));
}
