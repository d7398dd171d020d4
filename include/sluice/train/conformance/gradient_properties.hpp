/// The conformance kit's comparison of a router's layer with the readable reference and with central differences.
#pragma once

#include <sluice/reference/naive_moe.hpp>
#include <sluice/train/conformance/router_probe.hpp>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>

namespace sluice::inline SLUICE_ISA::detail {

/// The layer's gradients of the plan, at the places where the reference has them.
template <RoutedPlan Plan>
double plan_gradient_difference(const Plan& plan, const typename Plan::gradient& d,
                                const reference::backward_result<typename Plan::scalar>& expected) {
  double worst = 0;
  const auto rows = plan.routed();
  for (index_t i = 0; i < plan.rows(); ++i) {
    worst = (std::max)(worst, largest_difference(&d.weight[i], &expected.dcombine(rows.token(i), i), 1));
    if (rows.input_scales != nullptr)
      worst = (std::max)(worst, largest_difference(&d.input_scale[i], &expected.ddispatch(rows.token(i), i), 1));
  }
  return worst;
}
template <typename Scalar>
double plan_gradient_difference(const soft_plan<Scalar>& plan, const soft_plan_gradient<Scalar>& d,
                                const reference::backward_result<Scalar>& expected) {
  double worst = 0;
  const Scalar zero = 0;
  const auto is_left_out = [&](const matrix_buffer<Scalar>& m, index_t t) { return m.map().row(t).isZero(0); };
  for (index_t t = 0; t < plan.tokens(); ++t) {
    const bool no_combine = is_left_out(plan.combine(), t);
    const bool no_dispatch = is_left_out(plan.dispatch(), t);
    for (index_t s = 0; s < plan.slot_count(); ++s) {
      const index_t column = plan.row(plan.group_of(t), s);
      worst = (std::max)(worst,
                         largest_difference(&d.combine(t, s), no_combine ? &zero : &expected.dcombine(t, column), 1));
      worst = (std::max)(worst,
                       largest_difference(&d.dispatch(t, s), no_dispatch ? &zero : &expected.ddispatch(t, column), 1));
    }
  }
  return worst;
}

/// Outputs, and gradients of plan, experts and tokens, against loops over dense matrices.
template <typename Router>
property_result readable_reference(router_probe<Router>& probe) {
  using scalar = typename Router::scalar;
  const auto b = probe.everything();
  const auto context = b.context(true);
  typename router_probe<Router>::tape t;
  const auto got = probe.step(b, context, t);
  const auto expected = reference::forward(t.plan, probe.layer.bank(), b.x);
  // Every number is reached by sums over tokens, slots, D and H, whose terms are of the size of the tokens and outputs.
  const double terms = static_cast<double>(probe.tokens() + t.plan.rows() + probe.layer.inputs());
  const double size = (std::max)({1.0, static_cast<double>(b.x.cwiseAbs().maxCoeff()),
                                t.plan.rows() == 0 ? 0.0 : static_cast<double>(expected.u.cwiseAbs().maxCoeff())});
  const double bound = 8 * terms * size * size * static_cast<double>(std::numeric_limits<scalar>::epsilon());
  const auto forward = judge("outputs", largest_difference(got.y, expected.y), bound);
  if (forward.result == outcome::failed || !router_probe<Router>::trains) return forward;
  if constexpr (router_probe<Router>::trains) {
    auto& bank = probe.layer.bank();
    const auto bank_gradients = parameter_gradients(bank);
    zero_gradients(bank);
    const auto gradients = reference::backward(expected, bank, b.x, probe.cotangent(probe.tokens()));
    if constexpr (!WeighsAfterExperts<Router>) {
      const auto expected_bank = parameter_gradients(bank);
      const auto experts = judge(
          "gradients of experts",
          largest_difference(bank_gradients.data(), expected_bank.data(), static_cast<index_t>(expected_bank.size())),
          bound);
      if (experts.result == outcome::failed) return experts;
    }
    const auto plans = judge("gradients of the plan", plan_gradient_difference(t.plan, t.dplan, gradients), bound);
    if (plans.result == outcome::failed) return plans;
  }
  return forward;
}

template <typename Router>
property_result gradients_are_added(router_probe<Router>& probe) {
  if constexpr (router_probe<Router>::trains) {
    using scalar = typename Router::scalar;
    const auto b = probe.everything();
    typename router_probe<Router>::tape t;
    const auto once = probe.step(b, b.context(true), t);
    matrix<scalar> y(once.y.rows(), once.y.cols());
    matrix<scalar> dx(once.dx.rows(), once.dx.cols());
    probe.layer.forward(b.x, y, t, b.context(true));
    probe.layer.backward(probe.cotangent(probe.tokens()), dx, t);  // gradients were not set to zero
    auto twice = once.gradients;
    for (scalar& g : twice) g *= 2;
    const auto got = parameter_gradients(probe.layer);
    double largest = 1;
    for (const scalar g : twice) largest = (std::max)(largest, (std::abs)(static_cast<double>(g)));
    const double rounding =
        static_cast<double>(probe.tokens() + 1) * static_cast<double>(std::numeric_limits<scalar>::epsilon());
    return judge("twice the gradients and those of two calls",
                 largest_difference(got.data(), twice.data(), static_cast<index_t>(twice.size())),
                 8 * largest * rounding);
  } else {
    return skip("the router has no backward");
  }
}

/// A second backward call on the tape: several losses may have a gradient each.
template <typename Router>
property_result backward_again(router_probe<Router>& probe) {
  if constexpr (router_probe<Router>::trains) {
    using scalar = typename Router::scalar;
    const auto b = probe.everything();
    typename router_probe<Router>::tape t;
    const auto once = probe.step(b, b.context(true), t);
    zero_gradients(probe.layer);
    matrix<scalar> dx(once.dx.rows(), once.dx.cols());
    probe.layer.backward(probe.cotangent(probe.tokens()), dx, t);
    if (!equal_bits(once.dx, dx)) return fail("dx of the second call on a tape is another one");
    if (!equal_bits(once.gradients, parameter_gradients(probe.layer)))
      return fail("gradients of the second call on a tape are other ones");
    return pass("a second call on the tape gives equal bits");
  } else {
    return skip("the router has no backward");
  }
}

/// Random gradients for what losses may read, as if losses had put them there: r, and sum(r * signal) as their value.
/// Padding has a gradient too, which reaches nothing, and no part in the value.
template <typename Scalar, typename RouterTape>
class signal_objective {
public:
  explicit signal_objective(std::uint64_t seed) : seed_(seed) {}

