/// Compares gradients with central differences: the test to run on a router, an expert or a whole model of your own.
///
///   numeric = (f(v + h) - f(v - h)) / 2h    for every entry v of every learned parameter and of every input given
///   error   = |analytic - numeric| / max(scale, |analytic|, |numeric|)
///
/// Run forward and backward first, in double; then hand over the model, the inputs with their gradients and a function
/// that computes the objective anew:
///   const auto report = check_gradients(layer, {{"x", x_numbers, dx_numbers}}, [&] { return objective(layer, x); });
/// With h = 1e-6 and objectives of order 1 the difference itself is good to about 1e-9. Points where a choice flips or
/// a ReLU bends within h are no derivatives: keep test points away from them, or let the objective return std::nullopt
/// where it sees a flip, and the entry is left out and counted. Straight-through estimators (has_exact_gradient is
/// false) cannot pass.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdio>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// The worst entry found.
struct gradient_report {
  double largest_error = 0;  ///< the largest double if an entry is NaN
  double analytic = 0;
  double numeric = 0;
  std::string name;
  index_t position = 0;
  index_t checked = 0;  ///< number of entries compared
  index_t skipped = 0;  ///< number of entries at which the objective had no derivative

  std::string describe() const {
    const auto number = [](double value) {
      char text[32];
      std::snprintf(text, sizeof text, "%.6g", value);
      return std::string(text);
    };
    return name + '[' + std::to_string(position) + "]: analytic " + number(analytic) + ", numeric " + number(numeric) +
           ", relative error " + number(largest_error) + ", the worst of " + std::to_string(checked) + " entries (" +
           std::to_string(skipped) + " skipped)";
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

namespace detail {

/// Puts a number back, also when an objective throws.
class restore_on_exit {
public:
  explicit restore_on_exit(double& place) : place_(place), kept_(place) {}
  restore_on_exit(const restore_on_exit&) = delete;
  restore_on_exit& operator=(const restore_on_exit&) = delete;
  ~restore_on_exit() { place_ = kept_; }
  double kept() const noexcept { return kept_; }

private:
  double& place_;
  double kept_;
};

}  // namespace detail

/// Model: anything with parameters in double. Objective: () -> double or std::optional<double>. Throws
/// std::invalid_argument unless step and scale are finite and above 0, and most_entries is at least 0.
template <typename Model, typename Objective>
gradient_report check_gradients(Model& model, const std::vector<checked_input>& inputs, Objective&& objective,
                                gradient_check_options o = {}) {
  if (!is_above(o.step, 0) || !is_above(o.scale, 0) || o.most_entries < 0)
    throw_invalid("check_gradients needs a finite step and scale > 0 and entries >= 0, not ", o.step, ", ", o.scale,
                  " and ", o.most_entries);
  gradient_report report;
  const auto numeric_derivative = [&](double& value) -> std::optional<double> {
    const detail::restore_on_exit entry(value);
    value = entry.kept() + o.step;
    const std::optional<double> above = objective();
    value = entry.kept() - o.step;
    const std::optional<double> below = objective();
    if (!above || !below) return std::nullopt;
    return (*above - *below) / (2 * o.step);
  };
  // place(i) is where entry i lies.
  const auto check_array = [&](const std::string& name, index_t size, std::span<double> value,
                               std::span<const double> gradient, auto place) {
    const index_t most = o.most_entries == 0 ? size : o.most_entries;
    const index_t stride = most == 0 ? 1 : (std::max<index_t>)(1, (size + most - 1) / most);
    for (index_t i = 0; i < size; i += stride) {
      const auto at = static_cast<std::size_t>(place(i));
      const std::optional<double> numeric = numeric_derivative(value[at]);
      if (!numeric) {
        ++report.skipped;
        continue;
      }
      const double analytic = gradient.empty() ? 0 : gradient[at];
      double error =
          (std::abs)(analytic - *numeric) / (std::max)({o.scale, (std::abs)(analytic), (std::abs)(*numeric)});
      if (is_nan(error)) error = (std::numeric_limits<double>::max)();
      ++report.checked;
      if (error < report.largest_error) continue;
      report.largest_error = error;
      report.analytic = analytic;
      report.numeric = *numeric;
      report.name = name;
      report.position = i;
    }
  };
  for_each_parameter(model, [&](const std::string& name, auto& p) {
    constexpr bool in_double = std::same_as<std::remove_cvref_t<decltype(p)>, parameter<double>>;
    static_assert(in_double, "sluice: gradients are checked in double, the scalar of all of the model");
    if constexpr (in_double)
      if (p.is_learned())
        check_array(name, p.size(), p.value(), std::as_const(p).gradient(), [&](index_t i) { return p.place(i); });
  });
  for (const checked_input& input : inputs)
    check_array(input.name, static_cast<index_t>(input.value.size()), input.value, input.gradient,
                [](index_t i) { return i; });
  return report;
}

}  // namespace sluice::inline SLUICE_ISA
