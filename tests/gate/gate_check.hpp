// Checks that every gate has to pass.
#pragma once

#include <sluice/core/concepts.hpp>
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

/// Equal bits of logits, dx and gradients for every executor; NaN in token 3 reaches no other; T = 0 works.
template <typename G>
void check_gate_promises(G& gate, std::uint64_t seed) {
  using scalar = typename G::scalar;
  const index_t tokens = 77;
  const matrix<scalar> x = random_matrix<scalar>(tokens, gate.inputs(), seed);
  const matrix<scalar> dlogits = random_matrix<scalar>(tokens, gate.experts(), seed + 1);
  auto context = training_context<scalar>(seed);
  const auto gradients = [&] {
    std::vector<scalar> all;
    for_each_parameter(gate, [&](const std::string&, parameter<scalar>& p) {
      all.insert(all.end(), p.gradient().begin(), p.gradient().end());
    });
    return all;
  };
  typename G::tape tape;
  const matrix<scalar> logits = score(gate, x, context);
  const matrix<scalar> dx = pull_back(gate, x, dlogits, context, tape);
  const auto expected = gradients();
  for (const int threads : {1, 2, 3, 8}) {
    CAPTURE(threads);
    shuffled_threads pool(threads);
    context.executor = pool;
    CHECK(same_bits(score(gate, x, context), logits));
    CHECK(same_bits(pull_back(gate, x, dlogits, context, tape), dx));
    const auto found = gradients();
    CHECK(std::memcmp(found.data(), expected.data(), found.size() * sizeof(scalar)) == 0);
    context.executor = {};
  }

  matrix<scalar> broken = x;
  broken(3, 0) = quiet_nan<scalar>();
  matrix<scalar> found = score(gate, broken, context);
  for (index_t e = 0; e < gate.experts(); ++e) CHECK(is_nan(found(3, e)));
  found.row(3) = logits.row(3);
  CHECK(same_bits(found, logits));

  const matrix<scalar> none(0, gate.inputs());
  CHECK(score(gate, none, context).rows() == 0);
  CHECK(pull_back(gate, none, matrix<scalar>(0, gate.experts()), context, tape).rows() == 0);
  for (const scalar g : gradients()) CHECK(g == 0);
}

}  // namespace sluice::test
