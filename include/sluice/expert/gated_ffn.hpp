/// Gated feed-forward expert: y = W_down( phi(W_gate x + b_gate) * (W_up x + b_up) * s ) + b_down.
///
///   x [n,D]  gate, up [H,D]  down [D',H]  gate_bias, up_bias, hidden_scale s [H]  down_bias [D']  y [n,D'], n may be 0
///   a = gate x, b = up x, h = phi(a) b s;  dh = dy W_down;  da = dh b s phi'(a);  db = dh phi(a) s;  ds += dh phi(a) b
///   dx = da W_gate + db W_up;  dW_gate += da^T x;  dW_up += db^T x;  dW_down += dy^T h
///
/// swiglu, geglu and reglu are this with SiLU, GELU and ReLU. Biases and the hidden scale (ST-MoE's multiplicative bias,
/// initially 1) are optional. NaN stays in its row. Shazeer 2020, arXiv:2002.05202.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/expert/activation.hpp>
#include <sluice/kernel/linear.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <std::floating_point Scalar, Activation<Scalar> Phi = silu>
class gated_ffn {
public:
  using scalar = Scalar;
  struct options {
    index_t outputs = 0;  ///< D'; 0 means D
    bool bias = false;
    bool hidden_scale = false;
  };

  /// Throws std::invalid_argument unless D, H and D' are at least 1.
  gated_ffn(index_t inputs, index_t hidden, options o = {}) : has_bias_(o.bias), has_scale_(o.hidden_scale) {
    const index_t outputs = o.outputs == 0 ? inputs : o.outputs;
    if (inputs < 1 || hidden < 1 || outputs < 1)
      throw_invalid("gated_ffn needs D, H, D' >= 1, not ", inputs, ", ", hidden, ", ", outputs);
    const auto fan_in = [](index_t n) { return initial_values::normal(1 / std::sqrt(static_cast<double>(n))); };
    gate_ = {{hidden, inputs}, parameter_role::weight, fan_in(inputs)};
    up_ = {{hidden, inputs}, parameter_role::weight, fan_in(inputs)};
    down_ = {{outputs, hidden}, parameter_role::weight, fan_in(hidden)};
    if (has_bias_) {
      gate_bias_ = {{hidden}, parameter_role::vector};
      up_bias_ = {{hidden}, parameter_role::vector};
      down_bias_ = {{outputs}, parameter_role::vector};
    }
    if (has_scale_) hidden_scale_ = {{hidden}, parameter_role::vector, initial_values::constant(1)};
  }

