/// The layers of a stack whose tokens carry a state from one to the next: where the state begins, and where it ends.
///
///   y [T,D] = the first D columns of layer([x | s]),  s [T, W - D] zero, or x once more (first_state::x)
///   dx = the first D columns of layer'([dy | 0]), and for first_state::x what its copies get
///
///   state_chain stack{sequence{linked_layer{...}, column_layers{attention, state}, linked_layer{...}}, /*width=*/64};
///
/// The state of a call is its own: it lies in the columns of the workspace or tape (state() afterwards), so calls from
/// many threads and backward through the state need nothing else. Inner layers map W columns to W:
/// layer/depth/linked.hpp reads and writes the state, layer/split/columns.hpp lets it pass or gives it a layer of its
/// own. With first_state::x and layers of both kinds side by side, the state is a second stream that may run ahead
/// (M2R2: multi-rate residuals). Padding gets zero, NaN stays in its token; T = 0 is fine. The calls and the memory
/// rules are those of moe_layer (layer/decorator.hpp). Bhendawade et al. 2025 (M2R2), arXiv:2502.02040, of which the
/// abstract was at hand.
#pragma once

#include <sluice/layer/decorator.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

enum class first_state { zero, x };

namespace detail {

template <typename Scalar>
struct chain_memory {
  matrix_buffer<Scalar> wide, outputs;  ///< [T,W]
};

template <typename Scalar>
struct chain_tape : chain_memory<Scalar> {
  matrix_buffer<Scalar> dwide;
};

}  // namespace detail

template <typename Layer>
class state_chain : public layer_decorator<state_chain<Layer>, Layer, detail::chain_memory<typename Layer::scalar>,
                                           detail::chain_tape<typename Layer::scalar>> {
  using base = layer_decorator<state_chain, Layer, detail::chain_memory<typename Layer::scalar>,
                               detail::chain_tape<typename Layer::scalar>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  /// Throws std::invalid_argument unless the layer maps W to W >= D >= 1; with first_state::x, W is a multiple of D.
  state_chain(Layer layer, index_t width, first_state begins = first_state::zero)
      : base(std::move(layer)), width_(width), begins_(begins) {
    const index_t wide = this->layer().inputs();
    if (width < 1 || width > wide || wide != this->layer().outputs())
      throw_invalid("a chain of tokens of width ", width, " needs a layer of as many columns or more, not ", wide,
                    " -> ", this->layer().outputs());
    if (begins == first_state::x && wide % width != 0)
      throw_invalid("a state of copies of x needs a multiple of its width ", width, ", not ", wide - width);
  }

  index_t inputs() const noexcept { return width_; }
  index_t outputs() const noexcept { return width_; }

  /// What the layers left of the state [T, W - D] in the last call on this workspace or tape.
  template <typename Memory>
  auto state(const Memory& memory) const {
    return memory.outputs.map().rightCols(this->layer().inputs() - width_);
  }

private:
  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type&, Inner inner) const {
    const index_t wide = this->layer().inputs();
    m.wide.resize(x.rows(), wide);
    m.outputs.resize(x.rows(), wide);
    auto rows = m.wide.map();
    rows.leftCols(width_) = x;
    if (begins_ == first_state::zero)
      rows.rightCols(wide - width_).setZero();
    else
      for (index_t from = width_; from < wide; from += width_) rows.middleCols(from, width_) = x;
    inner(rows, m.outputs.map());
    y = m.outputs.map().leftCols(width_);
  }

  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t, Inner inner) {
    const index_t wide = this->layer().inputs();
    t.dwide.resize(2 * dy.rows(), wide);
    auto upstream = t.dwide.map().topRows(dy.rows());
    auto down = t.dwide.map().bottomRows(dy.rows());
    upstream.leftCols(width_) = dy;
    upstream.rightCols(wide - width_).setZero();
    inner(upstream, down);
    dx = down.leftCols(width_);
    if (begins_ == first_state::x)
      for (index_t from = width_; from < wide; from += width_) dx += down.middleCols(from, width_);
  }

  template <typename Storage, typename Inner>
  auto rebuilt(Inner inner) const {
    return state_chain<Inner>(std::move(inner), width_, begins_);
  }

  index_t own_bytes(index_t tokens, bool training) const {
    return tokens * this->layer().inputs() * static_cast<index_t>(sizeof(scalar)) * (training ? 4 : 2);
  }

  index_t width_;
  first_state begins_;
};

}  // namespace sluice::inline SLUICE_ISA
