/// The mixture-of-experts layer: router, dispatch, experts, combine, and the same road backwards.
///
///   x [T,D] -> y [T,D']:   plan = router(x);  rows = dispatch(plan, x);  y = combine(plan, experts(rows))
///
///   moe_layer layer{top_k_router<float>{64, 8, {.top_k = 2}}, expert_bank<swiglu<float>>{8, 64, 128}};
///   decltype(layer)::workspace workspace;      layer.forward(x, y, workspace);             // inference, const
///   decltype(layer)::tape tape;                layer.forward(x, y, tape);                  // training
///                                              layer.backward(dy, dx, tape);               // adds into gradients
///
/// Inference is const and may run in many threads at once, each with a workspace of its own; after the largest batch
/// has been seen a call allocates nothing. Results do not depend on the executor or its thread count, bit for bit.
/// Every auxiliary loss is evaluated by the training forward call; its value is in tape.losses and its gradient joins
/// in backward. T = 0 is a valid batch. NaN in a token or its logits gives that token's output NaN; it reaches no other
/// token, no loss and no parameter's gradient.
///
/// forward may work in place: y may be x itself. Any other overlap of x and y, and any of dx and dy, is refused.
/// backward may be called again, for another loss on the same y: each call writes the dx of its own dy and adds the
/// gradients, those of the auxiliary losses each time. It needs the last call on its tape to be a training forward call
/// of this very layer object, with the same parameters; otherwise it throws std::invalid_argument.
/// A layer whose parameters nobody has set throws in the first call of a workspace or tape: initialize() it, load it or
/// write its weights. Biases, states and whatever else starts at a constant are set from the beginning.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/statistics.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/kernel/linear_map.hpp>
#include <sluice/kernel/soft_dispatch.hpp>
#include <sluice/layer/call_checks.hpp>
#include <sluice/layer/kept_rows.hpp>
#include <sluice/layer/mixture_layer.hpp>
#include <sluice/loss/loss_list.hpp>

#include <algorithm>
#include <tuple>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename P>
concept HasPasses =
    requires(const P& plan, tokens_in<scalar_of<P>> x, tokens_out<scalar_of<P>> y, const executor_ref& executor) {
      dispatch(plan, x, y, executor);
      combine(plan, x, y, executor);
    };

template <typename P>
concept HasPassesBack =
    requires(const P& plan, tokens_in<scalar_of<P>> x, tokens_out<scalar_of<P>> y, typename P::gradient& dplan,
             const executor_ref& executor) {
      combine_backward(plan, x, x, y, dplan, executor);
      dispatch_backward(plan, x, x, y, dplan, executor);
    };

template <typename R>
consteval bool explain_passes() {
  if constexpr (RouterPolicy<R>)
    static_assert(HasPasses<typename R::plan>,
                  "sluice: plan needs `routed_rows<scalar> routed() const`, or functions in its namespace "
                  "`dispatch(plan, x, rows, executor)` and `combine(plan, outputs, y, executor)`");
  return true;
}
template <typename R>
consteval bool explain_passes_back() {
  if constexpr (RouterPolicy<R>)
    static_assert(HasPassesBack<typename R::plan>,
                  "sluice: plan needs `routed_rows<scalar> routed() const`, or functions in its namespace "
                  "`combine_backward(plan, dy, outputs, doutputs, gradient, executor)` and "
                  "`dispatch_backward(plan, x, drows, dx, gradient, executor)` to be trained");
  return true;
}

}  // namespace detail

template <typename Router, typename Experts, typename... Losses>
class moe_layer {
  static_assert(explain_router<Router>());
  static_assert(detail::explain_passes<Router>());
  static_assert(explain_bank<Experts>());
  static_assert((explain_loss<Losses, Router>() && ...));
  static_assert(std::same_as<detail::scalar_of<Router>, detail::scalar_of<Experts>>,
                "sluice: router and experts of one layer need the same scalar");

public:
  using scalar = typename Router::scalar;
  using plan_type = typename Router::plan;
  using context_type = routing_context<scalar>;
  static constexpr bool causal = is_causal<Router> && is_causal<Experts>;
  static constexpr bool mixes_tokens = is_token_mixer<Experts>;
  /// Whether dispatch, experts and combine are one pass. A router that looks at the experts' outputs needs them apart
  /// in the calls in which it does.
  static constexpr bool fused = CanRunPlan<Experts, plan_type>;

