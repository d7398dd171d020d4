/// How many inputs should share a scale: groups are halved while that makes their ranges much smaller (FineQuant).
///
///   R(g) = mean over outputs and groups of g inputs of max |w| in the group;  g = inputs at first
///   while g is even and g / 2 >= least:  if R(g / 2) / R(g) < 1 - gain: g = g / 2, otherwise stop
///
///   const grouped_codes codes = round_to_nearest(w, {.bits = 4, .group = adaptive_group(w, {}).group});
///
/// Only the weights are looked at. In the place of the mean there may be another function of the ranges of all groups:
/// the largest is largest_range. A matrix of zeros keeps one scale an output; an odd number of inputs is never halved,
/// so groups are equally long. Throws std::invalid_argument for weights that have no code, or unless 0 < gain < 1 and
/// least >= 1. The paper says that its choice sees the weights alone and refines while ranges shrink; the mean and the
/// default gain of 0.1 are a reading. Kim et al. 2023, "FineQuant", arXiv:2308.09723.
#pragma once

#include <sluice/quant/round_to_nearest.hpp>

#include <algorithm>
#include <numeric>
#include <span>
#include <type_traits>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct adaptive_group_options {
  double gain = 0.1;   ///< the share by which ranges must shrink
  index_t least = 32;  ///< inputs of a group
};

struct adaptive_group_report {
  index_t group = 0;
  std::vector<double> ratios;  ///< R(g / 2) / R(g) of every halving that was tried, the last perhaps refused
};

struct mean_range {
  double operator()(std::span<const double> ranges) const noexcept {
    return std::accumulate(ranges.begin(), ranges.end(), 0.0) / static_cast<double>(ranges.size());
  }
};
struct largest_range {
  double operator()(std::span<const double> ranges) const noexcept {
    return *std::max_element(ranges.begin(), ranges.end());
  }
};

template <typename Statistic = mean_range>
adaptive_group_report adaptive_group(tokens_in<float> w, adaptive_group_options o, const Statistic& statistic = {},
                                     const executor_ref& executor = {}) {
  static_assert(std::is_invocable_r_v<double, const Statistic&, std::span<const double>>,
                "sluice: a statistic of ranges is called as `double operator()(std::span<const double>) const`");
  if (!is_above(o.gain, 0.0) || !is_between(o.gain, 0.0, 1.0) || o.gain == 1 || o.least < 1)
    throw_invalid("groups are halved by a gain between 0 and 1 down to 1 input or more, not ", o.gain, " and ",
                  o.least);
  detail::check_finite_weights(w, executor);
  std::vector<double> ranges;
  const auto range_of = [&](index_t group) {
    const index_t groups = w.cols() / group;
    ranges.assign(as_size(w.rows() * groups), 0.0);
    executor.parallel_each(w.rows(), w.cols() / 2, [&](index_t r) {
      for (index_t g = 0; g < groups; ++g) {
        const kernel::number_range own = kernel::range_with_zero(w.data() + r * w.outerStride() + g * group, group);
        ranges[as_size(r * groups + g)] = static_cast<double>((std::max)(-own.least, own.most));
      }
    });
    return statistic(std::span<const double>(ranges));
  };
  adaptive_group_report report;
  report.group = (std::max<index_t>)(1, w.cols());
  if (w.size() == 0) return report;
  double range = range_of(report.group);
  while (range > 0 && report.group % 2 == 0 && report.group / 2 >= o.least) {
    const double halved = range_of(report.group / 2);
    report.ratios.push_back(halved / range);
    if (!(report.ratios.back() < 1 - o.gain)) break;
    report.group /= 2;
    range = halved;
  }
  return report;
}

}  // namespace sluice::inline SLUICE_ISA
