#include <sluice/router/over_training/dselect_k.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/loss/dselect.hpp>
#include <sluice/train/adamw.hpp>

#include "router/layer_checks.hpp"
#include "router/router_table.hpp"

using namespace sluice;

namespace {

const test::table_router dselect_k_in_table("dselect_k_router", [] {
  dselect_k_router<double> router{6, 4};
  initialize(router, 7);
  // Codes of which some are settled: at first none are.
  for_each_parameter(router, [](const std::string&, parameter<double>& p) {
    for (double& v : p.value()) v *= 50;
  });
  return test::made(router, {.seed = 0});
});

template <typename Scalar>
using static_router = dselect_k_router<Scalar, static_selectors<Scalar>>;

template <typename Router>
struct routed_selectors {
  typename Router::plan plan;
  typename Router::tape tape;
};
template <typename Router>
routed_selectors<Router> route_selectors(const Router& router, const matrix<typename Router::scalar>& x,
                     const routing_context<typename Router::scalar>& context = {}) {
  routed_selectors<Router> r;
  router.route(x, context, r.plan, r.tape);
  return r;
}

/// The worked example: k = 2, Z = [[.1, -.25], [.6, 0]], a = (0, 1).
static_router<double> example(index_t experts) {
  static_router<double> router(3, experts);
  router.gate().codes().map() << .1, -.25, .6, 0;
  router.gate().mixing().map() << 0, 1;
  return router;
}

/// Weights from the definition, with the polynomial as it is printed.
std::vector<double> naive_selection(const std::vector<double>& z, const std::vector<double>& a, index_t experts,
                                  double gamma) {
  const std::size_t k = a.size();
  const std::size_t m = z.size() / k;
  double sum = 0;
  for (const double v : a) sum += std::exp(v);
  std::vector<double> q(static_cast<std::size_t>(experts), 0);
  for (std::size_t i = 0; i < k; ++i)
    for (std::size_t e = 0; e < q.size(); ++e) {
      double r = 1;
      for (std::size_t b = 0; b < m; ++b) {
        const double c = std::clamp(z[i * m + b], -gamma / 2, gamma / 2);
        const double step = -2 * c * c * c / (gamma * gamma * gamma) + 3 * c / (2 * gamma) + 0.5;
        r *= (e >> (m - 1 - b)) % 2 == 1 ? step : 1 - step;
      }
      q[e] += std::exp(a[i]) / sum * r;
    }
  return q;
}

}  // namespace

TEST_CASE("dselect_k: the worked example", "[router][dselect_k]") {
  auto router = example(4);
  const matrix<double> x = matrix<double>::Zero(1, 3);
  auto r = route_selectors(router, x);
  const auto near = [](double value, double wanted) { return std::abs(value - wanted) < test::printed_numbers; };
  const double r1[] = {.297, .055, .54675, .10125};
  const double r2[] = {0, 0, .5, .5};
  const double q[] = {.079876, .014792, .512573, .392760};
  REQUIRE(r.plan.size() == 4);
  for (index_t e = 0; e < 4; ++e) {
    CHECK(near(r.tape.seen.selector(0, 0)[e], r1[e]));
    CHECK(near(r.tape.seen.selector(0, 1)[e], r2[e]));
    CHECK(near(r.plan.weight(e), q[e]));
  }
  CHECK(near(r.tape.seen.mixing(0, 0), .268941));
  CHECK(near(r.tape.seen.mixing(0, 1), .731059));

  sparse_plan<double>::gradient g;
  g.weight.resize(4);
  const double G[] = {.5, -1, 2, .3};
  for (index_t e = 0; e < 4; ++e) g.weight[e] = G[e];
  matrix<double> dx = matrix<double>::Zero(1, 3);
  r.tape.dseen.zero_like(r.tape.seen);
  router.backward(x, {}, r.plan, g, r.tape, dx);
  const double dz[] = {.568811, -.493050, 0, -1.864199};
  for (std::size_t i = 0; i < 4; ++i) CHECK(near(router.gate().codes().gradient()[i], dz[i]));
  CHECK(near(router.gate().mixing().gradient()[0], .013247));
  CHECK(near(router.gate().mixing().gradient()[1], -.013247));
  CHECK(dx.isZero(0));

  r.tape.dseen.zero_like(r.tape.seen);
  CHECK(near(
      dselect_entropy<>{.coefficient = {1.0, 1.0}}(r.tape.seen, r.plan, routing_context<double>{}, r.tape.dseen),
      1.775216));
}

