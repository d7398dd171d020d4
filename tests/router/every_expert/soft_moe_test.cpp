#include <sluice/router/every_expert/soft_moe.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/loss/router_z.hpp>

#include "router/layer_checks.hpp"
#include "router/router_table.hpp"

using namespace sluice;

namespace {

const test::table_router soft_moe_in_table("soft_moe_router", [] {
  return test::made(soft_moe_router<double>{6, 4, {.slots_per_expert = 2}}, {.training_capacity = 2});
});

/// Dispatch and combine from the definition, in double.
struct naive_result {
  matrix<double> dispatch;
  matrix<double> combine;
};
template <typename Scalar>
naive_result naive_soft(const matrix<Scalar>& x, std::span<const Scalar> phi, index_t slots, double scale,
                        const std::vector<index_t>& borders) {
  const index_t T = x.rows();
  const index_t D = x.cols();
  matrix<double> a(T, slots);
  for (index_t t = 0; t < T; ++t)
    for (index_t s = 0; s < slots; ++s) {
      double xx = 1e-6, pp = 1e-6, xp = 0;
      for (index_t d = 0; d < D; ++d) {
        const double u = x(t, d);
        const double v = phi[static_cast<std::size_t>(s * D + d)];
        xx += u * u, pp += v * v, xp += u * v;
      }
      a(t, s) = scale * xp / std::sqrt(xx) / std::sqrt(pp);
    }
  naive_result r{a.array().exp(), a.array().exp()};
  for (index_t t = 0; t < T; ++t) r.combine.row(t) /= r.combine.row(t).sum();
  for (std::size_t g = 0; g + 1 < borders.size(); ++g) {
    auto block = r.dispatch.middleRows(borders[g], borders[g + 1] - borders[g]);
    for (index_t s = 0; s < slots; ++s)
      if (block.rows() > 0) block.col(s) /= block.col(s).sum();
  }
  return r;
}

template <typename Layer>
matrix<typename Layer::scalar> run(const Layer& layer, const matrix<typename Layer::scalar>& x,
                                   const routing_context<typename Layer::scalar>& context = {}) {
  typename Layer::workspace workspace;
  matrix<typename Layer::scalar> y(x.rows(), layer.outputs());
  layer.forward(x, y, workspace, context);
  return y;
}

}  // namespace

TEST_CASE("soft_moe: the worked example", "[router][soft_moe]") {
  moe_layer layer{soft_moe_router<double>{2, 2}, expert_bank<identity_expert<double>>{2, 2}};
  layer.router().slot_vectors().map() << 1, 0, 1, 1;  // columns of Phi
  matrix<double> x(3, 2), y(3, 2);
  x << 1, 0, 0, 2, 3, 4;
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  // The example neglects the 1e-6 under the roots: at most 5e-7 relative on each norm, so about 1e-6 on everything.
  const double close = test::printed_numbers + 2e-6;
  const auto is = [&](const auto& m, std::vector<double> wanted) {
    REQUIRE(m.size() == index_t(wanted.size()));
    for (std::size_t i = 0; i < wanted.size(); ++i) CHECK(std::abs(m.data()[i] - wanted[i]) < close);
  };
  is(workspace.router.seen.clean, {1, .707107, 0, .707107, .6, .989949});
  is(workspace.plan.dispatch(), {0.490629, 0.300580, 0.180492, 0.300580, 0.328879, 0.398839});
  is(workspace.rows, {1.477265, 1.676499, 1.497098, 2.196518});
  is(y, {1.485739, 1.898701, 1.490548, 2.024788, 1.489091, 1.986571});
}

