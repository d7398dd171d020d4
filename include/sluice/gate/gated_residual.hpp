/// Gated residual gate: a small network with a gated residual branch and a norm at its end.
///
///   h [T,H] = relu(x A^T + a)       skip = h S^T + s       z = second(first(h))       first: H -> E, second: E -> E
///   logits [T,E] = layer_norm(skip + (z P^T + p) * sigmoid(z Q^T + q))
///
///   grkan_gate   first = spline_map with ELU, second = spline_map with ReLU (gate/spline_map.hpp)
///   grn_gate     first = dense with ELU, second = dense
///
/// A gate of KAMoE: dense_sigmoid_router<float, grkan_gate<float>>, or dense_softmax_router. There a learned gain on
/// the input of gate and experts stands in front: normalized_layer with gain_only. Dropout of z, off by default there,
/// is left out. Parameters: hidden, skip, gate, sigmoid (weight and bias each), first, second, norm. The epsilon of the
/// norm is 1e-3, its variance the population's; of two experts it leaves little but which is ahead, so have three or
/// more. NaN in a token gives NaN. T = 0 is fine. Initial values of weights: normal with deviation 1/sqrt(fan-in).
/// Inzirillo and Genet 2024, "A Gated Residual Kolmogorov-Arnold Networks for Mixtures of Experts", arXiv:2409.15161;
/// the baseline: Lim et al. 2019 (temporal fusion transformers), arXiv:1912.09363.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/gate/spline_map.hpp>
#include <sluice/kernel/logistic.hpp>
#include <sluice/kernel/row_norm.hpp>

#include <cmath>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// phi(x W^T + b).
template <FloatOrDouble Scalar, typename Phi = no_activation>
class dense_map {
public:
  using scalar = Scalar;
  struct tape {
    matrix_buffer<Scalar> raw;  ///< [n,out] x W^T + b
    matrix_buffer<Scalar> draw;
  };

  /// Throws std::invalid_argument unless in, out >= 1.
  dense_map(index_t inputs, index_t outputs) {
    if (inputs < 1 || outputs < 1) throw_invalid("dense_map needs in, out >= 1, not ", inputs, ", ", outputs);
    weight_ = {
        {outputs, inputs}, parameter_role::weight, initial_values::normal(1 / std::sqrt(static_cast<double>(inputs)))};
    bias_ = {{outputs}, parameter_role::vector};
  }

  index_t inputs() const noexcept { return weight_.cols(); }
  index_t outputs() const noexcept { return weight_.rows(); }

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tape& t, const executor_ref& executor) const {
    t.raw.resize(x.rows(), outputs());
    linear_forward<Scalar>(x, weight_, t.raw.map(), executor);
    for_rows(t, executor, [&](index_t r, index_t c) { y(r, c) = Phi::value(t.raw(r, c) += bias_.data()[c]); });
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tape& t, tokens_out<Scalar> dx,
                const executor_ref& executor) {
    t.draw.resize(x.rows(), outputs());
    for_rows(t, executor, [&](index_t r, index_t c) { t.draw(r, c) = dy(r, c) * Phi::derivative(t.raw(r, c)); });
    linear_backward<Scalar>(x, weight_, t.draw.map(), dx, executor);
    add_column_sums<Scalar>(t.draw.map(), bias_.gradient());
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
  static void for_rows(const tape& t, const executor_ref& executor, F&& f) {
    executor.parallel_each(t.raw.rows(), 16 * t.raw.cols(), [&](index_t r) {
      for (index_t c = 0; c < t.raw.cols(); ++c) f(r, c);
    });
  }

  parameter<Scalar> weight_;
  parameter<Scalar> bias_;
};

template <typename First, typename Second>
class gated_residual_gate {
public:
  using scalar = typename First::scalar;
  struct tape {
    typename dense_map<scalar, relu>::tape hidden_map;
    typename dense_map<scalar>::tape skip_map, gate_map;
    typename dense_map<scalar, sigmoid>::tape sigmoid_map;
    typename First::tape first_map;
    typename Second::tape second_map;
    typename layer_norm<scalar>::tape norm;
    matrix_buffer<scalar> hidden;              ///< [T,H]
    matrix_buffer<scalar> first, second;       ///< [T,E] outputs of the maps
    matrix_buffer<scalar> linear, share, sum;  ///< [T,E] the two factors of the gate, and what is normalised
    matrix_buffer<scalar> dhidden, dfirst, dsecond, dlinear, dshare, dsum;
  };

