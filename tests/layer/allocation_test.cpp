#include "../allocation.hpp"

#include "every_layer.hpp"

#include <sluice/expert/bank.hpp>
#include <sluice/expert/constant.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/neuron_bank.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/layer/encoders/network_bank.hpp>
#include <sluice/layer/encoders/unfolded.hpp>
#include <sluice/layer/fixed.hpp>
#include <sluice/layer/images/chosen_channels.hpp>
#include <sluice/layer/images/patch_experts.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/over_draws.hpp>
#include <sluice/router/assigned/balanced_assignment.hpp>
#include <sluice/router/assigned/sinkhorn.hpp>
#include <sluice/router/assigned/sparse_transport.hpp>
#include <sluice/router/combined.hpp>
#include <sluice/router/experts_choose/expert_preferred.hpp>
#include <sluice/router/fixed/random_partition.hpp>
#include <sluice/router/over_training/mean_active.hpp>
#include <sluice/router/tokens_choose/position_share.hpp>
#include <sluice/router/tokens_choose/noisy_top_k.hpp>
#include <sluice/router/tokens_choose/product_key.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

#include <array>

using namespace sluice;
using test::allocations;

namespace {

constexpr index_t layer_width = test::any_layer::width, layer_experts = 6, most_tokens = 60;

routing_context<float> training_step(std::uint64_t step) {
  routing_context<float> context;
  context.training = true;
  context.random = random_source(1, step);
  return context;
}

/// Batches that are routed in every way: sharp and flat, all alike, with padding, with a NaN, of any size up to `most_tokens`.
struct batch {
  matrix<float> x;
  std::vector<std::uint8_t> mask;
};
batch batch_number(std::uint64_t n) {
  const index_t size = n % 5 == 4 ? static_cast<index_t>(n * 7 % most_tokens) : most_tokens;
  batch b{test::random_matrix<float>(size, layer_width, n), {}};
  b.x *= static_cast<float>(n % 7) * 0.7f;
  if (n % 3 == 0 && size > 0) b.x.rowwise() = b.x.row(0).eval();
  if (n % 4 == 0) b.x.array() += n % 8 == 0 ? 2.0f : -2.0f;
  if (n % 10 == 3) b.x(0, 0) = quiet_nan<float>();
  if (n % 6 == 5)
    for (index_t t = 0; t < size; ++t) b.mask.push_back(static_cast<std::uint8_t>(n % 12 == 5 ? t % 3 != 0 : t < 2));
  return b;
}

auto layer_to_build() {
  moe_layer layer{top_k_router<float>{layer_width, layer_experts, {.top_k = 2}},
                  expert_bank<swiglu<float>>{layer_experts, layer_width, 11, {.bias = true}}};
  initialize(layer, 3);
  return layer;
}

/// Runs tasks in turn, and says that four run at a time.
struct works_as_four {
  template <typename Body>
  void parallel_for(index_t n, Body&& body) {
    serial_executor().parallel_for(n, body);
  }
  index_t concurrency() const { return 4; }
  index_t smallest_work() const { return 0; }
};

struct counted {
  long calls = allocations.calls;
  long mallocs = allocations.mallocs;
  bool operator==(const counted&) const = default;
};

/// The batches in turn, with what allocated in one of them.
template <typename Run>
std::string batches_that_allocate(Run&& run) {
  std::string found;
  for (std::uint64_t n = 0; n < 60; ++n) {
    const batch b = batch_number(n);
    matrix<float> y(b.x.rows(), layer_width), dx(b.x.rows(), layer_width);
    const counted before;
    run(b, n, y, dx);
    if (!(counted() == before)) found += std::to_string(n) + ' ';
  }
  return found;
}

}  // namespace