  /// What a forward call needs besides x and y. One per thread; keeps its memory.
  struct workspace {
    plan_type plan;
    typename Router::tape router;
    typename Experts::tape experts;
    matrix_buffer<scalar> rows;  ///< experts' inputs, grouped by expert; where the bank gathers them itself a copy of x
                                 ///< if y is to replace it, or empty
    matrix_buffer<scalar> outputs;  ///< experts' outputs; empty if the bank adds them up itself
    bool is_apart = !fused;         ///< whether the last call ran dispatch, experts and combine one after the other
    routing_statistics statistics;  ///< since the last clear()
    detail::forward_record record;  ///< whether it holds what backward needs
  };

  /// A workspace that also keeps what backward needs.
  struct tape : workspace, loss_values<scalar, sizeof...(Losses)> {
    context_type context;
    matrix_buffer<scalar> x;
    matrix_buffer<scalar> drows;
    matrix_buffer<scalar> doutputs;
    typename plan_type::gradient dplan;
    bool is_planned = false;  ///< whether the last call took the plan as it was
  };

  /// Throws std::invalid_argument if the experts do not fit the router.
  explicit moe_layer(Router router, Experts experts, Losses... losses)
      : router_(std::move(router)), experts_(std::move(experts)), losses_(std::move(losses)...) {
    if (router_.experts() != experts_.experts())
      throw_invalid("the router chooses among ", router_.experts(), " experts, the layer holds ", experts_.experts());
    if (router_.inputs() != experts_.inputs())
      throw_invalid("the router reads tokens of width ", router_.inputs(), ", the experts of width ",
                    experts_.inputs());
  }

  index_t inputs() const noexcept { return experts_.inputs(); }
  index_t outputs() const noexcept { return experts_.outputs(); }
  index_t experts() const noexcept { return experts_.experts(); }

