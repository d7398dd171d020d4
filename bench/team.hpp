/// Threads that do the same work at the same time: how limits of the whole machine are measured.
#pragma once

#include <algorithm>
#include <barrier>
#include <chrono>
#include <limits>
#include <thread>
#include <vector>

namespace bench {

using steady_clock = std::chrono::steady_clock;

inline double seconds_between(steady_clock::time_point begin, steady_clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

/// Calls prepare(thread) once and then work(thread) `rounds` times on each of `threads` threads. All threads begin a round
/// together and it ends with the slowest of them. Returns the seconds of the fastest round: a limit is what the machine can
/// do when nothing disturbs it.
template <typename Prepare, typename Work>
double fastest_round(int threads, int rounds, Prepare&& prepare, Work&& work) {
  std::barrier meet(threads);
  double fastest = std::numeric_limits<double>::infinity();
  const auto member = [&](int thread) {
    prepare(thread);
    for (int round = 0; round < rounds; ++round) {
      meet.arrive_and_wait();
      const auto begin = steady_clock::now();
      work(thread);
      meet.arrive_and_wait();
      if (thread == 0) fastest = std::min(fastest, seconds_between(begin, steady_clock::now()));
    }
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(member, thread);
  member(0);
  for (std::thread& other : others) other.join();
  return fastest;
}

}  // namespace bench
