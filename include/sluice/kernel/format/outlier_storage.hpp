/// Any storage of floats with some weights that stand beside it, each in place of what the storage has there.
///
///   outlier_storage<int4_blocks>             GWQ: a hundredth of the weights, those with the largest gradients, as halves
///   W(o, i) = value of (o, i) in the sparse weights, else stored(o, i)
///
/// Outliers are state that copies share, panel by panel and block by block, a place of two bytes and a value each; a
/// block of 128 inputs (or of the storage, if that is longer) says in eight bytes of the panel which are its own. They
/// are put into the decoded weights, so the kernels know nothing of them. encode() knows no outliers and leaves none.
/// Paper: Shao et al. 2024, GWQ.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/kernel/format/sparse_weights.hpp>
#include <sluice/kernel/linear_map.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <numeric>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <WeightStorage Base, typename Value = float16>
  requires std::same_as<typename Base::scalar, float>
struct outlier_storage {
  using scalar = float;
  static constexpr index_t lanes = kernel::simd_width<float>;
  static constexpr index_t block = std::lcm(detail::block_inputs<Base>(), index_t{128});
  static constexpr index_t base_bytes = detail::panel_bytes<Base>(block);
  static constexpr index_t block_bytes = base_bytes + 8;
  static_assert(block * lanes <= 65536, "sluice: blocks of this storage are too long for places of sixteen bits");

  outlier_storage() = default;
  /// Throws std::invalid_argument if a weight is rounded by Value.
  outlier_storage(Base base, const sparse_weights& beside) : base_(std::move(base)) {
    beside.validate();
    const index_t panels = (beside.outputs() + lanes - 1) / lanes;
    auto made = std::make_shared<outliers>();
    made->blocks = (beside.inputs + block - 1) / block;
    made->first.reserve(as_size(panels * made->blocks + 1));
    std::vector<index_t> at(as_size(lanes));
    for (index_t p = 0; p < panels; ++p) {
      const index_t rows = (std::min)(lanes, beside.outputs() - p * lanes);
      std::copy_n(beside.first.begin() + p * lanes, rows, at.begin());
      for (index_t b = 0; b < made->blocks; ++b) {
        made->first.push_back(static_cast<std::uint32_t>(made->places.size()));
        for (index_t i = b * block; i < (std::min)((b + 1) * block, beside.inputs); ++i)
          for (index_t l = 0; l < rows; ++l)
            if (index_t& k = at[as_size(l)];
                k < beside.first[as_size(p * lanes + l + 1)] && beside.input[as_size(k)] == i)
              made->add((i - b * block) * lanes + l, beside.values[as_size(k++)]);
      }
    }
    made->first.push_back(static_cast<std::uint32_t>(made->places.size()));
    outliers_ = std::move(made);
  }

  static constexpr index_t bytes(index_t inputs) noexcept { return (inputs + block - 1) / block * block_bytes; }
  const Base& base() const noexcept { return base_; }
  /// What copies share, in bytes.
  index_t outlier_bytes() const noexcept {
    return outliers_ ? static_cast<index_t>(outliers_->places.size() * (sizeof(std::uint16_t) + sizeof(Value))) : 0;
  }

  void decode(const std::byte* panel, index_t first, index_t last, float* numbers) const {
    for (index_t i = first; i < last;) {
      const std::byte* const from = panel + i / block * block_bytes;
      const index_t begin = i % block, end = (std::min)(block, begin + last - i);
      base_.decode(from, begin, end, numbers);
      put_outliers(from, begin * lanes, end * lanes, numbers);
      numbers += (end - begin) * lanes;
      i += end - begin;
    }
  }
  void encode(const float* numbers, index_t first, index_t last, std::byte* panel) const {
    for (index_t i = first; i < last; i += block, numbers += block * lanes) {
      std::byte* const to = panel + i / block * block_bytes;
      base_.encode(numbers, 0, block, to);
      std::memset(to + base_bytes, 0, 8);
    }
  }

  /// Panel p of a map of `inputs` inputs: that of the base with what stands beside it.
  void pack(const std::byte* base_panel, index_t inputs, index_t p, std::byte* panel) const {
    const index_t whole = detail::panel_bytes<Base>(inputs);
    for (index_t b = 0; b * block < inputs; ++b, panel += block_bytes) {
      std::memset(panel, 0, as_size(base_bytes));
      std::memcpy(panel, base_panel + b * base_bytes, as_size((std::min)(base_bytes, whole - b * base_bytes)));
      const std::size_t at = as_size(p * outliers_->blocks + b);
      const std::array<std::uint32_t, 2> own{outliers_->first[at], outliers_->first[at + 1]};
      std::memcpy(panel + base_bytes, own.data(), sizeof own);
    }
  }

private:
  struct outliers {
    index_t blocks = 0;                 ///< of a panel
    std::vector<std::uint32_t> first;   ///< [panels blocks + 1]
    std::vector<std::uint16_t> places;  ///< in a block: input L + lane, ascending
    std::vector<Value> values;

    void add(index_t place, float value) {
      Value rounded;
      if constexpr (std::same_as<Value, float>) {
        rounded = value;
      } else {
        rounded = round_to<Value>(value);
        if (to_float(rounded) != value && !is_nan(value))
          throw_invalid("an outlier of ", value, " is rounded by the storage");
      }
      if (places.size() == 0xFFFFFFFFU) throw_invalid("there are more than ", places.size(), " outliers");
      places.push_back(static_cast<std::uint16_t>(place));
      values.push_back(rounded);
    }
  };

  void put_outliers(const std::byte* from, index_t begin, index_t end, float* numbers) const noexcept {
    if (!outliers_) return;
    std::array<std::uint32_t, 2> own;
    std::memcpy(own.data(), from + base_bytes, sizeof own);
    // Whatever the bytes of a panel: places of this object, inside the block.
    const std::size_t last = (std::min)(std::size_t{own[1]}, outliers_->places.size());
    const auto places = outliers_->places.begin();
    std::size_t k = (std::min)(std::size_t{own[0]}, last);
    if (begin > 0)
      k = static_cast<std::size_t>(std::lower_bound(places + index_t(k), places + index_t(last), begin) - places);
    for (; k < last && outliers_->places[k] < end; ++k) {
      if constexpr (std::same_as<Value, float>)
        numbers[outliers_->places[k] - begin] = outliers_->values[k];
      else
        numbers[outliers_->places[k] - begin] = to_float(outliers_->values[k]);
    }
  }

  Base base_{};
  std::shared_ptr<const outliers> outliers_;
};

/// A map with sparse weights in place of its own. Throws std::invalid_argument if shapes differ or Value rounds a
/// weight.
template <typename Value = float16, typename Base>
linear_map<outlier_storage<Base, Value>> with_outliers(const linear_map<Base>& map, const sparse_weights& beside) {
  using storage = outlier_storage<Base, Value>;
  if (beside.outputs() != map.outputs() || beside.inputs != map.inputs())
    throw_invalid("sparse weights [", beside.outputs(), ", ", beside.inputs, "] beside a map [", map.outputs(), ", ",
                  map.inputs(), "]");
  const storage format(map.format(), beside);
  linear_map<storage> made(map.outputs(), map.inputs(), format);
  for (index_t p = 0; p < map.panels(); ++p)
    format.pack(map.panel(p), map.inputs(), p, made.weight().data() + p * detail::panel_bytes<storage>(map.inputs()));
  return made;
}

}  // namespace sluice::inline SLUICE_ISA
