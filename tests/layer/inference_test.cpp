#include <sluice/layer/moe_layer.hpp>

#include <sluice/core/numeric.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/reference/naive_moe.hpp>
#include <sluice/router/every_expert/soft_moe.hpp>
#include <sluice/router/experts_choose/expert_choice.hpp>
#include <sluice/router/threshold/relu.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

#include <numeric>

using namespace sluice;

namespace {

template <typename Layer>
matrix<typename Layer::scalar> infer(const Layer& layer, const matrix<typename Layer::scalar>& x,
                                     const routing_context<typename Layer::scalar>& context = {}) {
  matrix<typename Layer::scalar> y = matrix<typename Layer::scalar>::Constant(x.rows(), layer.outputs(), 99);
  typename Layer::workspace workspace;
  layer.forward(x, y, workspace, context);
  return y;
}

template <typename Router>
auto inferring(Router router, std::uint64_t seed = 3) {
  using scalar = typename Router::scalar;
  const index_t count = router.experts(), inputs = router.inputs();
  moe_layer layer{std::move(router), expert_bank<gated_ffn<scalar>>{count, inputs, 11}};
  initialize(layer, seed);
  return layer;
}

/// Calls f(name, layer, causal) for a layer of every kind of plan.
template <typename Scalar, typename F>
void with_layers(F&& f) {
  f("top-k", inferring(top_k_router<Scalar>{8, 6, {.top_k = 2}}));
  f("ReLU", inferring(relu_router<Scalar>{8, 6}));
  f("expert choice", inferring(expert_choice_router<Scalar>{8, 6}));
  f("Soft MoE", inferring(soft_moe_router<Scalar>{8, 6}));
}

/// Sums of K products of outputs, over sums of H and D products: numbers here are below 8.
template <typename Scalar>
Scalar layer_bound() {
  return test::bound<Scalar>(64, 8);
}

}  // namespace

TEMPLATE_TEST_CASE("moe_layer: equals the readable reference", "[layer]", float, double) {
  with_layers<TestType>([](const char* name, const auto& layer) {
    CAPTURE(name);
    for (const index_t tokens : {1, 2, 40}) {
      const matrix<TestType> x = test::random_matrix<TestType>(tokens, 8, 4);
      typename std::remove_cvref_t<decltype(layer)>::workspace workspace;
      matrix<TestType> y(tokens, 8);
      layer.forward(x, y, workspace);
      CHECK(test::largest_difference(y, reference::forward(workspace.plan, layer.bank(), x).y) <=
            layer_bound<TestType>());
      CHECK_FALSE(y.isZero(0));
    }
  });
}

TEMPLATE_TEST_CASE("moe_layer: one expert with weight 1 equals the dense expert, bit for bit", "[layer]", float,
                   double) {
  moe_layer layer{top_k_router<TestType>{8, 1, {.top_k = 1, .constant_weight = true}},
                  expert_bank<gated_ffn<TestType>>{1, 8, 11}};
  initialize(layer, 1);
  const matrix<TestType> x = test::random_matrix<TestType>(50, 8, 2);
  matrix<TestType> dense(50, 8), saved(50, layer.bank().expert(0).saved_columns());
  layer.bank().expert(0).forward(x, dense, saved);
  CHECK(test::same_bits(infer(layer, x), dense));
}

TEMPLATE_TEST_CASE("moe_layer: equal experts with weights that sum to 1 equal one dense expert", "[layer]", float,
                   double) {
  const index_t k = GENERATE(index_t(1), index_t(2), index_t(5));
  moe_layer layer{top_k_router<TestType>{8, 5, {.top_k = k, .constant_weight = true}},
                  expert_bank<ffn<TestType>>{5, 8, 11}};
  initialize(layer, 1);
  for (index_t e = 1; e < 5; ++e) layer.bank().expert(e) = layer.bank().expert(0);
  const matrix<TestType> x = test::random_matrix<TestType>(20, 8, 2);
  matrix<TestType> dense(20, 8), saved(20, layer.bank().expert(0).saved_columns());
  layer.bank().expert(0).forward(x, dense, saved);
  CHECK(test::largest_difference(infer(layer, x), dense) <= layer_bound<TestType>());
}

