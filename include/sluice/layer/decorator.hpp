/// What layers that wrap another layer share: every call of moe_layer, passed on.
///
///   template <typename Layer>
///   class doubled_layer : public layer_decorator<doubled_layer<Layer>, Layer> {
///     using base = layer_decorator<doubled_layer, Layer>;
///     friend base;
///   public:
///     explicit doubled_layer(Layer layer) : base(std::move(layer)) {}
///   private:
///     void around(x, y, memory, context, inner) const { inner(x, y); y *= 2; }     // inner runs the wrapped layer
///     void around_backward(dy, dx, tape, inner) { inner(dy, dx); dx *= 2; }         // and here its backward
///     auto rebuilt<Storage>(inner) const { return doubled_layer<decltype(inner)>(std::move(inner)); }      // stored_as
///   };
///
/// (tests/layer/decorator_test.cpp has it whole.) A wrapper may name two structs of its own memory, for inference and
/// for training; workspace and tape are those and the inner layer's, as `layer`. The tape also keeps the context of the
/// last training forward call. Where the layer inside sees other tokens, inner(x, y, context) gives it theirs
/// (layer/split/own_context.hpp). A wrapper with parameters or memory of its own hides visit_own and own_bytes.
/// Wrappers nest. Shapes, shared memory and the order of calls are checked here as in moe_layer: y may be x, so around
/// reads what it wants of x before inner writes y.
#pragma once

#include <sluice/layer/call_checks.hpp>
#include <sluice/layer/mixture_layer.hpp>

#include <cstddef>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

struct no_memory {};

}  // namespace detail

/// PartsTrain: whether what the wrapper adds can be trained; if not, its explain_training() says why.
template <typename Derived, typename Layer, typename OwnWorkspace = detail::no_memory, typename OwnTape = OwnWorkspace,
          bool PartsTrain = true>
class layer_decorator {
  static_assert(explain_layer<Layer>());

public:
  using scalar = typename Layer::scalar;
  using context_type = typename Layer::context_type;
  static constexpr bool causal = is_causal<Layer>;
  static constexpr bool mixes_tokens = is_token_mixer<Layer>;

  struct workspace : OwnWorkspace {
    typename Layer::workspace layer;
  };
  struct tape : OwnTape {
    typename Layer::tape layer;
    context_type context;
    index_t tokens = 0;
    detail::forward_record record;

    scalar loss() const {
      if constexpr (requires(const OwnTape& own) { own.loss(); })
        return layer.loss() + OwnTape::loss();
      else
        return layer.loss();
    }
  };

  explicit layer_decorator(Layer layer) : layer_(std::move(layer)) {}

  index_t inputs() const noexcept { return layer_.inputs(); }
  index_t outputs() const noexcept { return layer_.outputs(); }
  index_t experts() const noexcept { return layer_.experts(); }

  /// Inference: y [T,D'] is overwritten. Throws std::invalid_argument if shapes do not fit.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, workspace& ws, const context_type& context = {}) const {
    detail::check_forward<scalar>({self().inputs(), self().outputs()}, x, y, context);
    self().around(x, y, ws, context, [&](tokens_in<scalar> from, tokens_out<scalar> to, const auto&... own) {
      layer_.forward(from, to, ws.layer, first_of(own..., context));
    });
  }

  /// Training, with training = true and everything else of the context left out.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t) const {
    context_type context;
    context.training = true;
    forward(x, y, t, context);
  }
  /// What the context refers to must live until backward has returned.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t, const context_type& context) const {
    detail::check_forward<scalar>({self().inputs(), self().outputs()}, x, y, context);
    t.record.forget();
    t.context = context;
    t.tokens = x.rows();
    self().around(x, y, t, context, [&](tokens_in<scalar> from, tokens_out<scalar> to, const auto&... own) {
      layer_.forward(from, to, t.layer, first_of(own..., context));
    });
    t.record.keep(this);
  }

  /// Runs the inner layer on the plan in its workspace, ws.layer.
  void forward_planned(tokens_in<scalar> x, tokens_out<scalar> y, workspace& ws,
                       const context_type& context = {}) const {
    detail::check_forward<scalar>({self().inputs(), self().outputs()}, x, y, context);
    self().around(x, y, ws, context, [&](tokens_in<scalar> from, tokens_out<scalar> to, const auto&... own) {
      layer_.forward_planned(from, to, ws.layer, first_of(own..., context));
    });
  }

  /// Writes dx [T,D] and adds the gradients of all parameters, for the last training forward call of this tape.
  void backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t)
    requires(TrainableLayer<Layer> && PartsTrain)
  {
    t.record.validate(this);
    detail::check_backward<scalar>({self().inputs(), self().outputs()}, dy, dx, t.tokens);
    ensure_gradients(self());
    self().around_backward(dy, dx, t, [&](tokens_in<scalar> from, tokens_out<scalar> to) {
      layer_.backward(from, to, t.layer);
    });
  }
  detail::refused backward(tokens_in<scalar>, tokens_out<scalar>, tape&)
    requires(!(TrainableLayer<Layer> && PartsTrain))
  {
    static_assert(Derived::explain_training());
    return {};
  }

  void after_step(tape& t) { layer_.after_step(t.layer); }

  /// The same layers with the weights of their experts rounded to another storage, for inference. A format of each
  /// matrix is for the experts of the layer inside; what stands beside them takes the storage's own default.
  template <typename Storage>
  auto stored_as(const auto&... format) const {
    return self().template rebuilt<Storage>(layer_.template stored_as<Storage>(format...));
  }

  /// Bytes of memory that the experts of a workspace (or tape) will take for `rows` assignments, and the wrapper for as
  /// many tokens: an upper bound if a token has several.
  index_t workspace_bytes(index_t rows, bool training = false) const {
    return layer_.workspace_bytes(rows, training) + self().own_bytes(rows, training);
  }

  Layer& layer() noexcept { return layer_; }
  const Layer& layer() const noexcept { return layer_; }
  decltype(auto) router() noexcept { return layer_.router(); }
  decltype(auto) router() const noexcept { return layer_.router(); }
  decltype(auto) bank() noexcept { return layer_.bank(); }
  decltype(auto) bank() const noexcept { return layer_.bank(); }
  template <std::size_t I>
  auto& loss() noexcept {
    return layer_.template loss<I>();
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Layer>) visit("layer", self.layer_);
    Derived::visit_own(self, visit);
  }

  /// What is in the way of training: the first error says it.
  static consteval bool explain_training() { return explain_trainable_layer<Layer>(); }

protected:
  /// forward with the cached call of the layer inside: for wrappers that give it the tokens of the call, all at once.
  template <typename Cache>
  void run_cached(tokens_in<scalar> x, tokens_out<scalar> y, Cache& cache, workspace& ws,
                  const context_type& context) const {
    detail::check_forward<scalar>({self().inputs(), self().outputs()}, x, y, context);
    self().around(x, y, ws, context, [&](tokens_in<scalar> from, tokens_out<scalar> to, const auto&... own) {
      layer_.forward_cached(from, to, cache, ws.layer, first_of(own..., context));
    });
  }

  index_t own_bytes(index_t /*tokens*/, bool /*training*/) const { return 0; }

  template <typename Self, typename Visitor>
  static void visit_own(Self&, Visitor&) {}

private:
  template <typename... More>
  static const context_type& first_of(const context_type& context, const More&...) {
    return context;
  }
  Derived& self() noexcept { return static_cast<Derived&>(*this); }
  const Derived& self() const noexcept { return static_cast<const Derived&>(*this); }

  Layer layer_;
};

}  // namespace sluice::inline SLUICE_ISA
