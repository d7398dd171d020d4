/// How work is spread over threads: an executor runs body(0) ... body(n-1), in any order, on any threads.
///
/// sluice hands out tasks that write to places of their own and sums in a fixed order, so results are equal bit for bit
/// for every executor and thread count. A stage says how much it has to do; where waking a thread would cost more, it
/// stays on the caller, whatever the executor.
/// A thread pool of your own is an executor if it has `parallel_for(index_t n, body)` that returns when all n calls
/// have returned; see examples/own_executor.cpp. If it also has `index_t concurrency() const`, work is cut to that
/// number of threads; `index_t smallest_work() const` says what is worth handing to it.
#pragma once

#include <sluice/core/function_ref.hpp>
#include <sluice/core/types.hpp>

#include <concepts>
#include <memory>
#include <type_traits>

namespace sluice::inline SLUICE_ISA {

namespace detail {

using task_ref = function_ref<void(index_t)>;
using range_ref = function_ref<void(index_t begin, index_t end)>;

}  // namespace detail

template <typename E>
concept Executor = requires(E& executor, index_t n, detail::task_ref body) {
  executor.parallel_for(n, body);
};

/// Runs everything in the calling thread. The default.
struct serial_executor {
  template <typename Body>
  void parallel_for(index_t n, Body&& body) {
    for (index_t task = 0; task < n; ++task) body(task);
  }
};
static_assert(Executor<serial_executor>);

/// Refers to any executor; what a call context carries. It does not own the executor.
class executor_ref {
public:
  executor_ref() = default;  // serial

  template <typename E>
    requires(!std::same_as<std::remove_cvref_t<E>, executor_ref> && Executor<E>)
  executor_ref(E& executor)
      : object_(std::addressof(executor)),
        run_([](void* object, index_t n, detail::task_ref body) { static_cast<E*>(object)->parallel_for(n, body); }),
        concurrency_([](const void* object) { return concurrency_of(*static_cast<const E*>(object)); }),
        smallest_work_(smallest_work_of(executor)) {}

  /// An executor that nobody keeps would be gone before it is used.
  template <typename E>
    requires(!std::is_lvalue_reference_v<E> && !std::same_as<std::remove_cvref_t<E>, executor_ref> && Executor<E>)
  executor_ref(E&&) {
    static_assert(sizeof(E) == 0,
                  "sluice: an executor is referred to and not kept: give it a name that outlives its use");
  }

  /// How many tasks run at the same time, about. Tasks are cut to keep that many busy; results do not depend on it.
  index_t concurrency() const { return run_ == nullptr ? 1 : concurrency_(object_); }

  /// Work is counted in weights that are read from memory and multiplied, or what takes as long: a number copied is 1,
  /// one multiplied out of a cache a quarter, an exponential 16. For less than this, some 30 microseconds, no thread is
  /// woken unless the executor says otherwise.
  static constexpr index_t smallest_work = 1 << 16;

  /// This executor, or the caller alone where the work of all tasks is not worth threads.
  executor_ref for_work(index_t work) const { return work < smallest_work_ ? executor_ref() : *this; }

  // Bodies come as references, so that this is compiled once: tasks are long enough for a call.

  /// Runs body(0) ... body(n-1), of which nothing more is known.
  void parallel_for(index_t n, detail::task_ref body) const {
    if (run_ == nullptr || n <= 1)
      for (index_t task = 0; task < n; ++task) body(task);
    else
      run_(object_, n, body);
  }

  /// body(begin, end) over [0, n) in blocks of at most `block`; `work` is that of one of the n. Block borders do not
  /// depend on the thread count.
  void parallel_blocks(index_t n, index_t block, index_t work, detail::range_ref body) const {
    for_work(n * work).parallel_for((n + block - 1) / block, [&](index_t task) {
      const index_t begin = task * block;
      body(begin, begin + block < n ? begin + block : n);
    });
  }

  /// body(i) for every i in [0, n), 32 of them a task; each writes to places of its own, and `work` is that of one.
  template <typename Body>
  void parallel_each(index_t n, index_t work, Body&& body) const {
    parallel_blocks(n, 32, work, [&](index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i) body(i);
    });
  }

private:
  template <typename E>
  static index_t concurrency_of(const E& executor) {
    if constexpr (requires { { executor.concurrency() } -> std::convertible_to<index_t>; })
      return executor.concurrency();
    else
      return 16;  // unknown: enough tasks for a large desktop
  }
  template <typename E>
  static index_t smallest_work_of(const E& executor) {
    if constexpr (requires { { executor.smallest_work() } -> std::convertible_to<index_t>; })
      return executor.smallest_work();
    else
      return smallest_work;
  }

  void* object_ = nullptr;
  void (*run_)(void*, index_t, detail::task_ref) = nullptr;
  index_t (*concurrency_)(const void*) = nullptr;
  index_t smallest_work_ = smallest_work;
};

}  // namespace sluice::inline SLUICE_ISA
