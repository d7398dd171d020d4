/// What a layer is: moe_layer, the wrappers around one, and layers of your own.
///
///   MixtureLayer     forward(x, y, workspace, context) and forward(x, y, tape, context), const: what a wrapper may wrap
///   TrainableLayer   also backward(dy, dx, tape) and after_step(tape)
///
/// If your layer is refused, write static_assert(sluice::explain_layer<my_layer>()); the first error names what is
/// missing.
#pragma once

#include <sluice/core/concepts.hpp>

#include <concepts>
#include <tuple>

namespace sluice::inline SLUICE_ISA {

template <typename L>
concept HasContextType = requires { typename L::context_type; };

template <typename L>
concept HasWorkspace = requires { typename L::workspace; } && std::default_initializable<typename L::workspace>;

template <typename L>
concept CanInfer = HasScalar<L> && HasWorkspace<L> && HasContextType<L> &&
    requires(const L& layer, tokens_in<typename L::scalar> x, tokens_out<typename L::scalar> y,
             typename L::workspace& workspace, const typename L::context_type& context) {
      layer.forward(x, y, workspace, context);
    };

template <typename L>
concept CanForwardInTraining = HasScalar<L> && HasTape<L> && HasContextType<L> &&
    requires(const L& layer, tokens_in<typename L::scalar> x, tokens_out<typename L::scalar> y, typename L::tape& tape,
             const typename L::context_type& context) {
      layer.forward(x, y, tape, context);
    };

/// backward returns nothing: an overload that is there only to say why a layer cannot be trained returns something.
template <typename L>
concept CanBackward = HasScalar<L> && HasTape<L> &&
    requires(L& layer, tokens_in<typename L::scalar> dy, tokens_out<typename L::scalar> dx, typename L::tape& tape) {
      { layer.backward(dy, dx, tape) } -> std::same_as<void>;
    };

template <typename L>
concept CanStep = HasTape<L> && requires(L& layer, typename L::tape& tape) { layer.after_step(tape); };

template <typename L>
concept MixtureLayer = HasInputs<L> && HasOutputs<L> && CanInfer<L> && CanForwardInTraining<L>;

/// Whether tokens can continue the sequences of such a cache: attention and state-space layers have the call, and
/// wrappers inside which tokens stay what they are pass it on.
template <typename L, typename Cache>
concept CanContinue = CanInfer<L> &&
    requires(const L& layer, tokens_in<typename L::scalar> x, tokens_out<typename L::scalar> y, Cache& cache,
             typename L::workspace& workspace, const typename L::context_type& context) {
  layer.forward_cached(x, y, cache, workspace, context);
};

template <typename L>
concept TrainableLayer = MixtureLayer<L> && CanBackward<L> && CanStep<L>;

namespace detail {

/// What backward of a layer that cannot be trained returns.
struct refused {};

/// Calls f(memory) for the workspaces or tapes of the layers inside one: wrapped, beside, in a sequence, a task each, a
/// round each, or where the memory itself knows which (for_inner).
template <typename Memory, typename F>
void for_each_inner(Memory& memory, F&& f) {
  if constexpr (requires { memory.other; }) f(memory.other);
  if constexpr (requires { memory.others; }) std::apply([&](auto&... one) { (f(one), ...); }, memory.others);
  if constexpr (requires { memory.for_inner(f); })
    memory.for_inner(f);
  else if constexpr (requires { memory.layer; })
    f(memory.layer);
  else if constexpr (requires { memory.layers; })
    std::apply([&](auto&... one) { (f(one), ...); }, memory.layers);
  else if constexpr (requires { memory.tasks.begin(); })
    for (auto& one : memory.tasks) f(one);
  else if constexpr (requires { memory.rounds.begin(); })
    for (auto& one : memory.rounds) f(one);
}

}  // namespace detail

/// static_assert(explain_layer<my_layer>()): the first error names the first thing that is missing.
template <typename L>
consteval bool explain_layer() {
  static_assert(HasScalar<L>, "sluice: layer needs a floating-point member type `scalar`");
  static_assert(HasInputs<L>, "sluice: layer needs `index_t inputs() const`");
  static_assert(HasOutputs<L>, "sluice: layer needs `index_t outputs() const`");
  static_assert(HasContextType<L>, "sluice: layer needs a member type `context_type`, such as routing_context<scalar>");
  static_assert(HasWorkspace<L>, "sluice: layer needs a default-constructible member type `workspace`");
  static_assert(HasTape<L>, "sluice: layer needs a default-constructible member type `tape`");
  static_assert(CanInfer<L>,
                "sluice: layer needs `void forward(tokens_in<scalar> x, tokens_out<scalar> y, workspace&, const "
                "context_type&) const`");
  static_assert(CanForwardInTraining<L>,
                "sluice: layer needs `void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape&, const "
                "context_type&) const`");
  return MixtureLayer<L>;
}

/// The same for a layer that is to be trained. A layer that knows more of the reason has a static explain_training().
template <typename L>
consteval bool explain_trainable_layer() {
  static_assert(explain_layer<L>());
  if constexpr (requires { L::explain_training(); }) static_assert(L::explain_training());
  static_assert(
      CanBackward<L>,
      "sluice: layer needs `void backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape&)` to be trained");
  static_assert(CanStep<L>, "sluice: layer needs `void after_step(tape&)` to be trained");
  return TrainableLayer<L>;
}

}  // namespace sluice::inline SLUICE_ISA
