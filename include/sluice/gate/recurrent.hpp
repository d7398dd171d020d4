/// A gate with a memory: a GRU reads the token and the state of the round before, and its new state gives the logits.
///
///   x [T,D]   h [T,S] = context.features, or 0 if the call has none
///   a = W x + b [3S],  c = U h + d [3S],  each (r, z, n)
///   r = sigmoid(a_r + c_r);  z = sigmoid(a_z + c_z);  n = tanh(a_n + r c_n);
///   h' = (1 - z) n + z h;  logits = h' V^T [T,E]
///
/// tape.state is h', what the next round gets as features. What that round sends back is added to dh' from tape.dstate,
/// [T,S] if somebody set it, before backward; backward leaves the gradient of h in tape.dprevious. layer/recurrent.hpp
/// runs the rounds. Parameters: input_weight W [3S,D], state_weight U [3S,S], input_bias b, state_bias d, output_weight
/// V [E,S]. NaN in a token or its state gives NaN in all its logits. T = 0 is fine. Initial values: normal with
/// deviation 1/sqrt(fan-in), biases zero. Cho et al. 2014, arXiv:1406.1078, in the form in which the reset gate acts on
/// U h; recurrent routing: Tang et al. 2025 (GRAPHMOE), arXiv:2501.07890, of which only the abstract was at hand.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/linear.hpp>
#include <sluice/kernel/logistic.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class recurrent_gate {
public:
  using scalar = Scalar;
  struct tape {
    matrix_buffer<Scalar> state;      ///< [T,S] h'
    matrix_buffer<Scalar> dstate;     ///< [T,S] what comes back into h' from elsewhere; empty: nothing
    matrix_buffer<Scalar> dprevious;  ///< [T,S] gradient of h, after backward
    matrix_buffer<Scalar> previous;   ///< [T,S] h
    matrix_buffer<Scalar> a, c, da, dc;
    matrix_buffer<Scalar> gates;  ///< [T,3S] r, z, n
    matrix_buffer<Scalar> dh;
  };

  /// Throws std::invalid_argument unless D, E, S >= 1.
  recurrent_gate(index_t inputs, index_t experts, index_t state) {
    if (inputs < 1 || experts < 1 || state < 1)
      throw_invalid("recurrent_gate needs D, E and S >= 1, not ", inputs, ", ", experts, " and ", state);
    const auto normal = [](index_t fan_in) {
      return initial_values::normal(1 / std::sqrt(static_cast<double>(fan_in)));
    };
    input_weight_ = {{3 * state, inputs}, parameter_role::weight, normal(inputs)};
    state_weight_ = {{3 * state, state}, parameter_role::weight, normal(state)};
    input_bias_ = {{3 * state}, parameter_role::vector};
    state_bias_ = {{3 * state}, parameter_role::vector};
    output_weight_ = {{experts, state}, parameter_role::weight, normal(state)};
  }

  index_t inputs() const noexcept { return input_weight_.cols(); }
  index_t experts() const noexcept { return output_weight_.rows(); }
  index_t state() const noexcept { return output_weight_.cols(); }

  void forward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_out<Scalar> logits, tape& t) const {
    const index_t S = state();
    t.dstate.clear();
    keep_previous(x.rows(), context, t);
    for (auto* m : {&t.a, &t.c, &t.gates}) m->resize(x.rows(), 3 * S);
    t.state.resize(x.rows(), S);
    linear_forward(x, input_weight_, t.a.map(), context.executor);
    linear_forward<Scalar>(t.previous.map(), state_weight_, t.c.map(), context.executor);
    context.executor.parallel_each(x.rows(), 64 * state(), [&](index_t token) {
      Scalar* c = t.c.row(token);
      Scalar* gate = t.gates.row(token);
      const Scalar* a = t.a.row(token);
      for (index_t i = 0; i < 3 * S; ++i) c[i] += state_bias_.data()[i];
      for (index_t i = 0; i < S; ++i) {
        const auto input = [&](index_t part) { return a[part * S + i] + input_bias_.data()[part * S + i]; };
        gate[i] = kernel::logistic(input(0) + c[i]);
        gate[S + i] = kernel::logistic(input(1) + c[S + i]);
        gate[2 * S + i] = std::tanh(input(2) + gate[i] * c[2 * S + i]);
        t.state(token, i) = (1 - gate[S + i]) * gate[2 * S + i] + gate[S + i] * t.previous(token, i);
      }
    });
    linear_forward<Scalar>(t.state.map(), output_weight_, logits, context.executor);
    if (!context.features) return;
    for (index_t token = 0; token < x.rows(); ++token)
      if (is_spoiled(context, token)) logits.row(token).setConstant(quiet_nan<Scalar>());
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_in<Scalar> dlogits, tape& t,
                tokens_out<Scalar> dx) {
    const index_t S = state();
    if (t.dstate.empty())
      t.dh.set_zero(x.rows(), S);
    else
      t.dh = t.dstate;
    linear_backward<Scalar>(t.state.map(), output_weight_, dlogits, t.dh.map(), context.executor);
    t.dprevious.resize(x.rows(), S);
    for (auto* m : {&t.da, &t.dc}) m->resize(x.rows(), 3 * S);
    context.executor.parallel_each(x.rows(), 64 * state(), [&](index_t token) {
      const Scalar* gate = t.gates.row(token);
      for (index_t i = 0; i < S; ++i) {
        const Scalar r = gate[i], z = gate[S + i], n = gate[2 * S + i], dh = t.dh(token, i);
        const Scalar dn = dh * (1 - z) * (1 - n * n);
        const Scalar dz = dh * (t.previous(token, i) - n) * z * (1 - z);
        const Scalar dr = dn * t.c(token, 2 * S + i) * r * (1 - r);
        t.da(token, i) = t.dc(token, i) = dr;
        t.da(token, S + i) = t.dc(token, S + i) = dz;
        t.da(token, 2 * S + i) = dn;
        t.dc(token, 2 * S + i) = dn * r;
        t.dprevious(token, i) = dh * z;
      }
    });
    add_column_sums<Scalar>(t.da.map(), input_bias_.gradient());
    add_column_sums<Scalar>(t.dc.map(), state_bias_.gradient());
    linear_backward<Scalar>(t.previous.map(), state_weight_, t.dc.map(), t.dprevious.map(), context.executor);
    linear_backward<Scalar>(x, input_weight_, t.da.map(), dx, context.executor);
  }

  parameter<Scalar>& input_weight() noexcept { return input_weight_; }
  parameter<Scalar>& state_weight() noexcept { return state_weight_; }
  parameter<Scalar>& output_weight() noexcept { return output_weight_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("input_weight", self.input_weight_);
    visit("input_bias", self.input_bias_);
    visit("state_weight", self.state_weight_);
    visit("state_bias", self.state_bias_);
    visit("output_weight", self.output_weight_);
  }

private:
  static bool is_spoiled(const routing_context<Scalar>& context, index_t token) {
    const auto& h = context.features;
    return !context.is_padding(token) && any_nan(h.data + token * h.cols, h.cols);
  }

  /// The state of the round before, zero where there is none: a NaN in it reaches no gradient, and padding may hold
  /// anything.
  void keep_previous(index_t tokens, const routing_context<Scalar>& context, tape& t) const {
    t.previous.set_zero(tokens, state());
    if (!context.features) return;
    if (context.features.cols != state())
      throw_invalid("recurrent_gate has a state of ", state(), " numbers; routing_context.features has ",
                    context.features.cols);
    for (index_t token = 0; token < tokens; ++token)
      if (!context.is_padding(token) && !is_spoiled(context, token))
        std::copy_n(context.features.data + token * state(), state(), t.previous.row(token));
  }

  parameter<Scalar> input_weight_, state_weight_, input_bias_, state_bias_, output_weight_;
};

static_assert(DifferentiableGate<recurrent_gate<float>>);

}  // namespace sluice::inline SLUICE_ISA