TEST_CASE("dselect_k: without a power of two mass is lost, not renormalised", "[router][dselect_k]") {
  const auto r = route_selectors(example(3), matrix<double>::Zero(1, 3));
  double sum = 0;
  for (const double w : r.plan.weights()) sum += w;
  CHECK(std::abs(sum - 0.607240) < test::printed_numbers);
  selector_gradients<double> gradients;
  gradients.zero_like(r.tape.seen);
  CHECK(std::abs(dselect_reachability{}(r.tape.seen, r.plan, routing_context<double>{}, gradients) - 3.112656) <
        test::printed_numbers);
}

TEMPLATE_TEST_CASE("dselect_k: equals the definition, most significant bit first", "[router][dselect_k]", float,
                   double) {
  using S = TestType;
  const index_t E = GENERATE(1, 2, 3, 5, 8, 20);
  const index_t k = GENERATE(1, 3);
  const double gamma = GENERATE(1.0, 2.5);
  CAPTURE(E, k, gamma);
  dselect_k_router<S> router(6, E, {.selectors = k, .gamma = S(gamma)});
  test::fill_normal(router.gate().code_weight(), 3, 0.2);
  test::fill_normal(router.gate().code_bias(), 4, 0.2);
  test::fill_normal(router.gate().mixing_weight(), 5);
  const auto r = route_selectors(router, test::random_matrix<S>(17, 6, 6));
  r.plan.validate();
  index_t bits = 0;
  while ((1 << bits) < E) ++bits;
  CHECK(router.bits() == bits);
  index_t positive = 0;
  for (index_t t = 0; t < 17; ++t) {
    std::vector<double> z, a;
    for (index_t j = 0; j < k * bits; ++j) z.push_back(double(r.tape.codes(t, j)));
    for (index_t i = 0; i < k; ++i) a.push_back(double(r.tape.mixing_logits(t, i)));
    const auto q = naive_selection(z, a, E, gamma);
    for (index_t e = 0; e < E; ++e) {
      CHECK(std::abs(double(r.tape.weights(t, e)) - q[std::size_t(e)]) <= test::bound<S>(k * (bits + 4)));
      positive += r.tape.weights(t, e) > 0;
    }
    for (const index_t i : r.plan.of_token(t)) CHECK(r.plan.weight(i) == r.tape.weights(t, r.plan.expert(i)));
  }
  CHECK(r.plan.size() == positive);
}

TEST_CASE("dselect_k: gradients equal central differences", "[router][dselect_k][gradient]") {
  const index_t E = GENERATE(1, 2, 3, 4, 6, 8);
  const index_t k = GENERATE(1, 2, 3);
  CAPTURE(E, k);
  const std::vector<std::uint8_t> mask{1, 1, 1, 0, 1, 1, 1, 0, 1};
  auto context = test::in_training();
  context.token_mask = mask;
  const expert_bank<ffn<double, gelu>> bank{E, 5, 3};
  const auto check = [&](auto layer, double deviation) {
    initialize(layer, 11);
    std::uint64_t seed = 12;
    for_each_parameter(layer.router(),
                       [&](const std::string&, parameter<double>& p) { test::fill_normal(p, seed++, deviation); });
    const auto report = test::layer_gradients(layer, test::random_matrix<double>(9, 5, 21), context);
    INFO(report.describe());
    CHECK(report.largest_error < test::gradient_tolerance);
  };
  // The entropy bends sharply where a selector has 1e-6 of an expert: with losses, bits stay away from saturation.
  const dselect_entropy<> entropy{.coefficient = {0.02, 0.02}};
  const dselect_reachability reachability{.coefficient = 0.05};
  check(moe_layer{dselect_k_router<double>{5, E, {.selectors = k}}, bank, entropy, reachability}, 0.08);
  check(moe_layer{dselect_k_router<double>{5, E, {.selectors = k}}, bank}, 0.5);  // most bits saturated
  check(moe_layer{static_router<double>{5, E, {.selectors = k, .gamma = 2}}, bank, entropy, reachability}, 0.3);
}

