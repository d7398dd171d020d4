// Checks that every gate has to pass.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/train/check_gate.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

namespace sluice::test {

template <typename Scalar>
routing_context<Scalar> training_context(std::uint64_t seed = 1) {
  routing_context<Scalar> context;
  context.training = true;
  context.random = random_source(seed);
  return context;
}

/// Logits of x.
template <typename G, typename Scalar = typename G::scalar>
matrix<Scalar> score(const G& gate, const matrix<Scalar>& x, const routing_context<Scalar>& context = {}) {
  matrix<Scalar> logits = matrix<Scalar>::Constant(x.rows(), gate.experts(), quiet_nan<Scalar>());
  typename G::tape tape;
  gate.forward(x, context, logits, tape);
  return logits;
}

/// What backward gives for dlogits: dx starts from `start`, parameters' gradients from zero.
template <typename G, typename Scalar = typename G::scalar>
matrix<Scalar> pull_back(G& gate, const matrix<Scalar>& x, const matrix<Scalar>& dlogits,
                         const routing_context<Scalar>& context, typename G::tape& tape, Scalar start = 0) {
  matrix<Scalar> logits(x.rows(), gate.experts());
  matrix<Scalar> dx = matrix<Scalar>::Constant(x.rows(), x.cols(), start);
  ensure_gradients(gate);
  zero_gradients(gate);
  gate.forward(x, context, logits, tape);
  gate.backward(x, context, dlogits, tape, dx);
  return dx;
}

/// Compares gradients of sum(logits dlogits) by x and by every parameter with central differences. The gate keeps its
/// values.
template <typename G>
gradient_report check_gate(G& gate, matrix<double> x, std::uint64_t seed, const routing_context<double>& context,
                           std::vector<checked_input> more = {}) {
  const matrix<double> dlogits = random_matrix<double>(x.rows(), gate.experts(), seed);
  typename G::tape tape;
  // Starting dx from 3 shows that it is added to.
  matrix<double> dx = pull_back(gate, x, dlogits, context, tape, 3.0);
  dx.array() -= 3;
  more.push_back({"x", span_of(x), span_of(std::as_const(dx))});
  return check_gradients(gate, more, [&] { return (score(gate, x, context).array() * dlogits.array()).sum(); });
}

/// What every gate promises (train/check_gate.hpp).
template <typename G>
void check_gate_promises(const G& gate, std::uint64_t seed) {
  const auto report = sluice::check_gate(gate, {.seed = seed, .gradient_tokens = 3, .gradients = {.most_entries = 60}});
  INFO(report.describe());
  CHECK(report.passed());
}

}  // namespace sluice::test
