/// Codebooks as a storage keeps them (kernel/format/codebook_storage.hpp): one table of floats for all stages and
/// regions, in which elements, indices of all stages in one number, find their entries.
///
/// Stage m of region r begins at entries[r region_size + at[m]] and has 2^bits[m] entries, those that no code has being
/// zero: whatever the bits of an element, its entries are in the table.
#pragma once

#include <sluice/core/checked_size.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/format/vector_codes.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <limits>

namespace sluice::inline SLUICE_ISA::detail {

struct element_codebooks {
  static constexpr index_t most_stages = 4;
  index_t stages = 0;
  index_t regions = 1;
  index_t region_size = 0;
  std::array<int, as_size(most_stages)> bits{};  ///< 0 where there is no stage
  std::array<index_t, as_size(most_stages)> at{};
  std::vector<float> entries;
  float largest = 0;  ///< of the entries' absolute values; 0 if that is no number

  /// Throws std::invalid_argument if there are too many stages.
  explicit element_codebooks(const vector_codes& codes) : stages(codes.stages()), regions(codes.regions()) {
    if (stages > most_stages) throw_invalid("elements hold indices into ", most_stages, " codebooks, not ", stages);
    const index_t length = codes.tile_outputs * codes.tile_inputs;
    for (index_t m = 0; m < stages; ++m) {
      index_t most = 1;
      for (index_t r = 0; r < regions; ++r) most = (std::max)(most, codes.codebook(r, m).rows());
      bits[as_size(m)] = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(most - 1)));
      at[as_size(m)] = region_size;
      region_size += length << bits[as_size(m)];
    }
    entries.assign(as_size(checked_product(regions, region_size)), 0.0F);
    std::int32_t most = 0;
    for (index_t r = 0; r < regions; ++r)
      for (index_t m = 0; m < stages; ++m) {
        const matrix<float>& codebook = codes.codebook(r, m);
        std::copy_n(codebook.data(), codebook.size(), entries.data() + r * region_size + at[as_size(m)]);
        for (index_t i = 0; i < codebook.size(); ++i) most = (std::max)(most, bits_of(codebook.data()[i]) & 0x7FFFFFFF);
      }
    if (most < infinity_bits<float>) largest = std::bit_cast<float>(most);
  }

  int element_bits() const noexcept {
    int sum = 0;
    for (const int b : bits) sum += b;
    return sum;
  }

  /// The element whose entries of region 0 are nearest to x, stage by stage, the first one among equals.
  template <index_t Vector, std::size_t Width>
  std::uint64_t nearest(std::array<float, Width> x) const noexcept {
    std::uint64_t element = 0;
    int from = 0;
    for (index_t m = 0; m < stages; ++m) {
      const float* const stage = entries.data() + at[as_size(m)];
      index_t best = 0;
      float least = (std::numeric_limits<float>::max)();
      for (index_t k = 0; k < index_t{1} << bits[as_size(m)]; ++k) {
        float distance = 0;
        for (std::size_t j = 0; j < Width; ++j) {
          const float off = x[j] - stage[k * Vector + index_t(j)];
          distance += off * off;
        }
        if (distance < least) {
          least = distance;
          best = k;
        }
      }
      for (std::size_t j = 0; j < Width; ++j) x[j] -= stage[best * Vector + index_t(j)];
      element |= static_cast<std::uint64_t>(best) << from;
      from += bits[as_size(m)];
    }
    return element;
  }
};

/// What a run of elements needs of them, in registers.
template <index_t Stages, index_t Vector>
struct entries_of_element {
  std::array<const float*, as_size(Stages)> stage;
  std::array<int, as_size(Stages)> bits;

  /// From weight `part` of each entry on.
  entries_of_element(const element_codebooks& books, std::uint32_t region, index_t part) noexcept {
    const index_t at = (std::min)(index_t{region}, books.regions - 1) * books.region_size + part;
    for (std::size_t m = 0; m < stage.size(); ++m) {
      // A stage that is not there takes no bits and would add an entry: it adds zeros instead.
      stage[m] = index_t(m) < books.stages ? books.entries.data() + at + books.at[m] : nothing.data();
      bits[m] = books.bits[m];
    }
  }

  /// Width numbers: the first entry and what the others add to it.
  template <index_t Width>
  void sum(std::uint64_t element, float* to) const noexcept {
    std::array<float, as_size(Width)> total;
    for (std::size_t m = 0; m < stage.size(); ++m) {
      const float* const entry = stage[m] + index_t(element & ((std::uint64_t{1} << bits[m]) - 1)) * Vector;
      element >>= bits[m];
      for (std::size_t j = 0; j < total.size(); ++j) total[j] = m == 0 ? entry[j] : total[j] + entry[j];
    }
    std::copy_n(total.data(), total.size(), to);
  }

private:
  static constexpr std::array<float, as_size(Vector)> nothing{};
};

}  // namespace sluice::inline SLUICE_ISA::detail
