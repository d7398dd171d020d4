/// How many inputs should share a scale: groups are halved while that makes their ranges much smaller (FineQuant).
///
///   R(g) = mean over outputs and groups of g inputs of max |w| in the group;  g = inputs at first
///   while g is even and g / 2 >= least:  if R(g / 2) / R(g) < 1 - gain: g = g / 2, otherwise stop
///
///   const grouped_codes codes = round_to_nearest(w, {.bits = 4, .group = adaptive_group(w, {}).group});
///
/// Only the weights are looked at. The statistic of a group may be another function of its numbers. A matrix of zeros
/// keeps one scale an output; an odd number of inputs is never halved, so groups are equally long. Throws
/// std::invalid_argument for weights that have no code, or unless 0 < gain < 1 and least >= 1. The paper says that its
/// choice sees the weights alone and refines while ranges shrink; the mean and the default gain of 0.1 are a reading.
/// Kim et al. 2023, "FineQuant", arXiv:2308.09723.
#pragma once

#include <sluice/quant/round_to_nearest.hpp>

#include <type_traits>

namespace sluice::inline SLUICE_ISA {

struct adaptive_group_options {
  double gain = 0.1;   ///< the share by which ranges must shrink
  index_t least = 32;  ///< inputs of a group
};

struct adaptive_group_report {
  index_t group = 0;
  std::vector<double> ratios;  ///< R(g / 2) / R(g) of every halving that was tried, the last perhaps refused
};

/// max |w|
struct largest_magnitude {
  double operator()(const float* w, index_t count) const noexcept {
    const kernel::number_range range = kernel::range_with_zero(w, count);
    return static_cast<double>((std::max)(-range.least, range.most));
  }
};

template <typename Statistic = largest_magnitude>
adaptive_group_report adaptive_group(tokens_in<float> w, adaptive_group_options o, const Statistic& statistic = {},
                                     const executor_ref& executor = {}) {
  static_assert(std::is_invocable_r_v<double, const Statistic&, const float*, index_t>,
                "sluice: a statistic of weights is called as `double operator()(const float* w, index_t count) const`");
  if (!is_above(o.gain, 0.0) || !is_between(o.gain, 0.0, 1.0) || o.gain == 1 || o.least < 1)
    throw_invalid("groups are halved by a gain between 0 and 1 down to 1 input or more, not ", o.gain, " and ",
                  o.least);
  detail::check_finite_weights(w, executor);
  const auto mean = [&](index_t group) {
    std::vector<double> sums(as_size(w.rows()), 0.0);
    executor.parallel_each(w.rows(), w.cols() / 2, [&](index_t r) {
      for (index_t first = 0; first < w.cols(); first += group)
        sums[as_size(r)] += statistic(w.data() + r * w.outerStride() + first, group);
    });
    double sum = 0;
    for (const double row : sums) sum += row;
    return sum / static_cast<double>(w.rows() * (w.cols() / group));
  };
  adaptive_group_report report;
  report.group = (std::max<index_t>)(1, w.cols());
  if (w.size() == 0) return report;
  double range = mean(report.group);
  while (range > 0 && report.group % 2 == 0 && report.group / 2 >= o.least) {
    const double halved = mean(report.group / 2);
    report.ratios.push_back(halved / range);
    if (!(report.ratios.back() < 1 - o.gain)) break;
    report.group /= 2;
    range = halved;
  }
  return report;
}

}  // namespace sluice::inline SLUICE_ISA
