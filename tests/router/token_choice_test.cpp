#include <sluice/router/token_choice.hpp>

#include <sluice/capacity/batch_priority.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/loss/router_z.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/tokens_choose/noisy_top_k.hpp>

#include "token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

template <typename Capacity = dropless>
using given = top_k_router<double, dynamic, dynamic, copy_gate<double>, no_noise<double>, Capacity>;

/// A rule of a user: experts whose score is above 1, at most k of them, with the score as weight.
struct above_one {
  index_t k = 3;
  index_t top_k() const { return k; }
  void score(const choice_row<double>& row, double* scores) const { std::copy_n(row.logits, row.experts, scores); }
  index_t choose(const choice_row<double>& row, index_t* ids) const {
    std::fill_n(row.scratch, 2 * row.experts, 0.0);  // all of the scratch is ours
    kernel::top_k(row.scores, row.experts, row.k, ids);
    return std::find_if(ids, ids + row.k, [&](index_t e) { return !(row.scores[e] > 1); }) - ids;
  }
  void weigh(const choice_row<double>& row, std::span<const index_t> ids, double* weights) const {
    for (const index_t e : ids) *weights++ = row.scores[e];
  }
  void backward(const choice_row<double>&, const weighed_experts<double>& weighed, double* dlogits) const {
    const double* dweight = weighed.dweights;
    for (const index_t e : weighed.ids) dlogits[e] += *dweight++;
  }
};

}  // namespace

TEST_CASE("token_choice: a rule may choose fewer than k experts, or none", "[router][token_choice]") {
  matrix<double> x(4, 4);
  x << 2, 0, 3, 0, 0, 0, 0, 0, 4, 5, 6, 7, 0, 1.5, 0, 1;
  const token_choice_router<copy_gate<double>, above_one> router(copy_gate<double>(4, 4), {});
  const auto result = test::route(router, x);
  CHECK(result.plan.size() == 2 + 0 + 3 + 1);
  CHECK(result.plan.of_token(1).empty());
  matrix<double> expected = matrix<double>::Zero(4, 4);
  expected << 2, 0, 3, 0, 0, 0, 0, 0, 0, 5, 6, 7, 0, 1.5, 0, 0;
  CHECK(result.plan.dense_weights() == expected);
  CHECK(result.tape.choices.expert[3] == no_expert);

  moe_layer layer{router, expert_bank<identity_expert<double>>(4, 4)};
  decltype(layer)::tape tape;
  matrix<double> y(4, 4), dx(4, 4);
  const matrix<double> dy = matrix<double>::Ones(4, 4);
  layer.forward(x, y, tape);
  layer.backward(dy, dx, tape);
  CHECK(y.row(0) == 5 * x.row(0));
  CHECK(y.row(1).isZero(0));
  CHECK(dx.row(1).isZero(0));
  CHECK(dx(3, 1) == 1.5 + 3.0 - 0.5);  // w dy + <dy, x>, x sums to 2.5
}

TEST_CASE("token_choice: padding takes no expert, no slot and no room", "[router][token_choice]") {
  const matrix<double> x = test::random_matrix<double>(30, 4, 7);
  std::vector<std::uint8_t> mask(30, 1);
  matrix<double> packed(20, 4);
  for (index_t t = 0, next = 0; t < 30; ++t) {
    mask[std::size_t(t)] = t % 3 != 1;
    if (t % 3 != 1) packed.row(next++) = x.row(t);
  }
  routing_context<double> context;
  context.token_mask = mask;
  const auto compare = [&](const auto& router) {
    const auto masked = test::route(router, x, context);
    const auto removed = test::route(router, packed);
    REQUIRE(masked.plan.size() == removed.plan.size());
    CHECK(masked.plan.dropped().size() == removed.plan.dropped().size());
    for (index_t i = 0; i < removed.plan.size(); ++i) {
      CHECK(masked.plan.token(i) == removed.plan.token(i) / 2 * 3 + removed.plan.token(i) % 2 * 2);
      CHECK(masked.plan.expert(i) == removed.plan.expert(i));
      CHECK(masked.plan.weight(i) == removed.plan.weight(i));
    }
  };
  compare(given<>(4, 4));
  compare(given<position_capacity>(copy_gate<double>(4, 4), {}, {}, position_capacity(capacity_limit::gshard(0.7))));
  compare(given<batch_priority_capacity>(copy_gate<double>(4, 4), {}, {},
                                         batch_priority_capacity(capacity_limit::gshard(0.7))));
}

