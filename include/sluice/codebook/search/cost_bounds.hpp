/// A query's costs in bytes, rounded down: a sum of them says which items cannot be among the best.
///
///   bytes[m,k] = floor((costs[m,k] - low[m]) / step)   low[m] the least of part m, step the widest part's range / 255
///   an item of cost <= limit has a sum of bytes <= (limit - base + error - sum of low) / step + 1
///
/// `error` is what the rounding of a sum of costs in Scalar may come to, so that nothing is left out that the exact
/// scan would take: the result is the same by a bit. Costs that are not finite have no bounds.
#pragma once

#include <sluice/core/numeric.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
struct cost_bounds {
  static constexpr index_t entries = 256;
  static constexpr index_t most_parts = 256;  ///< so that a sum of bytes has 16 bits

  const std::uint8_t* bytes = nullptr;  ///< [M,256]; null: no bounds
  double low = 0;
  double step = 1;
  double error = 0;     ///< without that of base
  double rounding = 0;  ///< of a sum, as a part of its largest term

  /// Of a table [M,codes]; room for [M,256].
  static cost_bounds of(const Scalar* table, index_t parts, index_t codes, std::uint8_t* room) {
    cost_bounds out;
    if (parts > most_parts || codes > entries) return out;
    double range = 0, largest = 0;
    for (index_t m = 0; m < parts; ++m) {
      const Scalar* const part = table + m * codes;
      if (any_nan(part, codes)) return out;
      const auto [least, most] = std::minmax_element(part, part + codes);
      out.low += static_cast<double>(*least);
      range = (std::max)(range, static_cast<double>(*most) - static_cast<double>(*least));
      largest += (std::max)((std::abs)(static_cast<double>(*least)), (std::abs)(static_cast<double>(*most)));
    }
    // Infinity is a value that no step divides.
    if (!(largest <= static_cast<double>((std::numeric_limits<Scalar>::max)()))) return out;
    out.step = range > 0 ? range / 255 : 1;
    out.rounding = static_cast<double>(parts + 1) * static_cast<double>(std::numeric_limits<Scalar>::epsilon());
    out.error = out.rounding * largest;
    for (index_t m = 0; m < parts; ++m) {
      const Scalar* const part = table + m * codes;
      const auto least = static_cast<double>(*std::min_element(part, part + codes));
      for (index_t k = 0; k < entries; ++k)
        room[m * entries + k] =
            k < codes ? static_cast<std::uint8_t>((std::min)(255.0, (static_cast<double>(part[k]) - least) / out.step))
                      : std::uint8_t{0};
    }
    out.bytes = room;
    return out;
  }

  /// The largest sum of bytes of an item that costs at most `limit`, base included; negative if there can be none.
  int most(Scalar limit, Scalar base) const noexcept {
    const auto start = static_cast<double>(base);
    const double sum = (static_cast<double>(limit) - start + error + rounding * (std::abs)(start) - low) / step + 1;
    return sum < 0 ? -1 : static_cast<int>((std::min)(sum, 65535.0));
  }
};

}  // namespace sluice::inline SLUICE_ISA