TEST_CASE("layers: once warm, inference allocates nothing, whatever is routed where", "[layer][alloc]") {
  const bool by_reserve = GENERATE(false, true);
  for (const auto& [name, layer] : test::every_layer()) {
    CAPTURE(name, by_reserve);
    const auto with_memory = layer->fresh();
    if (by_reserve) {
      with_memory->reserve_workspace(most_tokens);
    } else {
      const batch largest{matrix<float>::Zero(most_tokens, layer_width), std::vector<std::uint8_t>(most_tokens, 1)};
      matrix<float> y(most_tokens, layer_width);
      with_memory->infer(largest.x, y, {.token_mask = largest.mask});
    }
    CHECK(batches_that_allocate([&](const batch& b, std::uint64_t, matrix<float>& y, matrix<float>&) {
            with_memory->infer(b.x, y, {.token_mask = b.mask});
          }) == "");
  }
}

TEST_CASE("fixed_moe_layer: neither it nor any of its calls allocates", "[layer][fixed][alloc]") {
  const auto trained = layer_to_build();
  const std::vector<float> x(20 * layer_width, 1);
  std::vector<float> y(20 * layer_width);
  const long calls = allocations.calls;
  const long mallocs = allocations.mallocs;
  fixed_moe_layer<float, layer_width, 11, layer_experts, 2, 20> layer(trained);
  decltype(layer)::workspace workspace;
  for (const std::size_t tokens : {20u, 1u, 0u, 7u})
    if (!layer.forward(std::span(x).first(tokens * layer_width), std::span(y).first(tokens * layer_width), workspace)) y.clear();
  const auto copy = layer;
  const bool ran = copy.forward(x, y, workspace);
  CHECK(allocations.calls == calls);
  CHECK(allocations.mallocs == mallocs);
  CHECK(ran);
}

TEST_CASE("layers: once warm, a training step allocates nothing, whatever is routed where", "[layer][alloc]") {
  const bool by_reserve = GENERATE(false, true);
  for (const auto& [name, layer] : test::every_layer()) {
    CAPTURE(name, by_reserve);
    const auto with_memory = layer->fresh();
    const auto step = [&](const batch& b, std::uint64_t n, matrix<float>& y, matrix<float>& dx) {
      auto context = training_step(n);
      context.token_mask = b.mask;
      with_memory->zero_gradients();
      with_memory->train(b.x, y, context);
      with_memory->backward(y, dx);
      with_memory->after_step();
    };
    if (by_reserve) {
      with_memory->reserve_tape(most_tokens);
    } else {
      const batch largest{matrix<float>::Zero(most_tokens, layer_width), std::vector<std::uint8_t>(most_tokens, 1)};
      matrix<float> y(most_tokens, layer_width), dx(most_tokens, layer_width);
      step(largest, 1, y, dx);
    }
    CHECK(batches_that_allocate(step) == "");
  }
}

TEST_CASE("layers over images and of networks: once warm, inference allocates nothing", "[layer][images][encoders][alloc]") {
  const auto calls_of_warm = [](auto layer) {
    initialize(layer, 3);
    typename decltype(layer)::workspace workspace;
    matrix<float> y(30, layer.outputs());
    routing_context<float> context;
    const auto run = [&](index_t images, std::uint64_t seed) {
      const matrix<float> x = test::random_matrix<float>(images, layer.inputs(), seed);
      const matrix<float> scores = test::random_matrix<float>(images, 3, seed + 1);
      context.features = scores;
      const long before = allocations.calls;
      layer.forward(x, y.topRows(images), workspace, context);
      return allocations.calls - before;
    };
    CHECK(run(30, 1) > 0);
    return run(30, 3) + run(7, 5) + run(30, 7) + run(0, 9);
  };
  CHECK(calls_of_warm(chosen_channels_layer<float>({2, 4, 4}, 3, 2, window_shape::square(3, 1, 1))) == 0);
  CHECK(calls_of_warm(pmoe_layer<float>({2, 4, 4}, window_shape::square(2, 2), 3, 5, 2)) == 0);
  const unfolded_layer network{linear_layer<float>{4, 3}, 2};
  CHECK(calls_of_warm(moe_layer{top_k_router<float>{8, 3, {.top_k = 2}}, network_bank{3, network}}) == 0);
  CHECK(calls_of_warm(moe_layer{combined_router{top_k_router<float>{8, 3, {.top_k = 2}}, log_sum_exp{}},
                                network_bank{3, network}}) == 0);
}