TEMPLATE_TEST_CASE("moe_layer: permuting tokens permutes the outputs of causal routers, bit for bit", "[layer]", float,
                   double) {
  const index_t tokens = 70;
  const matrix<TestType> x = test::random_matrix<TestType>(tokens, 8, 4);
  std::vector<index_t> order(static_cast<std::size_t>(tokens));
  std::iota(order.begin(), order.end(), index_t(0));
  std::sort(order.begin(), order.end(), [](index_t a, index_t b) { return a * 37 % 70 < b * 37 % 70; });
  matrix<TestType> shuffled(tokens, 8);
  for (index_t t = 0; t < tokens; ++t) shuffled.row(t) = x.row(order[static_cast<std::size_t>(t)]);
  int causal_layers = 0;
  with_layers<TestType>([&](const char* name, const auto& layer) {
    CAPTURE(name);
    const matrix<TestType> y = infer(layer, x), z = infer(layer, shuffled);
    bool equal = true;
    for (index_t t = 0; t < tokens; ++t) equal &= test::same_bits(z.row(t), y.row(order[static_cast<std::size_t>(t)]));
    if (std::remove_cvref_t<decltype(layer)>::causal) {
      CHECK(equal);
      ++causal_layers;
    }
  });
  CHECK(causal_layers == 2);
}

TEMPLATE_TEST_CASE("moe_layer: a token of a causal router has the same bits alone and in any batch", "[layer]", float,
                   double) {
  const matrix<TestType> x = test::random_matrix<TestType>(70, 8, 4);
  with_layers<TestType>([&](const char* name, const auto& layer) {
    CAPTURE(name);
    const matrix<TestType> all = infer(layer, x);
    bool equal = true;
    for (index_t t = 0; t < 70; ++t) {
      const matrix<TestType> token = x.row(t);
      equal &= test::same_bits(infer(layer, token), all.row(t));
    }
    CHECK(equal == std::remove_cvref_t<decltype(layer)>::causal);  // the others are excluded for a reason
  });
}

TEMPLATE_TEST_CASE("moe_layer: permuting experts with their router rows changes nothing beyond rounding", "[layer]",
                   float, double) {
  const std::vector<index_t> order{3, 0, 5, 1, 4, 2};
  moe_layer layer{top_k_router<TestType>{8, 6, {.top_k = 3}}, expert_bank<gated_ffn<TestType>>{6, 8, 11}};
  initialize(layer, 3);
  auto permuted = layer;
  for (index_t e = 0; e < 6; ++e) {
    const index_t from = order[static_cast<std::size_t>(e)];
    permuted.bank().expert(e) = layer.bank().expert(from);
    permuted.router().gate().weight().map().row(e) = layer.router().gate().weight().map().row(from);
  }
  const matrix<TestType> x = test::random_matrix<TestType>(40, 8, 4);
  CHECK(test::largest_difference(infer(layer, x), infer(permuted, x)) <= layer_bound<TestType>());
}

TEMPLATE_TEST_CASE("moe_layer: fixed sizes equal dynamic sizes, bit for bit", "[layer]", float, double) {
  moe_layer dynamic_sizes{top_k_router<TestType>{8, 6, {.top_k = 2}}, expert_bank<gated_ffn<TestType>>{6, 8, 11}};
  moe_layer fixed_sizes{top_k_router<TestType, 6, 2>{8}, expert_bank<gated_ffn<TestType>>{6, 8, 11}};
  initialize(dynamic_sizes, 3);
  initialize(fixed_sizes, 3);
  const matrix<TestType> x = test::random_matrix<TestType>(40, 8, 4), dy = test::random_matrix<TestType>(40, 8, 5);
  CHECK(test::same_bits(infer(dynamic_sizes, x), infer(fixed_sizes, x)));
  const auto train = [&](auto& layer) {
    typename std::remove_reference_t<decltype(layer)>::tape tape;
    matrix<TestType> y(40, 8), dx(40, 8);
    layer.forward(x, y, tape);
    layer.backward(dy, dx, tape);
    return dx;
  };
  CHECK(test::same_bits(train(dynamic_sizes), train(fixed_sizes)));
}

