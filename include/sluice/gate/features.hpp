/// Features gate: an inner gate that reads what stands beside the tokens, context.features, and nothing of the tokens.
///
///   logits [T,E] = G(c)      c [T,F] = context.features, x [T,D] is not read
///   dx += 0;   dc = dG/dc    kept in the tape: features_gradient()
///
///   features_gate by_text{linear_gate<float>{512, 8}, /*width=*/3072};         rows are images, each with a question
///   features_gate given{identity_gate<float>{8}, 3072};                        scores of a network of its own (AdvMoE)
///
/// For routers that choose by something else than what the experts work on: a text, a subject, the image at lower
/// resolution. Features in front of the token itself are gate/joined.hpp; one vector for all tokens of a group is
/// gate/per_group.hpp. NaN in a row of c makes that token's logits NaN and reaches no gradient; padding's features may
/// hold anything. Without features of that width a call throws std::invalid_argument. T = 0 is fine. Chen et al. 2023
/// (Octavius), arXiv:2311.02684, and Zhang et al. 2023 (AdvMoE), arXiv:2308.10110, route so.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/token_screen.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/gate/identity.hpp>
#include <sluice/gate/linear.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class features_gate : public gate_decorator<Inner> {
public:
  using scalar = typename Inner::scalar;
  static constexpr bool shows_nan = false;  // what a token holds is not looked at

  struct tape : decorated_tape<Inner> {
    token_screen<scalar> screen;  ///< padding and NaN among the features
    matrix_buffer<scalar> dfeatures;

    /// [T,F] after backward.
    const matrix_buffer<scalar>& features_gradient() const noexcept { return dfeatures; }
  };

  /// The inner gate reads F numbers, tokens have D. Throws std::invalid_argument unless D >= 1.
  features_gate(Inner inner, index_t inputs) : gate_decorator<Inner>(std::move(inner)), inputs_(inputs) {
    if (inputs < 1) throw_invalid("features_gate needs D >= 1, not ", inputs);
  }

  index_t inputs() const noexcept { return inputs_; }
  index_t features() const noexcept { return this->inner().inputs(); }

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    const optional_matrix<scalar>& given = context.features;
    if (x.rows() > 0 && (!given || given.rows != x.rows() || given.cols != features()))
      throw_invalid("features_gate needs routing_context.features [T, F] = [", x.rows(), ", ", features(), "], not [",
                    given.rows, ", ", given.cols, "]");
    if (x.rows() == 0) return;
    t.screen.score(
        given.map(), context,
        [&](tokens_in<scalar> seen) { this->inner().forward(seen, t.screen.visible(context), logits, t.inner); },
        [&](index_t token) { return any_nan(logits.data() + token * logits.outerStride(), this->experts()); },
        sluice::shows_nan<Inner>);
    for (index_t token = 0; token < x.rows(); ++token)
      if (t.screen.is_invalid(token)) logits.row(token).setConstant(quiet_nan<scalar>());
  }

  /// Adds into the gradients; dx stays as it is.
  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar>) {
    t.dfeatures.set_zero(x.rows(), features());
    if (x.rows() == 0) return;
    this->inner().backward(t.screen.of(context.features.map()), t.screen.visible(context), dlogits, t.inner,
                           t.dfeatures.map());
  }

private:
  index_t inputs_;
};

static_assert(DifferentiableGate<features_gate<linear_gate<float>>>);
static_assert(DifferentiableGate<features_gate<identity_gate<float>>>);

}  // namespace sluice::inline SLUICE_ISA