TEMPLATE_TEST_CASE("soft_moe: equals the definition", "[router][soft_moe]", float, double) {
  using S = TestType;
  struct shape {
    index_t t, d, e, p;
    std::vector<index_t> borders;
  };
  const auto s =
      GENERATE(shape{1, 3, 1, 1, {0, 1}}, shape{7, 5, 3, 2, {0, 7}}, shape{33, 16, 4, 9, {0, 33}},
               shape{40, 6, 5, 1, {0, 8, 8, 39, 40}}, shape{40, 6, 5, 3, {0, 17, 40}}, shape{70, 4, 40, 1, {0, 70}});
  CAPTURE(s.t, s.d, s.e, s.p, s.borders.size());
  moe_layer layer{soft_moe_router<S>{s.d, s.e, {.slots_per_expert = s.p}}, expert_bank<ffn<S>>{s.e, s.d, 4}};
  initialize(layer, 3);
  layer.router().scale().data()[0] = S(2.5);
  const matrix<S> x = test::random_matrix<S>(s.t, s.d, 4);
  routing_context<S> context;
  if (s.borders.size() > 2) context.groups = s.borders;
  typename decltype(layer)::workspace workspace;
  matrix<S> y(s.t, s.d);
  layer.forward(x, y, workspace, context);

  const index_t slots = s.e * s.p;
  const auto naive = naive_soft(x, std::as_const(layer.router().slot_vectors()).value(), slots, 2.5, s.borders);
  // Logits of size 2.5 from dot products of length D; the softmax of n of them adds n roundings.
  const S bound = test::bound<S>(s.d + std::max(s.t, slots), S(2.5));
  CHECK((workspace.plan.dispatch().map().template cast<double>() - naive.dispatch).cwiseAbs().maxCoeff() <= bound);
  CHECK((workspace.plan.combine().map().template cast<double>() - naive.combine).cwiseAbs().maxCoeff() <= bound);
  CHECK(workspace.plan.rows() == slots * (index_t(s.borders.size()) - 1));

  const auto d = test::difference_from_reference(layer, x, context);
  CHECK(d.difference <= test::bound<S>(s.t + s.d + 4 + slots, d.magnitude));
}

TEST_CASE("soft_moe: columns of dispatch and rows of combine sum to one", "[router][soft_moe]") {
  soft_moe_router<double> router(6, 3, {.slots_per_expert = 4});
  initialize(router, 5);
  soft_plan<double> plan;
  soft_moe_router<double>::tape tape;
  router.route(test::random_matrix<double>(21, 6, 6), {}, plan, tape);
  for (index_t s = 0; s < 12; ++s) CHECK(std::abs(plan.dispatch().map().col(s).sum() - 1) <= test::bound<double>(21));
  for (index_t t = 0; t < 21; ++t) CHECK(std::abs(plan.combine().map().row(t).sum() - 1) <= test::bound<double>(12));
}

TEST_CASE("soft_moe: with scale zero every slot is the mean of the tokens", "[router][soft_moe]") {
  moe_layer layer{soft_moe_router<double>{4, 3, {.slots_per_expert = 2}}, expert_bank<identity_expert<double>>{3, 4}};
  initialize(layer, 7);
  layer.router().scale().data()[0] = 0;
  const matrix<double> x = test::random_matrix<double>(9, 4, 8);
  const matrix<double> y = run(layer, x);
  for (index_t t = 0; t < 9; ++t)
    CHECK((y.row(t) - x.colwise().mean()).cwiseAbs().maxCoeff() <= test::bound<double>(9 + 6, x.cwiseAbs().maxCoeff()));
}

TEST_CASE("soft_moe: one slot gives every token the same output", "[router][soft_moe]") {
  moe_layer layer{soft_moe_router<double>{4, 1}, expert_bank<ffn<double>>{1, 4, 5}};
  initialize(layer, 9);
  const matrix<double> y = run(layer, test::random_matrix<double>(6, 4, 10));
  for (index_t t = 1; t < 6; ++t) CHECK(test::same_bits(matrix<double>(y.row(t)), matrix<double>(y.row(0))));
}

TEST_CASE("soft_moe: identity experts stay in the hull of the tokens, permuting tokens permutes outputs",
          "[router][soft_moe]") {
  moe_layer layer{soft_moe_router<double>{5, 4, {.slots_per_expert = 2}}, expert_bank<identity_expert<double>>{4, 5}};
  initialize(layer, 11);
  const matrix<double> x = test::random_matrix<double>(13, 5, 12);
  const matrix<double> y = run(layer, x);
  for (index_t d = 0; d < 5; ++d) {
    CHECK(y.col(d).maxCoeff() < x.col(d).maxCoeff());
    CHECK(y.col(d).minCoeff() > x.col(d).minCoeff());
  }
  const auto order = test::some_order(13);
  // The sum over tokens runs in another order, so bits may differ.
  CHECK(test::largest_difference(run(layer, test::permuted(x, order)), test::permuted(y, order)) <=
        test::bound<double>(5 + 13 + 8, x.cwiseAbs().maxCoeff()));
  STATIC_REQUIRE_FALSE(decltype(layer)::causal);
}

