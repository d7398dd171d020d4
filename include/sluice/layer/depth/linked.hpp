/// A layer that is linked to the next one by a state: instead of x + layer(x) its tokens take a step of an optimiser.
///
///   [x | s] [T,W],  x [T,D], s the state of every token, `states` blocks of D columns and perhaps more that pass by
///   p = point(x, s);   u = layer(p);   (x', s') = step(x, u, s);   y = [x' | s']
///
///   linked_layer link{normalized_layer{moe_layer{...}, norm}, momentum_step<float>{.decay = 0.7f}};      W = 2 D
///
/// The state lies beside x in the columns of the tokens, so that it goes from layer to layer, forward and backward, as
/// they do: a stack is a sequence inside a state_chain (layer/depth/state_chain.hpp). Layers between links that know
/// nothing of a state are column_layers (layer/split/columns.hpp). The steps are those of layer/depth/momentum.hpp;
/// yours is a struct with
///
///   static constexpr index_t states                          and, for one token, with s and ds of states x D numbers
///   point(D, x, s, p)                                        where the layer reads
///   forward(D, x, u, s, x', s')
///   backward(D, x, u, s, dx', ds', du, dx, ds)               writes the last three
///   point_backward(D, dp, dx, ds)                            adds
///   validate()                                               if it has one: throws where its numbers make no sense
///
/// Padding gets zero, state and all; where NaN is in x or s, all of the row becomes NaN and reaches no gradient. Causal
/// if the layer is. The calls and the memory rules are those of moe_layer (layer/decorator.hpp).
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/layer/decorator.hpp>
#include <sluice/layer/kept_rows.hpp>

#include <algorithm>
#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename S, typename Scalar>
concept LinkingStep = requires(const S& step, index_t width, const Scalar* in, Scalar* out) {
  { S::states } -> std::convertible_to<index_t>;
  step.point(width, in, in, out);
  step.forward(width, in, in, in, out, out);
  step.backward(width, in, in, in, in, in, out, out, out);
  step.point_backward(width, in, out, out);
};

namespace detail {

template <typename Scalar>
struct linked_memory {
  kept_rows<Scalar> kept;          ///< [x | s]
  matrix_buffer<Scalar> point, u;  ///< [T,D]
};

template <typename Scalar>
struct linked_tape : linked_memory<Scalar> {
  matrix_buffer<Scalar> du, dpoint;
};

}  // namespace detail

template <typename Layer, typename Step>
class linked_layer
    : public layer_decorator<linked_layer<Layer, Step>, Layer, detail::linked_memory<typename Layer::scalar>,
                             detail::linked_tape<typename Layer::scalar>> {
  using base = layer_decorator<linked_layer, Layer, detail::linked_memory<typename Layer::scalar>,
                               detail::linked_tape<typename Layer::scalar>>;
  friend base;
  static_assert(LinkingStep<Step, typename Layer::scalar>,
                "sluice: a linked layer needs a step with `states`, `point`, `forward`, `backward`, `point_backward`");

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  /// With a state as wide as the step needs.
  linked_layer(Layer layer, Step step) : linked_layer(std::move(layer), std::move(step), Step::states) {}
  /// With so many blocks of D columns behind x, for links of other kinds in the same chain. Throws
  /// std::invalid_argument if the step needs more or its validate(), if it has one, does, or the layer's widths
  /// differ.
  linked_layer(Layer layer, Step step, index_t blocks)
      : base(std::move(layer)), step_(std::move(step)), blocks_(blocks) {
    if (this->layer().inputs() != this->layer().outputs())
      throw_invalid("a linked layer needs equal widths, not ", this->layer().inputs(), " -> ", this->layer().outputs());
    if (blocks < Step::states)
      throw_invalid("the step needs ", index_t(Step::states), " states, the chain has ", blocks);
    if constexpr (requires { std::as_const(step_).validate(); }) std::as_const(step_).validate();
  }

  /// W
  index_t inputs() const noexcept { return (1 + blocks_) * this->layer().inputs(); }
  index_t outputs() const noexcept { return inputs(); }

  Step& step() noexcept { return step_; }
  const Step& step() const noexcept { return step_; }

private:
  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context, Inner inner) const {
    const index_t width = this->layer().inputs();
    m.kept.keep(x, context);
    m.point.resize(x.rows(), width);
    m.u.resize(x.rows(), width);
    context.executor.parallel_each(x.rows(), inputs(), [&](index_t t) {
      const scalar* const row = row_of(m.kept.x(), t);
      if (m.kept.counts(t))
        step_.point(width, row, row + width, m.point.row(t));
      else  // the layer hides such a token, wherever its NaN stood
        std::fill_n(m.point.row(t), width, quiet_nan<scalar>());
    });
    inner(m.point.map(), m.u.map());
    context.executor.parallel_each(x.rows(), inputs(), [&](index_t t) {
      const scalar* const row = row_of(m.kept.x(), t);
      scalar* const out = y.data() + t * y.outerStride();
      if (!m.kept.counts(t)) {
        std::fill_n(out, y.cols(), context.is_padding(t) ? scalar(0) : quiet_nan<scalar>());
        return;
      }
      step_.forward(width, row, m.u.row(t), row + width, out, out + width);
      std::copy(row + used(), row + y.cols(), out + used());
    });
  }

  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t, Inner inner) {
    const index_t width = this->layer().inputs();
    t.du.resize(dy.rows(), width);
    t.dpoint.resize(dy.rows(), width);
    const auto gradient = t.kept.of_gradient(dy, t.context.executor);
    t.context.executor.parallel_each(dy.rows(), inputs(), [&](index_t r) {
      const scalar* const row = row_of(t.kept.x(), r);
      const scalar* const upstream = row_of(gradient, r);
      scalar* const down = dx.data() + r * dx.outerStride();
      if (!t.kept.counts(r)) {
        std::fill_n(down, dx.cols(), scalar(0));
        std::fill_n(t.du.row(r), width, scalar(0));
        return;
      }
      step_.backward(width, row, t.u.row(r), row + width, upstream, upstream + width, t.du.row(r), down, down + width);
      std::copy(upstream + used(), upstream + dx.cols(), down + used());
    });
    inner(t.du.map(), t.dpoint.map());
    t.context.executor.parallel_each(dy.rows(), inputs(), [&](index_t r) {
      scalar* const down = dx.data() + r * dx.outerStride();
      if (t.kept.counts(r)) step_.point_backward(width, t.dpoint.row(r), down, down + width);
    });
  }

  /// Columns that the step reads and writes.
  index_t used() const noexcept { return (1 + Step::states) * this->layer().inputs(); }

  static const scalar* row_of(const_matrix_map<scalar> m, index_t r) { return m.data() + r * m.cols(); }

  template <typename Storage, typename Inner>
  auto rebuilt(Inner inner) const {
    return linked_layer<Inner, Step>(std::move(inner), step_, blocks_);
  }

  index_t own_bytes(index_t tokens, bool training) const {
    const index_t numbers = tokens * (inputs() + 2 * this->layer().inputs()) * (training ? 2 : 1);
    return numbers * static_cast<index_t>(sizeof(scalar));
  }

  Step step_;
  index_t blocks_;
};

}  // namespace sluice::inline SLUICE_ISA