  double value(const RouterTape& t, const routing_context<Scalar>& context) const {
    double sum = 0;
    each(t, [&](const matrix_buffer<Scalar>& signal, index_t site) {
      const bool by_token = static_cast<std::size_t>(signal.rows()) == context.token_mask.size();
      for (index_t i = 0; i < signal.size(); ++i)
        if (!is_infinite(signal.data()[i]) && !(by_token && context.is_padding(i / signal.cols())))
          sum += factor(site, i) * static_cast<double>(signal.data()[i]);
    });
    return sum;
  }
  void add_gradient(RouterTape& t) const {
    if constexpr (has_scores) {
      add(t.dseen.clean, 0);
      if (t.seen.has_noise) add(t.dseen.noisy, 1);
      if (!t.seen.noise_std.empty()) add(t.dseen.noise_std, 2);
    }
  }

private:
  static constexpr bool has_scores = requires(RouterTape & t) {
    t.seen.clean, t.seen.has_noise, t.seen.noise_std, t.dseen.clean, t.dseen.noisy, t.dseen.noise_std;
  };

  /// The logit of an expert that is masked out: it does not move.
  static bool is_infinite(const Scalar& v) { return (std::abs)(order_key(v)) == infinity_bits<Scalar>; }

  template <typename F>
  static void each(const RouterTape& t, F&& f) {
    if constexpr (has_scores) {
      f(t.seen.clean, 0);
      if (t.seen.has_noise) f(t.seen.noisy(), 1);
      if (!t.seen.noise_std.empty()) f(t.seen.noise_std, 2);
    }
  }
  double factor(index_t site, index_t i) const {
    return random_source(seed_, static_cast<std::uint64_t>(site)).normal(random_site::user_site, i);
  }
  void add(matrix_buffer<Scalar>& gradient, index_t site) const {
    for (index_t i = 0; i < gradient.size(); ++i) gradient.data()[i] += static_cast<Scalar>(factor(site, i));
  }