TEMPLATE_TEST_CASE("moe_layer: a plan saved, altered and used again", "[layer][plan]", float, double) {
  with_layers<TestType>([](const char* name, const auto& layer) {
    CAPTURE(name);
    const matrix<TestType> x = test::random_matrix<TestType>(30, 8, 4), other = test::random_matrix<TestType>(30, 8, 5);
    typename std::remove_cvref_t<decltype(layer)>::workspace workspace, second;
    matrix<TestType> y(30, 8), again(30, 8);
    layer.forward(x, y, workspace);
    second.plan = workspace.plan;  // a value
    layer.forward(other, again, workspace);
    layer.forward_planned(x, again, second);
    CHECK(test::same_bits(again, y));
    // Twice the weights, twice the output.
    if constexpr (requires { second.plan.weights(); })
      for (TestType& w : second.plan.weights()) w *= 2;
    else
      second.plan.combine().map() *= TestType(2);
    layer.forward_planned(x, again, second);
    CHECK(test::same_bits(again, matrix<TestType>(2 * y)));
  });
}

TEST_CASE("moe_layer: a plan made by hand sends tokens where it says", "[layer][plan]") {
  const auto layer = inferring(top_k_router<double>{8, 6, {.top_k = 2}});
  const matrix<double> x = test::random_matrix<double>(3, 8, 4);
  decltype(inferring(top_k_router<double>{8, 6}))::workspace workspace;
  workspace.plan.reset(3, 6);
  workspace.plan.add(2, 5, 1);
  workspace.plan.finish();
  matrix<double> y(3, 8), expected(1, 8), saved(1, layer.bank().expert(5).saved_columns());
  layer.forward_planned(x, y, workspace);
  layer.bank().expert(5).forward(x.bottomRows(1), expected, saved);
  CHECK(test::same_bits(y.bottomRows(1), expected));
  CHECK(y.topRows(2).isZero(0));
}

TEMPLATE_TEST_CASE("moe_layer: zero tokens, forward and backward", "[layer]", float, double) {
  with_layers<TestType>([](const char* name, auto layer) {
    CAPTURE(name);
    const matrix<TestType> none(0, 8);
    matrix<TestType> y(0, 8), dx(0, 8);
    typename decltype(layer)::tape tape;
    layer.forward(none, y, tape);
    layer.backward(none, dx, tape);
    CHECK(tape.plan.tokens() == 0);
    for_each_parameter(layer, [](const std::string&, parameter<TestType>& p) {
      CHECK(p.has_gradient());  // written as zero, never left as found
      CHECK(p.gradient_matrix().isZero(0));
    });
  });
}

TEMPLATE_TEST_CASE("moe_layer: a NaN token gets NaN, with causal routers no other token changes by a bit",
                   "[layer][nan]", float, double) {
  const matrix<TestType> x = test::random_matrix<TestType>(40, 8, 4);
  matrix<TestType> dirty = x;
  dirty(7, 3) = quiet_nan<TestType>();
  with_layers<TestType>([&](const char* name, const auto& layer) {
    CAPTURE(name);
    const matrix<TestType> clean = infer(layer, x), y = infer(layer, dirty);
    for (index_t t = 0; t < 40; ++t) {
      for (index_t c = 0; c < 8; ++c) CHECK(is_nan(y(t, c)) == (t == 7));
      if (std::remove_cvref_t<decltype(layer)>::causal && t != 7) CHECK(test::same_bits(y.row(t), clean.row(t)));
    }
  });
}

