/// Joined gate: an inner gate that reads features of the token in front of the token itself; experts read the token
/// alone.
///
///   logits [T,E] = G([c, x])      c [T,F] = context.features, x [T,D], G reads F + D numbers
///   dx += dG/dx;   dc = dG/dc     kept in the tape: features_gradient()
///
/// The router of SpeechMoE: c is the output of one embedding network for all layers, which learns from the routers and
/// from a loss of its own, and top_k_router with k = 1 and weighting::pre does the rest. NaN in a row of c makes that
/// token's logits NaN and reaches no gradient; padding's features may hold anything. Without features of that width a
/// call throws std::invalid_argument. T = 0 is fine. You et al. 2021 (SpeechMoE), arXiv:2105.03036.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/token_screen.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/gate/linear.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class joined_gate : public gate_decorator<Inner> {
public:
  using scalar = typename Inner::scalar;
  static constexpr bool shows_nan = false;  // what is hidden of the features is not in the logits

  struct tape : decorated_tape<Inner> {
    token_screen<scalar> features;  ///< padding and NaN among the features
    matrix_buffer<scalar> joined;   ///< [T, F+D]
    matrix_buffer<scalar> djoined;
    matrix_buffer<scalar> dfeatures;

    /// [T,F] after backward.
    const matrix_buffer<scalar>& features_gradient() const noexcept { return dfeatures; }
  };

  /// inner reads F + D numbers. Throws std::invalid_argument unless F >= 1 and D >= 1.
  joined_gate(Inner inner, index_t features) : gate_decorator<Inner>(std::move(inner)), features_(features) {
    if (features < 1 || inputs() < 1)
      throw_invalid("joined_gate needs F >= 1 and D >= 1; its inner gate reads F + D = ", this->inner().inputs(),
                    " numbers, and F = ", features);
  }

  index_t inputs() const noexcept { return this->inner().inputs() - features_; }
  index_t features() const noexcept { return features_; }

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    validate(context.features, x.rows());
    t.joined.resize(x.rows(), features_ + x.cols());
    if (x.rows() > 0) {
      t.features.hide(context.features.map(), context);
      t.joined.map().leftCols(features_) = t.features.of(context.features.map());
      t.joined.map().rightCols(x.cols()) = x;
    }
    this->inner().forward(t.joined.map(), context, logits, t.inner);
    for (index_t token = 0; token < x.rows(); ++token)
      if (t.features.is_invalid(token)) logits.row(token).setConstant(quiet_nan<scalar>());
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    t.djoined.set_zero(x.rows(), features_ + x.cols());
    this->inner().backward(t.joined.map(), context, dlogits, t.inner, t.djoined.map());
    t.dfeatures.resize(x.rows(), features_);
    if (x.rows() == 0) return;
    t.dfeatures.map() = t.djoined.map().leftCols(features_);
    dx += t.djoined.map().rightCols(x.cols());
  }

private:
  void validate(const optional_matrix<scalar>& given, index_t tokens) const {
    if (tokens > 0 && (!given || given.rows != tokens || given.cols != features_))
      throw_invalid("joined_gate needs routing_context.features [T, F] = [", tokens, ", ", features_, "], not [",
                    given.rows, ", ", given.cols, "]");
  }

  index_t features_;
};

static_assert(DifferentiableGate<joined_gate<linear_gate<float>>>);

}  // namespace sluice::inline SLUICE_ISA
