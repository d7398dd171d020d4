/// Multi-head attention to another source as a layer: every token looks at the rows of an encoder.
///
///   x [T,D], s = norm(context.encoders[encoder].rows) [S,F]
///   q = x W_q^T (+ b_q) [T, heads dk],  k = s W_k^T (+ b_k) [S, key_heads dk],  v = s W_v^T (+ b_v) [S, key_heads dv]
///   y = attention(q, k, v) W_o^T (+ b_o)                               (attention/dot_product_attention.hpp)
///
///   cross_attention<float> look{D, {.source = F, .heads = 8}};                  // and a second one with .encoder = 1
///   residual_layer block{normalized_layer{look, layer_norm<float>{D}}};
///   const encoder_states<float> images{.rows = states, .sequences = image_borders, .gradient = dstates};
///   block.forward(x, y, tape, {.training = true, .sequences = borders, .encoders = {&images, 1}});
///
/// Tokens of a sequence see all rows of the encoder's range for it, of which there may be any number, in no order and
/// without positions. Rows that are masked or hold NaN are seen by nobody; where there is no row to see, the heads find
/// zero. A token sees no other token: padding gets zero, a token that holds NaN gets NaN. T = 0 and S = 0 are fine. A
/// context without the encoder, or with rows of another width, throws std::invalid_argument. backward adds the gradient
/// of the rows to encoder_states.gradient, if there is room for one; layers that share an encoder share it.
///
/// The norm of the rows is one of kernel/row_norm.hpp; parameters are those of attention/attention_projections.hpp and
/// the norm's. Keys and values are made anew in every call. Equal bits for any number of threads; inference is const.
/// Vaswani et al. 2017, arXiv:1706.03762.
#pragma once

#include <sluice/attention/attention_projections.hpp>
#include <sluice/kernel/row_norm.hpp>
#include <sluice/layer/token_mixer.hpp>

#include <type_traits>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct cross_attention_options {
  index_t encoder = 0;  ///< which of context.encoders
  index_t source = 0;   ///< F, the width of its rows; 0: D
  index_t heads = 1;
  index_t key_heads = 0;    ///< 0: as many as heads
  index_t head_width = 0;   ///< dk; 0: D / heads
  index_t value_width = 0;  ///< dv; 0: dk
  bool bias = false;        ///< of q, k and v
  bool output_bias = false;
  bool zero_output = false;  ///< W_o starts at zero: beside a residual the layer changes nothing at first
  double scale = 0;          ///< 0: 1 / sqrt(dk)
  key_sharing sharing = key_sharing::adjacent;
};

namespace detail {

/// What cross attention knows of the rows that are looked at.
template <typename Scalar, typename Norm>
struct attended_rows {
  kept_rows<Scalar> kept;  ///< s before the norm, zero where nobody sees it
  typename Norm::tape norm;
  matrix_buffer<Scalar> normalized;
};
template <typename Scalar, typename Norm>
struct cross_attention_workspace {
  attended_rows<Scalar, Norm> source;
  typename dot_product_attention<Scalar>::workspace heads;
};
template <typename Scalar, typename Norm>
struct cross_attention_tape {
  attended_rows<Scalar, Norm> source;
  typename dot_product_attention<Scalar>::tape heads;
  matrix_buffer<Scalar> dnormalized, unwanted;
};

}  // namespace detail

