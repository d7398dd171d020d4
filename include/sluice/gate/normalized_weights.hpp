/// A linear gate whose weights are normalised: every expert's vector passes a norm before tokens meet it.
///
///   logits [T,E] = x [T,D] N^T (+ b [E]),   N[e] = norm(W[e])      W [E,D]
///   dN = dlogits^T x;  dW is the norm's backward of dN;  dx += dlogits N
///
///   normalized_weights_gate gate{linear_gate<float>(64, 8, {.bias = true}), layer_norm<float>{64, {.bias = true}}};
///
/// The norms are those of kernel/row_norm.hpp; gain and bias of one are shared by all experts. Experts' vectors then
/// are alike in length, and none wins by growing. NaN in a token gives NaN in all its logits. T = 0 is fine. Muqeeth,
/// Liu, Raffel 2023 (SMEAR), arXiv:2306.03745.
#pragma once

#include <sluice/gate/linear.hpp>
#include <sluice/kernel/row_norm.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, RowNorm Norm>
class normalized_weights_gate {
public:
  using scalar = Scalar;
  static constexpr bool shows_nan = true;
  struct tape {
    typename Norm::tape norm;
    matrix_buffer<Scalar> weights;   ///< N
    matrix_buffer<Scalar> dweights;  ///< dN
  };

  /// Throws std::invalid_argument if the norm is for rows of another width than the gate's.
  normalized_weights_gate(linear_gate<Scalar> gate, Norm norm) : gate_(std::move(gate)), norm_(std::move(norm)) {
    check_norm_width("normalized_weights_gate", norm_, gate_.inputs());
  }

  index_t inputs() const noexcept { return gate_.inputs(); }
  index_t experts() const noexcept { return gate_.experts(); }

  void forward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_out<Scalar> logits, tape& t) const {
    t.weights.resize(experts(), inputs());
    norm_.forward(gate_.weight().map(), t.weights.map(), t.norm, context.executor);
    context.executor.parallel_blocks(x.rows(), row_block, experts() * inputs(), [&](index_t begin, index_t end) {
      kernel::multiply_nt(end - begin, experts(), inputs(), x.data() + begin * x.outerStride(), x.outerStride(),
                          t.weights.data(), inputs(), logits.data() + begin * logits.outerStride(),
                          logits.outerStride());
      if (gate_.has_bias())
        for (index_t r = begin; r < end; ++r)
          kernel::add_scaled(Scalar(1), gate_.bias().data(), logits.data() + r * logits.outerStride(), experts());
    });
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_in<Scalar> dlogits, tape& t,
                tokens_out<Scalar> dx) {
    if (x.rows() == 0) return;
    context.executor.parallel_blocks(x.rows(), row_block, experts() * inputs(), [&](index_t begin, index_t end) {
      kernel::multiply_nn(end - begin, inputs(), experts(), dlogits.data() + begin * dlogits.outerStride(),
                          dlogits.outerStride(), t.weights.data(), inputs(), dx.data() + begin * dx.outerStride(),
                          dx.outerStride(), kernel::write::accumulate);
    });
    t.dweights.resize(experts(), inputs());
    context.executor.parallel_blocks(experts(), row_block, x.rows() * inputs() / 4, [&](index_t begin, index_t end) {
      kernel::multiply_tn(end - begin, inputs(), x.rows(), dlogits.data() + begin, dlogits.outerStride(), x.data(),
                          x.outerStride(), t.dweights.row(begin), inputs());
    });
    norm_.backward(std::as_const(gate_).weight().map(), t.dweights.map(), t.norm, gate_.weight().gradient_map(),
                   context.executor);
    if (gate_.has_bias()) add_column_sums(dlogits, gate_.bias().gradient());
  }

  parameter<Scalar>& weight() noexcept { return gate_.weight(); }
  parameter<Scalar>& bias() noexcept { return gate_.bias(); }
  Norm& norm() noexcept { return norm_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    linear_gate<Scalar>::visit_parameters(self.gate_, visit);
    if constexpr (HasParameters<Norm>) visit("weight_norm", self.norm_);  // a norm of tokens may stand around it
  }

private:
  static constexpr index_t row_block = 32;

  linear_gate<Scalar> gate_;
  Norm norm_;
};

static_assert(DifferentiableGate<normalized_weights_gate<float, layer_norm<float>>>);

}  // namespace sluice::inline SLUICE_ISA
