/// check_loss: every promise that an auxiliary loss makes, tested on yours, with the router that it is for, in one
/// call.
///
///   const conformance_report report = check_loss(my_loss{.coefficient = 0.1}, top_k_router<double>{16, 8, {.top_k = 2}});
///
/// The loss runs in a layer of small smooth experts whose output has no gradient, so that all gradients are the loss's.
/// Tested are: value 0 and no gradient for no tokens and for nothing but padding; padding is not read; equal bits for
/// equal calls and for 1, 2, 3 and 8 threads; no parameter changed; gradients added to those that are there, with an
/// equal value; gradients of x and parameters equal to central differences (in double, where the router's gradient is
/// exact). Initialise the router first.
#pragma once

#include <sluice/train/conformance/repeated_calls.hpp>
#include <sluice/train/conformance/router_probe.hpp>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <RouterPolicy Router, AuxiliaryLoss<Router> Loss>
class loss_probe {
public:
  using scalar = typename Router::scalar;
  using layer_type = moe_layer<Router, expert_bank<ffn<scalar, silu>>, Loss>;
  using tape = typename layer_type::tape;
  using batch = picked_batch<scalar>;
  static constexpr bool trains = DifferentiableRouter<Router>;

  struct results {
    scalar value;
    matrix<scalar> dx;
    std::vector<scalar> gradients;

    bool operator==(const results& other) const {
      return equal_bits(&value, &other.value, 1) && equal_bits(dx, other.dx) && equal_bits(gradients, other.gradients);
    }
    bool is_nothing() const {
      return value == scalar(0) && dx.isZero(0) &&
             std::all_of(gradients.begin(), gradients.end(), [](scalar g) { return g == scalar(0); });
    }
  };

  loss_probe(const Loss& l, const Router& router, const router_check_options<scalar>& o)
      : options(o), loss(l), routed(router, o), layer(router, routed.layer.bank(), l) {}

  batch everything() const { return routed.everything(); }

  scalar value(const batch& b, tape& t, executor_ref executor = {}) const {
    matrix<scalar> y(b.x.rows(), layer.outputs());
    layer.forward(b.x, y, t, b.context(true, executor));
    return t.losses[0];
  }
  results run(const batch& b, tape& t, executor_ref executor = {}, bool twice = false) {
    results r{value(b, t, executor), matrix<scalar>::Zero(b.x.rows(), b.x.cols()), {}};
    if (twice) r.value = loss(t.router.seen, t.plan, t.context, t.router.dseen);
    if constexpr (trains) {
      zero_gradients(layer);
      const matrix<scalar> dy = matrix<scalar>::Zero(b.x.rows(), layer.outputs());
      layer.backward(dy, r.dx, t);
      r.gradients = parameter_gradients(layer);
    }
    return r;
  }

  auto caller() {
    return [this](const batch& b, tape& t, const executor_ref& executor) { return run(b, t, executor); };
  }

  router_check_options<scalar> options;
  Loss loss;
  router_probe<Router> routed;  ///< tokens and experts
  layer_type layer;
};

template <typename Probe>
property_result loss_of_nothing(Probe& probe) {
  typename Probe::tape t;
  if (!probe.run(probe.routed.pick({}), t).is_nothing()) return fail("no tokens have a value or a gradient");
  auto b = probe.everything();
  b.mask.assign(static_cast<std::size_t>(b.x.rows()), 0);
  if (!probe.run(b, t).is_nothing()) return fail("nothing but padding has a value or a gradient");
  return pass("value 0, no gradient");
}

template <typename Probe>
property_result loss_padding(Probe& probe) {
  using scalar = typename Probe::scalar;
  auto b = probe.everything();
  b.mask.assign(static_cast<std::size_t>(b.x.rows()), 1);
  for (std::size_t t = 2; t < b.mask.size(); t += 3) b.mask[t] = 0;
  typename Probe::tape t;
  const auto clean = probe.run(b, t);
  for (index_t row = 2; row < b.x.rows(); row += 3) {
    if (!clean.dx.row(row).isZero(0)) return fail("a padding token has a gradient");
    b.x.row(row).setConstant(quiet_nan<scalar>());
  }
  return clean == probe.run(b, t) ? pass("its content reaches nothing")
                                  : fail("its content changes value or gradients");
}

