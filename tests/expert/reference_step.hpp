// A training step of a layer beside the readable reference.
#pragma once

#include <sluice/core/parameter.hpp>
#include <sluice/reference/naive_moe.hpp>

#include "support.hpp"

#include <string>
#include <vector>

namespace sluice::test {

/// Outputs and the gradients of all experts are those of the reference, within the bounds.
template <typename Layer, typename Scalar = typename Layer::scalar>
void check_against_reference(Layer& layer, const matrix<Scalar>& x, const matrix<Scalar>& dy, Scalar output_bound,
                             Scalar gradient_bound) {
  matrix<Scalar> y(x.rows(), layer.outputs()), dx(x.rows(), layer.inputs());
  typename Layer::tape tape;
  layer.forward(x, y, tape);
  auto bank = layer.bank();
  const auto expected = reference::forward(tape.plan, bank, x);
  CHECK(largest_difference(y, expected.y) <= output_bound);
  layer.backward(dy, dx, tape);
  reference::backward(expected, bank, x, dy);
  std::vector<matrix<Scalar>> gradients;
  for_each_parameter(bank, [&](std::string_view, auto& p) { gradients.push_back(p.gradient_matrix()); });
  std::size_t i = 0;
  for_each_parameter(layer.bank(), [&](const std::string& name, auto& p) {
    CAPTURE(name);
    CHECK(largest_difference(p.gradient_matrix(), gradients[i++]) <= gradient_bound);
  });
}

}  // namespace sluice::test
