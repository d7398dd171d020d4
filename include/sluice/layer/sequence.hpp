/// Layers one after the other: y = last(... second(first(x))).
///
///   sequence model{embedding_layer<float>{256, 64}, residual_layer{moe_layer{...}}, linear_layer<float>{64, 256}};
///   model.layer<1>();                       // the residual layer;  workspace.layers and tape.layers are tuples, too
///
/// It has the calls of moe_layer, so it may be a layer of another one. Every layer is called with the context of the
/// call, but with draws of its own: layer i gets context.for_layer(i). loss() of a tape is the sum over the layers.
/// Parameters are named by position: "1.layer.router.gate.weight". Padding, NaN, threads and bits are the layers'
/// affair; a sequence is causal if all of them are. What lies between two layers is kept in two buffers that take
/// turns, so a layer of your own copies what it needs of x for backward, as those of sluice do. A sequence with one
/// layer is that layer.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/layer/call_checks.hpp>
#include <sluice/layer/mixture_layer.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <string>
#include <tuple>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename First, typename... Rest>
class sequence {
  static_assert(explain_layer<First>());
  static_assert((explain_layer<Rest>() && ...));
  static_assert((std::same_as<typename First::scalar, typename Rest::scalar> && ...),
                "sluice: the layers of a sequence need the same scalar");

public:
  using scalar = typename First::scalar;
  using context_type = typename First::context_type;
  static constexpr bool causal = is_causal<First> && (is_causal<Rest> && ...);
  static constexpr bool mixes_tokens = is_token_mixer<First> || (is_token_mixer<Rest> || ...);
  static constexpr std::size_t size = 1 + sizeof...(Rest);

  struct workspace {
    std::tuple<typename First::workspace, typename Rest::workspace...> layers;
    std::array<matrix_buffer<scalar>, 2> between;
  };
  struct tape {
    std::tuple<typename First::tape, typename Rest::tape...> layers;
    std::array<matrix_buffer<scalar>, 2> between;
    std::array<matrix_buffer<scalar>, 2> dbetween;

    scalar loss() const {
      return std::apply([](const auto&... t) { return (t.loss() + ...); }, layers);
    }
  };

  /// Throws std::invalid_argument if a layer does not read what the one before it gives.
  explicit sequence(First first, Rest... rest) : layers_(std::move(first), std::move(rest)...) {
    check_widths(std::make_index_sequence<size - 1>{});
  }

  index_t inputs() const noexcept { return std::get<0>(layers_).inputs(); }
  index_t outputs() const noexcept { return std::get<size - 1>(layers_).outputs(); }

  /// Inference: y [T,D'] is overwritten. Throws std::invalid_argument if shapes do not fit.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, workspace& ws, const context_type& context = {}) const {
    detail::check_forward<scalar>({inputs(), outputs()}, x, y, context);
    run<0>(x, y, ws, context);
  }

  /// Training, with training = true and everything else of the context left out.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t) const {
    context_type context;
    context.training = true;
    forward(x, y, t, context);
  }
  /// What the context refers to must live until backward has returned.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t, const context_type& context) const {
    detail::check_forward<scalar>({inputs(), outputs()}, x, y, context);
    run<0>(x, y, t, context);
  }

  /// Writes dx [T,D] and adds the gradients of all parameters, for the last training forward call of this tape.
  void backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t)
    requires(TrainableLayer<First> && (TrainableLayer<Rest> && ...))
  {
    detail::check_backward<scalar>({inputs(), outputs()}, dy, dx, dy.rows());  // the layers know T
    run_backward<size - 1>(dy, dx, t);
  }
  detail::refused backward(tokens_in<scalar>, tokens_out<scalar>, tape&)
    requires(!(TrainableLayer<First> && (TrainableLayer<Rest> && ...)))
  {
    static_assert(explain_training());
    return {};
  }

  void after_step(tape& t) {
    for_each([&]<std::size_t I>(position<I>) { std::get<I>(layers_).after_step(std::get<I>(t.layers)); });
  }

  /// The same layers with the weights of their experts rounded to another storage, for inference.
  template <typename Storage>
  auto stored_as() const {
    return std::apply(
        [](const auto&... layer) {
          return sequence<decltype(layer.template stored_as<Storage>())...>(layer.template stored_as<Storage>()...);
        },
        layers_);
  }

  /// Bytes of memory that a workspace (or tape) will take for `rows` tokens, or assignments where a layer has several a
  /// token.
  index_t workspace_bytes(index_t rows, bool training = false) const {
    index_t bytes = 0;
    std::array<index_t, 2> widest{};
    for_each([&]<std::size_t I>(position<I>) {
      const auto& layer = std::get<I>(layers_);
      bytes += layer.workspace_bytes(rows, training);
      if (I + 1 < size) widest[I % 2] = (std::max<index_t>)(widest[I % 2], layer.outputs());
    });
    return bytes + (widest[0] + widest[1]) * rows * static_cast<index_t>(sizeof(scalar)) * (training ? 2 : 1);
  }

  template <std::size_t I>
  auto& layer() noexcept {
    return std::get<I>(layers_);
  }
  template <std::size_t I>
  const auto& layer() const noexcept {
    return std::get<I>(layers_);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    for_each([&]<std::size_t I>(position<I>) {
      using layer_type = std::tuple_element_t<I, std::tuple<First, Rest...>>;
      if constexpr (HasParameters<layer_type>) visit(std::to_string(I), std::get<I>(self.layers_));
    });
  }

  /// What is in the way of training: the first error says it.
  static consteval bool explain_training() {
    return explain_trainable_layer<First>() && (explain_trainable_layer<Rest>() && ...);
  }

private:
  template <std::size_t I>
  using position = std::integral_constant<std::size_t, I>;

  template <typename F>
  static void for_each(F&& f) {
    [&]<std::size_t... I>(std::index_sequence<I...>) { (f(position<I>{}), ...); }(std::make_index_sequence<size>{});
  }

  template <std::size_t... I>
  void check_widths(std::index_sequence<I...>) const {
    (check_pair(I, std::get<I>(layers_).outputs(), std::get<I + 1>(layers_).inputs()), ...);
  }
  static void check_pair(std::size_t i, index_t gives, index_t reads) {
    if (gives != reads)
      throw_invalid("layer ", i, " of the sequence gives ", gives, " numbers a token, the next one reads ", reads);
  }

  template <std::size_t I, typename Memory>
  void run(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context) const {
    const auto& layer = std::get<I>(layers_);
    const context_type own = size == 1 ? context : context.for_layer(static_cast<index_t>(I));
    if constexpr (I + 1 == size) {
      layer.forward(x, y, std::get<I>(m.layers), own);
    } else {
      matrix_buffer<scalar>& next = m.between[I % 2];
      next.resize(x.rows(), layer.outputs());
      layer.forward(x, next.map(), std::get<I>(m.layers), own);
      run<I + 1>(next.map(), y, m, context);
    }
  }

  template <std::size_t I>
  void run_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    auto& layer = std::get<I>(layers_);
    if constexpr (I == 0) {
      layer.backward(dy, dx, std::get<0>(t.layers));
    } else {
      matrix_buffer<scalar>& before = t.dbetween[I % 2];
      before.resize(dy.rows(), layer.inputs());
      layer.backward(dy, before.map(), std::get<I>(t.layers));
      run_backward<I - 1>(before.map(), dx, t);
    }
  }

  std::tuple<First, Rest...> layers_;
};

}  // namespace sluice::inline SLUICE_ISA