TEST_CASE("reserve: fewer groups and threads than it was told of need no more memory", "[layer][reserve][alloc]") {
  works_as_four four;
  const std::vector<index_t> three_groups{0, 10, 40, most_tokens};
  routing_context<float> largest;
  largest.groups = three_groups;
  largest.executor = four;
  for (const auto& [name, layer] : test::every_layer()) {
    CAPTURE(name);
    const auto reserved = layer->fresh();
    reserved->reserve_workspace(most_tokens, largest);
    reserved->reserve_tape(most_tokens, largest);
    CHECK(batches_that_allocate([&](const batch& b, std::uint64_t n, matrix<float>& y, matrix<float>& dx) {
            const index_t size = b.x.rows();
            const std::array<index_t, 4> borders{0, 0, size / 3, size};
            auto context = training_step(n);
            context.token_mask = b.mask;
            if (n % 3 != 0) context.groups = std::span(borders).subspan(n % 3 == 1 ? 1 : 0);  // two or three groups
            if (n % 2 == 0) context.executor = four;
            reserved->train(b.x, y, context);
            reserved->backward(y, dx);
            context.training = false;
            reserved->infer(b.x, y, context);
          }) == "");
  }
}

TEST_CASE("reserve: nothing but memory changes", "[layer][reserve]") {
  for (const auto& [name, layer] : test::every_layer()) {
    CAPTURE(name);
    const matrix<float> x = test::random_matrix<float>(most_tokens, layer_width, 1), dy = test::random_matrix<float>(most_tokens, layer_width, 2);
    matrix<float> y(most_tokens, layer_width), dx(most_tokens, layer_width), expected(most_tokens, layer_width), expected_dx(most_tokens, layer_width);
    const auto reserved = layer->fresh();
    reserved->reserve_workspace(most_tokens + 1);
    reserved->reserve_tape(most_tokens + 1);
    CHECK(reserved->values() == layer->values());
    CHECK(reserved->calls_counted() == 0);
    CHECK_THROWS_WITH(reserved->backward(dy, dx), Catch::Matchers::Contains("backward needs a training forward call"));
    for (const auto& one : {std::cref(layer), std::cref(reserved)}) {
      one.get()->infer(x, y);
      one.get()->train(x, y, training_step(3));
      one.get()->backward(dy, dx);
      if (one.get() == layer) {
        expected = y;
        expected_dx = dx;
      }
    }
    CHECK(test::same_bits(y, expected));
    CHECK(test::same_bits(dx, expected_dx));
    CHECK(reserved->gradients() == layer->gradients());
    CHECK(reserved->calls_counted() == 1);
    CHECK_THROWS_AS(reserved->reserve_tape(-1), std::invalid_argument);
  }
}

TEST_CASE("layers: the n-th allocation of a forward call fails, and nothing leaks or changes", "[layer][alloc]") {
  for (const auto& [name, layer] : test::every_layer()) {
    CAPTURE(name);
    const matrix<float> x = test::random_matrix<float>(20, layer_width, 1);
    matrix<float> expected(20, layer_width), y(20, layer_width);
    layer->fresh()->infer(x, expected);
    const auto before = layer->values();
    const long live = allocations.live;
    long failures = 0;
    for (bool ran_out = true; ran_out;) {
      const auto with_memory = layer->fresh();
      ran_out = false;
      try {
        const test::failing_allocation failing(failures);
        with_memory->infer(x, y);
      } catch (const std::bad_alloc&) {
        ran_out = true;
        ++failures;
      }
      if (!ran_out) break;
      y.setConstant(99);
      with_memory->infer(x, y);  // the workspace of the failed call serves the next one
      if (!test::same_bits(y, expected)) FAIL_CHECK("after a failure of allocation " << failures - 1);
      if (with_memory->values() != before) FAIL_CHECK("failure " << failures - 1 << " changed a parameter");
    }
    CHECK(failures > 5);
    CHECK(allocations.live == live);
  }
}

