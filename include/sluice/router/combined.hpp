/// Around a router: what a token's experts said becomes one answer in another way than as their weighted sum.
///
///   y[t] = combine(outputs and weights of the experts of t)            weighted sums need none of this
///
///   log_sum_exp   y[t,c] = log of the sum over the experts e of t of w_e exp(f_e(x[t])[c])          {.weighted = true}
///                 the same with every w_e = 1; the router then has no gradient from the output      the default
///
///   combined_router router{noisy_top_k_router<float>{64, 8}, log_sum_exp{}};
///   moe_layer layer{router, expert_bank<...>{...}};                    experts whose outputs are logarithms: MoE-VRD
///
/// The way to combine is part of the plan: the layer, banks, losses and everything around them stay what they are, at
/// the price that dispatch, experts and combine are three passes and no longer one. A way of your own is a struct with
///   combine(outputs, y) const                  writes y [D'] of one token from its experts' outputs (token_outputs)
///   backward(outputs, dy, gradients) const     writes the gradients of the outputs, and adds into those of the weights
/// called for many tokens at once. A token without experts has outputs of size 0: log_sum_exp gives it of_none, which
/// is small and finite as in the released code. Padding gets zero and an invalid token NaN, whatever the struct says.
/// Choice, drops, ties, T = 0, causality and losses are the router's. Outputs of several kinds (scores of subject,
/// object and predicate) stand side by side in one row: all of this goes column by column. Shaabana, Gharaee, Fieguth
/// 2024, "Video Relationship Detection Using Mixture of Experts", arXiv:2403.03994.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/kernel/log_sum.hpp>
#include <sluice/router/router_decorator.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// What the experts of one token made of it, in the order of their ranks.
template <typename Scalar>
struct token_outputs {
  std::span<const index_t> rows;
  tokens_in<Scalar> outputs;
  const Scalar* weights;

  index_t size() const noexcept { return static_cast<index_t>(rows.size()); }
  index_t columns() const noexcept { return outputs.cols(); }
  const Scalar* row(index_t j) const noexcept { return outputs.data() + at(j) * outputs.outerStride(); }
  Scalar weight(index_t j) const noexcept { return weights[at(j)]; }

private:
  index_t at(index_t j) const noexcept { return rows[as_size(j)]; }
};

/// And the gradients of all that.
template <typename Scalar>
struct token_output_gradients {
  std::span<const index_t> rows;
  Scalar* outputs;
  index_t stride;
  Scalar* weights;

  Scalar* row(index_t j) const noexcept { return outputs + rows[as_size(j)] * stride; }
  Scalar& weight(index_t j) const noexcept { return weights[rows[as_size(j)]]; }
};

template <typename C, typename Scalar>
concept CombinesOutputs = std::default_initializable<C> && std::copyable<C> &&
    requires(const C& way, const token_outputs<Scalar>& outputs, Scalar* y,
             const token_output_gradients<Scalar>& gradients) {
  way.combine(outputs, y);
  way.backward(outputs, static_cast<const Scalar*>(y), gradients);
};

struct log_sum_exp {
  bool weighted = false;
  double of_none = std::log(std::numeric_limits<double>::epsilon());  ///< what a token without experts gets

  template <typename Scalar>
  void combine(const token_outputs<Scalar>& of, Scalar* y) const {
    kernel::log_sum(
        of.size(), of.columns(), [&](index_t j) { return of.row(j); }, weights_of(of), static_cast<Scalar>(of_none), y);
  }
  template <typename Scalar>
  void backward(const token_outputs<Scalar>& of, const Scalar* dy, const token_output_gradients<Scalar>& to) const {
    kernel::log_sum_backward(
        of.size(), of.columns(), [&](index_t j) { return of.row(j); }, weights_of(of), dy,
        [&](index_t j) { return to.row(j); }, [&](index_t j, Scalar d) { to.weight(j) += weighted ? d : Scalar(0); });
  }

private:
  template <typename Scalar>
  auto weights_of(const token_outputs<Scalar>& of) const {
    return [this, &of](index_t j) { return weighted ? of.weight(j) : Scalar(1); };
  }
};

/// A plan that knows how outputs are combined. What else a plan is, is the router's own.
template <typename Plan, typename Combination>
class combined_plan : public Plan {
public:
  using scalar = typename Plan::scalar;

  /// No bank runs it whole: weights are not all that y depends on.
  void routed() const = delete;
  const Plan& own() const noexcept { return *this; }