  /// Inference: y [T,D'] is overwritten. Throws std::invalid_argument if shapes do not fit.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, workspace& ws, const context_type& context = {}) const {
    detail::check_forward<scalar>({inputs(), outputs()}, x, y, context);
    ws.record.check_values(*this);
    ws.record.forget();
    router_.route(x, context, ws.plan, ws.router);
    apply(x, y, ws, context, false);
  }

  /// Training, with training = true and everything else of the context left out.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t) const {
    context_type context;
    context.training = true;
    forward(x, y, t, context);
  }

  /// Training: also evaluates the auxiliary losses. What the context refers to must live until backward has returned.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t, const context_type& context) const {
    detail::check_forward<scalar>({inputs(), outputs()}, x, y, context);
    keep(x, t, context);
    t.is_planned = false;
    router_.route(t.x.map(), context, t.plan, t.router);
    apply(t.x.map(), y, t, context, true);
    evaluate_losses(t);
    t.record.keep(this, t.plan.rows());
  }

  /// The end of a training forward call, for who has routed by router() and runs the experts himself
  /// (layer/multi_gate.hpp): the losses see what was routed into t.plan by t.router, with t.context.
  void evaluate_losses(tape& t) const { losses_.evaluate(t.router, t.plan, t.context, t); }

  /// Runs the experts on a plan made before, here or elsewhere: ws.plan, possibly altered.
  void forward_planned(tokens_in<scalar> x, tokens_out<scalar> y, workspace& ws,
                       const context_type& context = {}) const {
    detail::check_forward<scalar>({inputs(), outputs()}, x, y, context);
    ws.record.check_values(*this);
    ws.record.forget();
    apply(x, y, ws, context, false);
  }

  /// The same for training: the plan in the tape is a given thing. backward then leaves the gradients of its weights in
  /// t.dplan, and the router and the auxiliary losses, which had no say, get none.
  void forward_planned(tokens_in<scalar> x, tokens_out<scalar> y, tape& t, const context_type& context = {}) const {
    detail::check_forward<scalar>({inputs(), outputs()}, x, y, context);
    keep(x, t, context);
    t.is_planned = true;
    apply(t.x.map(), y, t, context, true);
    t.losses.fill(scalar(0));
    t.record.keep(this, t.plan.rows());
  }

  /// Writes dx [T,D] and adds the gradients of all parameters, for the last training forward call of this tape.
  void backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t)
    requires DifferentiableRouter<Router> && DifferentiableBank<Experts> && detail::HasPassesBack<plan_type>
  {
    t.record.validate(this, t.plan.rows());
    detail::check_backward<scalar>({inputs(), outputs()}, dy, dx, t.x.rows());
    ensure_gradients(*this);
    dx.setZero();
    const index_t most_rows = t.plan.most_rows();
    if constexpr (RoutedPlan<plan_type>) {
      t.dplan.weight.reserve(most_rows);
      t.dplan.input_scale.reserve(t.plan.routed().input_scales == nullptr ? 0 : most_rows);
    }
    if constexpr (may_be_apart) {
      t.doutputs.reserve(most_rows, outputs());
      t.drows.reserve(most_rows, inputs());
      if (t.is_apart) backward_apart(dy, dx, t);
    }
    if constexpr (fused)
      if (!t.is_apart) backward_whole(dy, dx, t);
    if (!t.is_planned) router_.backward(t.x.map(), t.context, t.plan, t.dplan, t.router, dx);
  }
  detail::refused backward(tokens_in<scalar>, tokens_out<scalar>, tape&)
    requires(!(DifferentiableRouter<Router> && DifferentiableBank<Experts> && detail::HasPassesBack<plan_type>))
  {
    static_assert(explain_training());
    return {};
  }
  /// What is in the way of training: the first error says it.
  static consteval bool explain_training() {
    return explain_differentiable_router<Router>() && detail::explain_passes_back<Router>() &&
           explain_differentiable_bank<Experts>();
  }

  /// Updates what is learned without gradients (selection biases, controllers, live experts), once per optimiser step,
  /// from the statistics that the tape gathered since the last call.
  void after_step(tape& t) {
    if constexpr (requires { router_.after_step(t.statistics, t.router); }) router_.after_step(t.statistics, t.router);
    losses_.after_step(t.statistics);
    t.statistics.clear();
  }

  /// The same layer with the weights of its experts rounded to another storage, for inference:
  ///   const auto small = layer.template stored_as<bfloat16_storage>();
  /// With one more argument each matrix may differ: a format, or format(expert, matrix) (kernel/mixed_map.hpp).
  template <typename Storage>
  auto stored_as(const auto&... format) const {
    static_assert(explain_storage<Storage>());
    return std::apply(
        [&](const auto&... loss) {
          auto bank = experts_.template stored_as<Storage>(format...);
          return moe_layer<Router, decltype(bank), Losses...>(router_, std::move(bank), loss...);
        },
        losses_.all());
  }

  /// Bytes of memory that the experts of a workspace (or tape) will take for `rows` assignments; what the router keeps
  /// comes on top, a few numbers a token and expert, and in a call in place x itself.
  index_t workspace_bytes(index_t rows, bool training = false) const {
    const index_t apart = rows * (inputs() + outputs()) * static_cast<index_t>(sizeof(scalar)) * (training ? 2 : 1);
    const bool has_apart = !fused || (may_be_apart && training);
    return detail::bank_bytes(experts_, rows, training) + (has_apart ? apart : 0);
  }

  Router& router() noexcept { return router_; }
  const Router& router() const noexcept { return router_; }
  Experts& bank() noexcept { return experts_; }
  const Experts& bank() const noexcept { return experts_; }
  template <std::size_t I>
  auto& loss() noexcept {
    return losses_.template get<I>();
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Router>) visit("router", self.router_);
    if constexpr (HasParameters<Experts>) visit("experts", self.experts_);
    loss_list<Losses...>::visit_parameters(self.losses_, visit);
  }

