/// What must hold between calls of a router: the conformance kit's properties of repetition, threads, randomness and
/// padding.
#pragma once

#include <sluice/train/conformance/repeated_calls.hpp>
#include <sluice/train/conformance/router_probe.hpp>

#include <string>
#include <vector>

namespace sluice::inline SLUICE_ISA::detail {

template <typename Router>
property_result repetition(router_probe<Router>& probe) {
  for (const bool training : {false, true}) {
    const auto run = [&](const auto& b, auto& t, const executor_ref& executor) {
      return probe.step(b, b.context(training, executor), t);
    };
    const auto r = equal_with_used_tapes<typename router_probe<Router>::tape>(
        probe.everything(), probe.pick({1, 0}), run, training ? " in training" : " without training");
    if (r.result == outcome::failed) return r;
  }
  return pass("with fresh and used tapes, in training and without");
}

template <typename Router>
property_result thread_counts(router_probe<Router>& probe) {
  const auto run = [&](const auto& b, auto& t, const executor_ref& executor) {
    return probe.step(b, b.context(true, executor), t);
  };
  const auto b = probe.everything();
  typename router_probe<Router>::tape t;
  if (!(run(b, t, executor_ref()) == run(b, t, probe.options.context.executor)))
    return fail("the executor of options.context gives other bits");
  return equal_with_all_threads<typename router_probe<Router>::tape>(b, run);
}

template <typename Router>
property_result shared_by_threads(router_probe<Router>& probe) {
  using scalar = typename Router::scalar;
  const auto b = probe.everything();
  typename router_probe<Router>::workspace ws;
  const matrix<scalar> expected = probe.infer(b.x, b.context(false), ws);
  constexpr int count = 4;
  std::vector<matrix<scalar>> results(count);
  backward_threads(count).parallel_for(count, [&](index_t i) {
    typename router_probe<Router>::workspace own;
    for (int repeat = 0; repeat < 3; ++repeat)
      results[static_cast<std::size_t>(i)] = probe.infer(b.x, b.context(false), own);
  });
  for (const matrix<scalar>& result : results)
    if (!equal_bits(result, expected)) return fail("calls at the same time give other bits");
  return pass("4 threads, a workspace each");
}

template <typename Router>
property_result inference_draws_nothing(router_probe<Router>& probe) {
  const auto b = probe.everything();
  auto context = b.context(false);
  typename router_probe<Router>::workspace ws;
  probe.infer(b.x, context, ws);
  const auto first = words_of(ws.plan);
  context.random = random_source(probe.options.seed + 77, 5);
  probe.infer(b.x, context, ws);
  return equal_bits(first, words_of(ws.plan)) ? pass("one plan for two random sources")
                                              : fail("another random source gives another plan");
}

template <typename Router>
property_result changes_no_parameter(router_probe<Router>& probe) {
  return keeps_parameters(probe.layer, [&] {
    const auto b = probe.everything();
    for (const bool training : {false, true}) {
      typename router_probe<Router>::tape t;
      probe.step(b, b.context(training), t);
    }
  });
}

/// Every third token is padding; then its numbers and its output's gradient change, and nothing else may.
template <typename Router>
property_result padding(router_probe<Router>& probe) {
  using scalar = typename Router::scalar;
  auto b = probe.everything();
  b.mask.assign(static_cast<std::size_t>(probe.tokens()), 1);
  for (std::size_t t = 2; t < b.mask.size(); t += 3) b.mask[t] = 0;
  typename router_probe<Router>::tape t;
  matrix<scalar> dy = probe.cotangent(probe.tokens());
  const auto clean = probe.step(b.x, b.context(true), t, dy);
  typename router_probe<Router>::workspace ws;
  const matrix<scalar> inferred = probe.infer(b.x, b.context(false), ws);
  if constexpr (requires { t.plan.dropped(); }) {
    for (index_t i = 0; i < t.plan.size(); ++i)
      if (b.mask[static_cast<std::size_t>(t.plan.token(i))] == 0) return fail("a padding token has an expert");
    for (const auto& d : t.plan.dropped())
      if (b.mask[static_cast<std::size_t>(d.token)] == 0) return fail("a padding token is listed as dropped");
  }
  for (index_t row = 2; row < probe.tokens(); row += 3) {
    if (!clean.y.row(row).isZero(0)) return fail("the output of a padding token is not zero");
    if (probe.trains && !clean.dx.row(row).isZero(0)) return fail("a padding token has a gradient");
    b.x.row(row).setConstant(quiet_nan<scalar>());
    dy.row(row) *= scalar(1000);
  }
  const auto spoiled = probe.step(b.x, b.context(true), t, dy);
  if (!equal_bits(clean.y, spoiled.y) || !equal_bits(inferred, probe.infer(b.x, b.context(false), ws)))
    return fail("NaN in padding changes outputs");
  if (!equal_bits(clean.gradients, spoiled.gradients)) return fail("NaN in padding changes gradients of parameters");
  for (index_t row = 0; probe.trains && row < probe.tokens(); ++row)
    if (b.mask[static_cast<std::size_t>(row)] != 0 &&
        !equal_bits(&clean.dx(row, 0), &spoiled.dx(row, 0), clean.dx.cols()))
      return fail("NaN in padding changes gradients of other tokens");
  return pass("padding has no experts, output zero, and its content reaches nothing");
}

template <typename Router>
property_result own_step(router_probe<Router>& probe) {
  typename router_probe<Router>::tape t;
  if constexpr (requires { probe.layer.router().after_step(t.statistics, t.router); }) {
    const auto b = probe.everything();
    for (int repeat = 0; repeat < 3; ++repeat) {
      probe.step(b, b.context(true), t);
      probe.layer.after_step(t);
    }
    const auto values = parameter_values(probe.layer.router());
    if (any_nan(values.data(), static_cast<index_t>(values.size()))) return fail("a parameter or state becomes NaN");
    probe.infer(b.x, b.context(false), t);
    if (t.plan.tokens() != probe.tokens()) return fail("it no longer routes");
    return pass("three training steps, then inference");
  } else {
    return skip("the router has no after_step");
  }
}

}  // namespace sluice::inline SLUICE_ISA::detail
