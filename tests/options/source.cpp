// Compiled with several sets of options and linked into one program.
#include <sluice/core/error.hpp>
#include <sluice/exec/openmp.hpp>
#include <sluice/exec/thread_pool.hpp>

#include <mutex>
#include <set>

#include "answers.hpp"

namespace {

template <typename E>
int threads_of(E executor) {
  std::mutex mutex;
  std::set<std::thread::id> threads;
  std::atomic<int> begun{0};
  executor.parallel_for(2, [&](sluice::index_t) {
    ++begun;
    // A second thread comes if there is one, however busy the machine.
    for (int i = 0; i < 10000 && begun < executor.concurrency(); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const std::lock_guard lock(mutex);
    threads.insert(std::this_thread::get_id());
  });
  return static_cast<int>(threads.size());
}

}  // namespace

answers ENTRY() {
  answers a;
  a.openmp_concurrency = static_cast<int>(sluice::openmp_executor(2).concurrency());
  a.openmp_threads = threads_of(sluice::openmp_executor(2));
  sluice::thread_pool pool(2);
  std::atomic<int> runs{0};
  pool.parallel_for(100, [&](sluice::index_t) { ++runs; });
  a.pool_runs = runs;
  a.name = SLUICE_ISA_NAME;
#if defined(__cpp_exceptions)
  try {
    pool.parallel_for(10, [](sluice::index_t task) { sluice::throw_invalid("task ", task); });
  } catch (const std::invalid_argument&) {
    a.throws = true;
  }
#endif
  return a;
}
