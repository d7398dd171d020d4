/// What executors share: the exception of a task is kept until the other threads are done, then thrown where
/// parallel_for was called.
///
/// Of several exceptions the first to arrive is kept. Without exceptions (-fno-exceptions) a task is called as it is.
#pragma once

#include <sluice/core/isa.hpp>

#include <atomic>
#include <exception>
#include <utility>

namespace sluice::inline SLUICE_ISA::detail {

class first_failure {
public:
  /// Calls f from any thread; whether it returned.
  template <typename F>
  bool guard(F&& f) noexcept {
#if defined(__cpp_exceptions)
    try {
      f();
    } catch (...) {
      if (!failed_.exchange(true, std::memory_order_relaxed)) failure_ = std::current_exception();
      return false;
    }
#else
    f();
#endif
    return true;
  }

  bool failed() const noexcept { return failed_.load(std::memory_order_relaxed); }

  /// The exception, if there was one, when no thread is in guard any more. Ready for the next call.
  std::exception_ptr take() noexcept {
    failed_.store(false, std::memory_order_relaxed);
    return std::exchange(failure_, nullptr);
  }

  static void rethrow([[maybe_unused]] std::exception_ptr failure) {
#if defined(__cpp_exceptions)
    if (failure) std::rethrow_exception(std::move(failure));
#endif
  }

private:
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;
};

}  // namespace sluice::inline SLUICE_ISA::detail
