/// Compares gradients with central differences: the test to run on a router, an expert or a whole model of your own.
///
///   numeric = (f(v + h) - f(v - h)) / 2h    for every entry v of every learned parameter and of every input given
///   error   = |analytic - numeric| / max(scale, |analytic|, |numeric|)
///
/// Run forward and backward first, in double; then hand over the model, the inputs with their gradients and a function that
/// computes the objective anew. With h = 1e-6 and objectives of order 1 the difference itself is good to about 1e-9. Points
/// where a choice flips or a ReLU bends within h are not derivatives: keep test points away from them. Straight-through
/// estimators (has_exact_gradient is false) cannot pass.
#pragma once

#include <sluice/core/parameter.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// The worst entry found.
struct gradient_report {
  double largest_error = 0;
  double analytic = 0;
  double numeric = 0;
  std::string name;
  index_t position = 0;
  index_t checked = 0;  ///< number of entries compared

  std::string describe() const {
    return name + '[' + std::to_string(position) + "]: analytic " + std::to_string(analytic) + ", numeric " +
           std::to_string(numeric) + ", relative error " + std::to_string(largest_error) + " over " + std::to_string(checked) +
           " entries";
  }
};

struct gradient_check_options {
  double step = 1e-6;
  double scale = 1e-2;       ///< entries smaller than this are compared absolutely, relative to it
  index_t most_entries = 0;  ///< at most this many entries of one array, evenly spread; 0 = all
};

/// An input and the gradient that backward gave for it.
struct checked_input {
  std::string name;
  std::span<double> value;
  std::span<const double> gradient;
};

template <typename Model, typename Objective>
gradient_report check_gradients(Model& model, const std::vector<checked_input>& inputs, Objective&& objective,
                                gradient_check_options o = {}) {
  gradient_report report;
  const auto check_array = [&](const std::string& name, std::span<double> value, std::span<const double> gradient) {
    const std::size_t stride =
        o.most_entries == 0 ? 1 : std::max<std::size_t>(1, value.size() / static_cast<std::size_t>(o.most_entries));
    for (std::size_t i = 0; i < value.size(); i += stride) {
      const double kept = value[i];
      value[i] = kept + o.step;
      const double above = objective();
      value[i] = kept - o.step;
      const double below = objective();
      value[i] = kept;
      const double numeric = (above - below) / (2 * o.step);
      const double analytic = gradient.empty() ? 0 : gradient[i];
      const double error = std::abs(analytic - numeric) / std::max({o.scale, std::abs(analytic), std::abs(numeric)});
      ++report.checked;
      if (!(error <= report.largest_error)) {  // also taken when the error is NaN
        report.largest_error = error;
        report.analytic = analytic;
        report.numeric = numeric;
        report.name = name;
        report.position = static_cast<index_t>(i);
      }
    }
  };
  for_each_parameter(model, [&](const std::string& name, parameter<double>& p) {
    if (p.role() != parameter_role::state) check_array(name, p.value(), std::as_const(p).gradient());
  });
  for (const checked_input& input : inputs) check_array(input.name, input.value, input.gradient);
  return report;
}

}  // namespace sluice::inline SLUICE_ISA