  std::uint64_t seed_;
};

/// Token 1 holds NaN, and so does the gradient of its output: no parameter's gradient and no other token may feel it.
/// If the router is causal, all is as if the token were padding, bit for bit.
template <typename Router>
property_result nan_in_gradients(router_probe<Router>& probe) {
  if constexpr (!router_probe<Router>::trains) {
    return skip("the router has no backward");
  } else {
    using scalar = typename Router::scalar;
    const index_t spoiled = 1;
    auto b = probe.everything();
    matrix<scalar> dy = probe.cotangent(probe.tokens());
    b.x(spoiled, b.x.cols() - 1) = quiet_nan<scalar>();
    dy.row(spoiled).setConstant(quiet_nan<scalar>());
    typename router_probe<Router>::tape t;
    const auto found = probe.step(b.x, b.context(true), t, dy);
    if (any_nan(found.gradients.data(), static_cast<index_t>(found.gradients.size())))
      return fail("a parameter's gradient becomes NaN");
    for (index_t row = 0; row < probe.tokens(); ++row)
      if (row != spoiled && any_nan(&found.dx(row, 0), found.dx.cols()))
        return fail("the gradient of token " + std::to_string(row) + " becomes NaN");
    if (!probe.causal) return pass("no gradient but its own becomes NaN");
    b.mask.resize(static_cast<std::size_t>(probe.tokens()), 1);
    b.mask[static_cast<std::size_t>(spoiled)] = 0;
    const auto without = probe.step(b.x, b.context(true), t, dy);
    if (!equal_bits(found.gradients, without.gradients)) return fail("it changes a parameter's gradient");
    for (index_t row = 0; row < probe.tokens(); ++row)
      if (row != spoiled && !equal_bits(&found.dx(row, 0), &without.dx(row, 0), found.dx.cols()))
        return fail("it changes the gradient of token " + std::to_string(row));
    return pass("all other gradients are as if it were padding");
  }
}

/// Central differences of sum(y * dy) + sum(signals * r), over x and all parameters. Entries at which a choice flips
/// are left out.
template <typename Router>
property_result gradients(router_probe<Router>& probe, bool training) {
  if constexpr (!router_probe<Router>::trains) {
    return skip("the router has no backward");
  } else if constexpr (!has_exact_gradient<Router>) {
    return skip("the router's gradient is an estimate (exact_gradient = false)");
  } else if constexpr (!std::same_as<typename Router::scalar, double>) {
    return skip("differences need double; check the router's double form as well");
  } else {
    using tape = typename router_probe<Router>::tape;
    auto b = probe.pick(ascending_rows(probe.options.gradient_tokens));
    const matrix<double> dy = probe.cotangent(b.x.rows());
    const signal_objective<double, decltype(tape::router)> losses(probe.options.seed + 5);
    matrix<double> y(b.x.rows(), probe.layer.outputs());
    matrix<double> dx(b.x.rows(), probe.layer.inputs());
    tape t;
    zero_gradients(probe.layer);
    probe.layer.forward(b.x, y, t, b.context(training));
    losses.add_gradient(t.router);
    probe.layer.backward(dy, dx, t);
    const auto choices = choices_of(t.plan);
    tape again;
    const auto objective = [&]() -> std::optional<double> {
      probe.layer.forward(b.x, y, again, b.context(training));
      if (choices_of(again.plan) != choices) return std::nullopt;
      return (y.array() * dy.array()).sum() + losses.value(again.router, b.context(training));
    };
    const auto size = static_cast<std::size_t>(b.x.size());
    const auto report = check_gradients(probe.layer, {{"x", {b.x.data(), size}, {dx.data(), size}}}, objective,
                                        probe.options.gradients);
    if (report.checked == 0) return fail("a choice flips near every entry");
    return report.largest_error <= probe.options.gradient_bound ? pass(report.describe()) : fail(report.describe());
  }
}

}  // namespace sluice::inline SLUICE_ISA::detail