TEST_CASE("token_choice: garbage in padding rows reaches neither output nor gradients", "[router][token_choice]") {
  using layer_type = moe_layer<top_k_router<double>, expert_bank<swiglu<double>>>;
  layer_type layer{top_k_router<double>(4, 5), expert_bank<swiglu<double>>(5, 4, 3)};
  initialize(layer, 5);
  matrix<double> x = test::random_matrix<double>(10, 4, 7);
  const matrix<double> dy = test::random_matrix<double>(10, 4, 8);
  std::vector<std::uint8_t> mask(10, 1);
  mask[3] = mask[9] = 0;
  const auto run = [&](double garbage) {
    x.row(3).setConstant(garbage);
    x.row(9).setConstant(-garbage);
    zero_gradients(layer);
    layer_type::tape tape;
    matrix<double> y(10, 4), dx(10, 4);
    routing_context<double> context = test::training();
    context.token_mask = mask;
    layer.forward(x, y, tape, context);
    layer.backward(dy, dx, tape);
    CHECK(y.row(3).isZero(0));
    CHECK(dx.row(9).isZero(0));
    matrix<double> all(1, 0);
    for_each_parameter(layer, [&](const std::string&, parameter<double>& p) {
      const index_t used = all.size();
      all.conservativeResize(1, used + static_cast<index_t>(p.gradient().size()));
      std::copy(p.gradient().begin(), p.gradient().end(), all.data() + used);
    });
    return all;
  };
  const matrix<double> expected = run(0.0);
  CHECK(expected.allFinite());
  CHECK(test::same_bits(run(1e6), expected));
  CHECK(test::same_bits(run(quiet_nan<double>()), expected));
  CHECK(test::same_bits(run(std::numeric_limits<double>::infinity()), expected));
}

TEST_CASE("token_choice: groups are served on their own", "[router][token_choice]") {
  const matrix<double> x = test::random_matrix<double>(26, 4, 7);
  const std::vector<index_t> borders{0, 9, 9, 10, 26};
  routing_context<double> context;
  context.groups = borders;
  const auto compare = [&](const auto& router) {
    const matrix<double> together = test::route(router, x, context).plan.dense_weights();
    const auto alone = test::route(router, x).plan.dense_weights();
    bool differs = false;
    for (std::size_t g = 0; g + 1 < borders.size(); ++g) {
      const index_t size = borders[g + 1] - borders[g];
      const auto part = test::route(router, matrix<double>(x.middleRows(borders[g], size)));
      CHECK(test::same_bits(matrix<double>(together.middleRows(borders[g], size)), part.plan.dense_weights()));
      differs |= !test::same_bits(matrix<double>(alone.middleRows(borders[g], size)), part.plan.dense_weights());
    }
    CHECK(differs);
  };
  compare(given<position_capacity>(copy_gate<double>(4, 4), {}, {}, position_capacity(capacity_limit::gshard(0.5))));
  compare(given<batch_priority_capacity>(copy_gate<double>(4, 4), {}, {},
                                         batch_priority_capacity(capacity_limit::gshard(0.5))));
}

