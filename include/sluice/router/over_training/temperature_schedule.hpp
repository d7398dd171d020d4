/// A temperature that cools over training, as a function of the step of the routing context.
///
///   linear        tau(n) = max(first - n (first - last) / N, last)
///   exponential   tau(n) = max(first (last / first)^(n / N), last)
///
/// The default is constant. The published range of EvoMoE is 2.0 to 0.3. Nie et al. 2021, arXiv:2112.14397.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/types.hpp>
#include <sluice/router/weight_application.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

enum class cooling { linear, exponential };

struct temperature_schedule {
  double first = 1;
  double last = first;
  index_t steps = 0;  ///< N; from this step on the temperature is `last`
  cooling form = cooling::exponential;

  /// Throws std::invalid_argument unless first >= last > 0 and N >= 0.
  void validate() const {
    const bool is_cooling = detail::is_usable(first) && detail::is_usable(last) && last > 0 && first >= last;
    if (!is_cooling || steps < 0)
      throw_invalid("a temperature falls from first to last > 0 in steps >= 0, not from ", first, " to ", last, " in ",
                    steps);
  }

  double operator()(index_t step) const noexcept {
    if (step >= steps) return last;
    const double way = static_cast<double>(step < 0 ? 0 : step) / static_cast<double>(steps);
    return form == cooling::linear ? first - way * (first - last) : first * std::pow(last / first, way);
  }
};

}  // namespace sluice::inline SLUICE_ISA
