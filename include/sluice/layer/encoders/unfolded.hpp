/// A layer over the pieces of a row: a row that holds a whole sequence, as tokens of a layer of its own.
///
///   x [T, P D], a row P tokens of D numbers -> [T P, D], a group of P tokens a row -> layer -> [T P, D'] = y [T, P D']
///
///   unfolded_layer encoder{sequence{attention, dense_layer{ffn<float>{64, 256}}}, /*pieces=*/196};     rows are images
///   unfolded_layer merged{linear_layer<float>{4 * 64, 32}, 49};       four neighbours of 196 become one of width 32
///
/// So encoders that look at many tokens are experts of a mixture whose tokens are images
/// (layer/encoders/network_bank.hpp). The inner layer gets one group a row, the row's ids for each of its pieces, and
/// the draws, the step and the executor of the call; what encoders say, if no two rows are of one sequence of the call;
/// and no matrices that speak of rows or groups. Padding and a row with NaN are padding to it, and get zero and NaN
/// (layer/token_mixer.hpp). Rows do not see each other, as far as the inner layer keeps to its groups. Losses are the
/// inner layer's. T = 0 is fine.
#pragma once

#include <sluice/core/checked_size.hpp>
#include <sluice/layer/split/own_context.hpp>
#include <sluice/layer/token_mixer.hpp>

#include <span>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Scalar, typename InnerMemory>
struct unfolded_memory {
  InnerMemory layer;
  matrix_buffer<Scalar> tokens, outputs;  ///< [T P, D] and D'
  own_context own;                        ///< with borders of the rows, and what is hidden
};

template <typename Scalar, typename InnerMemory>
struct unfolded_tape : unfolded_memory<Scalar, InnerMemory> {
  matrix_buffer<Scalar> dtokens, doutputs;

  Scalar loss() const { return this->layer.loss(); }
};

}  // namespace detail

template <typename Layer>
class unfolded_layer : public token_mixer<unfolded_layer<Layer>, typename Layer::scalar,
                                          detail::unfolded_memory<typename Layer::scalar, typename Layer::workspace>,
                                          detail::unfolded_tape<typename Layer::scalar, typename Layer::tape>> {
  static_assert(explain_trainable_layer<Layer>());
  using base = token_mixer<unfolded_layer, typename Layer::scalar,
                           detail::unfolded_memory<typename Layer::scalar, typename Layer::workspace>,
                           detail::unfolded_tape<typename Layer::scalar, typename Layer::tape>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  static constexpr bool causal = true;
  static constexpr bool mixes_tokens = false;  // a row is a sequence of its own

  /// Throws std::invalid_argument unless P >= 1.
  unfolded_layer(Layer layer, index_t pieces) : layer_(std::move(layer)), pieces_(pieces) {
    if (pieces < 1) throw_invalid("unfolded_layer needs P >= 1 pieces, not ", pieces);
    checked_product(pieces, layer_.inputs());
    checked_product(pieces, layer_.outputs());
  }

  index_t inputs() const noexcept { return pieces_ * layer_.inputs(); }
  index_t outputs() const noexcept { return pieces_ * layer_.outputs(); }
  index_t pieces() const noexcept { return pieces_; }

  void after_step(tape& t) { layer_.after_step(t.layer); }

  template <typename Storage>
  auto stored_as() const {
    auto inner = layer_.template stored_as<Storage>();
    return unfolded_layer<decltype(inner)>(std::move(inner), pieces_);
  }

  /// Bytes that a workspace (or tape) will take for so many rows.
  index_t workspace_bytes(index_t rows, bool training = false) const {
    return layer_.workspace_bytes(rows * pieces_, training) +
           rows * (inputs() + outputs()) * static_cast<index_t>(sizeof(scalar)) * (training ? 2 : 1);
  }

  Layer& layer() noexcept { return layer_; }
  const Layer& layer() const noexcept { return layer_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Layer>) Layer::visit_parameters(self.layer_, visit);
  }

private:
  template <typename Memory>
  void mix(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context) const {
    const index_t rows = x.rows();
    m.tokens.resize(rows * pieces_, layer_.inputs());
    m.outputs.resize(rows * pieces_, layer_.outputs());
    m.own.cut_rows(context, std::span(m.kept.counts(), as_size(rows)), pieces_);
    context.executor.parallel_each(rows, inputs() + outputs(), [&](index_t r) {
      std::copy_n(x.data() + r * x.outerStride(), inputs(), m.tokens.row(r * pieces_));
    });
    layer_.forward(m.tokens.map(), m.outputs.map(), m.layer, m.own.seen_by(context));
    context.executor.parallel_each(rows, inputs() + outputs(), [&](index_t r) {
      std::copy_n(m.outputs.row(r * pieces_), outputs(), y.data() + r * y.outerStride());
    });
  }

  void mix_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    const index_t rows = dy.rows();
    t.own.follow(t.layer);
    t.dtokens.resize(rows * pieces_, layer_.inputs());
    t.doutputs.resize(rows * pieces_, layer_.outputs());
    t.context.executor.parallel_each(rows, inputs() + outputs(), [&](index_t r) {
      std::copy_n(dy.data() + r * dy.outerStride(), outputs(), t.doutputs.row(r * pieces_));
    });
    layer_.backward(t.doutputs.map(), t.dtokens.map(), t.layer);
    t.context.executor.parallel_each(rows, inputs() + outputs(), [&](index_t r) {
      std::copy_n(t.dtokens.row(r * pieces_), inputs(), dx.data() + r * dx.outerStride());
    });
  }

  Layer layer_;
  index_t pieces_;
};

}  // namespace sluice::inline SLUICE_ISA
