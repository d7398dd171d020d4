// Rows that try the order of routing: few distinct values, so that ties are common, both zeros, infinities and NaN.
#pragma once

#include <sluice/core/numeric.hpp>

#include "../support.hpp"

namespace sluice::test {

template <typename Scalar>
constexpr Scalar inf = std::numeric_limits<Scalar>::infinity();

/// Fills a row from a literal seed; only odd seeds give NaN.
template <typename Scalar>
void fill_with_special(Scalar* row, index_t count, std::uint64_t seed) {
  const random_source draws = random_source(17).at_step(seed);
  for (index_t i = 0; i < count; ++i) {
    const double kind = draws.uniform(random_site("kind"), i);
    const double value = draws.uniform(random_site::user_site, i);
    row[i] = kind < 0.1    ? (seed % 2 == 1 ? quiet_nan<Scalar>() : -inf<Scalar>)
             : kind < 0.15 ? inf<Scalar>
             : kind < 0.2  ? -inf<Scalar>
             : kind < 0.3  ? Scalar(-0.0)
             : kind < 0.4  ? static_cast<Scalar>(value * 1e30)
             : kind < 0.5  ? static_cast<Scalar>(value * -1e30)
                           : static_cast<Scalar>(std::floor(value * 5) - 2);
  }
}

}  // namespace sluice::test
