/// What storages share whose weights are decoded some inputs at a time, as codes are that stand for several of them.
///
/// A storage derives from decoded_runs<itself>, with 32 or 16 inputs a run, and says, beside encode
/// (kernel/storage.hpp),
///   block, block_bytes                       inputs of a block, whole runs; bytes of it in a panel
///   decode_run(block, r, numbers) const      [Run][L] weights of run r of a block
/// Kernels ask for parts that begin at whole runs, which are decoded where they are wanted.
#pragma once

#include <sluice/kernel/storage.hpp>

#include <algorithm>
#include <array>
#include <cstddef>

namespace sluice::inline SLUICE_ISA {

template <typename Storage, index_t Run = 32>
struct decoded_runs {
  using scalar = float;
  static constexpr index_t lanes = kernel::simd_width<float>;
  static constexpr index_t run = Run;

  static constexpr index_t bytes(index_t inputs) noexcept {
    return (inputs + Storage::block - 1) / Storage::block * Storage::block_bytes;
  }

  void decode(const std::byte* panel, index_t first, index_t last, float* numbers) const noexcept {
    alignas(64) std::array<float, as_size(run * lanes)> part;
    for (index_t i = first; i < last;) {
      const index_t begin = i % run, end = (std::min)(run, begin + last - i);
      const bool is_whole = end - begin == run;
      const std::byte* const block = panel + i / Storage::block * Storage::block_bytes;
      static_cast<const Storage*>(this)->decode_run(block, i % Storage::block / run, is_whole ? numbers : part.data());
      if (!is_whole) std::copy(part.data() + begin * lanes, part.data() + end * lanes, numbers);
      numbers += (end - begin) * lanes;
      i += end - begin;
    }
  }
};

}  // namespace sluice::inline SLUICE_ISA
