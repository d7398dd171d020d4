/// What layers without a choice of experts promise, tested on any of them.
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>

#include "../support.hpp"

#include <string>
#include <utility>
#include <vector>

namespace sluice::test {

/// What a training step leaves behind.
template <typename Scalar>
struct step_results {
  matrix<Scalar> y, dx;
  std::vector<matrix<Scalar>> gradients;
};

template <typename Layer, typename Scalar = typename Layer::scalar>
step_results<Scalar> train_once(Layer& layer, const matrix<Scalar>& x, const matrix<Scalar>& dy,
                                routing_context<Scalar> context = {}) {
  context.training = true;
  step_results<Scalar> r{matrix<Scalar>(x.rows(), layer.outputs()), matrix<Scalar>(x.rows(), layer.inputs()), {}};
  typename Layer::tape tape;
  zero_gradients(layer);
  layer.forward(x, r.y, tape, context);
  layer.backward(dy, r.dx, tape);
  layer.after_step(tape);
  for_each_parameter(layer, [&](const std::string&, auto& p) { r.gradients.push_back(p.gradient_matrix()); });
  return r;
}

/// Token 4 of 9 holds NaN, or is padding that does: the other tokens and all gradients are those of a batch without it.
template <typename Layer>
void check_spoiled_token(Layer& layer) {
  using scalar = typename Layer::scalar;
  matrix<scalar> x = random_matrix<scalar>(9, layer.inputs(), 92), dy = random_matrix<scalar>(9, layer.outputs(), 93);
  x(4, 1) = quiet_nan<scalar>();
  dy.row(4).setConstant(quiet_nan<scalar>());
  matrix<scalar> x8(8, x.cols()), dy8(8, dy.cols());
  x8 << x.topRows(4), x.bottomRows(4);
  dy8 << dy.topRows(4), dy.bottomRows(4);
  const auto expected = train_once(layer, x8, dy8);
  for (const bool padded : {false, true}) {
    CAPTURE(padded);
    std::vector<std::uint8_t> mask(9, 1);
    mask[4] = 0;
    routing_context<scalar> context;
    if (padded) context.token_mask = mask;
    const auto r = train_once(layer, x, dy, context);
    CHECK(same_bits(r.y.topRows(4), expected.y.topRows(4)));
    CHECK(same_bits(r.y.bottomRows(4), expected.y.bottomRows(4)));
    CHECK(same_bits(r.dx.topRows(4), expected.dx.topRows(4)));
    CHECK(same_bits(r.dx.bottomRows(4), expected.dx.bottomRows(4)));
    CHECK(r.dx.row(4).isZero(0));
    for (index_t c = 0; c < layer.outputs(); ++c) CHECK((padded ? r.y(4, c) == 0 : is_nan(r.y(4, c))));
    // A row of zeros more may move another row to another place in the sums.
    for (std::size_t i = 0; i < r.gradients.size(); ++i)
      CHECK(largest_difference(r.gradients[i], expected.gradients[i]) <
            bound<scalar>(9, expected.gradients[i].cwiseAbs().maxCoeff() * 4));
  }
}

/// No tokens, shapes that do not fit, a mask of another length.
template <typename Layer>
void check_edges(Layer& layer) {
  using scalar = typename Layer::scalar;
  const matrix<scalar> none(0, layer.inputs()), dnone(0, layer.outputs());
  for (const auto& gradient : train_once(layer, none, dnone).gradients) CHECK(gradient.isZero(0));

  const matrix<scalar> x(3, layer.inputs()), wide(3, layer.inputs() + 1);
  matrix<scalar> y(3, layer.outputs()), narrow(3, layer.outputs() - 1), dx(3, layer.inputs());
  typename Layer::workspace workspace;
  routing_context<scalar> context;
  CHECK_THROWS_AS(layer.forward(wide, y, workspace, context), std::invalid_argument);
  CHECK_THROWS_AS(layer.forward(x, narrow, workspace, context), std::invalid_argument);
  const std::vector<std::uint8_t> mask(2, 1);
  context.token_mask = mask;
  CHECK_THROWS_AS(layer.forward(x, y, workspace, context), std::invalid_argument);
}

}  // namespace sluice::test
