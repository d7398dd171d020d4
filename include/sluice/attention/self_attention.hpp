/// Multi-head attention as a layer: every token looks at the tokens of its sequence.
///
///   x [T,D] -> q = x W_q^T (+ b_q) [T, heads dk],  k [T, key_heads dk],  v [T, key_heads dv]
///   y = attention(q, k, v) W_o^T (+ b_o)                               (attention/dot_product_attention.hpp)
///
///   self_attention<float> attention{D, {.heads = 8, .key_heads = 2, .rotary = {.width = 64}}};
///   attention.forward(x, y, tape, {.training = true, .sequences = borders});    attention.backward(dy, dx, tape);
///   key_value_cache<float> cache{attention, 1, 1024};
///   attention.forward_cached(token, y, cache, workspace);                        // and so on, token by token
///
/// Sequences are those of the context (sequences, or groups); positions begin at 0 in each. Padding and tokens that
/// hold NaN are seen by nobody, yet take a position; they get zero and NaN. A cached call gives the same bits as the
/// call on the whole sequence. T = 0 is fine. Inference is const, a workspace a thread and a cache a conversation.
/// Parameters are those of attention/attention_projections.hpp.
/// Vaswani et al. 2017, arXiv:1706.03762; shared key heads: Ainslie et al. 2023, arXiv:2305.13245.
#pragma once

#include <sluice/attention/attention_projections.hpp>
#include <sluice/layer/token_mixer.hpp>

#include <type_traits>

namespace sluice::inline SLUICE_ISA {

/// Whether a token looks at the tokens before it and at itself, or at all of its sequence.
enum class attention_order { causal, bidirectional };

struct self_attention_options {
  index_t heads = 1;
  index_t key_heads = 0;    ///< 0: as many as heads
  index_t head_width = 0;   ///< dk; 0: D / heads
  index_t value_width = 0;  ///< dv; 0: dk
  bool bias = false;        ///< of q, k and v
  bool output_bias = false;
  bool zero_output = false;  ///< W_o starts at zero: beside a residual the layer changes nothing at first
  double scale = 0;          ///< 0: 1 / sqrt(dk)
  key_sharing sharing = key_sharing::adjacent;
  kernel::rotary_options rotary{};
};

namespace detail {

template <typename Scalar>
struct self_attention_workspace {
  typename dot_product_attention<Scalar>::workspace heads;
};
template <typename Scalar>
struct self_attention_tape {
  typename dot_product_attention<Scalar>::tape heads;
};

}  // namespace detail

template <FloatOrDouble Scalar, attention_order Order = attention_order::causal>
class self_attention
    : public token_mixer<self_attention<Scalar, Order>, Scalar, detail::self_attention_workspace<Scalar>,
                         detail::self_attention_tape<Scalar>> {
  using base = token_mixer<self_attention, Scalar, detail::self_attention_workspace<Scalar>,
                           detail::self_attention_tape<Scalar>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::tape;
  using typename base::workspace;
  static constexpr bool causal = Order == attention_order::causal;

  /// Throws std::invalid_argument unless D >= 1, heads >= 1 are a multiple of key_heads, and D one of heads where the
  /// width of a head is left out.
  explicit self_attention(index_t width, const self_attention_options& o = {})
      : attention_(detail::attention_shape_of("self_attention", width, o, causal), o.rotary),
        maps_(width, attention_, {.bias = o.bias, .output_bias = o.output_bias, .zero_output = o.zero_output}) {}

  index_t inputs() const noexcept { return maps_.inputs(); }
  const kernel::attention_shape& attention_shape() const noexcept { return attention_.shape(); }
  const kernel::rotary_options& rotary() const noexcept { return attention_.rotary(); }

  /// Inference of tokens that continue the cache's sequences, which are those of the context, in order: y [T,D] is
  /// overwritten and the cache holds the tokens afterwards. Throws std::invalid_argument, before the cache changes, if
  /// it is another layer's, has another number of sequences or no room.
  void forward_cached(tokens_in<Scalar> x, tokens_out<Scalar> y, key_value_cache<Scalar>& cache, workspace& ws,
                      const context_type& context = {}) const requires causal {
    check_context(context, x.rows());
    attention_.check_cache(x.rows(), cache, context);
    this->run(x, y, ws, context, [&](tokens_in<Scalar> seen) {
      maps_.project(seen, ws.heads, context.executor);
      attention_.forward_cached(ws.heads, cache, ws.kept.visible(context));
      maps_.reduce(ws.heads.out.map(), y, context.executor);
    });
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    return attention_.workspace_bytes(rows, training) +
           rows * inputs() * (training ? 2 : 1) * static_cast<index_t>(sizeof(Scalar));
  }

  parameter<Scalar>& query() noexcept { return maps_.query(); }
  parameter<Scalar>& key() noexcept { return maps_.key(); }
  parameter<Scalar>& value() noexcept { return maps_.value(); }
  parameter<Scalar>& output() noexcept { return maps_.output(); }
  parameter<Scalar>& query_bias() noexcept { return maps_.query_bias(); }
  parameter<Scalar>& key_bias() noexcept { return maps_.key_bias(); }
  parameter<Scalar>& value_bias() noexcept { return maps_.value_bias(); }
  parameter<Scalar>& output_bias() noexcept { return maps_.output_bias(); }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    std::remove_cvref_t<decltype(self.maps_)>::visit_parameters(self.maps_, visit);
  }

private:
  template <typename Memory>
  void mix(tokens_in<Scalar> x, tokens_out<Scalar> y, Memory& m, const context_type& context) const {
    maps_.project(x, m.heads, context.executor);
    attention_.forward(m.heads, m.kept.visible(context));
    maps_.reduce(m.heads.out.map(), y, context.executor);
  }

  void mix_backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t) {
    const executor_ref& executor = t.context.executor;
    maps_.reduce_backward(t.heads.out.map(), dy, t.heads.dout, executor);
    attention_.backward(t.heads, t.kept.visible(t.context));
    maps_.project_backward(t.kept.x(), t.heads, dx, executor);
  }

  dot_product_attention<Scalar> attention_;
  attention_projections<Scalar> maps_;
};

}  // namespace sluice::inline SLUICE_ISA
