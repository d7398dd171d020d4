/// What the losses of a top-any router (router/threshold/dynmoe.hpp) see of a call, and what they ask of it.
///
///   scores s [T,E], thresholds h [E], who was routed where [T,E] and how often, which experts are live, and the experts'
///   own vectors W, as directions and lengths        gradients: by active, directions and lengths
///
/// The rest is read, not learned by: loss/dynmoe.hpp asks for few experts a token, and for vectors that are short and
/// far from each other. Rows of padding are zero.
#pragma once

#include <sluice/core/buffer.hpp>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
struct top_any_signals {
  matrix_buffer<Scalar> logits;      ///< [T,E] c
  matrix_buffer<Scalar> scores;      ///< [T,E] s, zero for padding
  buffer<Scalar> thresholds;         ///< [E] h
  matrix_buffer<Scalar> active;      ///< [T,E] 1 where the token is routed
  buffer<index_t> count;             ///< [T] experts of the token
  buffer<Scalar> live;               ///< [E]
  matrix_buffer<Scalar> directions;  ///< [E,D] W_e / |W_e|
  buffer<Scalar> lengths;            ///< [E] |W_e|
};

template <FloatOrDouble Scalar>
struct top_any_gradients {
  matrix_buffer<Scalar> active;
  matrix_buffer<Scalar> directions;
  buffer<Scalar> lengths;
  buffer<double> sum_scratch;  ///< memory of losses

  void zero_like(const top_any_signals<Scalar>& s) {
    active.set_zero(s.active.rows(), s.active.cols());
    directions.set_zero(s.directions.rows(), s.directions.cols());
    lengths.assign(s.lengths.size(), Scalar(0));
  }
};

}  // namespace sluice::inline SLUICE_ISA