TEMPLATE_TEST_CASE("moe_layer: every token at one expert, and experts without tokens", "[layer]", float, double) {
  auto layer = inferring(top_k_router<TestType>{8, 6, {.top_k = 1, .weights = weighting::pre}});
  auto gate = layer.router().gate().weight().map();
  gate.setZero();
  gate.row(4).setOnes();
  const matrix<TestType> x =
      test::random_matrix<TestType>(100, 8, 4).cwiseAbs();  // expert 4's score is always positive
  matrix<TestType> y(100, 8), dx(100, 8);
  typename decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  CHECK(tape.plan.load(4) == 100);
  layer.backward(y, dx, tape);
  for (index_t e = 0; e < 6; ++e)
    for_each_parameter(layer.bank().expert(e), [&](const std::string&, parameter<TestType>& p) {
      CHECK(p.has_gradient());
      CHECK(p.gradient_matrix().isZero(0) == (e != 4));
    });
  CHECK(tape.statistics.load_cv() == Approx(std::sqrt(5.0)));
}

TEMPLATE_TEST_CASE("moe_layer: many experts, E = 257 and 512, k up to E", "[layer]", float, double) {
  struct sizes {
    index_t experts, k;
  };
  const auto s = GENERATE(sizes{257, 8}, sizes{512, 8}, sizes{257, 257});
  const auto layer = inferring(top_k_router<TestType>{8, s.experts, {.top_k = s.k}});
  const matrix<TestType> x = test::random_matrix<TestType>(5, 8, 4);
  typename std::remove_const_t<decltype(layer)>::workspace workspace;
  matrix<TestType> y(5, 8);
  layer.forward(x, y, workspace);
  workspace.plan.validate();
  CHECK(workspace.plan.size() == 5 * s.k);
  CHECK(test::largest_difference(y, reference::forward(workspace.plan, layer.bank(), x).y) <=
        test::bound<TestType>(64 + s.k, 8));
}

TEMPLATE_TEST_CASE("moe_layer: one const layer serves many threads", "[layer][threads]", float, double) {
  with_layers<TestType>([](const char* name, const auto& layer) {
    CAPTURE(name);
    using layer_type = std::remove_cvref_t<decltype(layer)>;
    constexpr int count = 6;
    std::vector<matrix<TestType>> inputs, expected, results(count);
    for (std::uint64_t i = 0; i < count; ++i) {
      inputs.push_back(test::random_matrix<TestType>(10 + 7 * static_cast<index_t>(i), 8, i));
      expected.push_back(infer(layer, inputs.back()));
    }
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < count; ++i)
      threads.emplace_back([&, i] {
        typename layer_type::workspace workspace;
        results[i].resize(inputs[i].rows(), 8);
        for (int repeat = 0; repeat < 20; ++repeat) layer.forward(inputs[i], results[i], workspace);
      });
    for (std::thread& thread : threads) thread.join();
    for (std::size_t i = 0; i < count; ++i) CHECK(test::same_bits(results[i], expected[i]));
  });
}

TEMPLATE_TEST_CASE("moe_layer: x and y may be columns of larger matrices, and the same matrix", "[layer]", float,
                   double) {
  with_layers<TestType>([](const char* name, const auto& layer) {
    CAPTURE(name);
    matrix<TestType> wide = test::random_matrix<TestType>(20, 30, 4);
    const matrix<TestType> x = wide.middleCols(3, 8), before = wide;
    const matrix<TestType> expected = infer(layer, x);
    typename std::remove_cvref_t<decltype(layer)>::workspace workspace;
    layer.forward(wide.middleCols(3, 8), wide.rightCols(8), workspace);
    CHECK(test::same_bits(wide.rightCols(8), expected));
    CHECK(test::same_bits(wide.leftCols(22), before.leftCols(22)));
    layer.forward(wide.middleCols(3, 8), wide.middleCols(3, 8), workspace);
    CHECK(test::same_bits(wide.middleCols(3, 8), expected));
  });
}

TEST_CASE("moe_layer: statistics gather over calls and live in the workspace", "[layer][statistics]") {
  const auto layer = inferring(top_k_router<float>{8, 6, {.top_k = 2}});
  decltype(inferring(top_k_router<float>{8, 6}))::workspace workspace;
  matrix<float> y(10, 8);
  const matrix<float> x = test::random_matrix<float>(10, 8, 1);
  layer.forward(x, y, workspace);
  std::vector<std::uint8_t> mask(10, 1);
  mask[4] = 0;
  routing_context<float> context;
  context.token_mask = mask;
  layer.forward(x, y, workspace, context);
  CHECK(workspace.statistics.calls == 2);
  CHECK(workspace.statistics.tokens == 19);
  CHECK(workspace.statistics.assignments == 38);
  CHECK(workspace.statistics.experts_per_token() == 2);
}

