/// Experts without weights: identity (copy) and zero.
///
///   identity  y = x,  dx = dy          zero  y = 0,  dx = 0
///
/// They cost no multiplication: a router that sends a token to them spends less on it. A copy expert is also how tokens
/// pass a layer unchanged (give them to it with weight 1). Jin et al. 2024 (MoE++), arXiv:2410.07348.
#pragma once

#include <sluice/core/concepts.hpp>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class identity_expert {
public:
  using scalar = Scalar;
  explicit identity_expert(index_t width) : width_(width) {}
  index_t inputs() const noexcept { return width_; }
  index_t outputs() const noexcept { return width_; }
  index_t saved_columns() const noexcept { return 0; }
  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tokens_out<Scalar>) const { y = x; }
  void backward(tokens_in<Scalar>, tokens_in<Scalar> dy, tokens_out<Scalar>, tokens_out<Scalar> dx) const { dx = dy; }

private:
  index_t width_;
};

template <FloatOrDouble Scalar>
class zero_expert {
public:
  using scalar = Scalar;
  explicit zero_expert(index_t width) : width_(width) {}
  index_t inputs() const noexcept { return width_; }
  index_t outputs() const noexcept { return width_; }
  index_t saved_columns() const noexcept { return 0; }
  void forward(tokens_in<Scalar>, tokens_out<Scalar> y, tokens_out<Scalar>) const { y.setZero(); }
  void backward(tokens_in<Scalar>, tokens_in<Scalar>, tokens_out<Scalar>, tokens_out<Scalar> dx) const { dx.setZero(); }

private:
  index_t width_;
};

static_assert(DifferentiableExpert<identity_expert<float>> && DifferentiableExpert<zero_expert<float>>);

}  // namespace sluice::inline SLUICE_ISA
