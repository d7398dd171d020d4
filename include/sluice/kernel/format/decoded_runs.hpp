/// What storages share whose weights are decoded some steps at a time into a few cache lines, from which the tile takes
/// them one step after the other.
///
/// That is how codes are read that stand for several inputs at once, entries of a codebook say: a step of one input
/// keeps the tile as it is, and the price is a store and a load a vector. A storage derives from decoded_runs<itself> and
/// says
///   block         inputs of a block, a multiple of `run`: where panels may be entered
///   block_bytes   of a panel
///   decode_run(block, r, numbers) const     [run][L] weights of the inputs r run .. (r + 1) run - 1 of a block
///   encode(numbers, first, last, panel) const
/// and is a WeightStorage with activations of float.
#pragma once

#include <sluice/kernel/storage.hpp>

#include <algorithm>
#include <array>
#include <cstddef>

namespace sluice::inline SLUICE_ISA {

template <typename Storage>
struct decoded_runs {
  using scalar = float;
  using activation = float;
  using vector = kernel::simd<float>;
  static constexpr index_t group = 1;
  static constexpr index_t lanes = kernel::simd_width<float>;
  static constexpr index_t run = 32;

  class cursor {
  public:
    const std::byte* address = nullptr;  ///< of the block at hand

    cursor() noexcept {}
    cursor(const Storage* storage, const std::byte* panel) noexcept : address(panel), storage_(storage) {}
    cursor(const cursor& other) noexcept { *this = other; }
    /// What has not been decoded yet is not copied: a cursor that begins is three numbers.
    cursor& operator=(const cursor& other) noexcept {
      address = other.address;
      storage_ = other.storage_;
      run_ = other.run_;
      step_ = other.step_;
      if (step_ < run && this != &other)
        std::copy(other.numbers_ + step_ * lanes, other.numbers_ + run * lanes, numbers_ + step_ * lanes);
      return *this;
    }

    vector next() noexcept {
      if (step_ == run) decode();
      const vector weights = kernel::load(numbers_ + step_ * lanes);
      ++step_;
      return weights;
    }

  private:
    void decode() noexcept {
      if (run_ == Storage::block / run) {
        run_ = 0;
        address += Storage::block_bytes;
      }
      storage_->decode_run(address, run_, numbers_);
      ++run_;
      step_ = 0;
    }

    const Storage* storage_ = nullptr;
    index_t run_ = 0;     ///< the next of the block
    index_t step_ = run;  ///< the next of the run that is decoded
    alignas(64) float numbers_[as_size(run * lanes)];
  };

  static constexpr index_t bytes(index_t steps) noexcept {
    return (steps + Storage::block - 1) / Storage::block * Storage::block_bytes;
  }
  cursor at(const std::byte* address) const noexcept { return {static_cast<const Storage*>(this), address}; }
  static vector multiply_add(activation a, const vector& w, const vector& sum) noexcept {
    return kernel::multiply_add<float>(vector(a), w, sum);
  }
  static activation pack(const float* x, float factor) noexcept { return *x * factor; }

  void decode(const std::byte* panel, index_t first, index_t last, float* numbers) const noexcept {
    alignas(64) std::array<float, as_size(run * lanes)> decoded;
    for (index_t i = first; i < last;) {
      const index_t begin = i % run, end = (std::min)(run, begin + last - i);
      const std::byte* const block = panel + i / Storage::block * Storage::block_bytes;
      static_cast<const Storage*>(this)->decode_run(block, i % Storage::block / run, decoded.data());
      numbers = std::copy(decoded.data() + begin * lanes, decoded.data() + end * lanes, numbers);
      i += end - begin;
    }
  }
};

}  // namespace sluice::inline SLUICE_ISA
