// A mixture of experts inside an audio callback: 64 frames at a time, no heap, no exceptions, no run-time type information.
// Prints how long the callbacks took; their number may be given. A test builds it with -fno-exceptions -fno-rtti.
#include <sluice/kernel/flush_to_zero.hpp>
#include <sluice/layer/fixed.hpp>
#include <sluice/train/initialize.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <vector>

namespace {
std::atomic<long> allocations{0};
}
void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  std::abort();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

constexpr sluice::index_t frames = 64, features = 16, hidden = 32, experts = 8;

// begin callback
// 16 features a frame; each frame goes to 2 of 8 experts. All numbers lie in these two objects.
using mixture = sluice::fixed_moe_layer<float, features, hidden, experts, 2, frames>;
mixture layer;
mixture::workspace workspace;

void callback(std::span<float> block) noexcept {
  const sluice::flush_to_zero quick;
  if (!layer.forward(block, block, workspace)) std::fill(block.begin(), block.end(), 0.0f);
}
// end callback

}  // namespace

int main(int argc, char** argv) {
  const int wanted = argc > 1 ? std::atoi(argv[1]) : 20000;
  if (wanted < 1) {
    std::fprintf(stderr, "usage: real_time [CALLBACKS]\n");
    return 2;
  }
  const auto callbacks = static_cast<std::size_t>(wanted);
  std::vector<double> microseconds(callbacks);
  std::vector<float> block(frames * features);

  // Where there is time: a layer that was trained, or loaded, hands its weights over.
  sluice::moe_layer trained{sluice::top_k_router<float>{features, experts, {.top_k = 2}},
                            sluice::expert_bank<sluice::swiglu<float>>{experts, features, hidden}};
  sluice::initialize(trained, 7);
  layer.assign(trained);

  const long before = allocations;
  double energy = 0;
  for (std::size_t c = 0; c < callbacks; ++c) {
    const double time = static_cast<double>(c), loudness = std::exp(-0.03 * time);  // fades out, into numbers that are too small for a full mantissa
    for (std::size_t i = 0; i < block.size(); ++i)
      block[i] = static_cast<float>(loudness * std::sin(0.013 * (64 * time + static_cast<double>(i) * 4.7)));
    const auto begin = std::chrono::steady_clock::now();
    callback(block);
    microseconds[c] =
        std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
    for (const float v : block) energy += static_cast<double>(v) * static_cast<double>(v);
  }
  const long allocated = allocations - before;

  std::sort(microseconds.begin(), microseconds.end());
  std::printf("%zu callbacks of %d frames, %d features, 2 of %d experts; %.0f KB in all, %ld allocations\n", callbacks,
              int(frames), int(features), int(experts),
              static_cast<double>(sizeof layer + sizeof workspace) / 1024, allocated);
  std::printf("           median    p99.9    worst    of 1333.3 at 48 kHz\n");
  std::printf("us       %8.1f %8.1f %8.1f\n", microseconds[callbacks / 2], microseconds[(callbacks - 1) * 999 / 1000],
              microseconds.back());
  return allocated == 0 && energy > 0 && std::isfinite(energy) ? 0 : 1;
}
