/// A layer over parts of tokens: each token is cut into h sub-tokens, which the layer routes and works on apart.
///
///   x [T, h D]  ->  sub-token t h + j = slice j of token t  [T h, D]  ->  layer  ->  [T h, D']  ->  y [T, h D']
///
///   sequence heads{linear_layer<float>{64, 64}, sub_token_layer{moe_layer{...}, /*parts=*/4}, linear_layer<float>{64, 64}};
///
/// Between two linear maps it is MH-MoE, whose experts have width D / h; the first map gets its gradient through
/// experts and router. Equal for one part to the layer inside. Its parity version differs in sizes only:
/// equal_cost_sizes().
///
/// The layer inside sees T h tokens: capacities, losses and counters are of sub-tokens, and so is a plan for
/// forward_planned. Masks and ids are repeated h times, groups and sequences are h times as long, what the call says of
/// them (group features, encoders) stays; matrices that a context has for every token are not passed on (features,
/// given experts) or refused (previous logits). A sub-token of a token that holds NaN is hidden, all of the token's
/// output is NaN; padding gets zero. Causal if the layer is: parts of one token do not see each other. T = 0 is fine.
/// Calls and memory rules are those of moe_layer (layer/decorator.hpp). Wu et al. 2024 (MH-MoE), arXiv:2404.15045;
/// Huang et al. 2024 (at equal cost), arXiv:2411.16205.
#pragma once

#include <sluice/layer/decorator.hpp>
#include <sluice/layer/kept_rows.hpp>
#include <sluice/layer/split/own_context.hpp>

#include <algorithm>
#include <concepts>
#include <span>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Scalar>
struct sub_token_memory {
  kept_rows<Scalar> kept;
  matrix_buffer<Scalar> outputs;  ///< [T h, D']
  own_context own;
};

template <typename Scalar>
struct sub_token_tape : sub_token_memory<Scalar> {
  matrix_buffer<Scalar> dparts;  ///< [T h, D]
};

}  // namespace detail

template <typename Layer>
class sub_token_layer
    : public layer_decorator<sub_token_layer<Layer>, Layer, detail::sub_token_memory<typename Layer::scalar>,
                             detail::sub_token_tape<typename Layer::scalar>> {
  using base = layer_decorator<sub_token_layer, Layer, detail::sub_token_memory<typename Layer::scalar>,
                               detail::sub_token_tape<typename Layer::scalar>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  /// Throws std::invalid_argument unless h >= 1.
  sub_token_layer(Layer layer, index_t parts) : base(std::move(layer)), parts_(parts) {
    if (parts < 1) throw_invalid("tokens cannot be cut into ", parts, " parts");
  }

  index_t inputs() const noexcept { return parts_ * this->layer().inputs(); }
  index_t outputs() const noexcept { return parts_ * this->layer().outputs(); }
  /// h
  index_t parts() const noexcept { return parts_; }

  /// Bytes that a workspace (or tape) will take for so many tokens, or assignments of whole tokens.
  index_t workspace_bytes(index_t rows, bool training = false) const {
    const index_t numbers = rows * (inputs() + outputs()) * (training ? 2 : 1);
    return numbers * static_cast<index_t>(sizeof(scalar)) + this->layer().workspace_bytes(rows * parts_, training);
  }

private:
  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context, Inner inner) const {
    m.kept.keep(x, context);
    m.outputs.resize(x.rows() * parts_, this->layer().outputs());
    m.own.cut(context, std::span(m.kept.counts(), as_size(m.kept.rows())), parts_);
    context_type own = m.own.seen_by(context);
    own.top_k = context.top_k;
    own.group_features = context.group_features;
    inner(in_parts(m.kept.x()), m.outputs.map(), own);
    for (index_t t = 0; t < x.rows(); ++t) {
      scalar* const row = y.data() + t * y.outerStride();
      if (m.kept.counts(t))
        std::copy_n(m.outputs.row(t * parts_), y.cols(), row);
      else
        std::fill_n(row, y.cols(), context.is_padding(t) ? scalar(0) : quiet_nan<scalar>());
    }
  }

  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t, Inner inner) {
    t.own.follow(t.layer);
    t.dparts.resize(dx.rows() * parts_, this->layer().inputs());
    inner(in_parts(t.kept.of_gradient(dy, t.context.executor)), t.dparts.map());
    for (index_t r = 0; r < dx.rows(); ++r)
      std::copy_n(t.dparts.row(r * parts_), dx.cols(), dx.data() + r * dx.outerStride());
  }

  const_matrix_map<scalar> in_parts(const_matrix_map<scalar> rows) const {
    return {rows.data(), rows.rows() * parts_, rows.cols() / parts_};
  }

  template <typename Storage, typename Inner>
  auto rebuilt(Inner inner) const {
    return sub_token_layer<Inner>(std::move(inner), parts_);
  }

  index_t parts_;
};

/// Hidden width and number of experts at which MH-MoE has as many parameters, and about as many multiplications, as a
/// mixture.
struct sub_token_sizes {
  double hidden;   ///< of an expert for sub-tokens
  double experts;  ///< to be rounded, as the paper does
};

/// For a mixture of E experts of width D and hidden width H with `matrices` each (2 plain, 3 gated), k of them a token:
/// MH-MoE with h parts and k' experts a sub-token, its two D x D maps counted.
///   hidden = (k H - 2 D / matrices) / k',   experts = h (matrices H E - 2 D) / (matrices hidden)
struct mixture_sizes {
  double width, hidden, experts;
  double top_k = 1;
  double matrices = 2;
};
constexpr sub_token_sizes equal_cost_sizes(const mixture_sizes& m, double parts, double top_k) {
  const double hidden = (m.top_k * m.hidden - 2 * m.width / m.matrices) / top_k;
  return {hidden, parts * (m.matrices * m.hidden * m.experts - 2 * m.width) / (m.matrices * hidden)};
}

}  // namespace sluice::inline SLUICE_ISA
