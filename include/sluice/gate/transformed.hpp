/// Transformed gate: an inner gate that reads M(x), a fixed function of every number of a token, while experts read x.
///
///   logits = G(M(x)),  M(x)[d] = phi(x[d])            dx[d] += phi'(x[d]) dG/dM[d]
///
/// phi is a struct with value(z) and derivative(z), as those of kernel/activation.hpp; with no_activation it is the
/// inner gate itself. Under a softmax a bounded phi gives the modified softmax gate, softmax_i(<b1_i, M(x)> + b0_i), in
/// which the parameters of gate and experts no longer interact: dense_softmax_router over it, with experts whose
/// outputs are probabilities (train/cross_entropy.hpp has the loss of their mixture). NaN stays in its row. T = 0 is
/// fine. Nguyen, Akbarian, Nguyen, Ho 2024, "A General Theory for Softmax Gating Multinomial Logistic Mixture of
/// Experts", arXiv:2310.14188.
#pragma once

#include <sluice/gate/normalized.hpp>
#include <sluice/kernel/activation.hpp>

namespace sluice::inline SLUICE_ISA {

/// phi of every number, with the calls of a norm (kernel/row_norm.hpp).
template <FloatOrDouble Scalar, typename Phi>
class elementwise_map {
  static_assert(Activation<Phi, Scalar>, "sluice: elementwise_map needs static value(z) and derivative(z)");

public:
  using scalar = Scalar;
  struct tape {};

  explicit elementwise_map(index_t = 0) {}

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tape&, const executor_ref& executor) const {
    for_rows(x, executor, [&](index_t r, index_t c) { y(r, c) = Phi::value(x(r, c)); });
  }
  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tape&, tokens_out<Scalar> dx, const executor_ref& executor,
                index_t = 0) {
    for_rows(x, executor, [&](index_t r, index_t c) { dx(r, c) += dy(r, c) * Phi::derivative(x(r, c)); });
  }

private:
  template <typename F>
  static void for_rows(tokens_in<Scalar> x, const executor_ref& executor, F&& f) {
    executor.parallel_each(x.rows(), 16 * x.cols(), [&](index_t r) {
      for (index_t c = 0; c < x.cols(); ++c) f(r, c);
    });
  }
};

template <typename Inner, typename Phi = hyperbolic_tangent>
class transformed_gate : public normalized_gate<Inner, elementwise_map<typename Inner::scalar, Phi>> {
  using base = normalized_gate<Inner, elementwise_map<typename Inner::scalar, Phi>>;

public:
  static constexpr bool shows_nan = false;  // phi may be anybody's

  explicit transformed_gate(Inner inner) : base(std::move(inner), elementwise_map<typename Inner::scalar, Phi>()) {}
};

static_assert(DifferentiableGate<transformed_gate<linear_gate<float>>>);

}  // namespace sluice::inline SLUICE_ISA
