/// Two layers side by side whose sum every token weighs for itself: residual MoE.
///
///   c = softmax(x C^T + b) [T,2]    C [2,D], b [2]
///   y = c[0] layer(x) + c[1] other(x)
///   dc = (<dy, layer(x)>, <dy, other(x)>);  dl[0] = c[0] c[1] (dc[0] - dc[1]) = -dl[1];  dC += dl^T x;  dx += dl C
///
///   weighed_branches block{moe_layer{...}, dense_layer{ffn<float, gelu>{64, 256, {.bias = true}}}};
///   weighed_branches personal{prior, prior, expert_target_loss{.form = target_form::squared_shortfall}};
///
/// Losses behind the layers see l as a router's logits of two experts, and every token at both. The second line is the
/// mixture of attention for personalised images (Wang et al. 2024, arXiv:2404.11565; a reading): two self_attention
/// layers of one beginning, the first of which is frozen (set_frozen), and context.cluster_ids = 0 for tokens of the
/// background, which the prior should answer for, -1 for all others.
///
/// The first layer is the mixture whose plan, router and bank the whole shows. The form without weights is
/// layer/beside.hpp; DeepSpeed's mixtures themselves are router/tokens_choose/gshard_top2.hpp and
/// capacity/random.hpp. A pyramid (PR-MoE) is a sequence in which later mixtures have more experts. The calls and the
/// memory rules are those of moe_layer (layer/decorator.hpp). Padding gets zero; a token with NaN gets NaN, changes no
/// other and reaches no gradient; T = 0 is fine. Initially C is normal with deviation 1/sqrt(D), b zero.
/// Rajbhandari et al. 2022 (DeepSpeed-MoE), arXiv:2201.05596, which calls it residual MoE.
#pragma once

#include <sluice/core/dense_plan.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/signals.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/layer/branches/two_branches.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/loss/loss_list.hpp>

#include <concepts>
#include <cstddef>
#include <tuple>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Scalar>
struct weighed_outputs {
  matrix_buffer<Scalar> weights;        ///< [T,2] c
  matrix_buffer<Scalar> first, second;  ///< [T,D'] of the mixture and of the other layer
};

template <typename Scalar>
struct weighed_workspace : weighed_outputs<Scalar> {
  typename linear_layer<Scalar>::workspace weighing;
};

template <typename Scalar, std::size_t Losses>
struct weighed_tape : weighed_outputs<Scalar>, loss_values<Scalar, Losses> {
  score_signals<Scalar> seen;  ///< if there are losses
  score_gradients<Scalar> dseen;
  dense_plan<Scalar> plan;
  typename linear_layer<Scalar>::tape weighing;
  matrix_buffer<Scalar> dweights;  ///< [T,2] of the logits
  matrix_buffer<Scalar> dfirst, dsecond;
  matrix_buffer<Scalar> dx;  ///< [T,D] of one branch
};

}  // namespace detail

