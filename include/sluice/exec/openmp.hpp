/// Executor on OpenMP: one parallel region a call. Needs -fopenmp (CMake: OpenMP::OpenMP_CXX); without it, it is serial.
///
/// OpenMP's threads spin while they wait. On a machine that other programs keep busy that costs more than it gains: set
/// OMP_WAIT_POLICY=passive in the environment, or take tbb_executor.
#pragma once

#include <sluice/core/executor.hpp>

#include <exception>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace sluice::inline SLUICE_ISA {

class openmp_executor {
public:
  /// threads = 0 takes OpenMP's own number.
  explicit openmp_executor(int threads = 0) : threads_(threads) {}

  template <typename Body>
  void parallel_for(index_t n, Body&& body) {
#if defined(_OPENMP)
    std::exception_ptr failure;  // an exception must not leave a parallel region; the first one is passed on after it
    const auto guarded = [&](index_t task) noexcept {
#if defined(__cpp_exceptions)
      try {
        body(task);
      } catch (...) {
#pragma omp critical(sluice_openmp_executor)
        if (!failure) failure = std::current_exception();
      }
#else
      body(task);
#endif
    };
    const int threads = static_cast<int>(concurrency());
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (index_t task = 0; task < n; ++task) guarded(task);
#if defined(__cpp_exceptions)
    if (failure) std::rethrow_exception(failure);
#endif
#else
    for (index_t task = 0; task < n; ++task) body(task);
#endif
  }

  index_t concurrency() const noexcept {
#if defined(_OPENMP)
    return threads_ > 0 ? threads_ : omp_get_max_threads();
#else
    return 1;
#endif
  }

private:
  int threads_;
};

static_assert(Executor<openmp_executor>);

}  // namespace sluice::inline SLUICE_ISA