TEST_CASE("token_choice: inputs can be multiplied by a factor", "[router][token_choice]") {
  const matrix<double> x = test::random_matrix<double>(5, 4, 7);
  const given<> router(copy_gate<double>(4, 4), {.top_k = 2}, {}, {}, {.input_factor = 2});
  const auto plan = test::route(router, x).plan;
  REQUIRE(plan.has_input_scale());
  for (const double scale : plan.input_scales()) CHECK(scale == 2);
  const given<> both(copy_gate<double>(4, 4), {.top_k = 2}, {}, {}, {.use = weight_use::input, .input_factor = 3});
  const auto scaled = test::route(both, x).plan;
  for (index_t i = 0; i < plan.size(); ++i) {
    CHECK(scaled.input_scale(i) == 3 * plan.weight(i));
    CHECK(scaled.weight(i) == 1);
  }
  CHECK_THROWS_WITH(given<>(copy_gate<double>(4, 4), {}, {}, {}, {.input_factor = quiet_nan<double>()}),
                    test::contains("nan"));
}

TEST_CASE("token_choice: gradients with scaled inputs and with weights on the inputs",
          "[router][token_choice][gradient]") {
  using router = top_k_router<double>;
  const auto use = GENERATE(weight_use::output, weight_use::input);
  const auto report =
      test::check_router_gradients(router(linear_gate<double>(4, 5), {.top_k = 2, .weights = weighting::pre}, {}, {},
                                          {.use = use, .input_factor = 2}),
                                   8, 33, test::training());
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("token_choice: gradients with a mask, groups and k given by the call", "[router][token_choice][gradient]") {
  using router = top_k_router<double, dynamic, dynamic, linear_gate<double>, no_noise<double>, batch_priority_capacity>;
  std::vector<std::uint8_t> mask(14, 1);
  mask[0] = mask[8] = 0;
  const std::vector<index_t> borders{0, 5, 14};
  routing_context<double> context = test::training();
  context.token_mask = mask;
  context.groups = borders;
  context.top_k = 3;
  index_t dropped = 0;
  const auto report = test::check_router_gradients(
      router(linear_gate<double>(4, 5), {.top_k = 2}, {}, batch_priority_capacity(capacity_limit::gshard(0.6))), 14, 35,
      context, &dropped);
  INFO(report.describe());
  CHECK(dropped > 0);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("token_choice: one row of NaN leaves every other output as it was, bit for bit", "[router][token_choice]") {
  moe_layer layer{top_k_router<float>(6, 4), expert_bank<swiglu<float>>(4, 6, 5)};
  initialize(layer, 5);
  matrix<float> x = test::random_matrix<float>(70, 6, 9);
  matrix<float> y(70, 6), y_nan(70, 6);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  x(33, 2) = quiet_nan<float>();
  layer.forward(x, y_nan, workspace);
  for (index_t t = 0; t < 70; ++t) {
    if (t == 33)
      CHECK(any_nan(&y_nan(t, 0), 6));
    else
      CHECK(test::same_bits(matrix<float>(y.row(t)), matrix<float>(y_nan.row(t))));
  }
}

TEST_CASE("token_choice: a plan may be altered and run again, the gate and the rule can be reached",
          "[router][token_choice]") {
  moe_layer layer{top_k_router<double>(6, 4, {.top_k = 1, .weights = weighting::pre}),
                  expert_bank<swiglu<double>>(4, 6, 5)};
  initialize(layer, 5);
  const matrix<double> x = test::random_matrix<double>(9, 6, 9);
  matrix<double> y(9, 6), doubled(9, 6);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  for (double& w : workspace.plan.weights()) w *= 2;
  layer.forward_planned(x, doubled, workspace);
  CHECK(test::same_bits(doubled, matrix<double>(2 * y)));
  CHECK(layer.router().gate().weight().size() == 24);
  CHECK(layer.router().rule().top_k() == 1);
}

TEST_CASE("token_choice: whether a token's route depends on others is known", "[router][token_choice]") {
  STATIC_REQUIRE(given<>::causal);
  STATIC_REQUIRE_FALSE(given<position_capacity>::causal);
  STATIC_REQUIRE_FALSE(given<batch_priority_capacity>::causal);
}

TEMPLATE_TEST_CASE("token_choice: a token's route has the same bits alone and among others", "[router][token_choice]",
                   float, double) {
  using S = TestType;
  const index_t experts = GENERATE(5, 16, 37);
  const index_t tokens = 70, width = 33, k = 4;
  top_k_router<S> router{width, experts, {.top_k = k}};
  initialize(router, 3);
  const matrix<S> x = test::random_matrix<S>(tokens, width, 4);
  const auto together = test::route(router, x);
  for (const index_t t : {0, 1, 31, 32, 69}) {
    const auto alone = test::route(router, matrix<S>(x.row(t)));
    REQUIRE(alone.plan.size() == k);
    for (std::size_t j = 0; j < static_cast<std::size_t>(k); ++j) {
      const index_t here = together.plan.of_token(t)[j], there = alone.plan.of_token(0)[j];
      CHECK(together.plan.expert(here) == alone.plan.expert(there));
      CHECK(detail::bits_of(together.plan.weight(here)) == detail::bits_of(alone.plan.weight(there)));
    }
  }
}

TEST_CASE("token_choice: route checks the context and the width of x by itself", "[router][token_choice]") {
  const top_k_router<double> router(4, 3);
  top_k_router<double>::tape tape;
  sparse_plan<double> plan;
  const matrix<double> x = test::random_matrix<double>(5, 4, 1);
  CHECK_THROWS_WITH(router.route(test::random_matrix<double>(5, 3, 1), {}, plan, tape),
                    test::contains("width 4; x is [5, 3]"));
  const std::vector<std::uint8_t> mask(4, 1);
  const std::vector<index_t> borders{0, 6};
  routing_context<double> masked, grouped;
  masked.token_mask = mask;
  grouped.groups = borders;
  CHECK_THROWS_WITH(router.route(x, masked, plan, tape), test::contains("token_mask has 4 entries for 5 tokens"));
  CHECK_THROWS_WITH(router.route(x, grouped, plan, tape), test::contains("groups must ascend"));
}

TEST_CASE("token_choice: a token that holds NaN is padding to losses and gradients", "[router][token_choice]") {
  using layer_type = moe_layer<noisy_top_k_router<double>, expert_bank<swiglu<double>>, switch_balance, router_z_loss>;
  layer_type layer{noisy_top_k_router<double>(4, 5), expert_bank<swiglu<double>>(5, 4, 3), switch_balance{},
                   router_z_loss{}};
  initialize(layer, 5);
  matrix<double> x = test::random_matrix<double>(10, 4, 7);
  matrix<double> dy = test::random_matrix<double>(10, 4, 8);
  x(3, 1) = quiet_nan<double>();
  dy.row(3).setConstant(quiet_nan<double>());
  std::vector<std::uint8_t> mask(10, 1);
  mask[3] = 0;
  const auto run = [&](std::span<const std::uint8_t> token_mask) {
    zero_gradients(layer);
    layer_type::tape tape;
    matrix<double> y(10, 4), dx(10, 4);
    routing_context<double> context = test::training();
    context.token_mask = token_mask;
    layer.forward(x, y, tape, context);
    layer.backward(dy, dx, tape);
    CHECK(any_nan(&y(3, 0), 4) == token_mask.empty());
    CHECK(dx.row(3).isZero(0));
    std::vector<double> numbers(tape.losses.begin(), tape.losses.end());
    for_each_parameter(layer, [&](const std::string&, parameter<double>& p) {
      numbers.insert(numbers.end(), p.gradient().begin(), p.gradient().end());
    });
    return numbers;
  };
  const std::vector<double> found = run({}), expected = run(mask);
  CHECK_FALSE(any_nan(found.data(), static_cast<index_t>(found.size())));
  CHECK(found[0] > 0);
  CHECK(std::memcmp(found.data(), expected.data(), found.size() * sizeof(double)) == 0);
}
