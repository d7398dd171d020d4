#include "../allocation.hpp"

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
  const index_t rows[] = {700, 700, 699, 600, 100, 1, 0, 650};
  for (std::size_t n = 0; n < std::size(rows); ++n) {
    const index_t T = rows[n], sequences = n % 4 == 0 ? 1 : n % 4 == 1 ? std::max<index_t>(T, 1) : 3;
    std::vector<index_t> borders;
    for (index_t s = 0; s <= sequences; ++s) borders.push_back(T * s / sequences);
    const matrix<float> x = test::random_matrix<float>(T, 8, 5 + n);
    matrix<float> y(T, 8), dx(T, 8);
    const long calls = allocations.calls, mallocs = allocations.mallocs;
    run(x, y, dx, borders);
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
  CHECK(attention_batches_with_allocations([&](const auto& x, auto& y, auto&, const auto& borders) {
          layer.forward(x, y, ws, {.sequences = borders, .executor = executor});
        }) == 0);
  ensure_gradients(layer);
  CHECK(attention_batches_with_allocations([&](const auto& x, auto& y, auto& dx, const auto& borders) {
          layer.forward(x, y, tape, {.training = true, .sequences = borders, .executor = executor});
          layer.backward(y, dx, tape);
        }) == 0);
}

}  // namespace

TEST_CASE("attention and state spaces: warm calls allocate nothing, however batches are cut into sequences", "[attention][allocation]") {
  thread_pool pool(3);
  for (const executor_ref& executor : {executor_ref(), executor_ref(pool)}) {
    check_warm_attention("self", self_attention<float>(8, {.heads = 4, .key_heads = 2, .rotary = {.width = 2}}),
                         executor);
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