TEST_CASE("layers: the n-th allocation of a training step fails, and the layer's values stay", "[layer][alloc]") {
  const auto fresh = [] { return layer_to_build(); };
  using layer_type = decltype(fresh());
  const matrix<float> x = test::random_matrix<float>(20, layer_width, 1);
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
  matrix<float> y(20, layer_width), dx(20, layer_width), expected_dx(20, layer_width);
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
      const auto layer = layer_to_build();
      CHECK(layer.experts() == layer_experts);
    } catch (const std::bad_alloc&) {
      ran_out = true;
      ++failures;
    }
    CHECK(allocations.live == live);
  }
  CHECK(failures > 30);
}

TEST_CASE("layers: a few tokens among a million experts, in the memory and with the bits of a few experts",
          "[layer][alloc]") {
  constexpr index_t width = 2, keys = 1024, few = 16, tokens = 5;
  const auto expert_among_many = [](index_t e) { return e * 65521 + 3; };
  const auto layer_of = [](index_t n) {
    return moe_layer{product_key_router<float>{width, n, {.heads = 1, .top_k = 4}}, neuron_bank<float>{n * n, width}};
  };
  auto small = layer_of(4), large = layer_of(keys);
  for (auto* router : {&small.router(), &large.router()}) initialize(*router, 1);
  initialize(small.bank(), 2);
  large.bank().down().assign(matrix<float>::Zero(keys * keys, width));
  large.bank().up().assign(matrix<float>::Zero(keys * keys, width));
  for (index_t e = 0; e < few; ++e) {
    std::copy_n(small.bank().down().data() + e * width, width,
                large.bank().down().data() + expert_among_many(e) * width);
    std::copy_n(small.bank().up().data() + e * width, width, large.bank().up().data() + expert_among_many(e) * width);
  }
  const matrix<float> x = test::random_matrix<float>(tokens, width, 3);
  const auto run = [&](auto& layer, auto expert_of, matrix<float>& y) {
    typename std::remove_reference_t<decltype(layer)>::workspace workspace;
    const long before = allocations.bytes;
    workspace.plan.reset(tokens, layer.experts());
    for (index_t i = 0; i < 3 * tokens; ++i) workspace.plan.add(i / 3, expert_of(i * 5 % few), 0.3f, i % 3);
    workspace.plan.finish();
    std::as_const(layer).forward_planned(x, y, workspace);
    CHECK(workspace.statistics.load[expert_of(0)] > 0);
    return allocations.bytes - before;
  };
  matrix<float> y(tokens, width), y_large(tokens, width);
  const long bytes = run(small, [](index_t e) { return e; }, y);
  const long bytes_large = run(large, expert_among_many, y_large);
  CHECK(test::same_bits(y, y_large));
  const long counter = sizeof(index_t) + 1;  // the statistics' own, and a share of its list
  CHECK(bytes_large <= bytes + counter * static_cast<long>(keys * keys));
}

TEST_CASE("expert_union: workspace_bytes says what calls take, whichever bank gets the rows", "[layer][union][alloc]") {
  const expert_union all{expert_bank<swiglu<float>>{3, layer_width, 21}, expert_bank<constant_expert<float>>(2, layer_width),
                         neuron_bank<float>(4, layer_width)};
  const index_t rows = 50;
  for (const bool training : {false, true}) {
    decltype(all)::tape tape;
    const long before = allocations.bytes;
    all.prepare(tape, rows, training);
    const long taken = allocations.bytes - before;
    CHECK(taken <= all.workspace_bytes(rows, training));
    CHECK(6 * taken >= 5 * all.workspace_bytes(rows, training));
  }
}

