/// Two-layer feed-forward expert: y = W2 phi(W1 x + b1) + b2.
///
///   x [n,D]  up W1 [H,D]  up_bias b1 [H]  down W2 [D',H]  down_bias b2 [D']  y [n,D'], n may be 0
///   dz = (dy W2) * phi'(z);  dx = dz W1;  dW2 += dy^T a;  dW1 += dz^T x;  db2, db1 += column sums
///
/// Biases are optional. Each row depends on its own input only, NaN stays in its row. Initial values: normal with deviation
/// 1/sqrt(fan-in), biases zero. Fedus, Zoph, Shazeer 2022, arXiv:2101.03961 (with ReLU).
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/expert/activation.hpp>
#include <sluice/kernel/linear.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <std::floating_point Scalar, Activation<Scalar> Phi = relu>
class ffn {
public:
  using scalar = Scalar;
  struct options {
    index_t outputs = 0;  ///< D'; 0 means D
    bool bias = false;
  };

  /// Throws std::invalid_argument unless D, H and D' are at least 1.
  ffn(index_t inputs, index_t hidden, options o = {}) : has_bias_(o.bias) {
    const index_t outputs = o.outputs == 0 ? inputs : o.outputs;
    if (inputs < 1 || hidden < 1 || outputs < 1)
      throw_invalid("ffn needs D, H, D' >= 1, not ", inputs, ", ", hidden, ", ", outputs);
    up_ = {{hidden, inputs}, parameter_role::weight, initial_values::normal(1 / std::sqrt(static_cast<double>(inputs)))};
    down_ = {{outputs, hidden}, parameter_role::weight, initial_values::normal(1 / std::sqrt(static_cast<double>(hidden)))};
    if (has_bias_) {
      up_bias_ = {{hidden}, parameter_role::vector};
      down_bias_ = {{outputs}, parameter_role::vector};
    }
  }

  index_t inputs() const noexcept { return up_.cols(); }
  index_t hidden() const noexcept { return up_.rows(); }
  index_t outputs() const noexcept { return down_.rows(); }
  /// z, phi(z) and dz of a row.
  index_t saved_columns() const noexcept { return 3 * hidden(); }

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tokens_out<Scalar> saved) const {
    auto z = saved.leftCols(hidden());
    auto a = saved.middleCols(hidden(), hidden());
    linear_forward<Scalar>(x, up_, z, {});
    if (has_bias_) z.rowwise() += up_bias_.map().col(0).transpose();
    for (index_t r = 0; r < x.rows(); ++r)
      kernel::transform(hidden(), [](auto v) -> decltype(Phi::value(v)) { return Phi::value(v); }, &a(r, 0), &z(r, 0));
    linear_forward<Scalar>(a, down_, y, {});
    if (has_bias_) y.rowwise() += down_bias_.map().col(0).transpose();
  }

  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tokens_out<Scalar> saved, tokens_out<Scalar> dx) {
    backward_inputs(x, dy, saved, dx);
    backward_parameters(x, dy, saved, 0, 1);
  }

  void backward_inputs(tokens_in<Scalar> x, tokens_in<Scalar> dy, tokens_out<Scalar> saved, tokens_out<Scalar> dx) const {
    auto z = saved.leftCols(hidden());
    auto dz = saved.rightCols(hidden());
    linear_backward_inputs<Scalar>(down_, dy, dz, {}, kernel::write::replace);
    for (index_t r = 0; r < x.rows(); ++r)
      kernel::transform(hidden(), [](auto da, auto v) -> decltype(da * Phi::derivative(v)) { return da * Phi::derivative(v); },
                        &dz(r, 0), &dz(r, 0), &z(r, 0));
    linear_backward_inputs<Scalar>(up_, dz, dx, {}, kernel::write::replace);
  }

  /// Adds the gradients of slice `part` of `parts` of the parameters.
  void backward_parameters(tokens_in<Scalar> x, tokens_in<Scalar> dy, tokens_in<Scalar> saved, index_t part, index_t parts) {
    const auto a = saved.middleCols(hidden(), hidden());
    const auto dz = saved.rightCols(hidden());
    const auto slice = [&](index_t rows, index_t i) { return rows * i / parts; };
    linear_backward_weight<Scalar>(a, down_, dy, slice(outputs(), part), slice(outputs(), part + 1));
    linear_backward_weight<Scalar>(x, up_, dz, slice(hidden(), part), slice(hidden(), part + 1));
    if (has_bias_ && part == 0) {
      add_column_sums<Scalar>(dy, down_bias_.gradient());
      add_column_sums<Scalar>(dz, up_bias_.gradient());
    }
  }

  parameter<Scalar>& up() noexcept { return up_; }
  parameter<Scalar>& up_bias() noexcept { return up_bias_; }
  parameter<Scalar>& down() noexcept { return down_; }
  parameter<Scalar>& down_bias() noexcept { return down_bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("up", self.up_);
    if (self.has_bias_) visit("up_bias", self.up_bias_);
    visit("down", self.down_);
    if (self.has_bias_) visit("down_bias", self.down_bias_);
  }

private:
  bool has_bias_;
  parameter<Scalar> up_, up_bias_, down_, down_bias_;
};

static_assert(SplittableExpert<ffn<float>>);
static_assert(SplittableExpert<ffn<double, gelu>>);

}  // namespace sluice::inline SLUICE_ISA
