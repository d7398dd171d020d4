/// A layer of one of several kinds, chosen at run time: so that layers of a stack may differ as a config says.
///
///   using block = either_layer<residual_layer<A>, residual_layer<B>>;
///   repeated_layers stack{std::vector<block>{block(a), block(b), block(a)}, {.rounds = 1}};           // a, b, a: deep
///
/// It is the layer that it holds, with all of its calls; parameters bear that layer's names. Memory is the held kind's
/// and is made by the first call: a workspace or tape that another kind used starts anew. The kinds have one scalar;
/// the whole is causal if all kinds are, and mixes tokens if one does. visit(f) calls f(the layer held); holds<A>()
/// asks. layer/depth/repeated.hpp is such a stack.
#pragma once

#include <sluice/layer/call_checks.hpp>
#include <sluice/layer/mixture_layer.hpp>

#include <concepts>
#include <cstddef>
#include <utility>
#include <variant>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// The memory of whichever kind was called last.
template <typename... Memories>
class memory_of_either {
public:
  /// That of kind I, made anew if another kind's was there.
  template <std::size_t I>
  auto& of() {
    if (own_.index() != I + 1) own_.template emplace<I + 1>();
    return std::get<I + 1>(own_);
  }
  template <typename F>
  void for_inner(F&& f) {
    std::visit([&](auto& one) { call(one, f); }, own_);
  }
  template <typename F>
  void for_inner(F&& f) const {
    std::visit([&](const auto& one) { call(one, f); }, own_);
  }

private:
  template <typename One, typename F>
  static void call(One& one, F& f) {
    if constexpr (!std::same_as<std::remove_const_t<One>, std::monostate>) f(one);
  }

  std::variant<std::monostate, Memories...> own_;
};

}  // namespace detail

template <typename First, typename... Rest>
class either_layer {
  static_assert(explain_layer<First>() && (explain_layer<Rest>() && ...));
  static_assert((std::same_as<typename First::scalar, typename Rest::scalar> && ...),
                "sluice: the kinds of a layer need the same scalar");
  static constexpr bool trains = TrainableLayer<First> && (TrainableLayer<Rest> && ...);

public:
  using scalar = typename First::scalar;
  using context_type = typename First::context_type;
  static constexpr bool causal = is_causal<First> && (is_causal<Rest> && ...);
  static constexpr bool mixes_tokens = is_token_mixer<First> || (is_token_mixer<Rest> || ...);

  class workspace : public detail::memory_of_either<typename First::workspace, typename Rest::workspace...> {};
  class tape : public detail::memory_of_either<typename First::tape, typename Rest::tape...> {
  public:
    scalar loss() const {
      scalar sum = 0;
      this->for_inner([&](const auto& one) { sum = one.loss(); });
      return sum;
    }
  };

  template <typename Layer>
    requires(std::same_as<Layer, First> || (std::same_as<Layer, Rest> || ...))
  explicit either_layer(Layer layer) : layer_(std::move(layer)) {}

  template <typename Layer>
  bool holds() const noexcept {
    return std::holds_alternative<Layer>(layer_);
  }
  template <typename F>
  decltype(auto) visit(F&& f) {
    return std::visit(std::forward<F>(f), layer_);
  }
  template <typename F>
  decltype(auto) visit(F&& f) const {
    return std::visit(std::forward<F>(f), layer_);
  }

  index_t inputs() const {
    return visit([](const auto& layer) { return layer.inputs(); });
  }
  index_t outputs() const {
    return visit([](const auto& layer) { return layer.outputs(); });
  }

  /// Inference: y [T,D'] is overwritten. Throws std::invalid_argument if shapes do not fit.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, workspace& ws, const context_type& context = {}) const {
    with(ws, [&](const auto& layer, auto& own) { layer.forward(x, y, own, context); });
  }
  /// Training, with training = true and everything else of the context left out.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t) const {
    context_type context;
    context.training = true;
    forward(x, y, t, context);
  }
  /// What the context refers to must live until backward has returned.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t, const context_type& context) const {
    with(t, [&](const auto& layer, auto& own) { layer.forward(x, y, own, context); });
  }

  /// Whether the layer held can continue the sequences of such a cache.
  template <typename Cache>
  bool continues() const {
    return visit([]<typename Layer>(const Layer&) { return CanContinue<Layer, Cache>; });
  }
  /// Inference of tokens that continue a cache's sequences. Throws std::invalid_argument if the layer held has no such
  /// call.
  template <typename Cache>
    requires(CanContinue<First, Cache> || (CanContinue<Rest, Cache> || ...))
  void forward_cached(tokens_in<scalar> x, tokens_out<scalar> y, Cache& cache, workspace& ws,
                      const context_type& context = {}) const {
    with(ws, [&]<typename Layer>(const Layer& layer, auto& own) {
      if constexpr (CanContinue<Layer, Cache>)
        layer.forward_cached(x, y, cache, own, context);
      else
        throw_invalid("the kind of layer that an either_layer holds has no cached call; continues<Cache>() says so");
    });
  }

  /// Writes dx [T,D] and adds the gradients of all parameters, for the last training forward call of this tape.
  void backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) requires trains {
    with(t, [&](auto& layer, auto& own) { layer.backward(dy, dx, own); });
  }
  detail::refused backward(tokens_in<scalar>, tokens_out<scalar>, tape&) requires(!trains) {
    static_assert(explain_training());
    return {};
  }
  static consteval bool explain_training() {
    return explain_trainable_layer<First>() && (explain_trainable_layer<Rest>() && ...);
  }

  void after_step(tape& t) {
    with(t, [&](auto& layer, auto& own) { layer.after_step(own); });
  }

  /// The same layer with the weights of its experts rounded to another storage, for inference.
  template <typename Storage>
  auto stored_as(const auto&... format) const {
    using other = either_layer<decltype(std::declval<const First&>().template stored_as<Storage>(format...)),
                               decltype(std::declval<const Rest&>().template stored_as<Storage>(format...))...>;
    return visit([&](const auto& layer) { return other(layer.template stored_as<Storage>(format...)); });
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    return visit([&](const auto& layer) { return layer.workspace_bytes(rows, training); });
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    self.visit([&](auto& layer) {
      if constexpr (HasParameters<std::remove_cvref_t<decltype(layer)>>) visit("", layer);
    });
  }

private:
  /// f(layer, its memory), where the memory is that of the kind.
  template <typename Self, typename Memory, typename F>
  static void with_kind(Self& self, Memory& m, F& f) {
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      (void)((self.layer_.index() == I && (f(*std::get_if<I>(&self.layer_), m.template of<I>()), true)) || ...);
    }
    (std::make_index_sequence<1 + sizeof...(Rest)>{});
  }
  template <typename Memory, typename F>
  void with(Memory& m, F&& f) {
    with_kind(*this, m, f);
  }
  template <typename Memory, typename F>
  void with(Memory& m, F&& f) const {
    with_kind(*this, m, f);
  }

  std::variant<First, Rest...> layer_;
};

}  // namespace sluice::inline SLUICE_ISA