  const Combination& combination() const noexcept { return combination_; }
  bool is_padding(index_t token) const noexcept { return !padding_.empty() && padding_[token] != 0; }

  void combine_by(const Combination& way, const routing_context<scalar>& context) {
    combination_ = way;
    padding_.reserve(this->tokens());
    padding_.clear();
    if (context.token_mask.empty()) return;
    padding_.resize(this->tokens());
    for (index_t t = 0; t < this->tokens(); ++t) padding_[t] = context.is_padding(t);
  }

private:
  Combination combination_;
  buffer<std::uint8_t> padding_;  ///< [T], or empty if there is none
};

template <typename Inner, typename Combination>
class combined_router : public router_decorator<Inner> {
  using base = router_decorator<Inner>;
  static_assert(
      RoutedPlan<typename Inner::plan> && requires(const typename Inner::plan& p) { p.of_token(index_t()); },
      "sluice: combined_router needs a router whose plan lists the rows of a token, such as sparse_plan");
  static_assert(!WeighsAfterExperts<Inner>,
                "sluice: combined_router cannot wrap a router that fixes its weights after the experts have run");
  static_assert(
      CombinesOutputs<Combination, typename Inner::scalar>,
      "sluice: a way to combine outputs needs `void combine(const token_outputs<scalar>&, scalar* y) const` and "
      "`void backward(const token_outputs<scalar>&, const scalar* dy, const token_output_gradients<scalar>&) "
      "const`");

public:
  using typename base::scalar;
  using plan = combined_plan<typename Inner::plan, Combination>;
  using tape = typename Inner::tape;

  explicit combined_router(Inner inner, Combination way = {}) : base(std::move(inner)), way_(std::move(way)) {}

  void route(tokens_in<scalar> x, const routing_context<scalar>& context, plan& p, tape& t) const {
    this->inner().route(x, context, p, t);
    p.combine_by(way_, context);
  }
  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<scalar> dx) {
    this->inner().backward(x, context, p, dplan, t, dx);
  }

private:
  Combination way_;
};

// ---- the passes of such a plan, as those of kernel/dispatch.hpp ---------------------------------------------------

template <typename Plan, typename C>
void dispatch(const combined_plan<Plan, C>& plan, tokens_in<typename Plan::scalar> x,
              tokens_out<typename Plan::scalar> rows, const executor_ref& executor) {
  dispatch(plan.own(), x, rows, executor);
}

template <typename Plan, typename C, typename Scalar = typename Plan::scalar>
void combine(const combined_plan<Plan, C>& plan, tokens_in<typename Plan::scalar> rows,
             tokens_out<typename Plan::scalar> y, const executor_ref& executor) {
  const Scalar* const weights = plan.own().routed().weights;
  executor.parallel_each(y.rows(), 16 * y.cols(), [&](index_t t) {
    if (plan.is_padding(t))
      y.row(t).setZero();
    else
      plan.combination().combine(token_outputs<Scalar>{plan.of_token(t), rows, weights},
                                 y.data() + t * y.outerStride());
  });
  detail::write_invalid<Scalar>(plan, y);
}

template <typename Plan, typename C, typename Scalar = typename Plan::scalar>
void combine_backward(const combined_plan<Plan, C>& plan, tokens_in<typename Plan::scalar> dy,
                      tokens_in<typename Plan::scalar> rows, tokens_out<typename Plan::scalar> drows,
                      typename Plan::gradient& dplan, const executor_ref& executor) {
  const Scalar* const weights = plan.own().routed().weights;
  dplan.weight.reserve(plan.most_rows());
  dplan.weight.assign(plan.rows(), Scalar(0));
  executor.parallel_each(dy.rows(), 32 * dy.cols(), [&](index_t t) {
    plan.combination().backward(
        token_outputs<Scalar>{plan.of_token(t), rows, weights}, dy.data() + t * dy.outerStride(),
        token_output_gradients<Scalar>{plan.of_token(t), drows.data(), drows.outerStride(), dplan.weight.data()});
  });
}

template <typename Plan, typename C>
void dispatch_backward(const combined_plan<Plan, C>& plan, tokens_in<typename Plan::scalar> x,
                       tokens_in<typename Plan::scalar> drows, tokens_out<typename Plan::scalar> dx,
                       typename Plan::gradient& dplan, const executor_ref& executor) {
  dispatch_backward(plan.own(), x, drows, dx, dplan, executor);
}

}  // namespace sluice::inline SLUICE_ISA
