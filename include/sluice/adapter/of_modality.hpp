/// A layer for the tokens of one modality: it sees no others, and gives them zero.
///
///   y[t] = layer(x)[t] where context.modality_ids[t] is the layer's modality, else 0;   dx likewise
///
///   adapted_layer layer{dense_layer{base}, beside_layer{all,
///                       beside_layer{modality_layer{adapters, text}, modality_layer{adapters, image}}}};
///
/// To the layer inside all other tokens are padding: they are in none of its averages or losses. So adapters for
/// one modality stand beside those for all (a reading of Omni-SMoLA, adapter/slots.hpp). A call without modality_ids is
/// refused. Padding gets zero, a token with NaN gets NaN whatever its modality; T = 0 is fine. Causal if the layer is.
#pragma once

#include <sluice/layer/mixture_layer.hpp>
#include <sluice/layer/split/own_context.hpp>
#include <sluice/layer/token_mixer.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename LayerMemory>
struct of_modality_memory {
  LayerMemory layer;
  own_context own;  ///< its mask [T]: 1 where a token is of the modality
};

template <typename LayerTape>
struct of_modality_tape : of_modality_memory<LayerTape> {
  auto loss() const { return this->layer.loss(); }
};

}  // namespace detail

template <typename Layer>
class modality_layer : public token_mixer<modality_layer<Layer>, typename Layer::scalar,
                                          detail::of_modality_memory<typename Layer::workspace>,
                                          detail::of_modality_tape<typename Layer::tape>> {
  using base =
      token_mixer<modality_layer, typename Layer::scalar, detail::of_modality_memory<typename Layer::workspace>,
                  detail::of_modality_tape<typename Layer::tape>>;
  friend base;
  static_assert(explain_layer<Layer>());

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  static constexpr bool causal = is_causal<Layer>;
  static constexpr bool mixes_tokens = is_token_mixer<Layer>;

  /// Throws std::invalid_argument if the modality is below 0.
  modality_layer(Layer layer, index_t modality) : layer_(std::move(layer)), modality_(modality) {
    if (modality < 0) throw_invalid("modality_layer needs a modality >= 0, not ", modality);
  }

  index_t inputs() const noexcept { return layer_.inputs(); }
  index_t outputs() const noexcept { return layer_.outputs(); }
  index_t modality() const noexcept { return modality_; }
  Layer& layer() noexcept { return layer_; }
  const Layer& layer() const noexcept { return layer_; }

  void after_step(tape& t) { layer_.after_step(t.layer); }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    return layer_.workspace_bytes(rows, training) + rows * inputs() * static_cast<index_t>(sizeof(scalar));
  }

  /// The same layer with the weights of its experts rounded to another storage, for inference.
  template <typename Storage>
  auto stored_as(const auto&... format) const {
    auto layer = layer_.template stored_as<Storage>(format...);
    return modality_layer<decltype(layer)>(std::move(layer), modality_);
  }

  static consteval bool explain_training() { return explain_trainable_layer<Layer>(); }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Layer>) Layer::visit_parameters(self.layer_, visit);
  }

private:
  template <typename Memory>
  void mix(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context) const {
    if (x.rows() > 0 && context.modality_ids.empty())
      throw_invalid("a layer for modality ", modality_, " needs routing_context.modality_ids");
    m.own.clear();
    m.own.token_mask.resize(x.rows());
    for (index_t t = 0; t < x.rows(); ++t)
      m.own.token_mask[t] = m.kept.counts(t) && context.modality_ids[as_size(t)] == modality_;
    context_type own = context;
    own.token_mask = m.own.seen_by(context_type{}).token_mask;
    layer_.forward(x, y, m.layer, own);
  }

  void mix_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    t.own.follow(t.layer);
    layer_.backward(dy, dx, t.layer);
    for (index_t i = 0; i < dx.rows(); ++i)
      if (t.own.token_mask[i] == 0) dx.row(i).setZero();
  }

  Layer layer_;
  index_t modality_;
};

}  // namespace sluice::inline SLUICE_ISA
