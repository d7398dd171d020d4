// The arithmetic of the roofline, on numbers worked out by hand.
#include "roofline.hpp"
#include "record.hpp"
#include "support.hpp"

using namespace bench;

namespace {

const limits machine{2, 100, 400, 200, 20};  // GFLOP/s, then GB/s of L2, L3 and memory

}  // namespace

TEST_CASE("roofline: work of a layer", "[bench]") {
  const shape s{"", "", 10, 20, 4, 2};
  CHECK(s.expert_size() == 600);
  CHECK(s.size() == 2400);
  const work w = layer_work(s, 6, 3, 4);
  CHECK(w.flops == 6 * 10 * 20 * 6);
  CHECK(w.bytes == 600 * 3 * 4);
  CHECK(training_work(w).flops == 3 * w.flops);
}

TEST_CASE("roofline: the slower of arithmetic and reading", "[bench]") {
  const bound arithmetic = roofline({1e11, 1e9}, machine);
  CHECK(arithmetic.seconds == Approx(1));
  CHECK_FALSE(arithmetic.by_memory);
  const bound memory = roofline({1e9, 4e10}, machine);
  CHECK(memory.seconds == Approx(2));
  CHECK(memory.by_memory);
  CHECK(roofline({1e9, 4e10}, machine, memory_level::l3).seconds == Approx(0.2));
  CHECK(roofline({1e9, 4e10}, machine, memory_level::l2).seconds == Approx(0.1));
}

TEST_CASE("roofline: where repeated weights lie", "[bench]") {
  const cache_sizes caches{1 << 20, 32 << 20};
  CHECK(resident_level(500'000, caches, 1) == memory_level::l2);
  CHECK(resident_level(1'500'000, caches, 1) == memory_level::l3);
  CHECK(resident_level(1'500'000, caches, 2) == memory_level::l2);
  CHECK(resident_level(30e6, caches, 2) == memory_level::memory);
}

TEST_CASE("roofline: what a record says", "[bench]") {
  record r;
  r.done = {2e9, 1e9};
  r.median = 0.5;
  r.fastest = 0.4;
  r.least = roofline(r.done, machine);
  CHECK(r.gflops() == Approx(4));
  CHECK(r.gbytes_per_s() == Approx(2));
  CHECK(r.roofline_fraction() == Approx(0.1));
  CHECK(r.spread() == Approx(1.25));
}
