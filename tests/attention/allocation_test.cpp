#include "../allocation.hpp"

#include <sluice/attention/cross_attention.hpp>
#include <sluice/attention/encoder_fusion.hpp>
#include <sluice/attention/selective_attention.hpp>
#include <sluice/attention/weighed_attention.hpp>
#include <sluice/exec/thread_pool.hpp>
#include <sluice/layer/state_space/state_space_mixer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;
using test::allocations;

namespace {

/// How many of some batches, the first of which is the largest, allocate; each is cut in another number of sequences.
template <typename Run>
int attention_batches_with_allocations(Run&& run) {
  int found = 0;
  const index_t rows[] = {200, 200, 199, 150, 70, 1, 0, 180};
  for (std::size_t n = 0; n < std::size(rows); ++n) {
    const index_t T = rows[n], sequences = n % 4 == 0 ? 1 : n % 4 == 1 ? std::max<index_t>(T, 1) : 3;
    std::vector<index_t> borders, rows_of_others;
    for (index_t s = 0; s <= sequences; ++s) {
      borders.push_back(T * s / sequences);
      rows_of_others.push_back(s == sequences ? 2 * T : T * s / sequences);  // the last has most of them
    }
    const matrix<float> others = test::random_matrix<float>(2 * T, 8, 9 + n);
    const encoder_states<float> encoder{.rows = others, .sequences = rows_of_others};
    const routing_context<float> context{.sequences = borders, .encoders = {&encoder, 1}};
    const matrix<float> x = test::random_matrix<float>(T, 8, 5 + n);
    matrix<float> y(T, 8), dx(T, 8);
    const long calls = allocations.calls, mallocs = allocations.mallocs;
    run(x, y, dx, context);
    found += n > 0 && (allocations.calls != calls || allocations.mallocs != mallocs);
  }
  return found;
}

template <typename Layer>
void check_warm_attention(const char* name, Layer layer, const executor_ref& executor) {
  CAPTURE(name);
  initialize(layer, 3);
  typename Layer::workspace ws;
  typename Layer::tape tape;
  CHECK(attention_batches_with_allocations([&](const auto& x, auto& y, auto&, routing_context<float> context) {
          context.executor = executor;
          layer.forward(x, y, ws, context);
        }) == 0);
  ensure_gradients(layer);
  CHECK(attention_batches_with_allocations([&](const auto& x, auto& y, auto& dx, routing_context<float> context) {
          context.training = true, context.executor = executor;
          layer.forward(x, y, tape, context);
          layer.backward(y, dx, tape);
        }) == 0);
}

}  // namespace

TEST_CASE("attention and state spaces: warm calls allocate nothing, however batches are cut into sequences", "[attention][allocation]") {
  thread_pool pool(3);
  for (const executor_ref& executor : {executor_ref(), executor_ref(pool)}) {
    check_warm_attention("self", self_attention<float>(8, {.heads = 4, .key_heads = 2, .rotary = {.width = 2}}),
                         executor);
    check_warm_attention("cross", cross_attention<float, rms_norm<float>>(8, {.heads = 4, .key_heads = 2}), executor);
    check_warm_attention("state space", state_space_mixer<float>(8, {.normalized_selection = true}), executor);
    check_warm_attention("weighed", weighed_attention<float>(8, {.experts = 2, .heads = 2}), executor);
    check_warm_attention("selective",
                         selective_attention{head_router{top_k_router<float>{8, 4, {.top_k = 2}}},
                                             {.head_width = 4, .rotary = {.width = 2}}},
                         executor);
  }
  self_attention<float> layer(8, {.heads = 2});
  initialize(layer, 3);
  key_value_cache<float> cache(layer, 1, 40);
  self_attention<float>::workspace ws;
  const matrix<float> x = test::random_matrix<float>(20, 8, 5);
  matrix<float> y(20, 8);
  layer.forward_cached(x, y, cache, ws);
  const long calls = allocations.calls;
  for (index_t t = 0; t < 20; ++t) layer.forward_cached(x.middleRows(t, 1), y.middleRows(t, 1), cache, ws);
  CHECK(allocations.calls == calls);
}

TEST_CASE("encoder_fusion: warm calls allocate nothing", "[attention][allocation]") {
  const index_t widths[] = {8, 5};
  auto block = encoder_fusion<float>(8, widths, {.text = 4, .heads = 2, .top_k = 2});
  initialize(block, 3);
  ensure_gradients(block);
  decltype(block)::workspace ws;
  decltype(block)::tape tape;
  thread_pool pool(3);
  const index_t tokens[] = {300, 299, 300, 90, 3};
  for (std::size_t n = 0; n < std::size(tokens); ++n) {
    const index_t T = tokens[n];
    const std::vector<index_t> images{0, T / 3, T / 2, T}, first{0, T, T, 2 * T}, second{0, 1, T / 2, T};
    const matrix<float> x = test::random_matrix<float>(T, 8, 1 + n), text = test::random_matrix<float>(3, 4, 2),
                        a = test::random_matrix<float>(2 * T, 8, 3), b = test::random_matrix<float>(T, 5, 4);
    const encoder_states<float> encoders[] = {{.rows = a, .sequences = first}, {.rows = b, .sequences = second}};
    matrix<index_t> offers(T, 2);
    for (index_t t = 0; t < T; ++t) offers.row(t) << 1, (n == 3 ? no_expert : 0);
    matrix<float> y(T, 8), dx(T, 8);
    routing_context<float> context{.groups = images};
    context.expert_ids = offers, context.group_features = text, context.encoders = encoders, context.executor = pool;
    const long calls = allocations.calls, mallocs = allocations.mallocs;
    block.forward(x, y, ws, context);
    context.training = true;
    block.forward(x, y, tape, context);
    block.backward(y, dx, tape);
    const bool allocates = allocations.calls != calls || allocations.mallocs != mallocs;
    CAPTURE(n);
    CHECK(allocates == (n == 0));
  }
}
