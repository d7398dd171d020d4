#include "../allocation.hpp"

#include <sluice/capacity/batch_priority.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/gate/cosine.hpp>
#include <sluice/layer/fixed.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/shared_expert.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/router/compete.hpp>
#include <sluice/router/dselect_k.hpp>
#include <sluice/router/expert_choice.hpp>
#include <sluice/router/gshard_top2.hpp>
#include <sluice/router/noisy_top_k.hpp>
#include <sluice/router/relu.hpp>
#include <sluice/router/sigmoid_top_k.hpp>
#include <sluice/router/soft_moe.hpp>
#include <sluice/router/switch_top1.hpp>
#include <sluice/router/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;
using test::allocations;

namespace {

constexpr index_t width = 8, experts = 6;

template <typename Router>
auto layer_of(Router router) {
  using scalar = typename Router::scalar;
  moe_layer layer{std::move(router), expert_bank<gated_ffn<scalar>>{experts, width, 11, {.bias = true}}};
  initialize(layer, 3);
  return layer;
}

/// Calls f(name, layer) for a layer of every router and of every kind of bank.
template <typename F>
void with_layers(F&& f) {
  using scalar = float;
  f("top-k", layer_of(top_k_router<scalar>{width, experts, {.top_k = 2}}));
  f("top-k, cosine gate", layer_of(top_k_router<scalar, dynamic, dynamic, cosine_gate<scalar>>{
                              cosine_gate<scalar>(width, experts), {.top_k = 2}}));
  f("noisy top-k", layer_of(noisy_top_k_router<scalar>{width, experts}));
  f("learned noise", layer_of(learned_noise_top_k_router<scalar>{width, experts}));
  f("Switch", layer_of(switch_router<scalar>{width, experts}));
  f("GShard", layer_of(gshard_router<scalar>{width, experts}));
  f("sigmoid", layer_of(sigmoid_router<scalar>{width, experts}));
  f("expert choice", layer_of(expert_choice_router<scalar>{width, experts}));
  f("ReLU", layer_of(relu_router<scalar>{width, experts}));
  f("Soft MoE", layer_of(soft_moe_router<scalar>{width, experts}));
  f("DSelect-k", layer_of(dselect_k_router<scalar>{width, experts}));
  f("competition", layer_of(compete_router{top_k_router<scalar>{width, experts}}));
  moe_layer mixed{top_k_router<scalar>{width, 4, {.top_k = 2}},
                  expert_union{expert_bank<ffn<scalar>>{2, width, 5}, expert_bank<identity_expert<scalar>>(1, width),
                               expert_bank<zero_expert<scalar>>(1, width)},
                  importance_loss{}};
  initialize(mixed, 3);
  f("union of banks, with a loss", mixed);
  shared_expert_layer shared{layer_of(top_k_router<scalar>{width, experts}), gated_ffn<scalar>{width, 7}, gated};
  initialize(shared, 4);
  f("shared expert", shared);
}

}  // namespace

TEST_CASE("layers: once warm, inference allocates nothing", "[layer][alloc]") {
  with_layers([](const char* name, const auto& layer) {
    CAPTURE(name);
    typename std::remove_cvref_t<decltype(layer)>::workspace workspace;
    const matrix<float> x = test::random_matrix<float>(60, width, 1);
    matrix<float> y(60, width);
    const auto run = [&](index_t tokens) { layer.forward(x.topRows(tokens), y.topRows(tokens), workspace); };
    // Loads differ from batch to batch: all sizes are seen once, then nothing may grow.
    for (const index_t tokens : {60, 59, 1, 7, 33, 0}) run(tokens);
    const long calls = allocations.calls;
    const long mallocs = allocations.mallocs;
    for (const index_t tokens : {60, 59, 1, 7, 33, 0, 60}) run(tokens);
    CHECK(allocations.calls == calls);
    CHECK(allocations.mallocs == mallocs);
  });
}

TEST_CASE("fixed_moe_layer: neither it nor any of its calls allocates", "[layer][fixed][alloc]") {
  const auto trained = layer_of(top_k_router<float>{width, experts, {.top_k = 2}});
  const std::vector<float> x(20 * width, 1);
  std::vector<float> y(20 * width);
  const long calls = allocations.calls;
  const long mallocs = allocations.mallocs;
  fixed_moe_layer<float, width, 11, experts, 2, 20> layer(trained);
  decltype(layer)::workspace workspace;
  for (const std::size_t tokens : {20u, 1u, 0u, 7u})
    if (!layer.forward(std::span(x).first(tokens * width), std::span(y).first(tokens * width), workspace)) y.clear();
  const auto copy = layer;
  const bool ran = copy.forward(x, y, workspace);
  CHECK(allocations.calls == calls);
  CHECK(allocations.mallocs == mallocs);
  CHECK(ran);
}

