/// A layer over the columns of each group, y = layer(x^T)^T: what a layer does to the channels of a token, done to the
/// tokens of a channel.
///
///   x [T,D], groups of N rows each (images)   x_g^T [D,N] -> layer, N -> N' = N -> y_g [N,D]   N = layer.inputs()
///
///   transposed_layer mixer{moe_layer{importance_score_router<float>{196, 8}, experts}, /*width=*/768};
///   sequence block{residual_layer{normalized_layer{mixer, norm}}, residual_layer{normalized_layer{channel_moe, norm}}};
///
/// Sparse-MLP's token mixing: the items that the inner layer routes are the D channels of every image. It gets one
/// group of D items an image with what the call says of the image (group features, encoders if groups are the call's
/// sequences too), the draws and the executor of the call, and nothing of the context that speaks of tokens. Every
/// group must have N rows; without groups there is one. Padding and a token with NaN are read as zeros, and get zero
/// and NaN (layer/token_mixer.hpp). Every token of a group meets every other one: not causal. dx_g is the transpose of
/// the inner backward of dy_g^T. Losses are the inner layer's. T = 0 is fine, with groups or without. Lou et al. 2021,
/// arXiv:2109.02008; Tolstikhin et al. 2021 (MLP-Mixer), arXiv:2105.01601.
#pragma once

#include <sluice/layer/split/own_context.hpp>
#include <sluice/layer/token_mixer.hpp>

#include <algorithm>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Scalar, typename InnerMemory>
struct transposed_memory {
  InnerMemory layer;
  matrix_buffer<Scalar> items, outputs;  ///< [G D, N]
  own_context own;                       ///< with the borders of the groups of items
};

template <typename Scalar, typename InnerMemory>
struct transposed_tape : transposed_memory<Scalar, InnerMemory> {
  matrix_buffer<Scalar> ditems, doutputs;

  Scalar loss() const { return this->layer.loss(); }
};

}  // namespace detail

template <typename Layer>
class transposed_layer
    : public token_mixer<transposed_layer<Layer>, typename Layer::scalar,
                         detail::transposed_memory<typename Layer::scalar, typename Layer::workspace>,
                         detail::transposed_tape<typename Layer::scalar, typename Layer::tape>> {
  static_assert(explain_trainable_layer<Layer>());
  using base = token_mixer<transposed_layer<Layer>, typename Layer::scalar,
                           detail::transposed_memory<typename Layer::scalar, typename Layer::workspace>,
                           detail::transposed_tape<typename Layer::scalar, typename Layer::tape>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  static constexpr bool causal = false;

  /// Tokens of this width. Throws std::invalid_argument unless D >= 1 and the layer gives what it reads.
  transposed_layer(Layer layer, index_t width) : layer_(std::move(layer)), width_(width) {
    if (width < 1) throw_invalid("transposed_layer needs D >= 1, not ", width);
    if (layer_.inputs() != layer_.outputs())
      throw_invalid("transposed_layer needs a layer that gives what it reads, not ", layer_.inputs(), " -> ",
                    layer_.outputs());
  }

  index_t inputs() const noexcept { return width_; }
  /// N
  index_t tokens_a_group() const noexcept { return layer_.inputs(); }

  void after_step(tape& t) { layer_.after_step(t.layer); }

  template <typename Storage>
  auto stored_as() const {
    auto inner = layer_.template stored_as<Storage>();
    return transposed_layer<decltype(inner)>(std::move(inner), width_);
  }

  /// Bytes that a workspace (or tape) will take for so many tokens.
  index_t workspace_bytes(index_t rows, bool training = false) const {
    const index_t groups = rows / tokens_a_group() + 1;
    return layer_.workspace_bytes(groups * width_, training) +
           rows * width_ * static_cast<index_t>(sizeof(scalar)) * (training ? 4 : 2);
  }

  Layer& layer() noexcept { return layer_; }
  const Layer& layer() const noexcept { return layer_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Layer>) visit("layer", self.layer_);
  }

private:
  template <typename Memory>
  void mix(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context) const {
    const index_t groups = groups_of(x.rows(), context);
    m.items.resize(groups * width_, tokens_a_group());
    m.outputs.resize(groups * width_, tokens_a_group());
    for_groups(groups, context, [&](index_t g) { of_group(m.items, g) = rows_of(x, g).transpose(); });
    m.own.clear();
    m.own.groups.resize(context.group_count() + 1);  // without tokens, too
    for (index_t g = 0; g < m.own.groups.size(); ++g) m.own.groups[g] = (std::min)(g, groups) * width_;
    context_type own = m.own.seen_by(context);
    own.group_features = context.group_features;
    if (!std::ranges::equal(context.sequence_borders(), context.groups)) own.encoders = {};
    layer_.forward(m.items.map(), m.outputs.map(), m.layer, own);
    for_groups(groups, context, [&](index_t g) { rows_of(y, g) = of_group(m.outputs, g).transpose(); });
  }

  void mix_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    const index_t groups = t.items.rows() / width_;
    t.own.follow(t.layer);
    t.ditems.resize(groups * width_, tokens_a_group());
    t.doutputs.resize(groups * width_, tokens_a_group());
    for_groups(groups, t.context, [&](index_t g) { of_group(t.doutputs, g) = rows_of(dy, g).transpose(); });
    layer_.backward(t.doutputs.map(), t.ditems.map(), t.layer);
    for_groups(groups, t.context, [&](index_t g) { rows_of(dx, g) = of_group(t.ditems, g).transpose(); });
  }

  /// Throws std::invalid_argument unless every group has N rows.
  index_t groups_of(index_t tokens, const context_type& context) const {
    if (tokens == 0) return 0;
    for (index_t g = 0; g < context.group_count(); ++g)
      if (context.group(g, tokens).size() != tokens_a_group())
        throw_invalid("transposed_layer reads groups of N = ", tokens_a_group(), " tokens; group ", g, " has ",
                      context.group(g, tokens).size());
    return context.group_count();
  }

  auto of_group(matrix_buffer<scalar>& m, index_t g) const { return m.map().middleRows(g * width_, width_); }
  template <typename Rows>
  auto rows_of(Rows& x, index_t g) const {
    return x.middleRows(g * tokens_a_group(), tokens_a_group());
  }

  template <typename F>
  void for_groups(index_t groups, const context_type& context, F&& f) const {
    context.executor.for_work(groups * width_ * tokens_a_group()).parallel_for(groups, f);
  }

  Layer layer_;
  index_t width_;
};

}  // namespace sluice::inline SLUICE_ISA
