/// check_gate: every promise that a gate makes, tested on yours in one call, beside check_router
/// (train/conformance.hpp).
///
///   const conformance_report report = check_gate(my_gate<double>{16, 8});
///
/// Tested are: zero tokens; logits overwritten whatever their memory held; a NaN token has NaN logits and changes no
/// other; tokens on their own; equal bits for equal calls, for used tapes and for 1, 2, 3 and 8 threads; no randomness
/// in inference; no parameter changed; gradients of x and parameters equal to central differences (in double), added to
/// what is there, and the same again in a second backward call. Initialise the gate first. What it needs besides x is
/// in options.context.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/train/conformance/repeated_calls.hpp>
#include <sluice/train/gradient_check.hpp>

#include <limits>
#include <string>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
struct gate_check_options {
  std::uint64_t seed = 1;
  index_t tokens = 67;                ///< more than two blocks of rows
  index_t gradient_tokens = 5;
  /// What the gate needs besides x; training, draws and executor are set by the kit.
  routing_context<Scalar> context{};
  gradient_check_options gradients{.most_entries = 200};
  double gradient_bound = 1e-6;
};

namespace detail {

template <Gate G>
class gate_probe {
public:
  using scalar = typename G::scalar;
  using tape = typename G::tape;
  using batch = picked_batch<scalar>;
  static constexpr bool trains = DifferentiableGate<G>;

  struct results {
    matrix<scalar> logits;
    matrix<scalar> dx;
    std::vector<scalar> gradients;

    bool operator==(const results& other) const {
      return equal_bits(logits, other.logits) && equal_bits(dx, other.dx) && equal_bits(gradients, other.gradients);
    }
  };

  gate_probe(const G& g, const gate_check_options<scalar>& o)
      : options(o), gate(g), x(random_rows<scalar>(o.tokens, g.inputs(), o.seed + 1)) {
    if (o.tokens < 4 || o.gradient_tokens < 1 || o.gradient_tokens > o.tokens)
      throw_invalid("check_gate needs at least 4 tokens and 1 <= gradient_tokens <= tokens, not ", o.tokens, " and ",
                    o.gradient_tokens);
    check_context(o.context, o.tokens);
    options.context.random = random_source(o.seed + 2, 1);
  }

  batch pick(const std::vector<index_t>& rows) const { return batch(x, options.context, rows); }
  batch everything() const { return pick(ascending_rows(options.tokens)); }
  matrix<scalar> cotangent(index_t rows) const { return random_rows<scalar>(rows, gate.experts(), options.seed + 3); }

  matrix<scalar> score(const matrix<scalar>& tokens, const routing_context<scalar>& context, tape& t,
                       scalar held = quiet_nan<scalar>()) const {
    matrix<scalar> logits = matrix<scalar>::Constant(tokens.rows(), gate.experts(), held);
    gate.forward(tokens, context, logits, t);
    return logits;
  }

  /// Forward and backward, with dx that starts from `start` and gradients from zero.
  results run(const batch& b, const routing_context<scalar>& context, tape& t, scalar start = 0) {
    results r{score(b.x, context, t), matrix<scalar>::Constant(b.x.rows(), b.x.cols(), start), {}};
    if constexpr (trains) {
      ensure_gradients(gate);
      zero_gradients(gate);
      gate.backward(b.x, context, cotangent(b.x.rows()), t, r.dx);
      r.gradients = parameter_gradients(gate);
    }
    return r;
  }