TEST_CASE("soft_moe: a group does not depend on what else is in the batch", "[router][soft_moe]") {
  const index_t p = GENERATE(1, 3);
  moe_layer layer{soft_moe_router<float>{6, 4, {.slots_per_expert = p}}, expert_bank<ffn<float>>{4, 6, 5}};
  initialize(layer, 13);
  const matrix<float> x = test::random_matrix<float>(20, 6, 14);
  matrix<float> other = x;
  other.topRows(9) = test::random_matrix<float>(9, 6, 15);
  const std::vector<index_t> borders{0, 9, 20};
  routing_context<float> context;
  context.groups = borders;
  const matrix<float> y = run(layer, x, context);
  const matrix<float> z = run(layer, other, context);
  CHECK(test::same_bits(matrix<float>(y.bottomRows(11)), matrix<float>(z.bottomRows(11))));
  CHECK_FALSE(test::same_bits(matrix<float>(y.topRows(9)), matrix<float>(z.topRows(9))));
  const matrix<float> alone = run(layer, matrix<float>(x.bottomRows(11)));
  CHECK(test::largest_difference(matrix<float>(y.bottomRows(11)), alone) <= test::bound<float>(11 + 6 + 5 + 4 * p));
}

TEST_CASE("soft_moe: gradients equal central differences", "[router][soft_moe][gradient]") {
  const std::vector<index_t> borders{0, 5, 5, 12};
  const std::vector<std::uint8_t> mask{1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1};
  const auto check = [](auto layer, const routing_context<double>& context) {
    initialize(layer, 21);
    const auto report = test::layer_gradients(layer, test::random_matrix<double>(12, layer.inputs(), 22), context);
    INFO(report.describe());
    CHECK(report.checked > 100);
    CHECK(report.largest_error < test::gradient_tolerance);
  };
  const expert_bank<ffn<double, gelu>> bank{3, 6, 4, {.bias = true}};
  const index_t p = GENERATE(1, 2);
  auto context = test::in_training();
  SECTION("one group") { check(moe_layer{soft_moe_router<double>{6, 3, {.slots_per_expert = p}}, bank}, context); }
  SECTION("groups, padding, noise and a loss") {
    context.groups = borders;
    context.token_mask = mask;
    check(moe_layer{soft_moe_router<double>{6, 3, {.slots_per_expert = p, .noise_std = 0.7}}, bank,
                    router_z_loss{.coefficient = 0.1}},
          context);
  }
  SECTION("padding gets the mean of all slots") {
    context.token_mask = mask;
    check(moe_layer{soft_moe_router<double>{6, 3, {.slots_per_expert = p, .padding = padding_output::mean_of_slots}},
                    bank},
          context);
  }
  SECTION("no norm, gains on the slots, no scale") {
    using router_type = soft_moe_router<double, no_norm<double>, rms_norm<double>>;
    check(moe_layer{router_type{6, 3, {.slots_per_expert = p, .learned_scale = false}}, bank}, context);
  }
  SECTION("the layer norm of x and of the slots, inside and outside") {
    using router_type = soft_moe_router<double, layer_norm<double>, layer_norm<double>>;
    context.groups = borders;
    context.token_mask = mask;
    check(normalized_layer{moe_layer{router_type{6, 3, {.slots_per_expert = p}}, bank}, rms_norm<double>{6}}, context);
  }
}