private:
  static constexpr bool may_be_apart = !fused || WeighsAfterExperts<Router>;

  /// Keeps what backward needs besides the plan.
  void keep(tokens_in<scalar> x, tape& t, const context_type& context) const {
    t.record.check_values(*this);
    t.record.forget();
    t.context = context;
    detail::keep_without_padding<scalar>(x, context, t.x);
  }

  void apply(tokens_in<scalar> x, tokens_out<scalar> y, workspace& ws, const context_type& context, bool keep) const {
    // A plan that was not finished has rows of no experts.
    if (ws.plan.tokens() != x.rows() || ws.plan.experts() != experts() || ws.plan.by_expert().experts() != experts())
      throw_invalid("the plan is for ", ws.plan.tokens(), " tokens and ", ws.plan.experts(), " experts, the call for ",
                    x.rows(), " and ", experts());
    const index_t most_rows = ws.plan.most_rows();
    if constexpr (requires { experts_.prepare(ws.experts, most_rows, keep); })
      experts_.prepare(ws.experts, most_rows, keep);
    if constexpr (RoutedPlan<plan_type>)
      detail::read_context(experts_, ws.experts, ws.plan.routed(), context);
    else
      detail::read_context_of_mixtures(experts_, ws.experts, ws.plan.by_expert(), context);
    if constexpr (fused && may_be_apart) ws.is_apart = router_.needs_outputs(context, ws.plan, ws.router);
    if (!ws.is_apart) {
      ws.rows.clear();
      ws.outputs.clear();
    }
    if constexpr (may_be_apart) {
      if (ws.is_apart || keep) {  // another step of training may be apart
        ws.rows.reserve(most_rows, inputs());
        ws.outputs.reserve(most_rows, outputs());
      }
      if (ws.is_apart) run_apart(x, y, ws, context);
    }
    if constexpr (fused)
      if (!ws.is_apart) run_whole(x, y, ws, context, keep);
    index_t padding = 0;
    for (index_t t = 0; t < x.rows(); ++t) padding += context.is_padding(t);
    ws.statistics.count(ws.plan, padding);
  }

  void run_whole(tokens_in<scalar> x, tokens_out<scalar> y, workspace& ws, const context_type& context,
                 bool keep) const {
    const auto run = [&](tokens_in<scalar> from) {
      detail::clear_rows<scalar>(y, context.executor);
      experts_.forward_routed(from, ws.plan.routed(), y, ws.experts, context.executor);
      detail::write_invalid<scalar>(ws.plan, y);
    };
    if (!keep && inputs() == outputs()) ws.rows.reserve(x.rows(), inputs());  // a later call may be in place
    if (x.data() == y.data()) {
      ws.rows.resize(x.rows(), inputs());
      ws.rows.map() = x;
      run(ws.rows.map());
    } else {
      run(x);
    }
  }
  void run_apart(tokens_in<scalar> x, tokens_out<scalar> y, workspace& ws, const context_type& context) const {
    ws.rows.resize(ws.plan.rows(), inputs());
    ws.outputs.resize(ws.plan.rows(), outputs());
    dispatch(ws.plan, x, ws.rows.map(), context.executor);
    experts_.forward(ws.rows.map(), ws.plan.by_expert(), ws.outputs.map(), ws.experts, context.executor);
    if constexpr (WeighsAfterExperts<Router>)
      if (router_.needs_outputs(context, ws.plan, ws.router))
        router_.weigh(ws.outputs.map(), context, ws.plan, ws.router);
    combine(ws.plan, ws.outputs.map(), y, context.executor);
  }

  void backward_whole(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    const routed_rows<scalar> rows = t.plan.routed();
    const bool has_scales = rows.input_scales != nullptr;
    t.dplan.weight.resize(t.plan.rows());
    t.dplan.input_scale.resize(has_scales ? t.plan.rows() : 0);
    experts_.backward_routed(t.x.map(), rows, dy, dx, t.experts, t.dplan.weight.data(),
                             has_scales ? t.dplan.input_scale.data() : nullptr, t.context.executor);
  }
  void backward_apart(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    const executor_ref& executor = t.context.executor;
    t.doutputs.resize(t.plan.rows(), outputs());
    t.drows.resize(t.plan.rows(), inputs());
    combine_backward(t.plan, dy, t.outputs.map(), t.doutputs.map(), t.dplan, executor);
    if constexpr (WeighsAfterExperts<Router>)
      if (router_.needs_outputs(t.context, t.plan, t.router))
        router_.backward_outputs(t.outputs.map(), t.context, t.plan, t.dplan, t.router, t.doutputs.map());
    experts_.backward(t.rows.map(), t.plan.by_expert(), t.doutputs.map(), t.drows.map(), t.experts, executor);
    dispatch_backward(t.plan, t.x.map(), t.drows.map(), dx, t.dplan, executor);
  }

  Router router_;
  Experts experts_;
  loss_list<Losses...> losses_;
};

}  // namespace sluice::inline SLUICE_ISA