TEST_CASE("dselect_k: pairs of weight zero have no gradient to lose", "[router][dselect_k][gradient]") {
  // The gradient from the pairs of the plan equals that of the full product rule over all experts, whose outputs are
  // wanted with large cotangents: bits saturated on either side, at the edge, just inside, and in the middle.
  const double edge = 0.5;
  const double inside = std::nextafter(edge, 0.0);
  const std::vector<double> values{-2, -edge, -inside, -0.2, 0, 0.3, inside, edge, 1};
  for (const double z0 : values)
    for (const double z1 : values) {
      static_router<double> router(1, 4, {.selectors = 1});
      router.gate().codes().map() << z0, z1;
      auto r = route_selectors(router, matrix<double>::Zero(1, 1));
      const double G[] = {1e3, -2e3, 3e3, 5e3};
      sparse_plan<double>::gradient g;
      for (index_t i = 0; i < r.plan.size(); ++i) g.weight.push_back(G[r.plan.expert(i)]);
      matrix<double> dx = matrix<double>::Zero(1, 1);
      r.tape.dseen.zero_like(r.tape.seen);
      router.backward(matrix<double>::Zero(1, 1), {}, r.plan, g, r.tape, dx);
      const kernel::smooth_step<double> s0(z0, 1), s1(z1, 1);
      const double d0 = s0.slope * ((G[2] - G[0]) * s1.low + (G[3] - G[1]) * s1.high);
      const double d1 = s1.slope * ((G[1] - G[0]) * s0.low + (G[3] - G[2]) * s0.high);
      CHECK(std::abs(router.gate().codes().gradient()[0] - d0) <= test::bound<double>(4, 1e4));
      CHECK(std::abs(router.gate().codes().gradient()[1] - d1) <= test::bound<double>(4, 1e4));
    }
}

TEST_CASE("dselect_k: dense at first", "[router][dselect_k]") {
  static_router<double> router(1, 4, {.selectors = 1});
  router.gate().codes().map().setConstant(0.01);
  const auto r = route_selectors(router, matrix<double>::Zero(1, 1));
  const double wanted[] = {0.235227, 0.249775, 0.249775, 0.265223};
  REQUIRE(r.plan.size() == 4);
  for (index_t e = 0; e < 4; ++e) CHECK(std::abs(r.plan.weight(e) - wanted[e]) < test::printed_numbers);

  dselect_k_router<float> fresh(8, 8);
  initialize(fresh, 31);
  const auto f = route_selectors(fresh, test::random_matrix<float>(10, 8, 32));
  CHECK(f.plan.size() == 80);
}

TEST_CASE("dselect_k: at most k experts a token once every bit is saturated, selectors that agree merge",
          "[router][dselect_k]") {
  dselect_k_router<float> router(4, 6, {.selectors = 2});
  test::fill_normal(router.gate().code_weight(), 45, 1e6);
  test::fill_normal(router.gate().mixing_weight(), 42);
  const matrix<float> x = test::random_matrix<float>(200, 4, 43);
  const auto r = route_selectors(router, x);
  index_t two = 0, one = 0, none = 0;
  for (index_t t = 0; t < 200; ++t) {
    const auto own = r.plan.of_token(t);
    REQUIRE(own.size() <= 2);
    (own.empty() ? none : own.size() == 1 ? one : two) += 1;
    std::size_t chosen[2];
    bool reachable[2];
    for (index_t i = 0; i < 2; ++i) {
      chosen[i] = 0;
      for (index_t b = 0; b < 3; ++b) chosen[i] = 2 * chosen[i] + (r.tape.codes(t, 3 * i + b) > 0);
      reachable[i] = chosen[i] < 6;
    }
    std::vector<double> wanted(8, 0);
    for (std::size_t i = 0; i < 2; ++i) wanted[chosen[i]] += double(r.tape.seen.mixing(t, index_t(i)));
    for (const index_t i : own)
      CHECK(std::abs(r.plan.weight(i) - wanted[std::size_t(r.plan.expert(i))]) <= test::bound<float>(2));
    CHECK(own.size() == std::size_t(reachable[0] || reachable[1]) +
                            std::size_t(reachable[0] && reachable[1] && chosen[0] != chosen[1]));
  }
  CHECK(two > 0);
  CHECK(one > 0);
  CHECK(none > 0);  // both selectors on codes without an expert: output zero
}

