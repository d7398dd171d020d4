/// Linear gate that is the leading block of a larger one: it scores the first experts, by the first numbers of tokens.
///
///   logits [T,E] = x [T,D] W[:E,:D]^T (+ b[:E])       weight W [most E, most D]  bias b [most E], optional
///
/// select(E, D) says which block; at first it is the whole. For experts that share weights in the same way
/// (expert/derived/sliced_bank.hpp): select both before a call. Gradients lie in the large arrays; outside the block
/// nothing is added. NaN in a token gives NaN in all its logits. T = 0 is fine. Initial values: normal with deviation
/// 1/sqrt(most D), bias zero. Jawahar et al. 2023 (AutoMoE), arXiv:2210.07535.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/kernel/linear.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class sliced_gate {
public:
  using scalar = Scalar;
  static constexpr bool shows_nan = true;
  struct tape {};
  struct options {
    bool bias = false;
  };

  /// The largest D and E. Throws std::invalid_argument unless they are at least 1.
  sliced_gate(index_t inputs, index_t experts, options o = {}) : has_bias_(o.bias), inputs_(inputs), experts_(experts) {
    if (inputs < 1 || experts < 1)
      throw_invalid("sliced_gate needs D >= 1 and E >= 1, not D = ", inputs, ", E = ", experts);
    weight_ = {
        {experts, inputs}, parameter_role::weight, initial_values::normal(1 / std::sqrt(static_cast<double>(inputs)))};
    if (has_bias_) bias_ = {{experts}, parameter_role::vector};
  }

  /// Throws std::invalid_argument if the block is empty or larger than the whole.
  void select(index_t experts, index_t inputs) {
    if (experts < 1 || experts > weight_.rows() || inputs < 1 || inputs > weight_.cols())
      throw_invalid("a gate [", weight_.rows(), ", ", weight_.cols(), "] has no block [", experts, ", ", inputs, "]");
    experts_ = experts, inputs_ = inputs;
  }

  index_t inputs() const noexcept { return inputs_; }
  index_t experts() const noexcept { return experts_; }

  void forward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_out<Scalar> logits, tape&) const {
    for_rows(x.rows(), context, [&](index_t begin, index_t end) {
      kernel::multiply_nt(end - begin, experts_, inputs_, x.data() + begin * x.outerStride(), x.outerStride(),
                          weight_.data(), weight_.cols(), logits.data() + begin * logits.outerStride(),
                          logits.outerStride());
    });
    if (has_bias_) logits.rowwise() += bias_.map().col(0).head(experts_).transpose();
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_in<Scalar> dlogits, tape&,
                tokens_out<Scalar> dx) {
    for_rows(x.rows(), context, [&](index_t begin, index_t end) {
      kernel::multiply_nn(end - begin, inputs_, experts_, dlogits.data() + begin * dlogits.outerStride(),
                          dlogits.outerStride(), weight_.data(), weight_.cols(), dx.data() + begin * dx.outerStride(),
                          dx.outerStride(), kernel::write::accumulate);
    });
    if (weight_.is_learned() && x.rows() > 0) {
      weight_.ensure_gradient();
      context.executor.parallel_blocks(experts_, row_block, x.rows() * inputs_ / 4, [&](index_t begin, index_t end) {
        kernel::multiply_tn(end - begin, inputs_, x.rows(), dlogits.data() + begin, dlogits.outerStride(), x.data(),
                            x.outerStride(), weight_.gradient().data() + begin * weight_.cols(), weight_.cols(),
                            kernel::write::accumulate);
      });
    }
    if (has_bias_ && bias_.is_learned()) add_column_sums(dlogits, bias_.gradient());
  }

  parameter<Scalar>& weight() noexcept { return weight_; }
  parameter<Scalar>& bias() noexcept { return bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.weight_);
    if (self.has_bias_) visit("bias", self.bias_);
  }

private:
  static constexpr index_t row_block = 32;

  template <typename F>
  void for_rows(index_t rows, const routing_context<Scalar>& context, F&& f) const {
    context.executor.parallel_blocks(rows, row_block, experts_ * inputs_ / 4, f);
  }

  bool has_bias_;
  index_t inputs_, experts_;
  parameter<Scalar> weight_;
  parameter<Scalar> bias_;
};

static_assert(DifferentiableGate<sliced_gate<float>>);

}  // namespace sluice::inline SLUICE_ISA