  index_t inputs() const noexcept { return up_.cols(); }
  index_t hidden() const noexcept { return up_.rows(); }
  index_t outputs() const noexcept { return down_.rows(); }
  /// a (then da), b (then db), h and dh (then dh phi(a) b) of a row.
  index_t saved_columns() const noexcept { return 4 * hidden(); }

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tokens_out<Scalar> saved) const {
    auto a = part_of(saved, 0);
    auto b = part_of(saved, 1);
    auto h = part_of(saved, 2);
    linear_forward<Scalar>(x, gate_, a, {});
    linear_forward<Scalar>(x, up_, b, {});
    if (has_bias_) {
      a.rowwise() += gate_bias_.map().col(0).transpose();
      b.rowwise() += up_bias_.map().col(0).transpose();
    }
    for (index_t r = 0; r < x.rows(); ++r) {
      kernel::transform(hidden(), [](auto g, auto u) -> decltype(Phi::value(g) * u) { return Phi::value(g) * u; }, &h(r, 0),
                        &a(r, 0), &b(r, 0));
      if (has_scale_) multiply(hidden_scale_.data(), &h(r, 0));
    }
    linear_forward<Scalar>(h, down_, y, {});
    if (has_bias_) y.rowwise() += down_bias_.map().col(0).transpose();
  }

  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tokens_out<Scalar> saved, tokens_out<Scalar> dx) {
    backward_inputs(x, dy, saved, dx);
    backward_parameters(x, dy, saved, 0, 1);
  }

  void backward_inputs(tokens_in<Scalar> x, tokens_in<Scalar> dy, tokens_out<Scalar> saved, tokens_out<Scalar> dx) const {
    auto a = part_of(saved, 0);
    auto b = part_of(saved, 1);
    auto dh = part_of(saved, 3);
    linear_backward_inputs<Scalar>(down_, dy, dh, {}, kernel::write::replace);
    for (index_t r = 0; r < x.rows(); ++r) {
      Scalar* da = &a(r, 0);
      Scalar* db = &b(r, 0);
      for (index_t j = 0; j < hidden(); ++j) {
        const Scalar activated = Phi::value(da[j]);
        const Scalar slope = Phi::derivative(da[j]);
        const Scalar factor = has_scale_ ? hidden_scale_.data()[j] : Scalar(1);
        const Scalar upstream = dh(r, j);
        dh(r, j) = upstream * activated * db[j];  // the gradient of the hidden scale from here on
        da[j] = upstream * factor * db[j] * slope;
        db[j] = upstream * factor * activated;
      }
    }
    linear_backward_inputs<Scalar>(gate_, a, dx, {}, kernel::write::replace);
    linear_backward_inputs<Scalar>(up_, b, dx, {});
  }

  /// Adds the gradients of slice `part` of `parts` of the parameters.
  void backward_parameters(tokens_in<Scalar> x, tokens_in<Scalar> dy, tokens_in<Scalar> saved, index_t part, index_t parts) {
    const auto da = saved.leftCols(hidden());
    const auto db = saved.middleCols(hidden(), hidden());
    const auto h = saved.middleCols(2 * hidden(), hidden());
    const auto slice = [&](index_t rows, index_t i) { return rows * i / parts; };
    const index_t begin = slice(hidden(), part);
    const index_t end = slice(hidden(), part + 1);
    linear_backward_weight<Scalar>(h, down_, dy, slice(outputs(), part), slice(outputs(), part + 1));
    linear_backward_weight<Scalar>(x, gate_, da, begin, end);
    linear_backward_weight<Scalar>(x, up_, db, begin, end);
    if (part != 0) return;
    if (has_bias_) {
      add_column_sums<Scalar>(da, gate_bias_.gradient());
      add_column_sums<Scalar>(db, up_bias_.gradient());
      add_column_sums<Scalar>(dy, down_bias_.gradient());
    }
    if (has_scale_) add_column_sums<Scalar>(saved.rightCols(hidden()), hidden_scale_.gradient());
  }

  parameter<Scalar>& gate() noexcept { return gate_; }
  parameter<Scalar>& up() noexcept { return up_; }
  parameter<Scalar>& down() noexcept { return down_; }
  parameter<Scalar>& gate_bias() noexcept { return gate_bias_; }
  parameter<Scalar>& up_bias() noexcept { return up_bias_; }
  parameter<Scalar>& down_bias() noexcept { return down_bias_; }
  parameter<Scalar>& hidden_scale() noexcept { return hidden_scale_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("gate", self.gate_);
    visit("up", self.up_);
    visit("down", self.down_);
    if (self.has_bias_) {
      visit("gate_bias", self.gate_bias_);
      visit("up_bias", self.up_bias_);
      visit("down_bias", self.down_bias_);
    }
    if (self.has_scale_) visit("hidden_scale", self.hidden_scale_);
  }

private:
  auto part_of(tokens_out<Scalar>& saved, index_t part) const { return saved.middleCols(part * hidden(), hidden()); }

  void multiply(const Scalar* factors, Scalar* row) const {
    for (index_t j = 0; j < hidden(); ++j) row[j] *= factors[j];
  }

  bool has_bias_;
  bool has_scale_;
  parameter<Scalar> gate_, up_, down_, gate_bias_, up_bias_, down_bias_, hidden_scale_;
};

template <std::floating_point Scalar>
using swiglu = gated_ffn<Scalar, silu>;
template <std::floating_point Scalar>
using geglu = gated_ffn<Scalar, gelu>;
template <std::floating_point Scalar>
using reglu = gated_ffn<Scalar, relu>;

static_assert(SplittableExpert<swiglu<float>>);

}  // namespace sluice::inline SLUICE_ISA
