/// Learning-rate schedules: functions of the step number, counted from 0.
///
///   constant_schedule   rate
///   linear_schedule     peak (s+1)/W for s < W; then linearly from peak at W to floor at N, and floor after that
///   cosine_schedule     the same with floor + (peak - floor) (1 + cos(pi (s-W)/(N-W))) / 2
///
/// W warm-up steps (0 = none), N steps in all.
///   const cosine_schedule schedule{{.peak = 3e-3, .warmup = 100, .steps = 2000}};
///   optimizer.set_learning_rate(schedule(step));
/// Loshchilov, Hutter 2017, arXiv:1608.03983 (cosine, without restarts).
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>

#include <cmath>
#include <numbers>

namespace sluice::inline SLUICE_ISA {

struct schedule_options {
  double peak = 1e-3;
  double floor = 0;
  index_t warmup = 0;
  index_t steps = 0;
};

class constant_schedule {
public:
  /// Throws std::invalid_argument unless the rate is finite and at least 0.
  explicit constant_schedule(double rate) : rate_(rate) {
    if (!is_at_least(rate, 0)) throw_invalid("constant_schedule needs a finite rate >= 0, not ", rate);
  }
  double operator()(index_t) const noexcept { return rate_; }

private:
  double rate_;
};

/// Warm-up, then peak * shape(0 .. 1), where a shape falls from 1 to 0.
template <typename Shape>
class decaying_schedule {
public:
  /// Throws std::invalid_argument unless 0 <= warmup <= steps, and peak and floor are finite and at least 0.
  explicit decaying_schedule(schedule_options o) : options_(o) {
    if (!is_at_least(o.peak, 0) || !is_at_least(o.floor, 0))
      throw_invalid("a schedule needs a finite peak and floor >= 0, not ", o.peak, " and ", o.floor);
    if (o.warmup < 0 || o.steps < o.warmup)
      throw_invalid("a schedule needs 0 <= warmup <= steps, not ", o.warmup, " and ", o.steps);
  }

  double operator()(index_t step) const noexcept {
    const schedule_options& o = options_;
    if (step < o.warmup) return o.peak * static_cast<double>(step + 1) / static_cast<double>(o.warmup);
    if (step >= o.steps) return o.floor;
    const double way = static_cast<double>(step - o.warmup) / static_cast<double>(o.steps - o.warmup);
    return o.floor + (o.peak - o.floor) * Shape::at(way);
  }

private:
  schedule_options options_;
};

namespace detail {
struct linear_shape {
  static double at(double way) noexcept { return 1 - way; }
};
struct cosine_shape {
  static double at(double way) noexcept { return (1 + std::cos(std::numbers::pi * way)) / 2; }
};
}  // namespace detail

using linear_schedule = decaying_schedule<detail::linear_shape>;
using cosine_schedule = decaying_schedule<detail::cosine_shape>;

}  // namespace sluice::inline SLUICE_ISA
