/// A mixture on a shortcut: it reads what the first of several sublayers reads and is added behind the last one.
///
///   n = norm(x);   h = x + first(n);   y = rest(h) + layer(n)
///   dh = rest'(dy);   dn = first'(dh) + layer'(dy);   dx = dh + norm'(dn)
///
///   shortcut_layer block{moe_layer{...}, rms_norm<float>{64}, dense_layer{swiglu<float>{64, 256}},
///                        sequence{residual_layer{normalized_layer{attention, norm}},
///                                 residual_layer{normalized_layer{dense, norm}}}};
///
/// Nothing of the shortcut waits for `rest`, so experts on other devices or on disk have that long to answer. How much
/// the mixture skips is what `first` and `rest` are (Attn, MLP of block l; Attn', the shared expert SE of block l + 1):
///
///   ScMoE, Pos-1   first Attn'             rest SE
///   ScMoE, Pos-2   first MLP               rest Attn', SE         a whole layer of LongCat-Flash is Attn, then this
///   ScMoE, Pos-3   first Attn              rest MLP, Attn', SE
///
/// (tests/attention/shortcut_block_test.cpp has LongCat-Flash's layer whole, with experts that are none. Its attention
/// is a latent one, which is not in the library: self_attention stands there.)
///
/// Sublayers of `rest` bring their own residuals and norms. Where the mixture has a norm of its own, or none, write
/// beside_layer{normalized_layer{layer, norm}, sequence{...}} (layer/beside.hpp). All widths are D. The mixture's plan,
/// router and bank are those of the whole; it draws as if it stood alone, the others draw apart. The calls and the
/// memory rules are those of moe_layer (layer/decorator.hpp). Padding gets zero; a token with NaN gets NaN and reaches
/// no gradient; T = 0 is fine. Cai et al. 2024 (ScMoE), arXiv:2404.05019; Meituan 2025 (LongCat-Flash),
/// arXiv:2509.01322.
#pragma once

#include <sluice/kernel/row_norm.hpp>
#include <sluice/layer/decorator.hpp>

#include <algorithm>
#include <concepts>
#include <tuple>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Norm, typename FirstMemory, typename RestMemory>
struct shortcut_memory {
  using scalar = typename Norm::scalar;
  std::tuple<FirstMemory, RestMemory> others;
  typename Norm::tape norm;
  matrix_buffer<scalar> n, h, outputs;  ///< [T,D]; outputs: of rest
};

template <typename Norm, typename FirstMemory, typename RestMemory>
struct shortcut_tape : shortcut_memory<Norm, FirstMemory, RestMemory> {
  using scalar = typename Norm::scalar;
  matrix_buffer<scalar> x, dn, dfirst;
};

template <typename Layer, typename Norm, typename First, typename Rest, typename Derived>
using shortcut_decorator =
    layer_decorator<Derived, Layer, shortcut_memory<Norm, typename First::workspace, typename Rest::workspace>,
                    shortcut_tape<Norm, typename First::tape, typename Rest::tape>,
                    TrainableLayer<First> && TrainableLayer<Rest>>;

}  // namespace detail

