// Choosing must not allocate: operator new is counted for this executable.
#include <sluice/capacity/batch_priority.hpp>
#include <sluice/capacity/probability.hpp>
#include <sluice/capacity/random.hpp>
#include <sluice/router/tokens_choose/gshard_top2.hpp>
#include <sluice/router/tokens_choose/noisy_top_k.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>
#include <sluice/router/tokens_choose/switch_top1.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {
std::atomic<long> allocations{0};

void* counted(std::size_t size, std::size_t alignment) {
  ++allocations;
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max(alignment, sizeof(void*)), std::max<std::size_t>(size, 1)) != 0)
    throw std::bad_alloc();
  return memory;
}
}  // namespace

// Not inlined: where the compiler sees malloc on one side only it takes new and delete for a mismatched pair.
[[gnu::noinline]] void* operator new(std::size_t size) { return counted(size, alignof(std::max_align_t)); }
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment) {
  return counted(size, static_cast<std::size_t>(alignment));
}
// std::stable_sort asks for memory in this form; the library's own would not match the delete below.
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  try {
    return counted(size, alignof(std::max_align_t));
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

using namespace sluice;

namespace {

template <typename Router>
void check_no_allocation(Router router) {
  initialize(router, 3);
  ensure_gradients(router);
  const index_t T = 64, D = router.inputs();
  const matrix<float> x = test::random_matrix<float>(T, D, 5);
  matrix<float> dx = matrix<float>::Zero(T, D);
  std::vector<std::uint8_t> mask(std::size_t(T), 1);
  mask[7] = 0;
  const std::vector<index_t> groups{0, 40, T};
  routing_context<float> context;
  context.token_mask = mask;
  context.groups = groups;
  typename Router::plan plan;
  typename Router::plan::gradient gradient;
  typename Router::tape tape;
  const auto call = [&](std::uint64_t step, bool training) {
    context.training = training;
    context.random = random_source(9, step);
    router.route(x, context, plan, tape);
    if (!training) return;
    tape.dseen.zero_like(tape.seen);
    gradient.weight.assign(plan.size(), 1);
    gradient.input_scale.assign(plan.size(), 1);
    router.backward(x, context, plan, gradient, tape, dx);
  };
  // Buffers of what is kept and dropped grow to the most that was seen, so the calls counted repeat warm ones.
  for (const bool training : {true, false}) call(1, training);
  for (const bool training : {true, false}) call(1, training);
  const long before = allocations;
  for (const bool training : {true, false}) call(1, training);
  const long after = allocations;
  CHECK(after - before == 0);
  CHECK(plan.size() > 0);
}

}  // namespace

TEST_CASE("capacity: the counter counts", "[alloc]") {
  const long before = allocations;
  const buffer<float> memory(100);
  const std::vector<int> more(10);
  CHECK(more.data() != nullptr);  // seen by somebody, or the compiler may leave the allocation out
  CHECK(allocations - before >= 2);
}

TEST_CASE("capacity: a warm call of every token-choice router allocates nothing", "[alloc]") {
  const capacity_limit limit = capacity_limit::gshard(0.7);
  check_no_allocation(top_k_router<float>(8, 6));
  check_no_allocation(
      top_k_router<float>(8, 6, {.top_k = 2, .weights = weighting::pre, .groups = {.groups = 3, .kept = 2}}));
  using random_router = top_k_router<float, dynamic, dynamic, linear_gate<float>, no_noise<float>, random_capacity>;
  check_no_allocation(random_router(linear_gate<float>(8, 6), {.top_k = 2}, {}, random_capacity(limit),
                                    {.renormalize_after_drop = true}));
  using probability_router =
      top_k_router<float, dynamic, dynamic, linear_gate<float>, no_noise<float>, probability_capacity>;
  check_no_allocation(
      probability_router(linear_gate<float>(8, 6), {}, {}, probability_capacity(limit.shared_by({1, 1, 1, 2, 2, 2}))));
  using priority_router = noisy_top_k_router<float, dynamic, dynamic, linear_gate<float>, batch_priority_capacity>;
  check_no_allocation(priority_router(8, 6, {}, batch_priority_capacity(limit, batch_priority::sum_of_weights)));
  check_no_allocation(learned_noise_top_k_router<float>(8, 6));
  check_no_allocation(switch_router<float>(8, 6));
  check_no_allocation(gshard_router<float>(8, 6, {.straight_through = true}));
  check_no_allocation(
      gshard_router<float>(8, 6, {.training = {.sampled = true}}, position_capacity(capacity_limit::tutel(-1))));
  check_no_allocation(
      sigmoid_router<float>(8, 6, {.top_k = 2, .groups = {3, 2, group_limit::group_score::sum_of_two}}));
}