  gate_check_options<scalar> options;
  G gate;
  matrix<scalar> x;
};

template <typename G>
property_result gate_zero_tokens(gate_probe<G>& probe) {
  using scalar = typename G::scalar;
  const auto b = probe.pick({});
  for (const bool training : {false, true}) {
    typename G::tape t;
    for (const scalar g : probe.run(b, b.context(training), t).gradients)
      if (g != scalar(0)) return fail("a gradient is not zero");
  }
  return pass("no logits, zero gradients");
}

template <typename G>
property_result gate_repetition(gate_probe<G>& probe) {
  using scalar = typename G::scalar;
  for (const bool training : {false, true}) {
    const auto run = [&](const auto& b, auto& t, const executor_ref& executor) {
      return probe.run(b, b.context(training, executor), t);
    };
    const auto b = probe.everything();
    const auto r = equal_with_used_tapes<typename G::tape>(b, probe.pick({1, 0}), run,
                                                           training ? " in training" : " without training");
    if (r.result == outcome::failed) return r;
    typename G::tape t;
    if (!equal_bits(probe.score(b.x, b.context(training), t), probe.score(b.x, b.context(training), t, scalar(12345))))
      return fail("logits depend on what was in their memory");
  }
  return pass("with fresh and used tapes, in training and without, whatever memory held");
}

template <typename G>
property_result gate_nan_token(gate_probe<G>& probe) {
  using scalar = typename G::scalar;
  auto b = probe.everything();
  typename G::tape t;
  const matrix<scalar> clean = probe.score(b.x, b.context(false), t);
  const matrix<scalar> elsewhere = probe.score(b.x * scalar(0.5), b.context(false), t);
  if (equal_bits(clean, elsewhere)) return skip("logits do not depend on x");
  b.x(2, 0) = quiet_nan<scalar>();
  const matrix<scalar> dirty = probe.score(b.x, b.context(false), t);
  for (index_t r = 0; r < dirty.rows(); ++r) {
    if (r != 2 && !equal_bits(&clean(r, 0), &dirty(r, 0), clean.cols()))
      return fail("token " + std::to_string(r) + " changes with token 2");
    for (index_t e = 0; r == 2 && e < dirty.cols(); ++e)
      if (!is_nan(dirty(2, e))) return fail("the token's logit " + std::to_string(e) + " is a number");
  }
  return pass("its logits are NaN, no other token changes by a bit");
}

template <typename G>
property_result gate_tokens_alone(gate_probe<G>& probe) {
  using scalar = typename G::scalar;
  const auto whole = probe.everything();
  typename G::tape t;
  const matrix<scalar> expected = probe.score(whole.x, whole.context(false), t);
  const double size = (std::max)(1.0, static_cast<double>(expected.cwiseAbs().maxCoeff()));
  const double bound =
      8 * static_cast<double>(probe.x.cols()) * size * static_cast<double>(std::numeric_limits<scalar>::epsilon());
  double worst = 0;
  for (const index_t r : {index_t(0), probe.options.tokens / 2, probe.options.tokens - 1}) {
    const auto one = probe.pick({r});
    worst = (std::max)(worst,
                       largest_difference(matrix<scalar>(expected.row(r)), probe.score(one.x, one.context(false), t)));
  }
  return judge("logits of a batch and of a token alone", worst, bound);
}

template <typename G>
property_result gate_threads(gate_probe<G>& probe) {
  return equal_with_all_threads<typename G::tape>(
      probe.everything(),
      [&](const auto& b, auto& t, const executor_ref& executor) { return probe.run(b, b.context(true, executor), t); });
}

template <typename G>
property_result gate_draws_nothing(gate_probe<G>& probe) {
  const auto b = probe.everything();
  auto context = b.context(false);
  typename G::tape t;
  const auto first = probe.score(b.x, context, t);
  context.random = random_source(probe.options.seed + 77, 5);
  return equal_bits(first, probe.score(b.x, context, t)) ? pass("equal logits for two random sources")
                                                         : fail("another random source gives other logits");
}

template <typename G>
property_result gate_keeps_parameters(gate_probe<G>& probe) {
  return keeps_parameters(probe.gate, [&] {
    const auto b = probe.everything();
    typename G::tape t;
    for (const bool training : {false, true}) probe.run(b, b.context(training), t);
  });
}

template <typename G>
property_result gate_backward_adds(gate_probe<G>& probe) {
  if constexpr (!gate_probe<G>::trains) {
    return skip("the gate has no backward");
  } else {
    using scalar = typename G::scalar;
    const auto b = probe.everything();
    typename G::tape t;
    const auto once = probe.run(b, b.context(true), t);
    matrix<scalar> dx = once.dx;
    probe.gate.backward(b.x, b.context(true), probe.cotangent(b.x.rows()), t, dx);
    auto gradients = once.gradients;
    for (scalar& g : gradients) g *= 2;
    const auto got = parameter_gradients(probe.gate);
    double size = 1;
    for (const scalar g : gradients) size = (std::max)(size, (std::abs)(static_cast<double>(g)));
    size = (std::max)(size, static_cast<double>(dx.cwiseAbs().maxCoeff()));
    const double terms = static_cast<double>(b.x.rows() + b.x.cols() + probe.gate.experts());
    const double bound = 8 * terms * size * static_cast<double>(std::numeric_limits<scalar>::epsilon());
    const auto of_x =
        judge("twice dx and that of two calls on a tape", largest_difference(matrix<scalar>(2 * once.dx), dx), bound);
    if (of_x.result == outcome::failed) return of_x;
    return judge("twice the gradients and those of two calls on a tape",
                 largest_difference(got.data(), gradients.data(), static_cast<index_t>(got.size())), bound);
  }
}

template <typename G>
property_result gate_gradients(gate_probe<G>& probe) {
  if constexpr (!gate_probe<G>::trains) {
    return skip("the gate has no backward");
  } else if constexpr (!std::same_as<typename G::scalar, double>) {
    return skip("differences need double; check the gate's double form as well");
  } else {
    auto b = probe.pick(ascending_rows(probe.options.gradient_tokens));
    const auto context = b.context(true);
    typename G::tape t, again;
    const auto r = probe.run(b, context, t);
    const matrix<double> dlogits = probe.cotangent(b.x.rows());
    const auto size = static_cast<std::size_t>(b.x.size());
    const auto report = check_gradients(
        probe.gate, {{"x", {b.x.data(), size}, {r.dx.data(), size}}},
        [&] { return (probe.score(b.x, context, again).array() * dlogits.array()).sum(); }, probe.options.gradients);
    return report.largest_error <= probe.options.gradient_bound ? pass(report.describe()) : fail(report.describe());
  }
}

}  // namespace detail

/// Throws std::invalid_argument if the options do not fit; what the gate does wrong is in the report.
template <typename G>
conformance_report check_gate(const G& gate, const gate_check_options<typename G::scalar>& options = {}) {
  static_assert(explain_gate<G>());
  detail::gate_probe<G> probe(gate, options);
  conformance_report report;
  report.add("zero tokens", [&] { return detail::gate_zero_tokens(probe); });
  report.add("repetition", [&] { return detail::gate_repetition(probe); });
  report.add("NaN token", [&] { return detail::gate_nan_token(probe); });
  report.add("tokens on their own", [&] { return detail::gate_tokens_alone(probe); });
  report.add("thread counts", [&] { return detail::gate_threads(probe); });
  report.add("inference draws nothing", [&] { return detail::gate_draws_nothing(probe); });
  report.add("calls change no parameter", [&] { return detail::gate_keeps_parameters(probe); });
  report.add("backward again", [&] { return detail::gate_backward_adds(probe); });
  report.add("gradients", [&] { return detail::gate_gradients(probe); });
  return report;
}

}  // namespace sluice::inline SLUICE_ISA