template <typename Layer, typename Norm, typename First, typename Rest>
class shortcut_layer
    : public detail::shortcut_decorator<Layer, Norm, First, Rest, shortcut_layer<Layer, Norm, First, Rest>> {
  using base = detail::shortcut_decorator<Layer, Norm, First, Rest, shortcut_layer>;
  friend base;
  static_assert(explain_row_norm<Norm>());
  static_assert(explain_layer<First>() && explain_layer<Rest>());
  static_assert(std::same_as<typename Layer::scalar, typename Norm::scalar> &&
                    std::same_as<typename Layer::scalar, typename First::scalar> &&
                    std::same_as<typename Layer::scalar, typename Rest::scalar>,
                "sluice: the parts of a shortcut layer need the same scalar");

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  static constexpr bool causal = is_causal<Layer> && is_causal<First> && is_causal<Rest>;
  static constexpr bool mixes_tokens = is_token_mixer<Layer> || is_token_mixer<First> || is_token_mixer<Rest>;

  /// Throws std::invalid_argument unless all widths are equal.
  shortcut_layer(Layer layer, Norm norm, First first, Rest rest)
      : base(std::move(layer)), norm_(std::move(norm)), first_(std::move(first)), rest_(std::move(rest)) {
    for (const index_t width : {this->outputs(), first_.inputs(), first_.outputs(), rest_.inputs(), rest_.outputs()})
      if (width != this->inputs())
        throw_invalid("a shortcut layer needs equal widths; the layer maps ", this->inputs(), " -> ", this->outputs(),
                      ", the first sublayer ", first_.inputs(), " -> ", first_.outputs(), ", the rest ", rest_.inputs(),
                      " -> ", rest_.outputs());
    check_norm_width("shortcut_layer", norm_, this->inputs());
  }

  Norm& norm() noexcept { return norm_; }
  const Norm& norm() const noexcept { return norm_; }
  First& first() noexcept { return first_; }
  const First& first() const noexcept { return first_; }
  Rest& rest() noexcept { return rest_; }
  const Rest& rest() const noexcept { return rest_; }

  void after_step(tape& t) {
    base::after_step(t);
    first_.after_step(std::get<0>(t.others));
    rest_.after_step(std::get<1>(t.others));
  }

  static consteval bool explain_training() {
    return base::explain_training() && explain_trainable_layer<First>() && explain_trainable_layer<Rest>();
  }

private:
  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context, Inner inner) const {
    for (auto* rows : {&m.n, &m.h, &m.outputs}) rows->resize(x.rows(), x.cols());
    if constexpr (std::same_as<Memory, tape>) {
      m.x.resize(x.rows(), x.cols());
      m.x.map() = x;
    }
    norm_.forward(x, m.n.map(), m.norm, context.executor);
    first_.forward(m.n.map(), m.h.map(), std::get<0>(m.others), context.for_layer(-1));
    for (index_t t = 0; t < x.rows(); ++t)  // padding may hold anything
      if (!context.is_padding(t)) kernel::add_scaled(scalar(1), x.data() + t * x.outerStride(), m.h.row(t), x.cols());
    rest_.forward(m.h.map(), m.outputs.map(), std::get<1>(m.others), context.for_layer(-2));
    inner(m.n.map(), y);  // last: y may be x
    y += m.outputs.map();
  }

  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t, Inner inner) {
    t.dn.resize(dx.rows(), dx.cols());
    t.dfirst.resize(dx.rows(), dx.cols());
    rest_.backward(dy, dx, std::get<1>(t.others));  // dh, which has zeros for hidden tokens
    first_.backward(dx, t.dfirst.map(), std::get<0>(t.others));
    inner(dy, t.dn.map());
    t.dn.map() += t.dfirst.map();
    detail::backward_of_used_rows(norm_, t.x.map(), t.dn, t.norm, dx, t.context.executor);
  }

  template <typename Storage, typename Inner>
  auto rebuilt(Inner inner) const {
    auto first = first_.template stored_as<Storage>();
    auto rest = rest_.template stored_as<Storage>();
    return shortcut_layer<Inner, Norm, decltype(first), decltype(rest)>(std::move(inner), norm_, std::move(first),
                                                                        std::move(rest));
  }

  index_t own_bytes(index_t tokens, bool training) const {
    const index_t numbers = tokens * this->inputs() * (training ? 6 : 3);
    return numbers * static_cast<index_t>(sizeof(scalar)) + first_.workspace_bytes(tokens, training) +
           rest_.workspace_bytes(tokens, training);
  }

  template <typename Self, typename Visitor>
  static void visit_own(Self& self, Visitor& visit) {
    if constexpr (HasParameters<Norm>) visit("norm", self.norm_);
    if constexpr (HasParameters<First>) visit("first", self.first_);
    if constexpr (HasParameters<Rest>) visit("rest", self.rest_);
  }

  Norm norm_;
  First first_;
  Rest rest_;
};

}  // namespace sluice::inline SLUICE_ISA