TEST_CASE("soft_moe: a token with NaN gets NaN and leaves the rest as if it were absent", "[router][soft_moe]") {
  moe_layer layer{soft_moe_router<float>{4, 3, {.slots_per_expert = 2}}, expert_bank<ffn<float>>{3, 4, 5}};
  initialize(layer, 31);
  matrix<float> x = test::random_matrix<float>(7, 4, 32);
  x(2, 1) = quiet_nan<float>();
  x(5, 0) = std::numeric_limits<float>::infinity();  // of no use as a direction: NaN after the norm
  const std::vector<std::uint8_t> mask{1, 1, 0, 1, 1, 0, 1};
  routing_context<float> context;
  matrix<float> y = run(layer, x);
  for (index_t d = 0; d < 4; ++d) {
    CHECK(is_nan(y(2, d)));
    CHECK(is_nan(y(5, d)));
  }
  y.row(2).setZero();
  y.row(5).setZero();
  context.token_mask = mask;
  const matrix<float> masked = run(layer, x, context);
  CHECK(masked.row(2).isZero(0));
  CHECK(masked.allFinite());
  CHECK(test::same_bits(y, masked));

  // Nothing of it reaches a gradient either, whatever dy says about it.
  matrix<float> dy = test::random_matrix<float>(7, 4, 33);
  dy.row(2).setConstant(quiet_nan<float>());
  for (const float v : test::training_numbers(layer, x, dy, context)) CHECK(std::isfinite(v));
}

TEST_CASE("soft_moe: padding with the mean of all slots", "[router][soft_moe]") {
  moe_layer layer{soft_moe_router<double>{4, 3, {.slots_per_expert = 2, .padding = padding_output::mean_of_slots}},
                  expert_bank<ffn<double>>{3, 4, 5}};
  initialize(layer, 41);
  matrix<double> x = test::random_matrix<double>(5, 4, 42);
  x.row(3).setConstant(quiet_nan<double>());
  const std::vector<std::uint8_t> mask{1, 1, 1, 0, 1};
  routing_context<double> context;
  context.token_mask = mask;
  decltype(layer)::workspace workspace;
  matrix<double> y(5, 4);
  layer.forward(x, y, workspace, context);
  const matrix<double> mean = workspace.outputs.map().colwise().mean();
  CHECK(test::largest_difference(matrix<double>(y.row(3)), mean) <= test::bound<double>(6, mean.cwiseAbs().maxCoeff()));
  CHECK(workspace.plan.dispatch().map().row(3).isZero(0));
}

TEST_CASE("soft_moe: what a loss says of padding and of a NaN token reaches nothing", "[router][soft_moe]") {
  moe_layer layer{soft_moe_router<double>{4, 3, {.slots_per_expert = 2}}, expert_bank<ffn<double>>{3, 4, 5}};
  initialize(layer, 45);
  matrix<double> x = test::random_matrix<double>(5, 4, 46), y(5, 4), dx(5, 4);
  x(4, 2) = quiet_nan<double>();
  const matrix<double> dy = test::random_matrix<double>(5, 4, 47);
  const std::vector<std::uint8_t> mask{1, 1, 1, 0, 1};
  routing_context<double> context;
  context.token_mask = mask;
  context.training = true;
  std::vector<double> gradients[2];
  matrix<double> of_tokens[2];
  for (const int with_loss : {0, 1}) {
    decltype(layer)::tape tape;
    zero_gradients(layer);
    layer.forward(x, y, tape, context);
    if (with_loss != 0) tape.router.dseen.clean.map().bottomRows(2).setConstant(1);
    layer.backward(dy, dx, tape);
    of_tokens[with_loss] = dx.topRows(4);
    for_each_parameter(layer, [&](const std::string&, parameter<double>& q) {
      for (const double g : q.gradient()) gradients[with_loss].push_back(g);
    });
  }
  CHECK(gradients[0] == gradients[1]);
  CHECK(test::same_bits(of_tokens[0], of_tokens[1]));
  CHECK(of_tokens[1].row(3).isZero(0));
}

TEST_CASE("soft_moe: noise is added in training only", "[router][soft_moe]") {
  soft_moe_router<double> router(4, 2, {.slots_per_expert = 2, .noise_std = 0.5});
  initialize(router, 51);
  const matrix<double> x = test::random_matrix<double>(3, 4, 52);
  soft_plan<double> plan;
  soft_moe_router<double>::tape tape;
  const std::vector<double> recorded{1, -1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 3};
  auto context = test::in_training();
  context.random.replay(noise_site, recorded);
  router.route(x, context, plan, tape);
  REQUIRE(tape.seen.has_noise);
  for (index_t i = 0; i < 12; ++i)
    CHECK(tape.seen.noisy().data()[i] == tape.seen.clean.data()[i] + 0.5 * recorded[std::size_t(i)]);
  context.training = false;
  router.route(x, context, plan, tape);
  CHECK_FALSE(tape.seen.has_noise);
}

