#include <sluice/router/tokens_choose/switch_top1.hpp>

#include <sluice/capacity/random.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router switch_in_table("switch_router", [] {
  return test::made(switch_router<double>{6, 4}, {.training_capacity = 15, .inference_capacity = 24});
});

template <typename Scalar, typename Capacity = position_capacity>
using given_switch = switch_router<Scalar, dynamic, copy_gate<Scalar>, Capacity>;

/// The definition: first come, first served.
struct naive_switch {
  matrix<double> combine;
  index_t dropped = 0;

  template <typename Scalar>
  naive_switch(const matrix<Scalar>& logits, index_t capacity)
      : combine(matrix<double>::Zero(logits.rows(), logits.cols())) {
    std::vector<index_t> taken(std::size_t(logits.cols()), 0);
    for (index_t t = 0; t < logits.rows(); ++t) {
      const index_t e = test::sorted_positions(&logits(t, 0), logits.cols())[0];
      if (taken[std::size_t(e)]++ < capacity)
        combine(t, e) = test::naive_softmax(&logits(t, 0), logits.cols())[std::size_t(e)];
      else
        ++dropped;
    }
  }
};

}  // namespace

TEMPLATE_TEST_CASE("switch: equals the definition", "[router][switch]", float, double) {
  using S = TestType;
  struct shape {
    index_t T, E;
    double factor;
  };
  const auto s = GENERATE(shape{0, 4, 1.0}, shape{1, 1, 1.0}, shape{24, 4, 1.0}, shape{25, 4, 1.25}, shape{60, 7, 0.4},
                          shape{300, 257, 1.0}, shape{40, 512, 2.0});
  CAPTURE(s.T, s.E, s.factor);
  const matrix<S> logits = test::random_matrix<S>(s.T, s.E, 12);
  const index_t capacity = index_t(std::ceil(s.factor * double(s.T) / double(s.E)));
  const given_switch<S> router(copy_gate<S>(s.E, s.E), position_capacity(capacity_limit::switch_transformer(s.factor)));
  const auto result = test::route(router, logits);
  const naive_switch expected(logits, capacity);
  CHECK(test::largest_difference(matrix<double>(result.plan.dense_weights().template cast<double>()),
                                 expected.combine) <= double(test::bound<S>(s.E)));
  CHECK(index_t(result.plan.dropped().size()) == expected.dropped);
  for (index_t e = 0; e < s.E; ++e) CHECK(result.plan.load(e) <= capacity);
}

TEST_CASE("switch: a factor of E drops nobody, one slot keeps token 0 of three", "[router][switch]") {
  const matrix<double> logits =
      test::random_matrix<double>(31, 5, 1).array().rowwise() + Eigen::Array<double, 1, 5>(9, 0, 0, 0, 0);
  const auto roomy =
      given_switch<double>(copy_gate<double>(5, 5), position_capacity(capacity_limit::switch_transformer(5)));
  CHECK(test::route(roomy, logits).plan.dropped().empty());

  const auto tight =
      given_switch<double>(copy_gate<double>(5, 5), position_capacity(capacity_limit::switch_transformer(1)));
  const auto result = test::route(tight, matrix<double>(logits.topRows(3)));
  REQUIRE(result.plan.size() == 1);
  CHECK(result.plan.token(0) == 0);
  REQUIRE(result.plan.dropped().size() == 2);
  CHECK(result.plan.dropped()[0].token == 1);
  CHECK(result.plan.dropped()[0].slot == 1);
  CHECK(result.plan.dropped()[1].slot == 2);
}

TEST_CASE("switch: the worked example", "[router][switch]") {
  const auto router =
      given_switch<double>(copy_gate<double>(4, 4), position_capacity(capacity_limit::switch_transformer(1)));
  const matrix<double> w = test::route(router, test::fixture_f<double>()).plan.dense_weights();
  CHECK(std::abs(w(0, 0) - 0.643914) < test::printed);
  CHECK(std::abs(w(2, 1) - 0.789137) < test::printed);
  CHECK(w.sum() == w(0, 0) + w(2, 1));  // C = 1: tokens 1 and 3 come too late for expert 0
}