template <typename Probe>
property_result loss_repetition(Probe& probe) {
  const auto b = probe.everything();
  typename Probe::tape t;
  if (is_nan(probe.run(b, t).value)) return fail("the value of ordinary tokens is NaN");
  return equal_with_used_tapes<typename Probe::tape>(b, probe.routed.pick({1, 0}), probe.caller());
}

template <typename Probe>
property_result loss_is_added(Probe& probe) {
  using scalar = typename Probe::scalar;
  const auto b = probe.everything();
  typename Probe::tape t;
  auto expected = probe.run(b, t);
  const auto twice = probe.run(b, t, {}, true);
  if (!equal_bits(&expected.value, &twice.value, 1)) return fail("the value depends on gradients that were there");
  expected.dx *= 2;
  for (scalar& g : expected.gradients) g *= 2;
  double size = (std::max)(1.0, static_cast<double>(expected.dx.size() == 0 ? 0 : expected.dx.cwiseAbs().maxCoeff()));
  for (const scalar g : expected.gradients) size = (std::max)(size, (std::abs)(static_cast<double>(g)));
  const double terms = static_cast<double>(b.x.rows() + b.x.cols() + probe.layer.experts());
  const double bound = 8 * terms * size * static_cast<double>(std::numeric_limits<scalar>::epsilon());
  const auto of_x = judge("twice dx and that of two evaluations", largest_difference(expected.dx, twice.dx), bound);
  if (of_x.result == outcome::failed) return of_x;
  return judge("twice the gradients and those of two evaluations",
               largest_difference(expected.gradients.data(), twice.gradients.data(),
                                  static_cast<index_t>(twice.gradients.size())),
               bound);
}

template <typename Probe>
property_result loss_gradients(Probe& probe) {
  using router_type = std::remove_cvref_t<decltype(probe.layer.router())>;
  if constexpr (!Probe::trains) {
    return skip("the router has no backward");
  } else if constexpr (!has_exact_gradient<router_type>) {
    return skip("the router's gradient is an estimate (exact_gradient = false)");
  } else if constexpr (!std::same_as<typename Probe::scalar, double>) {
    return skip("differences need double; check the loss with a router in double as well");
  } else {
    auto b = probe.routed.pick(ascending_rows(probe.options.gradient_tokens));
    typename Probe::tape t, again;
    const auto r = probe.run(b, t);
    const auto choices = choices_of(t.plan);
    const auto objective = [&]() -> std::optional<double> {
      const double value = probe.value(b, again);
      if (choices_of(again.plan) != choices) return std::nullopt;
      return value;
    };
    const auto size = static_cast<std::size_t>(b.x.size());
    const auto report = check_gradients(probe.layer, {{"x", {b.x.data(), size}, {r.dx.data(), size}}}, objective,
                                        probe.options.gradients);
    if (report.checked == 0) return fail("a choice flips near every entry");
    return report.largest_error <= probe.options.gradient_bound ? pass(report.describe()) : fail(report.describe());
  }
}

}  // namespace detail

/// Throws std::invalid_argument if the options do not fit; what the loss does wrong is in the report.
template <typename Loss, typename Router>
conformance_report check_loss(const Loss& loss, const Router& router,
                              const router_check_options<typename Router::scalar>& options = {}) {
  static_assert(explain_loss<Loss, Router>());
  detail::loss_probe<Router, Loss> probe(loss, router, options);
  conformance_report report;
  report.add("nothing to look at", [&] { return detail::loss_of_nothing(probe); });
  report.add("padding", [&] { return detail::loss_padding(probe); });
  report.add("repetition", [&] { return detail::loss_repetition(probe); });
  report.add("thread counts", [&] {
    return detail::equal_with_all_threads<typename decltype(probe)::tape>(probe.everything(), probe.caller());
  });
  report.add("gradients are added", [&] { return detail::loss_is_added(probe); });
  report.add("calls change no parameter", [&] {
    typename decltype(probe)::tape t;
    return detail::keeps_parameters(probe.layer, [&] { probe.run(probe.everything(), t); });
  });
  report.add("gradients", [&] { return detail::loss_gradients(probe); });
  return report;
}

}  // namespace sluice::inline SLUICE_ISA
