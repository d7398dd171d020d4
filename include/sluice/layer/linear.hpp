/// A linear layer with bias: y = x W^T + b.
///
///   x [T,D]   weight W [D',D]   bias b [D']   y [T,D']
///   dx = dy W;   dW += dy^T x;   db += sum over tokens of dy
///
///   linear_layer<float> head{64, 10};                    linear_layer<float> projection{64, 32, {.bias = false}};
///
/// It has the calls of moe_layer, so that sequences hold both; what it uses of a context is the token mask and the
/// executor. Padding tokens get zero and add nothing to gradients; NaN stays in its token and reaches no gradient; T =
/// 0 is fine. Inference is const, thread-safe, and needs no workspace. Equal bits for every executor and thread count.
/// y and x, dx and dy may not share memory. Initial values: normal with deviation 1/sqrt(D), bias zero.
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/kernel/linear.hpp>
#include <sluice/layer/call_checks.hpp>
#include <sluice/layer/kept_rows.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class linear_layer {
public:
  using scalar = Scalar;
  using context_type = routing_context<Scalar>;
  static constexpr bool causal = true;
  struct options {
    bool bias = true;
  };

  struct workspace {};
  struct tape {
    kept_rows<Scalar> kept;
    executor_ref executor;
    detail::forward_record record;

    Scalar loss() const { return 0; }
  };

  /// Throws std::invalid_argument unless D >= 1 and D' >= 1.
  linear_layer(index_t inputs, index_t outputs, options o = {}) : has_bias_(o.bias) {
    if (inputs < 1 || outputs < 1) throw_invalid("linear_layer needs D, D' >= 1, not ", inputs, ", ", outputs);
    weight_ = {
        {outputs, inputs}, parameter_role::weight, initial_values::normal(1 / std::sqrt(static_cast<double>(inputs)))};
    if (has_bias_) bias_ = {{outputs}, parameter_role::vector};
  }

  index_t inputs() const noexcept { return weight_.cols(); }
  index_t outputs() const noexcept { return weight_.rows(); }

  /// Inference: y [T,D'] is overwritten. Throws std::invalid_argument if shapes do not fit.
  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, workspace&, const context_type& context = {}) const {
    apply(x, y, context);
  }

  /// Training, with training = true and everything else of the context left out.
  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tape& t) const {
    context_type context;
    context.training = true;
    forward(x, y, t, context);
  }
  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tape& t, const context_type& context) const {
    apply(x, y, context);
    t.record.forget();
    t.kept.keep(x, context);
    t.executor = context.executor;
    t.record.keep(this);
  }

  /// Writes dx [T,D] and adds the gradients of all parameters, for the last training forward call of this tape.
  void backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t) {
    t.record.validate(this);
    detail::check_backward<Scalar>({inputs(), outputs()}, dy, dx, t.kept.rows());
    const auto gradient = t.kept.of_gradient(dy, t.executor);
    dx.setZero();
    linear_backward(t.kept.x(), weight_, gradient, dx, t.executor);
    if (has_bias_) add_column_sums(gradient, bias_.gradient());
  }

  void after_step(tape&) {}

  /// The layer as it is: another storage is a matter of experts.
  template <typename Storage>
  linear_layer stored_as() const {
    return *this;
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    return training ? rows * (inputs() + outputs()) * static_cast<index_t>(sizeof(Scalar)) : 0;
  }

  parameter<Scalar>& weight() noexcept { return weight_; }
  parameter<Scalar>& bias() noexcept { return bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.weight_);
    if (self.has_bias_) visit("bias", self.bias_);
  }

private:
  void apply(tokens_in<Scalar> x, tokens_out<Scalar> y, const context_type& context) const {
    check_initialized(*this);
    detail::check_forward<Scalar>({inputs(), outputs()}, x, y, context);
    if (x.data() == y.data() && x.rows() > 0)
      throw_invalid("y is x: a linear layer reads a row to its end and cannot write over it");
    linear_forward(x, weight_, y, context.executor);
    for (index_t t = 0; t < y.rows(); ++t) {
      Scalar* row = y.data() + t * y.outerStride();
      if (context.is_padding(t))
        std::fill_n(row, outputs(), Scalar(0));
      else if (has_bias_)
        kernel::add_scaled(Scalar(1), bias_.data(), row, outputs());
    }
  }

  bool has_bias_;
  parameter<Scalar> weight_;
  parameter<Scalar> bias_;
};

}  // namespace sluice::inline SLUICE_ISA
