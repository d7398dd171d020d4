/// Executor on threads of its own: the calling thread and threads that wait for work, asleep unless work comes often.
///
///   sluice::thread_pool pool(2);      // the caller and one more; 0 takes the machine's number
///   context.executor = pool;
///
/// parallel_for hands tasks out one by one to whoever is free and returns when all have returned. A thread without work
/// looks for more for some twenty microseconds, then sleeps, and so does a caller that waits for the last tasks:
/// handing out takes well under a microsecond while cores are free, and where other programs take them, nobody waits
/// for a thread that did not get one. The caller works through the tasks itself; only a task that a thread has begun is
/// waited for.
///
///   several callers   one of them has the threads; the calls of others meanwhile, and calls from inside a task, run where they are
///   exceptions        the first one of a body is rethrown by the call, after the tasks that had begun; others may be left out
///   fork              between calls; in the child the threads are not there, and every task runs in the caller
///   destruction       after the last call has returned, by any thread but the pool's own
///
/// Needs the system's thread library (CMake: sluice::threads).
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/exec/first_failure.hpp>
#include <sluice/exec/process.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Tells the processor that this thread only looks for a change.
inline void pause_thread() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
  asm volatile("isb");  // as long as x86's pause; yield does nothing on most
#endif
}

/// Looks until done() or for a time in which a thread that sleeps would hardly have been woken. Whether done() came
/// true.
template <typename Done>
bool spin_until(Done&& done) {
  using clock = std::chrono::steady_clock;
  constexpr int looks = 16;  // at the clock only now and then
  const clock::time_point end = clock::now() + std::chrono::microseconds(20);
  do {
    for (int i = 0; i < looks; ++i) {
      if (done()) return true;
      pause_thread();
    }
  } while (clock::now() < end);
  return done();
}

}  // namespace detail

class thread_pool {
public:
  /// threads counts the caller; 0 takes the machine's number. Throws std::invalid_argument if it is below 0, and
  /// std::system_error if the system refuses a thread.
  explicit thread_pool(int threads = 0) : thread_pool(nothing_started()) {
    if (threads < 0) throw_invalid("thread_pool needs threads >= 0, not ", threads);
    if (threads == 0) threads = static_cast<int>((std::max)(1u, std::thread::hardware_concurrency()));
    workers_.reserve(static_cast<std::size_t>(threads - 1));
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;

  ~thread_pool() {
    const bool threads_are_there = !process_.is_child();
    stopping_.store(true, std::memory_order_relaxed);
    jobs_.fetch_add(1);
    if (threads_are_there) jobs_.notify_all();
    for (std::thread& worker : workers_) threads_are_there ? worker.join() : worker.detach();
  }

  template <typename Body>
  void parallel_for(index_t n, Body&& body) {
    if (n > 1 && !workers_.empty() && !taken_.exchange(true, std::memory_order_acquire))
      hand_out(n, detail::task_ref(body));
    else
      for (index_t task = 0; task < n; ++task) body(task);
  }

  index_t concurrency() const noexcept { return static_cast<index_t>(workers_.size()) + 1; }

private:
  struct nothing_started {};
  explicit thread_pool(nothing_started) {}  // what throws after this one has returned finds an object to destroy

  void hand_out(index_t n, const detail::task_ref& body) {
    body_ = &body;
    tasks_ = n;
    next_.store(0, std::memory_order_relaxed);
    door_.store(open, std::memory_order_release);
    jobs_.fetch_add(1);  // in one order with asleep_: a thread sees the job or is seen asleep
    if (const index_t asleep = asleep_.load(); asleep > 0) wake((std::min)(n - 1, asleep));
    take_tasks(body, n);
    // Nobody enters any more. Whoever is inside has begun a task.
    if (door_.fetch_and(~open, std::memory_order_acquire) != open) wait_for_others();
    std::exception_ptr failure = failure_.take();
    taken_.store(false, std::memory_order_release);
    detail::first_failure::rethrow(std::move(failure));
  }

  void take_tasks(const detail::task_ref& body, index_t n) noexcept {
    for (;;) {
      const index_t task = next_.fetch_add(1, std::memory_order_relaxed);
      if (task >= n || failure_.failed()) return;
      failure_.guard([&] { body(task); });
    }
  }

  void wait_for_others() {
    const auto left = [&] { return door_.load(std::memory_order_acquire) == 0; };
    if (detail::spin_until(left)) return;
    for (std::uint32_t inside; (inside = door_.load(std::memory_order_acquire)) != 0;)
      door_.wait(inside, std::memory_order_acquire);
  }

  /// Threads that are woken count as awake from now on: one that gets no core is not woken again by every call.
  void wake(index_t count) {
    asleep_.fetch_sub(count);
    if (count + 1 >= concurrency()) return jobs_.notify_all();
    for (index_t i = 0; i < count; ++i) jobs_.notify_one();
  }

  void work() {
    for (std::uint32_t seen = 0;;) {
      seen = job_after(seen);
      if (stopping_.load(std::memory_order_relaxed)) return;
      if (!enter()) continue;
      take_tasks(*body_, tasks_);
      if (door_.fetch_sub(1, std::memory_order_release) == 1) door_.notify_one();
    }
  }

  std::uint32_t job_after(std::uint32_t seen) {
    if (!detail::spin_until([&] { return jobs_.load(std::memory_order_acquire) != seen; })) {
      asleep_.fetch_add(1);
      jobs_.wait(seen);  // returns at once if there has been one meanwhile; then one call wakes nobody
    }
    return jobs_.load(std::memory_order_acquire);
  }

  bool enter() {
    std::uint32_t door = door_.load(std::memory_order_relaxed);
    while ((door & open) != 0)
      if (door_.compare_exchange_weak(door, door + 1, std::memory_order_acquire, std::memory_order_relaxed))
        return true;
    return false;
  }

  /// In door_: whether threads may enter the job. The other bits count those inside.
  static constexpr std::uint32_t open = std::uint32_t(1) << 31;

  // On cache lines of their own: what all threads count on while they work, and what they look at while they wait.
  alignas(64) std::atomic<index_t> next_{0};
  alignas(64) std::atomic<std::uint32_t> door_{0};
  alignas(64) std::atomic<std::uint32_t> jobs_{0};
  alignas(64) std::atomic<index_t> asleep_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<bool> taken_{false};
  const detail::task_ref* body_ = nullptr;
  index_t tasks_ = 0;
  detail::first_failure failure_;
  detail::process process_;
  std::vector<std::thread> workers_;
};

static_assert(Executor<thread_pool>);

}  // namespace sluice::inline SLUICE_ISA
