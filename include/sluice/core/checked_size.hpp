/// Sizes that multiply: the product, or an exception with the numbers where it does not fit.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/types.hpp>

#include <limits>

namespace sluice::inline SLUICE_ISA {

/// a b. Throws std::invalid_argument if a size is negative or the product passes 2^63 - 1.
inline index_t checked_product(index_t a, index_t b) {
  index_t product = 0;
#if defined(__GNUC__)
  const bool fits = a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, &product);
#else
  const bool fits = a >= 0 && b >= 0 && (b == 0 || a <= (std::numeric_limits<index_t>::max)() / b);
  if (fits) product = a * b;
#endif
  if (!fits) throw_invalid("there is no array of ", a, " x ", b, " numbers");
  return product;
}

}  // namespace sluice::inline SLUICE_ISA
