/// Network gate: any layer, such as a sequence of them, as the gate of a router. Its outputs are the logits.
///
///   sequence network{dense_layer{ffn<float>{64, 32, {.outputs = 32, .bias = true}}}, linear_layer<float>{32, 8}};
///   network_gate gate{network};
///   top_k_router<float, dynamic, dynamic, decltype(gate)> router{gate, {.top_k = 2}};
///
///   logits [T,E] = layer(x [T,D])        D = layer.inputs(), E = layer.outputs()
///
/// A layer that reads ids and no columns of x, one that begins with layer/embedding.hpp, is told D: a small Transformer
/// over token ids, say, which the routers of router/over_training/stable.hpp distil themselves into.
///
///   network_gate foresight{sequence{embedding_layer<float>{32000, 50}, attention, linear_layer<float>{50, 8}}, /*inputs=*/64};
///
/// The layer is called with the context of the call, always as for training: its tape is in the gate's. A loss of its
/// own, if there is a mixture inside, is tape.layer.loss(), and its backward adds that loss's gradients; after_step is
/// not called. Parameters bear the layer's names. Causal if the layer is. NaN and T = 0 are the layer's affair.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/error.hpp>
#include <sluice/layer/mixture_layer.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Layer>
class network_gate {
  static_assert(explain_layer<Layer>());
  static_assert(TrainableLayer<Layer>, "sluice: network_gate needs a layer with a backward");

public:
  using scalar = typename Layer::scalar;
  static constexpr bool causal = is_causal<Layer>;

  struct tape {
    typename Layer::tape layer;
    matrix_buffer<scalar> dx;
  };

  explicit network_gate(Layer layer) : layer_(std::move(layer)), inputs_(layer_.inputs()) {}
  /// Throws std::invalid_argument unless the layer reads no columns, or as many.
  network_gate(Layer layer, index_t inputs) : layer_(std::move(layer)), inputs_(inputs) {
    if (layer_.inputs() != 0 && layer_.inputs() != inputs)
      throw_invalid("network_gate's layer reads ", layer_.inputs(), " columns, and cannot be told that there are ",
                    inputs);
  }

  index_t inputs() const noexcept { return inputs_; }
  index_t experts() const noexcept { return layer_.outputs(); }

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    layer_.forward(x.leftCols(layer_.inputs()), logits, t.layer, context);
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<scalar>, const routing_context<scalar>&, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    t.dx.resize(dx.rows(), layer_.inputs());
    layer_.backward(dlogits, t.dx.map(), t.layer);
    dx.leftCols(layer_.inputs()) += t.dx.map();
  }

  Layer& layer() noexcept { return layer_; }
  const Layer& layer() const noexcept { return layer_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Layer>) Layer::visit_parameters(self.layer_, visit);
  }

private:
  Layer layer_;
  index_t inputs_;
};

}  // namespace sluice::inline SLUICE_ISA
