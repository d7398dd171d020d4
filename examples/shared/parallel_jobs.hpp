/// Jobs of a program, spread over some threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace shared {

/// Calls job(i) for every i < count on `threads` threads, the calling one among them, and returns when all have. After an
/// exception no further job begins; when those that run have ended it is thrown, the last one of several.
template <typename Job>
void run_jobs(std::size_t count, int threads, Job&& job) {
  std::atomic<std::size_t> next = 0;
  std::mutex failing;
  std::exception_ptr failure;
  const auto work = [&] {
    for (std::size_t i = next++; i < count; i = next++) try {
        job(i);
      } catch (...) {
        const std::scoped_lock lock(failing);
        failure = std::current_exception();
        next = count;
      }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(work);
  work();
  for (std::thread& t : others) t.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace shared
