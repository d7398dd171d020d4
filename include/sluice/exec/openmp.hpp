/// Executor on OpenMP: one parallel region a call. Needs -fopenmp (CMake: sluice::openmp); without it, it is serial.
///
/// OpenMP's threads spin while they wait. On a machine that other programs keep busy that costs far more than it gains:
/// take thread_pool, or set OMP_WAIT_POLICY=passive in the environment.
///
///   several callers   each has threads of its own; calls from inside a task run where they are (OpenMP's default)
///   exceptions        the first one of a body is rethrown by the call; tasks that had not begun are left out
///   fork              libgomp's threads do not live on in a child process and it would wait for them: in a child of a process
///                     that has used this executor every task runs in the caller. Regions of your own are not guarded.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/exec/first_failure.hpp>
#include <sluice/exec/process.hpp>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace sluice::inline SLUICE_ISA {

/// Enabled: whether -fopenmp is on. A type of its own either way, so that sources with and without it can share a
/// program.
template <bool Enabled>
class basic_openmp_executor {
public:
  /// threads = 0 takes OpenMP's own number. Throws std::invalid_argument if it is below 0.
  explicit basic_openmp_executor(int threads = 0) : threads_(threads) {
    if (threads < 0) throw_invalid("openmp_executor needs threads >= 0, not ", threads);
  }

  template <typename Body>
  void parallel_for(index_t n, Body&& body) {
    if (!Enabled || threads_are_lost()) {
      for (index_t task = 0; task < n; ++task) body(task);
      return;
    }
    detail::first_failure failure;  // an exception must not leave a parallel region
    [[maybe_unused]] const int threads = static_cast<int>(concurrency());
#if defined(_OPENMP)
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
#endif
    for (index_t task = 0; task < n; ++task)
      if (!failure.failed()) failure.guard([&] { body(task); });
    detail::first_failure::rethrow(failure.take());
  }

  index_t concurrency() const noexcept {
#if defined(_OPENMP)
    return threads_ > 0 ? threads_ : omp_get_max_threads();
#else
    return 1;
#endif
  }

private:
  static bool threads_are_lost() {
    static const detail::process first_used;
    return first_used.is_child();
  }

  int threads_;
};

#if defined(_OPENMP)
using openmp_executor = basic_openmp_executor<true>;
#else
using openmp_executor = basic_openmp_executor<false>;
#endif

static_assert(Executor<openmp_executor>);

}  // namespace sluice::inline SLUICE_ISA
