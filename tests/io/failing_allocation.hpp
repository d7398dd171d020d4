/// Makes the n-th allocation of this thread fail. failing_allocation.cpp replaces operator new for the executable.
#pragma once

#include <new>

namespace sluice::test {

/// Allocations of this thread until one fails; negative: none fails.
extern thread_local long allocations_left;

/// Calls f with the first, second, third ... allocation failing, until it succeeds; after_failure() is called after each
/// failure. Returns the number of failures.
template <typename F, typename AfterFailure>
long fail_each_allocation(F f, AfterFailure after_failure) {
  for (long n = 0;; ++n) {
    allocations_left = n;
    try {
      f();
      allocations_left = -1;
      return n;
    } catch (const std::bad_alloc&) {
      allocations_left = -1;
      after_failure();
    } catch (...) {
      allocations_left = -1;
      throw;
    }
  }
}

}  // namespace sluice::test