TEST_CASE("warm means over draws allocate nothing, whatever is drawn", "[layer][alloc]") {
  moe_layer layer{noisy_top_k_router<float>{layer_width, layer_experts, {.top_k = 2}},
                  expert_bank<swiglu<float>>{layer_experts, layer_width, 12}};
  initialize(layer, 3);
  over_draws<decltype(layer)> memory;
  matrix<float> x = test::random_matrix<float>(most_tokens, layer_width, 1), y(most_tokens, layer_width);
  memory.mean(layer, x, y, {.draws = 1}, softmax_of_rows{}, training_step(1));
  const long calls = allocations.calls;
  for (std::uint64_t step = 2; step < 6; ++step) {
    const index_t size = step % 2 == 0 ? most_tokens : 7;
    memory.mean(layer, x.topRows(size), y.topRows(size), {.draws = 3}, softmax_of_rows{}, training_step(step));
    x.topRows(size) = y.topRows(size) * 5;
  }
  CHECK(allocations.calls == calls);
}

TEST_CASE("routers that assign tokens together: a call of nothing but padding makes room for all others", "[layer][reserve][alloc]") {
  const auto allocates_when_warm = [](auto router) {
    initialize(router, 3);
    typename decltype(router)::plan plan;
    typename decltype(router)::tape tape;
    typename decltype(router)::plan::gradient dplan;
    matrix<float> dx(most_tokens, layer_width);
    const auto step = [&](const batch& b, std::uint64_t n) {
      auto context = training_step(n);
      context.token_mask = b.mask;
      router.route(b.x, context, plan, tape);
      tape.dseen.zero_like(tape.seen);
      dplan.weight.assign(plan.size(), 1.0F);
      dplan.input_scale.assign(0, 1.0F);
      router.backward(b.x, context, plan, dplan, tape, dx.topRows(b.x.rows()));
    };
    step({matrix<float>::Zero(most_tokens, layer_width), std::vector<std::uint8_t>(most_tokens, 0)}, 1);
    dplan.weight.reserve(most_tokens * layer_experts);
    std::string found;
    for (std::uint64_t n = 0; n < 20; ++n) {
      const batch b = batch_number(n);
      const long calls = allocations.calls;
      step(b, n);
      if (allocations.calls != calls) found += std::to_string(n) + ' ';
    }
    return found;
  };
  CHECK(allocates_when_warm(sinkhorn_router<float>{layer_width, layer_experts,
                                                  {.choice = {.top_k = 2, .weigh_by_coupling = true}}}) == "");
  CHECK(allocates_when_warm(sinkhorn_expert_choice_router<float>{layer_width, layer_experts}) == "");
  CHECK(allocates_when_warm(sparse_token_choice_router<float>{layer_width, layer_experts, {.top_k = 2}}) == "");
  CHECK(allocates_when_warm(sparse_expert_choice_router<float>{layer_width, layer_experts}) == "");
  CHECK(allocates_when_warm(base_router<float>{layer_width, layer_experts}) == "");
  CHECK(allocates_when_warm(base_router<float, linear_gate<float>, exact_assignment<float>>{layer_width, layer_experts}) == "");
  CHECK(allocates_when_warm(base_router<float, linear_gate<float>, greedy_assignment<float>>{layer_width, layer_experts}) == "");
  CHECK(allocates_when_warm(expert_preferred_router<float>{layer_width, {0.5, 0.3, 0.2}}) == "");
  CHECK(allocates_when_warm(random_partition_router<float>{layer_width, layer_experts}) == "");
  CHECK(allocates_when_warm(mean_active_router<float>{layer_width, layer_experts}) == "");
  CHECK(allocates_when_warm(position_share_router<float>{layer_width, layer_experts}) == "");
}
