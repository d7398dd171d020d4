// What tests of quantisers share.
#pragma once

#include <sluice/codebook/quantizer.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

namespace sluice::test {

/// Every promise of a layer but exact gradients, in double. The quantiser gets the values that `seed` draws.
template <Quantizer Q>
void check_quantizer_promises(Q quantizer, std::uint64_t seed) {
  static_assert(std::same_as<typename Q::scalar, double>);
  initialize(quantizer, seed);
  const auto report = sluice::check_layer(quantizer, {.seed = seed});
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(report.find("gradients")->result == outcome::skipped);
}

/// A loss that stops no gradient: its gradients are those of differences of tape.loss() by every tenth parameter and, unless x
/// is a constant to it, by x. Choices must not change on the way.
template <Quantizer Q>
void check_loss_gradients(Q& q, matrix<double> x, bool reaches_x = true, double tolerance = 1e-7) {
  typename Q::tape tape;
  matrix<double> y(x.rows(), q.outputs()), dx(x.rows(), x.cols());
  const matrix<double> none = matrix<double>::Zero(x.rows(), q.outputs());
  routing_context<double> context;
  context.training = true;
  const auto loss = [&] {
    q.forward(x, y, tape, context);
    return static_cast<double>(tape.loss());
  };
  loss();
  zero_gradients(q);
  q.backward(none, dx, tape);
  const auto slope = [&](double& number) { return slope_at(number, loss, 1e-5); };
  for (index_t i = 0; i < x.size(); i += 10) {
    CAPTURE(i);
    CHECK(dx.data()[i] == Approx(reaches_x ? slope(x.data()[i]) : 0.0).margin(tolerance));
  }
  for_each_parameter(q, [&](const std::string& name, auto& p) {
    if (!p.is_learned()) return;
    for (index_t i = 0; i < p.size(); i += p.size() < 20 ? 1 : 10) {
      CAPTURE(name, i);
      CHECK(p.gradient()[as_size(i)] == Approx(slope(p.data()[i])).margin(tolerance));
    }
  });
}

}  // namespace sluice::test
