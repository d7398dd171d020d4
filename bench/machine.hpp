/// What this machine can do at best, measured in this process: arithmetic, and reading from each level of memory.
///
///   peak       fused multiply-adds on registers only, counted as two operations each
///   bandwidth  reading and summing a buffer that lies in L2, in L3, or in neither
///
/// The compiler could spoil this by leaving work out, so inputs are hidden from it and every result is handed to
/// DoNotOptimize. The caches could spoil it by holding what should come from memory, so that buffer is many times their size,
/// and it is written first, since pages that were never written are all one page of zeros.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/kernel/simd.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "caches.hpp"
#include "team.hpp"

namespace bench {

using sluice::index_t;

struct limits {
  int threads = 1;
  double gflops = 0;
  double l2 = 0;  ///< GB/s, as the next two
  double l3 = 0;
  double memory = 0;

  /// Keeps the better of two measurements.
  void merge(const limits& other) {
    gflops = std::max(gflops, other.gflops);
    l2 = std::max(l2, other.l2);
    l3 = std::max(l3, other.l3);
    memory = std::max(memory, other.memory);
  }
};

namespace detail {

using vector = sluice::kernel::simd<float>;

/// Two units with a latency of four or five cycles are kept busy by ten independent sums. 24 of them fit into 32 registers
/// beside the factor; where there are 16 registers, 14 do. More would go through memory and measure that.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int accumulators = 24;
#else
inline constexpr int accumulators = 14;
#endif

/// Hands the sum of all vectors to DoNotOptimize. As in every loop over the array here, a constant index is what lets the compiler
/// keep it in registers.
template <std::size_t Size>
void use(const std::array<vector, Size>& sums) {
  vector total = sums[0];
  SLUICE_UNROLL
  for (std::size_t i = 1; i < Size; ++i) total += sums[i];
  float number = sluice::kernel::sum_lanes(total);
  benchmark::DoNotOptimize(number);
}

/// s = s * f + f with f = 1/2 tends to 1: no denormals, no infinities.
inline void multiply_add(index_t rounds) {
  float half = 0.5f;
  benchmark::DoNotOptimize(half);
  vector factor(half);
  sluice::kernel::keep_in_register(factor);
  std::array<vector, accumulators> sum;
  SLUICE_UNROLL
  for (std::size_t i = 0; i < accumulators; ++i) sum[i] = vector(half * static_cast<float>(i));
  for (index_t round = 0; round < rounds; ++round) {
    SLUICE_UNROLL
    for (std::size_t i = 0; i < accumulators; ++i) {
      sum[i] = xsimd::fma(sum[i], factor, factor);
      sluice::kernel::keep_in_register(sum[i]);
    }
  }
  use(sum);
}

/// Asks for the cache line at this address; nothing happens at addresses that are not there.
inline void prefetch([[maybe_unused]] const float* at) {
#if defined(__GNUC__)
  __builtin_prefetch(at);
#endif
}

/// Sums `size` numbers, read as `Streams` sequential streams side by side; `Ahead` numbers ahead are asked for, if any. Some
/// machines do best with one stream and their own prefetching, some with four and ours. `size` is a multiple of 32 vectors.
template <int Streams, index_t Ahead = 0>
void read(const float* numbers, index_t size) {
  constexpr index_t width = sluice::kernel::simd_width<float>;
  constexpr index_t step = 8 / Streams;  // vectors of a stream a round: eight independent sums in all
  const index_t stream = size / Streams;
  std::array<vector, 8> sum;
  SLUICE_UNROLL
  for (std::size_t j = 0; j < 8; ++j) sum[j] = vector(0.0f);
  for (index_t i = 0; i < stream; i += step * width) {
    SLUICE_UNROLL
    for (index_t j = 0; j < 8; ++j) {
      const float* from = numbers + (j / step) * stream + i + (j % step) * width;
      if constexpr (Ahead > 0) prefetch(from + Ahead);
      sum[static_cast<std::size_t>(j)] += sluice::kernel::load(from);
    }
  }
  use(sum);
}

}  // namespace detail

/// All threads together.
inline void measure_peak(limits& found, bool brief) {
  const index_t rounds = (brief ? 1'000'000 : 16'000'000) / detail::accumulators;
  const auto work = [&](int) { detail::multiply_add(rounds); };
  const double seconds = fastest_round(found.threads, brief ? 3 : 30, work, work);
  const auto a_round = static_cast<double>(2 * rounds * detail::accumulators * sluice::kernel::simd_width<float>);
  found.gflops = a_round * found.threads / seconds * 1e-9;
}

/// GB/s of all threads together, each with its part of `bytes` and reading it `passes` times a round.
inline double measure_bandwidth(int threads, std::int64_t bytes, int passes, int rounds) {
  const index_t unit = 32 * sluice::kernel::simd_width<float>;
  const index_t size = std::max<index_t>(unit, bytes / 4 / threads / unit * unit);
  std::vector<sluice::buffer<float>> parts(static_cast<std::size_t>(threads));
  const auto part = [&](int thread) -> auto& { return parts[static_cast<std::size_t>(thread)]; };
  const auto write = [&](int thread) { part(thread).assign(size, 1.0f); };
  const auto keep = [](int) {};
  const auto one_stream = [&](int thread) {
    for (int pass = 0; pass < passes; ++pass) detail::read<1>(part(thread).data(), size);
  };
  const auto four_streams = [&](int thread) {
    for (int pass = 0; pass < passes; ++pass) detail::read<4, 256>(part(thread).data(), size);
  };
  double seconds = fastest_round(threads, rounds, write, one_stream);
  seconds = std::min(seconds, fastest_round(threads, rounds, keep, four_streams));
  return 4.0 * static_cast<double>(size) * threads * passes / seconds * 1e-9;
}

/// All limits for this many threads. `brief` is for tests of the report: quick, and too low.
inline limits measure_limits(int threads, const cache_sizes& caches, bool brief) {
  const std::int64_t memory = brief ? 64 << 20 : std::max<std::int64_t>(256 << 20, 8 * caches.l3);
  const auto passes = [&](std::int64_t bytes) {
    return static_cast<int>(std::max<std::int64_t>(1, (brief ? 16 << 20 : 256 << 20) / bytes));
  };
  limits found;
  found.threads = threads;
  measure_peak(found, brief);
  const std::int64_t in_l2 = caches.l2 / 2 * threads;
  found.l2 = measure_bandwidth(threads, in_l2, passes(in_l2), brief ? 2 : 10);
  const std::int64_t in_l3 = std::max(caches.l3 / 2, 2 * caches.l2 * threads);
  found.l3 = measure_bandwidth(threads, in_l3, passes(in_l3), brief ? 2 : 10);
  found.memory = measure_bandwidth(threads, memory, 1, brief ? 2 : 16);
  return found;
}

}  // namespace bench
