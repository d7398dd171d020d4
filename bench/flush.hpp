/// Puts the caches into the state that a layer meets in a deep model: other layers' weights have gone through them since it ran
/// last, and its tokens were written a moment ago.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/exec/thread_pool.hpp>

#include <benchmark/benchmark.h>

#include <cstdint>
#include <memory>

#include "machine.hpp"
#include "workload.hpp"

namespace bench {

class cache_flush {
public:
  cache_flush(std::int64_t l3_bytes, int threads)
      : threads_(threads), pool_(std::make_unique<sluice::thread_pool>(threads)), part_(3 * l3_bytes / 4 / threads / 1024 * 1024), numbers_(part_ * threads, 1.0f) {}

  void operator()(const token_rows& x) {
    pool_->parallel_for(threads_, [&](index_t thread) { detail::read<1>(numbers_.data() + thread * part_, part_); });
    float sum = x.sum();
    benchmark::DoNotOptimize(sum);
  }

private:
  int threads_;
  std::unique_ptr<sluice::thread_pool> pool_;
  index_t part_;
  sluice::buffer<float> numbers_;
};

}  // namespace bench