TEST_CASE("switch: training has a capacity factor and a jitter of its own", "[router][switch]") {
  switch_router<double> router(6, 4, {.jitter = 0.1, .factor = {1.0, 4.0}});
  initialize(router, 3);
  const matrix<double> x = test::random_matrix<double>(40, 6, 4);
  const auto inference = test::route(router, x);
  CHECK(inference.plan.dropped().empty());
  switch_router<double> plain(6, 4, {.jitter = 0, .factor = {1.0, 4.0}});
  initialize(plain, 3);
  const auto without = test::route(plain, x, test::training());
  CHECK(test::same_bits(matrix<double>(without.tape.seen.clean.map()),
                        matrix<double>(inference.tape.seen.clean.map())));
  for (index_t e = 0; e < 4; ++e) CHECK(without.plan.load(e) <= 10);

  // The jitter is the product of x with recorded draws; the experts' rows are not touched by it.
  std::vector<double> draws(40 * 6);
  for (std::size_t i = 0; i < draws.size(); ++i)
    draws[i] = random_source(8).uniform(random_site::user_site, index_t(i));
  routing_context<double> context = test::training();
  context.random.replay(input_jitter_site, draws);
  matrix_buffer<double> factors;
  detail::draw_factors(context, input_jitter_site, 40, 6, 0.1, factors);
  const matrix<double> jittered = x.cwiseProduct(factors.map());
  CHECK(test::plan_bits(test::route(router, x, context).plan) ==
        test::plan_bits(test::route(plain, jittered, context).plan));
  CHECK(test::plan_bits(test::route(router, x, context).plan) != test::plan_bits(without.plan));
}

TEST_CASE("switch: every token to one expert, an expert without tokens", "[router][switch]") {
  matrix<float> logits = matrix<float>::Zero(12, 3);
  logits.col(1).setConstant(4);
  const auto router =
      given_switch<float>(copy_gate<float>(3, 3), position_capacity(capacity_limit::switch_transformer(1.5)));
  const auto result = test::route(router, logits);
  CHECK(result.plan.load(0) == 0);
  CHECK(result.plan.load(1) == 6);
  CHECK(result.plan.load(2) == 0);
  for (index_t i = 0; i < 6; ++i) CHECK(result.plan.token(i) == i);
  CHECK(result.plan.dropped().size() == 6);
}

TEST_CASE("switch: promises of every token-choice router", "[router][switch]") {
  test::check_promises(
      given_switch<float>(copy_gate<float>(5, 5), position_capacity(capacity_limit::switch_transformer(1.2))), 1);
  test::check_promises(given_switch<double, random_capacity>(copy_gate<double>(5, 5),
                                                             random_capacity(capacity_limit::switch_transformer(1.2))),
                       1);
}

TEST_CASE("switch: gradients equal central differences, dropped tokens and jitter included",
          "[router][switch][gradient]") {
  index_t dropped = 0;
  const auto report = test::check_router_gradients(switch_router<double>(4, 3, {.jitter = 0.05, .factor = 0.5}), 14, 51,
                                                   test::training(2), &dropped);
  INFO(report.describe());
  CHECK(dropped > 2);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("switch: bad options are refused with their numbers", "[router][switch]") {
  CHECK_THROWS_WITH(switch_router<float>(4, 8, {.factor = 0}), test::contains("factor of 0 "));
  CHECK_THROWS_WITH(switch_router<float>(4, 8, {.factor = {1, -2}}), test::contains("-2"));
  CHECK_THROWS_WITH(switch_router<float>(4, 8, {.jitter = 1.5}), test::contains("1.5"));
  CHECK_THROWS_WITH((switch_router<float, 8>(4, 7)), test::contains("8"));
}