template <typename Layer, typename Other, typename... Losses>
class weighed_branches : public two_branches<weighed_branches<Layer, Other, Losses...>, Layer, Other,
                                             detail::weighed_workspace<typename Layer::scalar>,
                                             detail::weighed_tape<typename Layer::scalar, sizeof...(Losses)>> {
  using base = two_branches<weighed_branches, Layer, Other, detail::weighed_workspace<typename Layer::scalar>,
                            detail::weighed_tape<typename Layer::scalar, sizeof...(Losses)>>;
  friend typename base::decorator;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  /// Throws std::invalid_argument if the widths differ.
  weighed_branches(Layer layer, Other other, Losses... losses)
      : base(std::move(layer), std::move(other)), weighing_(this->inputs(), 2), losses_(std::move(losses)...) {
    this->require_equal_widths();
  }

  void after_step(tape& t) {
    base::after_step(t);
    losses_.after_step({});
  }

  /// C and b
  linear_layer<scalar>& weighing() noexcept { return weighing_; }
  const linear_layer<scalar>& weighing() const noexcept { return weighing_; }

private:
  template <typename L, typename O, typename... P>
  friend class weighed_branches;

  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context, Inner inner) const {
    m.weights.resize(x.rows(), 2);
    m.first.resize(y.rows(), y.cols());
    m.second.resize(y.rows(), y.cols());
    weighing_.forward(x, m.weights.map(), m.weighing, context);
    constexpr bool has_losses = sizeof...(Losses) > 0 && std::same_as<Memory, tape>;
    if constexpr (has_losses) {
      m.seen.clean.resize(x.rows(), 2);
      m.seen.clean.map() = m.weights.map();
    }
    this->other().forward(x, m.second.map(), m.other, base::beside(context));
    inner(x, m.first.map());
    context.executor.parallel_each(y.rows(), 2 * y.cols(), [&](index_t t) {
      scalar* const c = m.weights.row(t);
      kernel::softmax(c, c, 2);
      kernel::copy_scaled(c[0], m.first.row(t), y.data() + t * y.outerStride(), y.cols());
      kernel::add_scaled(c[1], m.second.row(t), y.data() + t * y.outerStride(), y.cols());
    });
    if constexpr (has_losses) evaluate_losses(m, context);
  }

  /// Once logits and weights are known.
  void evaluate_losses(tape& t, const context_type& context) const {
    t.seen.top_k = 2;
    t.plan.reset(t.weights.rows(), 2);
    for (index_t r = 0; r < t.weights.rows(); ++r) {
      if (context.is_padding(r)) continue;
      any_nan(t.seen.clean.row(r), 2) ? t.plan.mark_invalid(r) : t.plan.add(r);
    }
    t.plan.finish();
    const auto routed = t.plan.routed_tokens();
    for (std::size_t j = 0; j < routed.size(); ++j)
      for (index_t e = 0; e < 2; ++e) t.plan.weight(e, static_cast<index_t>(j)) = t.weights(routed[j], e);
    losses_.evaluate(t, t.plan, context, t);
  }

  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t, Inner inner) {
    t.dweights.resize(dy.rows(), 2);
    t.dfirst.resize(dy.rows(), dy.cols());
    t.dsecond.resize(dy.rows(), dy.cols());
    t.dx.resize(dx.rows(), dx.cols());
    // Rows of padding and of NaN may hold anything here: the three layers read none of theirs.
    t.context.executor.parallel_each(dy.rows(), 2 * dy.cols(), [&](index_t r) {
      const scalar* const upstream = dy.data() + r * dy.outerStride();
      const scalar* const c = t.weights.row(r);
      kernel::copy_scaled(c[0], upstream, t.dfirst.row(r), dy.cols());
      kernel::copy_scaled(c[1], upstream, t.dsecond.row(r), dy.cols());
      const scalar towards_first =
          kernel::dot(upstream, t.first.row(r), dy.cols()) - kernel::dot(upstream, t.second.row(r), dy.cols());
      t.dweights(r, 0) = c[0] * c[1] * towards_first;
      t.dweights(r, 1) = -t.dweights(r, 0);
      if constexpr (sizeof...(Losses) > 0) kernel::add_scaled(scalar(1), t.dseen.clean.row(r), t.dweights.row(r), 2);
    });
    inner(t.dfirst.map(), dx);
    this->other().backward(t.dsecond.map(), t.dx.map(), t.other);
    dx += t.dx.map();
    weighing_.backward(t.dweights.map(), t.dx.map(), t.weighing);
    dx += t.dx.map();
  }

  template <typename Storage, typename Inner>
  auto rebuilt(Inner inner) const {
    auto other = this->other().template stored_as<Storage>();
    weighed_branches<Inner, decltype(other), Losses...> result = std::apply(
        [&](const auto&... losses) {
          return weighed_branches<Inner, decltype(other), Losses...>(std::move(inner), std::move(other), losses...);
        },
        losses_.all());
    result.weighing_ = weighing_;
    return result;
  }

  index_t own_bytes(index_t tokens, bool training) const {
    return this->branch_bytes(tokens, training, training ? 4 : 2) + weighing_.workspace_bytes(tokens, training);
  }

  template <typename Self, typename Visitor>
  static void visit_own(Self& self, Visitor& visit) {
    base::visit_own(self, visit);
    visit("weighing", self.weighing_);
    loss_list<Losses...>::visit_parameters(self.losses_, visit);
  }

  linear_layer<scalar> weighing_;
  loss_list<Losses...> losses_;
};

/// DeepSpeed-MoE's: the branch beside the mixture is one expert that every token passes.
template <typename Layer, typename Expert>
using residual_moe = weighed_branches<Layer, dense_layer<Expert>>;

}  // namespace sluice::inline SLUICE_ISA
