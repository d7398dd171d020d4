// What handing out tasks costs: to threads that find a core, and to threads that do not because other programs have them all.
#include <sluice/exec/openmp.hpp>
#include <sluice/exec/serial.hpp>
#include <sluice/exec/thread_pool.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "session.hpp"
#include "team.hpp"

namespace bench {

namespace {

/// Threads that compute without end, one for every core: what a machine looks like that others use.
class busy_machine {
public:
  busy_machine() {
    for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i)
      threads_.emplace_back([this] { while (!stop_.load(std::memory_order_relaxed)) benchmark::DoNotOptimize(this); });
  }
  ~busy_machine() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
  }

private:
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

/// About five microseconds.
void one_task() {
  float x = 1;
  for (int i = 0; i < 4000; ++i) benchmark::DoNotOptimize(x = x * 0.5f + 1);
}

constexpr index_t tasks = 32;

template <typename E>
contestant calls(const std::string& name, E& executor, int count, index_t n, void (*task)()) {
  return {name, [](std::int64_t) {},
          [&executor, count, n, task](std::int64_t) {
            for (int i = 0; i < count; ++i) executor.parallel_for(n, [task](index_t) { task(); });
          }};
}

template <typename E>
void measure(session& s, const std::string& name, E& executor) {
  constexpr int many = 20;  // an empty call is too short to be timed alone
  executor_time t{name};
  // One executor at a time: OpenMP's threads spin for a while after a call, and would take the others' cores.
  t.empty = s.run.race(name + " empty", {calls(name, executor, many, s.asked.threads, [] {})}).front().fastest / many;
  t.free = s.run.race(name + " free", {calls(name, executor, 1, tasks, one_task)}).front().fastest;
  const busy_machine others;
  t.busy = s.run.race(name + " busy", {calls(name, executor, 1, tasks, one_task)}).front().median;
  s.found.executors.push_back(t);
}

}  // namespace

void executor_cases(session& s) {
  if (!s.wants("executors")) return;
  sluice::serial_executor serial;
  measure(s, "serial", serial);
  sluice::thread_pool pool(s.asked.threads);
  measure(s, "thread_pool", pool);
#if defined(_OPENMP)
  sluice::openmp_executor openmp(s.asked.threads);
  measure(s, "openmp", openmp);
#endif
}

}  // namespace bench
