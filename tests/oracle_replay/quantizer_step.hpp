// A training step of a quantiser: what it gives, and what dy alone and the losses alone give to x and the parameters.
#pragma once

#include <sluice/codebook/quantizer.hpp>

#include <vector>

namespace oracle {

template <typename Q, typename Scalar = typename Q::scalar>
struct quantizer_step {
  sluice::matrix<Scalar> y;
  typename Q::tape tape;

  quantizer_step(const Q& q, const sluice::matrix<Scalar>& x, const sluice::routing_context<Scalar>& context = {.training = true})
      : y(x.rows(), q.outputs()) {
    q.forward(x, y, tape, context);
  }

  sluice::matrix<Scalar> backward(Q& q, const sluice::matrix<Scalar>& dy) {
    sluice::matrix<Scalar> dx(dy.rows(), q.inputs());
    sluice::zero_gradients(q);
    q.backward(dy, dx, tape);
    return dx;
  }
  sluice::matrix<Scalar> backward_of_losses(Q& q) { return backward(q, sluice::matrix<Scalar>::Zero(y.rows(), y.cols())); }
};

}  // namespace oracle
