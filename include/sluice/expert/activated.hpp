/// One linear map and an activation as an expert: y = phi(W x + b).
///
///   x [n,D]  weight W [D',D]  bias b [D']  y [n,D'], n may be 0
///   phi of kernel/activation.hpp, ReLU unless told otherwise
///   dz = dy phi'(z);  dx = dz W;  dW += dz^T x;  db += column sums of dz
///
/// What deep mixtures of experts and other stacks of single layers are made of. NaN stays in its row. Initial values:
/// normal with deviation 1/sqrt(D), bias zero. Eigen, Ranzato, Sutskever 2014, arXiv:1312.4314.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/kernel/activation.hpp>
#include <sluice/kernel/linear.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, Activation<Scalar> Phi = relu>
class activated_expert {
public:
  using scalar = Scalar;

  /// Throws std::invalid_argument unless D and D' are at least 1.
  activated_expert(index_t inputs, index_t outputs) {
    if (inputs < 1 || outputs < 1) throw_invalid("activated_expert needs D, D' >= 1, not ", inputs, ", ", outputs);
    weight_ = {
        {outputs, inputs}, parameter_role::weight, initial_values::normal(1 / std::sqrt(static_cast<double>(inputs)))};
    bias_ = {{outputs}, parameter_role::vector};
  }

  index_t inputs() const noexcept { return weight_.cols(); }
  index_t outputs() const noexcept { return weight_.rows(); }
  index_t saved_columns() const noexcept { return 2 * outputs(); }  // z, and room for dz

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tokens_out<Scalar> saved) const {
    linear_forward<Scalar>(x, weight_, saved.leftCols(outputs()), {});
    for_each(y, [&](index_t r, index_t c) {
      saved(r, c) += bias_.data()[c];
      y(r, c) = Phi::value(saved(r, c));
    });
  }

  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tokens_out<Scalar> saved, tokens_out<Scalar> dx) {
    auto dz = saved.rightCols(outputs());
    for_each(dy, [&](index_t r, index_t c) { dz(r, c) = dy(r, c) * Phi::derivative(saved(r, c)); });
    add_column_sums<Scalar>(dz, bias_.gradient());
    dx.setZero();
    linear_backward<Scalar>(x, weight_, dz, dx, {});
  }

  parameter<Scalar>& weight() noexcept { return weight_; }
  parameter<Scalar>& bias() noexcept { return bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.weight_);
    visit("bias", self.bias_);
  }

private:
  template <typename F>
  static void for_each(tokens_in<Scalar> m, F&& f) {
    for (index_t r = 0; r < m.rows(); ++r)
      for (index_t c = 0; c < m.cols(); ++c) f(r, c);
  }

  parameter<Scalar> weight_;
  parameter<Scalar> bias_;
};

static_assert(DifferentiableExpert<activated_expert<float>>);

}  // namespace sluice::inline SLUICE_ISA