TEST_CASE("layers: once warm, a training step allocates nothing", "[layer][alloc]") {
  with_layers([](const char* name, auto layer) {
    CAPTURE(name);
    typename decltype(layer)::tape tape;
    const matrix<float> x = test::random_matrix<float>(60, width, 1), dy = test::random_matrix<float>(60, width, 2);
    matrix<float> y(60, width), dx(60, width);
    const auto run = [&] {
      routing_context<float> context;
      context.training = true;
      context.random = random_source(1, 1);  // the same draws, so the same loads
      zero_gradients(layer);
      layer.forward(x, y, tape, context);
      layer.backward(dy, dx, tape);
    };
    run();
    run();
    const long calls = allocations.calls;
    const long mallocs = allocations.mallocs;
    run();
    CHECK(allocations.calls == calls);
    CHECK(allocations.mallocs == mallocs);
  });
}

TEST_CASE("layers: the n-th allocation of a forward call fails, and nothing leaks or changes", "[layer][alloc]") {
  with_layers([](const char* name, const auto& layer) {
    CAPTURE(name);
    using layer_type = std::remove_cvref_t<decltype(layer)>;
    const matrix<float> x = test::random_matrix<float>(20, width, 1);
    matrix<float> expected(20, width), y(20, width);
    {
      typename layer_type::workspace workspace;
      layer.forward(x, expected, workspace);
    }
    const auto values = [&] {
      std::vector<float> all;
      detail::for_each_unnamed_parameter(
          layer, [&](const auto& p) { all.insert(all.end(), p.value().begin(), p.value().end()); });
      return all;
    };
    const auto before = values();
    const long live = allocations.live;
    long failures = 0;
    for (bool ran_out = true; ran_out;) {
      typename layer_type::workspace workspace;
      ran_out = false;
      try {
        const test::failing_allocation failing(failures);
        layer.forward(x, y, workspace);
      } catch (const std::bad_alloc&) {
        ran_out = true;
        ++failures;
      }
      if (!ran_out) break;
      y.setConstant(99);
      layer.forward(x, y, workspace);  // the workspace of the failed call serves the next one
      if (!test::same_bits(y, expected)) FAIL_CHECK("after a failure of allocation " << failures - 1);
    }
    CHECK(failures > 5);
    CHECK(allocations.live == live);
    CHECK(values() == before);
  });
}

TEST_CASE("layers: the n-th allocation of a training step fails, and the layer's values stay", "[layer][alloc]") {
  const auto fresh = [] { return layer_of(top_k_router<float>{width, experts, {.top_k = 2}}); };
  using layer_type = decltype(fresh());
  const matrix<float> x = test::random_matrix<float>(20, width, 1);
  const auto step = [&](layer_type& layer, layer_type::tape& tape, matrix<float>& y, matrix<float>& dx) {
    zero_gradients(layer);
    layer.forward(x, y, tape);
    layer.backward(x, dx, tape);
  };
  const auto gradients = [](layer_type& layer) {
    std::vector<float> all;
    for_each_parameter(
        layer, [&](const std::string&, auto& p) { all.insert(all.end(), p.gradient().begin(), p.gradient().end()); });
    return all;
  };
  matrix<float> y(20, width), dx(20, width), expected_dx(20, width);
  layer_type reference = fresh();
  {
    layer_type::tape tape;
    step(reference, tape, y, expected_dx);
  }
  const auto expected = gradients(reference);
  long failures = 0;
  for (bool ran_out = true; ran_out;) {
    const long live = allocations.live;
    {
      layer_type layer = fresh();
      layer_type::tape tape;
      ran_out = false;
      try {
        const test::failing_allocation failing(failures);
        step(layer, tape, y, dx);
      } catch (const std::bad_alloc&) {
        ran_out = true;
        ++failures;
      }
      step(layer, tape, y, dx);
      if (!test::same_bits(dx, expected_dx) || gradients(layer) != expected)
        FAIL_CHECK("after a failure of allocation " << failures - 1);
    }
    CHECK(allocations.live == live);
  }
  CHECK(failures > 30);
}

TEST_CASE("layers: building one with an allocation that fails leaks nothing", "[layer][alloc]") {
  const long live = allocations.live;
  long failures = 0;
  for (bool ran_out = true; ran_out;) {
    ran_out = false;
    try {
      const test::failing_allocation failing(failures);
      const auto layer = layer_of(top_k_router<float>{width, experts, {.top_k = 2}});
      CHECK(layer.experts() == experts);
    } catch (const std::bad_alloc&) {
      ran_out = true;
      ++failures;
    }
    CHECK(allocations.live == live);
  }
  CHECK(failures > 30);
}
