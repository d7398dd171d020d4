/// The roofline of a case: the time that this machine needs at least, whatever the program.
///
///   seconds = max(FLOP / peak, bytes / bandwidth),  both for the same number of threads
///   FLOP    6 D H an assignment (three products of D x H, a multiply-add counts as two); routing is not counted
///   bytes   weights of the experts that get a token, read once; activations are not counted
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "caches.hpp"
#include "machine.hpp"
#include "shapes.hpp"

namespace bench {

struct work {
  double flops = 0;
  double bytes = 0;

  work operator*(double times) const { return {flops * times, bytes * times}; }
};

/// `touched` experts are read, `assignments` tokens run through one of them.
inline work layer_work(const shape& s, index_t assignments, double touched, double bytes_per_weight) {
  return {2.0 * static_cast<double>(s.expert_size() * assignments),
          static_cast<double>(s.expert_size()) * touched * bytes_per_weight};
}

/// Forward and backward: three times the arithmetic; weights are read twice, their gradients read and written.
inline work training_work(const work& forward) { return {3 * forward.flops, 4 * forward.bytes}; }

enum class memory_level { l2, l3, memory };

/// The level that the weights of repeated calls on one batch come from.
inline memory_level resident_level(double bytes, const cache_sizes& caches, int threads) {
  if (bytes <= 0.75 * static_cast<double>(caches.l2) * threads) return memory_level::l2;
  if (bytes <= 0.6 * static_cast<double>(caches.l3)) return memory_level::l3;
  return memory_level::memory;
}

inline std::string_view name_of(memory_level level) {
  return level == memory_level::l2 ? "L2" : level == memory_level::l3 ? "L3" : "memory";
}

inline double bandwidth(const limits& machine, memory_level level) {
  return level == memory_level::l2 ? machine.l2 : level == memory_level::l3 ? machine.l3 : machine.memory;
}

struct bound {
  double seconds = 0;
  bool by_memory = false;
};

inline bound roofline(const work& w, const limits& machine, memory_level level = memory_level::memory) {
  const double arithmetic = w.flops / (machine.gflops * 1e9);
  const double reading = w.bytes / (bandwidth(machine, level) * 1e9);
  return {std::max(arithmetic, reading), reading > arithmetic};
}

}  // namespace bench
