/// The roles that types play in a layer, each a conjunction of small named parts, and functions that explain a refusal.
///
///   Gate           x [T,D] -> logits [T,E]
///   RoutingPlan    who goes where with what weight
///   RouterPolicy   x -> routing plan;  DifferentiableRouter also turns gradients of the plan into gradients of x
///   ExpertFunctor  a block of rows [n,D] -> [n,D'];  DifferentiableExpert also backward
///   ExpertBank     all experts of a layer, on rows grouped by expert
///   CapacityPolicy decides which of the requested assignments are kept
///   AuxiliaryLoss  a number and its gradient from what the router saw
///   Executor       runs tasks (core/executor.hpp)
///
/// Where one of them is asked for, the first error names what yours is missing;
/// static_assert(explain_router<my_router>()) asks where the type is written. A part that knows why it cannot be
/// trained says so in a static consteval function explain_training().
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/core/expert_rows.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/core/routed_rows.hpp>
#include <sluice/core/types.hpp>

#include <concepts>
#include <span>

namespace sluice::inline SLUICE_ISA {

// ---- parts ----------------------------------------------------------------------------------------------------------

template <typename T>
concept HasScalar = requires { typename T::scalar; } && std::floating_point<typename T::scalar>;

template <typename T>
concept HasExpertCount = requires(const T& t) {
  { t.experts() } -> std::convertible_to<index_t>;
};

template <typename T>
concept HasInputs = requires(const T& t) {
  { t.inputs() } -> std::convertible_to<index_t>;
};

template <typename T>
concept HasOutputs = requires(const T& t) {
  { t.outputs() } -> std::convertible_to<index_t>;
};

template <typename T>
concept HasTape = requires { typename T::tape; } && std::default_initializable<typename T::tape>;

template <typename T>
concept HasPlan = requires { typename T::plan; } && std::default_initializable<typename T::plan>;

namespace detail {

template <typename T>
struct scalar_of_part {
  using type = float;
};
template <HasScalar T>
struct scalar_of_part<T> {
  using type = typename T::scalar;
};
/// The scalar of a part; of a type that has none some scalar, so that its own absence is what an error speaks of.
template <typename T>
using scalar_of = typename scalar_of_part<T>::type;

}  // namespace detail

// ---- gate -----------------------------------------------------------------------------------------------------------

template <typename G>
concept CanScore = HasScalar<G> && HasTape<G> &&
    requires(const G& gate, tokens_in<typename G::scalar> x, const routing_context<typename G::scalar>& context,
             tokens_out<typename G::scalar> logits, typename G::tape& tape) { gate.forward(x, context, logits, tape); };

template <typename G>
concept CanScoreBackward = CanScore<G> &&
    requires(G& gate, tokens_in<typename G::scalar> x, const routing_context<typename G::scalar>& context,
             tokens_in<typename G::scalar> dlogits, typename G::tape& tape, tokens_out<typename G::scalar> dx) {
      gate.backward(x, context, dlogits, tape, dx);
    };

/// Turns tokens into one score per expert.
template <typename G>
concept Gate = HasScalar<G> && HasInputs<G> && HasExpertCount<G> && CanScore<G>;
template <typename G>
concept DifferentiableGate = Gate<G> && CanScoreBackward<G>;

// ---- plan -----------------------------------------------------------------------------------------------------------

template <typename P>
concept HasGradient = requires { typename P::gradient; } && std::default_initializable<typename P::gradient>;

template <typename P>
concept HasTokenCount = requires(const P& plan) {
  { plan.tokens() } -> std::convertible_to<index_t>;
};

template <typename P>
concept HasRowCounts = requires(const P& plan) {
  { plan.rows() } -> std::convertible_to<index_t>;
  { plan.most_rows() } -> std::convertible_to<index_t>;
};

template <typename P>
concept GroupsByExpert = requires(const P& plan) {
  { plan.by_expert() } -> std::convertible_to<expert_rows>;
};

template <typename P>
concept ListsInvalidTokens = requires(const P& plan) {
  { plan.invalid_tokens() } -> std::convertible_to<std::span<const index_t>>;
};

/// What a router makes and a layer carries out: T tokens, E experts, the rows that experts see, by expert, the most
/// rows that a batch of this size can have, and the tokens whose output is NaN. `gradient` holds the gradients of its
/// numbers.
template <typename P>
concept RoutingPlan = HasScalar<P> && HasGradient<P> && HasTokenCount<P> && HasExpertCount<P> && HasRowCounts<P> &&
    GroupsByExpert<P> && ListsInvalidTokens<P>;

/// A plan in which a row is one token with a weight and, perhaps, a scale of its input. A bank can run it whole. Of any
/// other the layer asks functions beside it: dispatch, combine and, to train, their adjoints
/// (kernel/soft_dispatch.hpp).
template <typename P>
concept RoutedPlan = RoutingPlan<P> && requires(const P& plan, typename P::gradient& gradient) {
  { plan.routed() } -> std::same_as<routed_rows<typename P::scalar>>;
  { gradient.weight.data() } -> std::same_as<typename P::scalar*>;
  { gradient.input_scale.data() } -> std::same_as<typename P::scalar*>;
};

// ---- router ---------------------------------------------------------------------------------------------------------

template <typename R>
concept CanRoute = HasScalar<R> && HasPlan<R> && HasTape<R> &&
    requires(const R& router, tokens_in<typename R::scalar> x, const routing_context<typename R::scalar>& context,
             typename R::plan& plan, typename R::tape& tape) { router.route(x, context, plan, tape); };

template <typename R>
concept CanRouteBackward = CanRoute<R> &&
    requires(R& router, tokens_in<typename R::scalar> x, const routing_context<typename R::scalar>& context,
             const typename R::plan& plan, const typename R::plan::gradient& dplan, typename R::tape& tape,
             tokens_out<typename R::scalar> dx) { router.backward(x, context, plan, dplan, tape, dx); };

/// Decides which experts see which token.
template <typename R>
concept RouterPolicy =
    HasScalar<R> && HasInputs<R> && HasExpertCount<R> && CanRoute<R> && RoutingPlan<typename R::plan>;
/// A router that can be trained: it adds into the gradients of its parameters and into dx. backward may be called again
/// for one route, and leaves what it reads in the tape.
template <typename R>
concept DifferentiableRouter = RouterPolicy<R> && CanRouteBackward<R>;

/// A router that sees the experts' outputs before it fixes the weights (competition, CompeteSMoE): in a call of which
/// needs_outputs() is true, weigh() may change the plan's weights after the experts have run on every row of the plan;
/// backward_outputs() adds the gradient that the weights send into those outputs.
template <typename R>
concept WeighsAfterExperts = RouterPolicy<R> &&
    requires(R& router, tokens_in<typename R::scalar> outputs, const routing_context<typename R::scalar>& context,
             typename R::plan& plan, const typename R::plan::gradient& dplan, typename R::tape& tape,
             tokens_out<typename R::scalar> doutputs) {
      { std::as_const(router).needs_outputs(context, std::as_const(plan), std::as_const(tape)) } -> std::same_as<bool>;
      std::as_const(router).weigh(outputs, context, plan, tape);
      router.backward_outputs(outputs, context, plan, dplan, tape, doutputs);
    };

/// Whether a token's route depends on that token alone, so that a sequence may be decoded token by token. Routers whose
/// choice depends on other tokens of the batch say `static constexpr bool causal = false`; so do gates and choice
/// rules, for the routers made of them.
template <typename R>
inline constexpr bool is_causal = [] {
  if constexpr (requires { R::causal; })
    return bool(R::causal);
  else
    return true;
}();

/// Whether a token's output depends on other tokens beyond what routers decide: attention, averages, sums say
/// `static constexpr bool mixes_tokens = true` (layer/token_mixer.hpp), and so do layers and banks that hold one.
template <typename L>
inline constexpr bool is_token_mixer = [] {
  if constexpr (requires { L::mixes_tokens; })
    return bool(L::mixes_tokens);
  else
    return false;
}();

/// Whether backward is the derivative of forward at a fixed choice. Straight-through and sampled estimators say
/// `static constexpr bool exact_gradient = false` and are left out of finite-difference checks.
template <typename R>
inline constexpr bool has_exact_gradient = [] {
  if constexpr (requires { R::exact_gradient; })
    return bool(R::exact_gradient);
  else
    return true;
}();

/// Whether NaN in a token is certain to make a gate's logits of that token NaN. Gates of which that is true say
/// `static constexpr bool shows_nan = true`, and routers need not search tokens for NaN themselves.
template <typename G>
inline constexpr bool shows_nan = [] {
  if constexpr (requires { G::shows_nan; })
    return bool(G::shows_nan);
  else
    return false;
}();

// ---- experts --------------------------------------------------------------------------------------------------------

template <typename E>
concept CanApply = HasScalar<E> &&
    requires(const E& expert, tokens_in<typename E::scalar> x, tokens_out<typename E::scalar> y) {
      { expert.saved_columns() } -> std::convertible_to<index_t>;
      expert.forward(x, y, y);
    };

template <typename E>
concept CanApplyBackward = CanApply<E> &&
    requires(E& expert, tokens_in<typename E::scalar> x, tokens_out<typename E::scalar> dx) {
      expert.backward(x, x, dx, dx);
    };

/// A function of a block of rows that treats every row alike and on its own. `saved` is scratch of saved_columns()
/// numbers a row that forward may leave for backward.
template <typename E>
concept ExpertFunctor = HasScalar<E> && HasInputs<E> && HasOutputs<E> && CanApply<E>;
/// backward(x, dy, saved, dx) writes dx and adds into the gradients of the expert's parameters. It may be called again,
/// and leaves what it reads in saved.
template <typename E>
concept DifferentiableExpert = ExpertFunctor<E> && CanApplyBackward<E>;

template <typename B>
concept CanRunExperts = HasScalar<B> && HasTape<B> &&
    requires(const B& bank, tokens_in<typename B::scalar> x, const expert_rows& rows,
             tokens_out<typename B::scalar> y, typename B::tape& tape, const executor_ref& executor) {
      bank.forward(x, rows, y, tape, executor);
    };

template <typename B>
concept CanRunExpertsBackward = CanRunExperts<B> &&
    requires(B& bank, tokens_in<typename B::scalar> x, const expert_rows& rows,
             tokens_out<typename B::scalar> dx, typename B::tape& tape, const executor_ref& executor) {
      bank.backward(x, rows, x, dx, tape, executor);
    };

/// All experts of a layer. `rows` says which rows of x and y are whose: for (const auto& [expert, begin, end] : rows)
/// goes through the experts that have some (core/expert_rows.hpp). A bank whose memory depends on the number of rows
/// has prepare(tape, rows, training) const, which makes room for any call of up to so many rows and says whether
/// backward calls will follow; a layer calls it before each forward call.
template <typename B>
concept ExpertBank = HasScalar<B> && HasExpertCount<B> && HasInputs<B> && HasOutputs<B> && CanRunExperts<B>;
template <typename B>
concept DifferentiableBank = ExpertBank<B> && CanRunExpertsBackward<B>;

/// A bank that gathers rows and adds outputs into y itself, in the same pass as its products (expert/bank.hpp). Who
/// calls it has set y to zero, and y shares no memory with x.
template <typename B>
concept RoutedBank = ExpertBank<B> &&
    requires(const B& bank, tokens_in<typename B::scalar> x, const routed_rows<typename B::scalar>& rows,
             tokens_out<typename B::scalar> y, typename B::tape& tape, const executor_ref& executor) {
      bank.forward_routed(x, rows, y, tape, executor);
    };

/// A bank that looks beyond its rows: networks that mix tokens or read encoders (layer/encoders/network_bank.hpp), and
/// banks that hold one (expert/bank_decorator.hpp). It is told what the call says of the rows between prepare and
/// forward.
template <typename B>
concept ReadsContext = ExpertBank<B> &&
    requires(const B& bank, typename B::tape& tape, const routed_rows<typename B::scalar>& rows,
             const routing_context<typename B::scalar>& context) { bank.read_context(tape, rows, context); };

/// Whether the bank takes such a plan whole: dispatch, experts and combine are one pass.
template <typename B, typename P>
concept CanRunPlan = RoutedBank<B> && RoutedPlan<P> && std::same_as<typename B::scalar, typename P::scalar>;

namespace detail {

/// An expert or bank with its weights rounded to another storage; one that holds no weights as it is.
template <typename Storage, typename Part>
auto stored_as_or_copied(const Part& part, const auto&... format) {
  if constexpr (requires { part.template stored_as<Storage>(format...); })
    return part.template stored_as<Storage>(format...);
  else
    return part;
}

/// Bytes that calls of up to so many rows take; of a bank that does not say, none.
template <typename Bank>
index_t bank_bytes(const Bank& bank, index_t rows, bool training) {
  if constexpr (requires { bank.workspace_bytes(rows, training); })
    return bank.workspace_bytes(rows, training);
  else
    return 0;
}

/// Tells a bank what the call says of its rows, if it looks beyond them. Who runs a bank calls it between prepare and
/// forward.
template <typename Bank, typename Tape, typename Scalar>
void read_context([[maybe_unused]] const Bank& bank, [[maybe_unused]] Tape& tape,
                  [[maybe_unused]] const routed_rows<Scalar>& rows,
                  [[maybe_unused]] const routing_context<Scalar>& context) {
  if constexpr (ReadsContext<Bank>) bank.read_context(tape, rows, context);
}

/// The same for rows that are not tokens but made of them: of one sequence they are its rows, of several nobody can say
/// whose they are. Encoders are then left out, and experts that mix tokens are refused: std::invalid_argument.
template <typename Bank, typename Tape, typename Scalar>
void read_context_of_mixtures([[maybe_unused]] const Bank& bank, [[maybe_unused]] Tape& tape,
                              [[maybe_unused]] const expert_rows& rows,
                              [[maybe_unused]] const routing_context<Scalar>& context) {
  if constexpr (ReadsContext<Bank>) {
    const index_t sequences = context.sequence_count();
    if (is_token_mixer<Bank> && sequences > 1)
      throw_invalid("experts that mix tokens run slots of one sequence, not of ", sequences,
                    ": nobody can say to which of them a slot belongs");
    routing_context<Scalar> own = context.for_other_rows();
    if (sequences > 1) own.encoders = {};
    bank.read_context(tape, {.by_expert = rows}, own);
  }
}

}  // namespace detail

// ---- auxiliary losses -----------------------------------------------------------------------------------------------

/// A loss on what router R saw: returns coefficient × value and adds coefficient × gradient.
template <typename L, typename R>
concept AuxiliaryLoss = RouterPolicy<R> &&
    requires(const L& loss, const typename R::tape& tape, typename R::tape& gradients, const typename R::plan& plan,
             const routing_context<typename R::scalar>& context) {
      { loss(tape.seen, plan, context, gradients.dseen) } -> std::convertible_to<typename R::scalar>;
    };

// ---- explanations ---------------------------------------------------------------------------------------------------

/// static_assert(explain_gate<my_gate>()): the first error names the first thing that is missing.
template <typename G>
consteval bool explain_gate() {
  static_assert(HasScalar<G>, "sluice: gate needs a floating-point member type `scalar`");
  static_assert(HasInputs<G>, "sluice: gate needs `index_t inputs() const`");
  static_assert(HasExpertCount<G>, "sluice: gate needs `index_t experts() const`");
  static_assert(HasTape<G>, "sluice: gate needs a default-constructible member type `tape`");
  static_assert(CanScore<G>,
                "sluice: gate needs `void forward(tokens_in<scalar> x, const routing_context<scalar>&, "
                "tokens_out<scalar> logits, tape&) const`");
  return Gate<G>;
}

template <typename G>
consteval bool explain_differentiable_gate() {
  static_assert(explain_gate<G>());
  static_assert(CanScoreBackward<G>,
                "sluice: gate needs `void backward(tokens_in<scalar> x, const routing_context<scalar>&, "
                "tokens_in<scalar> dlogits, tape&, tokens_out<scalar> dx)` to be trained");
  return DifferentiableGate<G>;
}

template <typename P>
consteval bool explain_plan() {
  static_assert(HasScalar<P>, "sluice: plan needs a floating-point member type `scalar`");
  static_assert(HasGradient<P>, "sluice: plan needs a default-constructible member type `gradient`");
  static_assert(HasTokenCount<P>, "sluice: plan needs `index_t tokens() const`");
  static_assert(HasExpertCount<P>, "sluice: plan needs `index_t experts() const`");
  static_assert(HasRowCounts<P>, "sluice: plan needs `index_t rows() const` and `index_t most_rows() const`");
  static_assert(GroupsByExpert<P>, "sluice: plan needs `expert_rows by_expert() const`");
  static_assert(ListsInvalidTokens<P>, "sluice: plan needs `std::span<const index_t> invalid_tokens() const`");
  return RoutingPlan<P>;
}

template <typename R>
consteval bool explain_router() {
  static_assert(HasScalar<R>, "sluice: router needs a floating-point member type `scalar`");
  static_assert(HasInputs<R>, "sluice: router needs `index_t inputs() const`");
  static_assert(HasExpertCount<R>, "sluice: router needs `index_t experts() const`");
  static_assert(HasPlan<R>, "sluice: router needs a member type `plan`, for instance sluice::sparse_plan<scalar>");
  if constexpr (HasPlan<R>) static_assert(explain_plan<typename R::plan>());
  static_assert(HasTape<R>, "sluice: router needs a default-constructible member type `tape`");
  static_assert(CanRoute<R>,
                "sluice: router needs `void route(tokens_in<scalar> x, const routing_context<scalar>&, plan&, tape&) "
                "const`");
  return RouterPolicy<R>;
}

template <typename R>
consteval bool explain_differentiable_router() {
  static_assert(explain_router<R>());
  static_assert(CanRouteBackward<R>,
                "sluice: router needs `void backward(tokens_in<scalar> x, const routing_context<scalar>&, const plan&, "
                "const plan::gradient&, tape&, tokens_out<scalar> dx)` to be trained");
  return DifferentiableRouter<R>;
}

template <typename E>
consteval bool explain_expert() {
  static_assert(HasScalar<E>, "sluice: expert needs a floating-point member type `scalar`");
  static_assert(HasInputs<E>, "sluice: expert needs `index_t inputs() const`");
  static_assert(HasOutputs<E>, "sluice: expert needs `index_t outputs() const`");
  static_assert(CanApply<E>,
                "sluice: expert needs `index_t saved_columns() const` and `void forward(tokens_in<scalar> x, "
                "tokens_out<scalar> y, tokens_out<scalar> saved) const`");
  return ExpertFunctor<E>;
}

template <typename E>
consteval bool explain_differentiable_expert() {
  static_assert(explain_expert<E>());
  if constexpr (requires { E::explain_training(); }) static_assert(E::explain_training());
  static_assert(CanApplyBackward<E>,
                "sluice: expert needs `void backward(tokens_in<scalar> x, tokens_in<scalar> dy, tokens_out<scalar> "
                "saved, tokens_out<scalar> dx)` to be trained");
  return DifferentiableExpert<E>;
}

template <typename B>
consteval bool explain_bank() {
  static_assert(HasScalar<B>, "sluice: expert bank needs a floating-point member type `scalar`");
  static_assert(HasExpertCount<B>, "sluice: expert bank needs `index_t experts() const`");
  static_assert(HasInputs<B>, "sluice: expert bank needs `index_t inputs() const`");
  static_assert(HasOutputs<B>, "sluice: expert bank needs `index_t outputs() const`");
  static_assert(HasTape<B>, "sluice: expert bank needs a default-constructible member type `tape`");
  static_assert(CanRunExperts<B>,
                "sluice: expert bank needs `void forward(tokens_in<scalar> x, const expert_rows& rows, "
                "tokens_out<scalar> y, tape&, const executor_ref&) const`");
  return ExpertBank<B>;
}

template <typename B>
consteval bool explain_differentiable_bank() {
  static_assert(explain_bank<B>());
  if constexpr (requires { B::explain_training(); }) static_assert(B::explain_training());
  static_assert(CanRunExpertsBackward<B>,
                "sluice: expert bank needs `void backward(tokens_in<scalar> x, const expert_rows& rows, "
                "tokens_in<scalar> dy, tokens_out<scalar> dx, tape&, const executor_ref&)` to be trained");
  return DifferentiableBank<B>;
}

template <typename L, typename R>
consteval bool explain_loss() {
  static_assert(explain_router<R>());
  static_assert(requires(typename R::tape& tape) { tape.seen, tape.dseen; },
                "sluice: auxiliary loss needs a router whose tape has `seen` and `dseen`, what it saw and the gradients "
                "of that (score_signals and score_gradients for most losses, core/signals.hpp)");
  static_assert(AuxiliaryLoss<L, R>,
                "sluice: auxiliary loss needs `scalar operator()(const seen&, const plan&, const "
                "routing_context<scalar>&, dseen&) const` for the `seen` and `dseen` of this router's tape");
  return AuxiliaryLoss<L, R>;
}

template <typename E>
consteval bool explain_executor() {
  static_assert(Executor<E>,
                "sluice: executor needs `void parallel_for(index_t n, body)` for any body callable with an index_t");
  return Executor<E>;
}

}  // namespace sluice::inline SLUICE_ISA