template <FloatOrDouble Scalar, typename Norm = no_norm<Scalar>>
class cross_attention
    : public token_mixer<cross_attention<Scalar, Norm>, Scalar, detail::cross_attention_workspace<Scalar, Norm>,
                         detail::cross_attention_tape<Scalar, Norm>> {
  static_assert(explain_row_norm<Norm>());
  using base = token_mixer<cross_attention, Scalar, detail::cross_attention_workspace<Scalar, Norm>,
                           detail::cross_attention_tape<Scalar, Norm>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::tape;
  using typename base::workspace;
  static constexpr bool causal = true;
  static constexpr bool mixes_tokens = false;  // tokens see rows, never each other

  /// Throws std::invalid_argument unless D, heads and widths are as self_attention needs them, F >= 1, encoder >= 0 and
  /// a norm of width F.
  explicit cross_attention(index_t width, const cross_attention_options& o = {})
      : cross_attention(width, o, Norm(o.source == 0 ? width : o.source)) {}
  cross_attention(index_t width, const cross_attention_options& o, Norm norm)
      : encoder_(o.encoder),
        attention_(detail::attention_shape_of("cross_attention", width, o, false)),
        maps_(width, attention_,
              {.bias = o.bias, .output_bias = o.output_bias, .zero_output = o.zero_output, .source = o.source}),
        norm_(std::move(norm)) {
    if (o.encoder < 0 || o.source < 0)
      throw_invalid("cross_attention needs an encoder >= 0 with rows of a width >= 1, not ", o.encoder, " and ",
                    o.source);
    check_norm_width("cross_attention", norm_, o.source == 0 ? width : o.source);
  }

  index_t inputs() const noexcept { return maps_.inputs(); }
  index_t encoder() const noexcept { return encoder_; }
  /// F
  index_t source() const noexcept { return maps_.source(); }
  const kernel::attention_shape& attention_shape() const noexcept { return attention_.shape(); }

  /// For encoders of as many rows as there are tokens.
  index_t workspace_bytes(index_t rows, bool training = false) const {
    return attention_.workspace_bytes(rows, training) +
           rows * (inputs() + 2 * source()) * (training ? 2 : 1) * static_cast<index_t>(sizeof(Scalar));
  }

  parameter<Scalar>& query() noexcept { return maps_.query(); }
  parameter<Scalar>& key() noexcept { return maps_.key(); }
  parameter<Scalar>& value() noexcept { return maps_.value(); }
  parameter<Scalar>& output() noexcept { return maps_.output(); }
  parameter<Scalar>& query_bias() noexcept { return maps_.query_bias(); }
  parameter<Scalar>& key_bias() noexcept { return maps_.key_bias(); }
  parameter<Scalar>& value_bias() noexcept { return maps_.value_bias(); }
  parameter<Scalar>& output_bias() noexcept { return maps_.output_bias(); }
  Norm& norm() noexcept { return norm_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    std::remove_cvref_t<decltype(self.maps_)>::visit_parameters(self.maps_, visit);
    if constexpr (HasParameters<Norm>) visit("norm", self.norm_);
  }

private:
  const encoder_states<Scalar>& states(const context_type& context) const {
    const auto count = static_cast<index_t>(context.encoders.size());
    if (encoder_ >= count)
      throw_invalid("cross_attention reads routing_context.encoders[", encoder_, "], of which there are ", count,
                    " here: layers whose rows are not those of one sequence of the call each have none to pass on");
    const encoder_states<Scalar>& one = context.encoders[as_size(encoder_)];
    if (one.rows.rows > 0 && one.rows.cols != source())
      throw_invalid("cross_attention reads rows of width ", source(), "; those of routing_context.encoders[", encoder_,
                    "] have ", one.rows.cols);
    return one;
  }
  /// The context in which the encoder's rows are tokens.
  static context_type context_of(const encoder_states<Scalar>& one, const context_type& context) {
    context_type own;
    own.token_mask = one.row_mask;
    own.sequences = one.sequences;
    own.executor = context.executor;
    return own;
  }
  static const_matrix_map<Scalar> read(const detail::attended_rows<Scalar, Norm>& source) {
    if constexpr (leaves_rows<Norm>)
      return source.kept.x();
    else
      return source.normalized.map();
  }

  template <typename Memory>
  void mix(tokens_in<Scalar> x, tokens_out<Scalar> y, Memory& m, const context_type& context) const {
    const encoder_states<Scalar>& from = states(context);
    const context_type own = context_of(from, context);
    m.source.kept.keep(from.rows.map(), own);
    if constexpr (!leaves_rows<Norm>) {
      m.source.normalized.resize(from.rows.rows, from.rows.cols);
      norm_.forward(m.source.kept.x(), m.source.normalized.map(), m.source.norm, context.executor);
    }
    maps_.project_queries(x, m.heads, context.executor);
    maps_.project_keys(read(m.source), m.heads, context.executor);
    attention_.forward(m.heads, m.kept.visible(context), m.source.kept.visible(own));
    maps_.reduce(m.heads.out.map(), y, context.executor);
  }

  void mix_backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t) {
    const executor_ref& executor = t.context.executor;
    const encoder_states<Scalar>& from = states(t.context);
    const context_type own = context_of(from, t.context);
    maps_.reduce_backward(t.heads.out.map(), dy, t.heads.dout, executor);
    attention_.backward(t.heads, t.kept.visible(t.context), t.source.kept.visible(own));
    maps_.project_queries_backward(t.kept.x(), t.heads, dx, executor);
    t.dnormalized.set_zero(from.rows.rows, from.rows.cols);
    maps_.project_keys_backward(read(t.source), t.heads, t.dnormalized.map(), executor);
    if (from.gradient.empty()) t.unwanted.set_zero(from.rows.rows, from.rows.cols);
    matrix_map<Scalar> drows(from.gradient.empty() ? t.unwanted.data() : from.gradient.data(), from.rows.rows,
                             from.rows.cols);
    // Rows that nobody sees have gradient zero and are left out.
    detail::backward_of_used_rows(norm_, t.source.kept.x(), t.dnormalized, t.source.norm, drows, executor);
  }

  index_t encoder_;
  dot_product_attention<Scalar> attention_;
  attention_projections<Scalar> maps_;
  Norm norm_;
};

}  // namespace sluice::inline SLUICE_ISA