TEST_CASE("dselect_k: a saturated bit has no gradient", "[router][dselect_k][gradient]") {
  moe_layer layer{static_router<double>{3, 4, {.selectors = 1}}, expert_bank<ffn<double>>{4, 3, 5},
                  dselect_entropy<>{{1.0, 1.0}}};
  initialize(layer, 51);
  layer.router().gate().codes().map() << 0.5, -0.1;
  decltype(layer)::tape tape;
  matrix<double> y(6, 3), dx(6, 3);
  layer.forward(test::random_matrix<double>(6, 3, 52), y, tape);
  CHECK(tape.plan.size() == 12);  // experts 2 and 3
  layer.backward(test::random_matrix<double>(6, 3, 53), dx, tape);
  CHECK(layer.router().gate().codes().gradient()[0] == 0);
  CHECK(layer.router().gate().codes().gradient()[1] != 0);
  CHECK(tape.plan.load(0) == 0);
  for (const double g : layer.bank().expert(0).up().gradient()) CHECK(g == 0);
}

TEST_CASE("dselect_k: NaN, padding, no tokens, one token", "[router][dselect_k]") {
  moe_layer layer{dselect_k_router<float>{4, 3}, expert_bank<ffn<float>>{3, 4, 5}, dselect_entropy<>{{1.0F, 1.0F}},
                  dselect_reachability{}};
  initialize(layer, 61);
  matrix<float> x = test::random_matrix<float>(6, 4, 62);
  matrix<float> y(6, 4), z(6, 4);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  const float clean_loss = tape.loss();
  x(2, 3) = quiet_nan<float>();
  layer.forward(x, z, tape);
  REQUIRE(tape.plan.invalid_tokens().size() == 1);
  CHECK(tape.plan.of_token(2).empty());
  CHECK(is_nan(z(2, 0)));
  z.row(2) = y.row(2);
  CHECK(test::same_bits(y, z));
  const float nan_loss = tape.loss();
  CHECK(nan_loss < clean_loss);
  const std::vector<std::uint8_t> mask{1, 1, 0, 1, 1, 1};
  routing_context<float> context;
  context.training = true;
  context.token_mask = mask;
  layer.forward(x, z, tape, context);
  CHECK(tape.plan.invalid_tokens().empty());
  CHECK(z.row(2).isZero(0));
  CHECK(tape.loss() == nan_loss);

  matrix<float> none(0, 4);
  layer.forward(none, none, tape);
  layer.backward(none, none, tape);
  CHECK(tape.loss() == 0);
  layer.forward(x.topRows(1), y.topRows(1), tape);
  CHECK(tape.plan.size() == 3);
}

TEST_CASE("dselect_k: a static gate does not look at x, and NaN in x or in its parameters makes tokens invalid",
          "[router][dselect_k]") {
  auto router = example(4);
  const std::vector<std::uint8_t> mask{1, 0, 1};
  routing_context<double> context;
  context.token_mask = mask;
  const auto r = route_selectors(router, matrix<double>::Constant(3, 3, 1e300), context);
  CHECK(r.plan.invalid_tokens().empty());
  CHECK(r.plan.size() == 8);
  CHECK(r.tape.seen.rows() == 1);
  // The gate would not notice, but the experts would, and with them their gradients.
  const auto nan = route_selectors(router, matrix<double>::Constant(3, 3, quiet_nan<double>()), context);
  CHECK(nan.plan.size() == 0);
  CHECK(nan.plan.invalid_tokens().size() == 2);
  router.gate().codes().data()[3] = quiet_nan<double>();
  const auto broken = route_selectors(router, matrix<double>::Zero(3, 3), context);
  CHECK(broken.plan.size() == 0);
  CHECK(broken.plan.invalid_tokens().size() == 2);
}