TEST_CASE("moe_layer: k of a single call", "[layer]") {
  const auto layer = inferring(top_k_router<float>{8, 6, {.top_k = 2}});
  decltype(inferring(top_k_router<float>{8, 6}))::workspace workspace;
  matrix<float> y(10, 8);
  const matrix<float> x = test::random_matrix<float>(10, 8, 1);
  for (index_t k = 1; k <= 6; ++k) {
    routing_context<float> context;
    context.top_k = k;
    layer.forward(x, y, workspace, context);
    CHECK(workspace.plan.size() == 10 * k);
  }
  routing_context<float> too_many;
  too_many.top_k = 7;
  CHECK_THROWS_WITH(layer.forward(x, y, workspace, too_many),
                    "sluice: top-k routing needs 1 <= k <= E, not k = 7 with E = 6");
}

TEST_CASE("moe_layer: shapes that do not fit are refused with their numbers", "[layer]") {
  auto layer = inferring(top_k_router<float>{8, 6, {.top_k = 2}});
  decltype(layer)::workspace workspace;
  decltype(layer)::tape tape;
  matrix<float> x = matrix<float>::Zero(5, 8), y(5, 8), narrow(5, 7), shorter(4, 8);
  CHECK_THROWS_WITH(layer.forward(narrow, y, workspace),
                    "sluice: the layer maps [T, 8] to [T, 8]; x is [5, 7] and y [5, 8]");
  CHECK_THROWS_WITH(layer.forward(x, shorter, workspace),
                    "sluice: the layer maps [T, 8] to [T, 8]; x is [5, 8] and y [4, 8]");
  CHECK_THROWS_AS(layer.forward(x, narrow, tape), std::invalid_argument);
  layer.forward(x, y, tape);
  CHECK_THROWS_WITH(layer.backward(shorter, x, tape),
                    "sluice: backward needs dy [5, 8] and dx [5, 8], not [4, 8] and [5, 8]");
  CHECK_THROWS_AS(layer.backward(x, narrow, tape), std::invalid_argument);
  CHECK_THROWS_WITH(layer.forward_planned(x, y, workspace),
                    "sluice: the plan is for 0 tokens and 0 experts, the call for 5 and 6");
  CHECK_THROWS_WITH((moe_layer{top_k_router<float>{8, 6}, expert_bank<ffn<float>>{5, 8, 4}}),
                    "sluice: the router chooses among 6 experts, the layer holds 5");
  CHECK_THROWS_WITH((moe_layer{top_k_router<float>{8, 6}, expert_bank<ffn<float>>{6, 9, 4}}),
                    "sluice: the router reads tokens of width 8, the experts of width 9");
  const std::vector<std::uint8_t> mask(4, 1);
  routing_context<float> context;
  context.token_mask = mask;
  CHECK_THROWS_WITH(layer.forward(x, y, workspace, context),
                    "sluice: routing_context.token_mask has 4 entries for 5 tokens");
}

TEST_CASE("moe_layer: a router's plan of another size is refused, not run", "[layer][plan]") {
  struct short_router {
    using scalar = float;
    using plan = sparse_plan<float>;
    struct tape {};
    index_t inputs() const { return 2; }
    index_t experts() const { return 1; }
    void route(tokens_in<float> x, const routing_context<float>&, plan& p, tape&) const {
      p.reset(x.rows() + 1, 1);
      p.finish();
    }
  };
  moe_layer layer{short_router{}, expert_bank<ffn<float>>{1, 2, 3}};
  initialize(layer, 1);
  const matrix<float> x = matrix<float>::Zero(5, 2);
  matrix<float> y(5, 2);
  std::remove_const_t<decltype(layer)>::workspace workspace;
  CHECK_THROWS_WITH(layer.forward(x, y, workspace),
                    "sluice: the plan is for 6 tokens and 1 experts, the call for 5 and 1");
}
