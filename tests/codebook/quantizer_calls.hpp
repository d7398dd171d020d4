// The calls of a quantiser as functions of matrices, with memory of their own.
#pragma once

#include <sluice/codebook/quantizer.hpp>

namespace sluice::test {

template <Quantizer Q>
matrix<typename Q::scalar> inferred(const Q& quantizer, const matrix<typename Q::scalar>& x,
                                    const typename Q::context_type& context = {}) {
  typename Q::workspace ws;
  matrix<typename Q::scalar> y(x.rows(), quantizer.outputs());
  quantizer.forward(x, y, ws, context);
  return y;
}

template <Quantizer Q>
matrix<index_t> encoded(const Q& quantizer, const matrix<typename Q::scalar>& x,
                        const typename Q::context_type& context = {}) {
  typename Q::workspace ws;
  matrix<index_t> ids(x.rows(), quantizer.code_columns());
  quantizer.encode(x, ids, ws, context);
  return ids;
}

template <Quantizer Q>
matrix<typename Q::scalar> decoded(const Q& quantizer, const matrix<index_t>& ids) {
  typename Q::workspace ws;
  matrix<typename Q::scalar> y(ids.rows(), quantizer.outputs());
  quantizer.decode(ids, y, ws);
  return y;
}

/// Forward in training, then backward.
template <Quantizer Q>
struct trained {
  matrix<typename Q::scalar> y, dx;
  typename Q::tape tape;

  trained(Q& quantizer, const matrix<typename Q::scalar>& x, const matrix<typename Q::scalar>& dy,
          typename Q::context_type context = {})
      : y(x.rows(), quantizer.outputs()), dx(x.rows(), x.cols()) {
    context.training = true;
    quantizer.forward(x, y, tape, context);
    quantizer.backward(dy, dx, tape);
  }
};

}  // namespace sluice::test