TEST_CASE("dselect_k: refuses what makes no sense", "[router][dselect_k]") {
  using Catch::Matchers::Contains;
  CHECK_THROWS_WITH((dselect_k_router<float>{4, 0}), Contains("E = 0"));
  CHECK_THROWS_WITH((dselect_k_router<float>{0, 4}), Contains("D = 0"));
  CHECK_THROWS_WITH((dselect_k_router<float>{4, 4, {.selectors = 0}}), Contains("k = 0"));
  CHECK_THROWS_WITH((dselect_k_router<float>{4, 4, {.selectors = index_t(1) << 62}}), Contains("x 2 numbers"));
  CHECK_THROWS_WITH((dselect_k_router<float>{4, 4, {.gamma = 0}}), Contains("gamma = 0"));
  routing_context<double> context;
  context.top_k = 3;
  CHECK_THROWS_WITH(route_selectors(example(4), matrix<double>::Zero(1, 3), context), Contains("k = 3"));
}

TEMPLATE_TEST_CASE("dselect_k: equal bits for every thread count, and the readable reference",
                   "[router][dselect_k][determinism]", float, double) {
  using S = TestType;
  const auto check = [](auto layer) {
    initialize(layer, 71);
    routing_context<S> context;
    context.training = true;
    test::check_equal_bits(layer, 131, context);
    const auto d = test::difference_from_reference(layer, test::random_matrix<S>(40, 12, 72));
    CHECK(d.magnitude > S(0.1));
    CHECK(d.difference <= test::bound<S>(12 + 9 + 7, d.magnitude));
  };
  const expert_bank<ffn<S>> bank{7, 12, 9};
  check(moe_layer{dselect_k_router<S>{12, 7}, bank, dselect_entropy<>{{0.1, 0.1}}, dselect_reachability{}});
  check(moe_layer{static_router<S>{12, 7}, bank, dselect_entropy<>{{0.1, 0.1}}, dselect_reachability{}});
}

TEST_CASE("dselect_k: a static gate learns which two of eight experts to take, and takes only those",
          "[router][dselect_k][slow]") {
  // Experts are fixed; the target is an even mixture of experts 1 and 6.
  moe_layer layer{static_router<float>{6, 8}, expert_bank<ffn<float>>{8, 6, 12},
                  dselect_entropy<>{{.first = 0, .last = 0.05, .begin = 100, .steps = 200}}};
  initialize(layer, 82);
  for_each_parameter(layer.bank(), [](const std::string&, parameter<float>& p) { p.set_frozen(true); });
  const matrix<float> x = test::random_matrix<float>(64, 6, 82);
  matrix<float> target = matrix<float>::Zero(64, 6), y(64, 6), dx(64, 6);
  for (const index_t e : {1, 6}) {
    const auto& expert = layer.bank().expert(e);
    matrix<float> saved(64, expert.saved_columns());
    expert.forward(x, y, saved);
    target += 0.5F * y;
  }
  adamw<float> optimizer{{.learning_rate = 0.02, .weight_decay = 0, .clear_gradients = true}};
  decltype(layer)::tape tape;
  routing_context<float> context;
  context.training = true;
  double first = 0;
  for (context.step = 0; context.step < 600; ++context.step) {
    layer.forward(x, y, tape, context);
    if (context.step == 0) first = (y - target).squaredNorm() / 64;
    layer.backward((y - target) / 64, dx, tape);
    optimizer.step(layer);
  }
  layer.forward(x, y, tape, context);
  INFO("first " << first << ", last " << (y - target).squaredNorm() / 64 << ", experts per token "
                << static_cast<double>(tape.plan.size()) / 64);
  REQUIRE(tape.plan.size() == 2 * 64);
  CHECK(tape.plan.load(1) == 64);
  CHECK(tape.plan.load(6) == 64);
  CHECK((y - target).squaredNorm() / 64 < 1e-3 * first);
}