TEST_CASE("soft_moe: no tokens, one token, a group without tokens, nothing but padding", "[router][soft_moe]") {
  moe_layer layer{soft_moe_router<double>{4, 3}, expert_bank<ffn<double>>{3, 4, 5, {.bias = true}}};
  initialize(layer, 61);
  matrix<double> none(0, 4);
  decltype(layer)::tape tape;
  layer.forward(none, none, tape);
  layer.backward(none, none, tape);
  CHECK(tape.loss() == 0);
  for_each_parameter(layer, [](const std::string&, parameter<double>& p) {
    for (const double g : p.gradient()) CHECK(g == 0);
  });

  // One token is the only one that a slot can average.
  const matrix<double> x = test::random_matrix<double>(1, 4, 62);
  matrix<double> y(1, 4);
  layer.forward(x, y, tape);
  for (index_t s = 0; s < 3; ++s) CHECK(test::same_bits(matrix<double>(tape.rows.map().row(s)), x));

  const std::vector<std::uint8_t> mask{0, 0};
  routing_context<double> context;
  context.token_mask = mask;
  CHECK(run(layer, test::random_matrix<double>(2, 4, 63), context).isZero(0));
}

TEST_CASE("soft_moe: slots from a capacity factor, rounded half to even", "[router][soft_moe]") {
  CHECK(soft_moe_slots(196, 32) == 6);  // 6.125
  CHECK(soft_moe_slots(16, 8, 1) == 2);
  CHECK(soft_moe_slots(5, 2) == 2);       // 2.5
  CHECK(soft_moe_slots(7, 2) == 4);       // 3.5
  CHECK(soft_moe_slots(4, 3, 2.0) == 3);  // 2.67
  using Catch::Matchers::Contains;
  CHECK_THROWS_WITH(soft_moe_slots(1, 2), Contains("less than one slot"));  // 0.5 rounds to 0
  CHECK_THROWS_WITH(soft_moe_slots(4, 2, -1), Contains("-1"));
}

TEST_CASE("soft_moe: refuses what makes no sense", "[router][soft_moe]") {
  using Catch::Matchers::Contains;
  CHECK_THROWS_WITH((soft_moe_router<float>{0, 2}), Contains("D = 0"));
  CHECK_THROWS_WITH((soft_moe_router<float>{4, 0}), Contains("E = 0"));
  CHECK_THROWS_WITH((soft_moe_router<float>{4, 2, {.slots_per_expert = 0}}), Contains("slots = 0"));
  CHECK_THROWS_WITH((soft_moe_router<float>{4, 2, {.noise_std = -1}}), Contains("-1"));
  using normed = soft_moe_router<float, rms_norm<float>, rms_norm<float>>;
  CHECK_THROWS_WITH((normed{4, 2, {}, rms_norm<float>{3}, rms_norm<float>{4}}), Contains("the norm is for width 3"));
  CHECK_THROWS_WITH((normed{4, 2, {}, rms_norm<float>{4}, rms_norm<float>{5}}), Contains("the norm is for width 5"));
  soft_moe_router<double> router(4, 2);
  routing_context<double> context;
  context.top_k = 2;
  soft_plan<double> plan;
  soft_moe_router<double>::tape tape;
  CHECK_THROWS_WITH(router.route(matrix<double>::Zero(1, 4), context, plan, tape), Contains("k = 2"));
}

TEMPLATE_TEST_CASE("soft_moe: equal bits for every thread count", "[router][soft_moe][determinism]", float, double) {
  using S = TestType;
  moe_layer layer{soft_moe_router<S>{12, 7, {.slots_per_expert = 6, .noise_std = S(0.1)}},
                  expert_bank<ffn<S>>{7, 12, 9}};
  initialize(layer, 71);
  const std::vector<index_t> borders{0, 50, 131};
  routing_context<S> context;
  context.training = true;
  test::check_equal_bits(layer, 131, context);
  context.groups = borders;
  test::check_equal_bits(layer, 131, context);
}