  /// first reads h [T,H], second what first gives. Throws std::invalid_argument unless D >= 1 and second is E -> E.
  gated_residual_gate(index_t inputs, First first, Second second)
      : hidden_(inputs, first.inputs()),
        skip_(first.inputs(), second.outputs()),
        gate_(second.outputs(), second.outputs()),
        sigmoid_(second.outputs(), second.outputs()),
        first_(std::move(first)),
        second_(std::move(second)),
        norm_(second_.outputs(), {.epsilon = scalar(1e-3), .bias = true}) {
    if (first_.outputs() != second_.inputs())
      throw_invalid("gated_residual_gate: the first map gives ", first_.outputs(), " numbers, the second reads ",
                    second_.inputs());
  }
  gated_residual_gate(index_t inputs, index_t experts, index_t hidden)
      : gated_residual_gate(inputs, First(hidden, experts), Second(experts, experts)) {}
  /// As wide inside as there are experts.
  gated_residual_gate(index_t inputs, index_t experts) : gated_residual_gate(inputs, experts, experts) {}

  index_t inputs() const noexcept { return hidden_.inputs(); }
  index_t hidden() const noexcept { return hidden_.outputs(); }
  index_t experts() const noexcept { return second_.outputs(); }

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    const executor_ref& executor = context.executor;
    const index_t tokens = x.rows(), E = experts();
    t.hidden.resize(tokens, hidden());
    t.first.resize(tokens, first_.outputs());
    for (auto* m : {&t.second, &t.linear, &t.share, &t.sum}) m->resize(tokens, E);
    hidden_.forward(x, t.hidden.map(), t.hidden_map, executor);
    first_.forward(t.hidden.map(), t.first.map(), t.first_map, executor);
    second_.forward(t.first.map(), t.second.map(), t.second_map, executor);
    gate_.forward(t.second.map(), t.linear.map(), t.gate_map, executor);
    sigmoid_.forward(t.second.map(), t.share.map(), t.sigmoid_map, executor);
    skip_.forward(t.hidden.map(), t.sum.map(), t.skip_map, executor);
    for (index_t i = 0; i < t.sum.size(); ++i) t.sum.data()[i] += t.linear.data()[i] * t.share.data()[i];
    norm_.forward(t.sum.map(), logits, t.norm, executor);
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    const executor_ref& executor = context.executor;
    const index_t tokens = x.rows(), E = experts();
    t.dhidden.set_zero(tokens, hidden());
    t.dfirst.set_zero(tokens, first_.outputs());
    t.dsecond.set_zero(tokens, E);
    t.dsum.set_zero(tokens, E);
    t.dlinear.resize(tokens, E);
    t.dshare.resize(tokens, E);
    norm_.backward(t.sum.map(), dlogits, t.norm, t.dsum.map(), executor);
    for (index_t i = 0; i < t.dsum.size(); ++i) {
      t.dlinear.data()[i] = t.dsum.data()[i] * t.share.data()[i];
      t.dshare.data()[i] = t.dsum.data()[i] * t.linear.data()[i];
    }
    gate_.backward(t.second.map(), t.dlinear.map(), t.gate_map, t.dsecond.map(), executor);
    sigmoid_.backward(t.second.map(), t.dshare.map(), t.sigmoid_map, t.dsecond.map(), executor);
    second_.backward(t.first.map(), t.dsecond.map(), t.second_map, t.dfirst.map(), executor);
    first_.backward(t.hidden.map(), t.dfirst.map(), t.first_map, t.dhidden.map(), executor);
    skip_.backward(t.hidden.map(), t.dsum.map(), t.skip_map, t.dhidden.map(), executor);
    hidden_.backward(x, t.dhidden.map(), t.hidden_map, dx, executor);
  }

  dense_map<scalar, relu>& hidden_map() noexcept { return hidden_; }
  dense_map<scalar>& skip_map() noexcept { return skip_; }
  dense_map<scalar>& gate_map() noexcept { return gate_; }
  dense_map<scalar, sigmoid>& sigmoid_map() noexcept { return sigmoid_; }
  First& first_map() noexcept { return first_; }
  Second& second_map() noexcept { return second_; }
  layer_norm<scalar>& norm() noexcept { return norm_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("hidden", self.hidden_);
    visit("skip", self.skip_);
    visit("first", self.first_);
    visit("second", self.second_);
    visit("gate", self.gate_);
    visit("sigmoid", self.sigmoid_);
    visit("norm", self.norm_);
  }

private:
  dense_map<scalar, relu> hidden_;
  dense_map<scalar> skip_;
  dense_map<scalar> gate_;
  dense_map<scalar, sigmoid> sigmoid_;
  First first_;
  Second second_;
  layer_norm<scalar> norm_;
};

template <FloatOrDouble Scalar>
using grkan_gate = gated_residual_gate<spline_map<Scalar, elu>, spline_map<Scalar, relu>>;
template <FloatOrDouble Scalar>
using grn_gate = gated_residual_gate<dense_map<Scalar, elu>, dense_map<Scalar>>;

static_assert(DifferentiableGate<grkan_gate<float>> && DifferentiableGate<grn_gate<float>>);

}  // namespace sluice::inline SLUICE_ISA
