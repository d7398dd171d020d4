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
/// Sequences are those of the context (sequences, or groups); positions begin at 0 in each. Padding and tokens that hold
/// NaN are seen by nobody, yet take a position; they get zero and NaN. A cached call gives the same bits as the call on
/// the whole sequence. T = 0 is fine. Inference is const, a workspace a thread and a cache a conversation. Parameters:
/// "query", "key", "value", "output" and, if they are wanted, "query_bias", "key_bias", "value_bias", "output_bias".
/// Vaswani et al. 2017, arXiv:1706.03762; shared key heads: Ainslie et al. 2023, arXiv:2305.13245.
#pragma once

#include <sluice/attention/dot_product_attention.hpp>
#include <sluice/kernel/linear.hpp>
#include <sluice/layer/token_mixer.hpp>

#include <cmath>

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
  double scale = 0;  ///< 0: 1 / sqrt(dk)
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
      : attention_(shape_of(width, o), o.rotary), has_bias_(o.bias), has_output_bias_(o.output_bias) {
    const auto weight = [](index_t out, index_t in) {
      return parameter<Scalar>({out, in}, parameter_role::weight,
                               initial_values::normal(1 / std::sqrt(static_cast<double>(in))));
    };
    query_ = weight(attention_.query_columns(), width);
    key_ = weight(attention_.key_columns(), width);
    value_ = weight(attention_.value_columns(), width);
    output_ = weight(width, attention_.out_columns());
    if (has_bias_) {
      query_bias_ = {{attention_.query_columns()}, parameter_role::vector};
      key_bias_ = {{attention_.key_columns()}, parameter_role::vector};
      value_bias_ = {{attention_.value_columns()}, parameter_role::vector};
    }
    if (has_output_bias_) output_bias_ = {{width}, parameter_role::vector};
  }

  index_t inputs() const noexcept { return query_.cols(); }
  const kernel::attention_shape& attention_shape() const noexcept { return attention_.shape(); }

  /// Inference of tokens that continue the cache's sequences, which are those of the context, in order: y [T,D] is
  /// overwritten and the cache holds the tokens afterwards. Throws std::invalid_argument, before the cache changes, if
  /// it is another layer's, has another number of sequences or no room.
  void forward_cached(tokens_in<Scalar> x, tokens_out<Scalar> y, key_value_cache<Scalar>& cache, workspace& ws,
                      const context_type& context = {}) const requires causal {
    check_context(context, x.rows());
    attention_.check_cache(x.rows(), cache, context);
    this->run(x, y, ws, context, [&](tokens_in<Scalar> seen) {
      project(seen, ws, context);
      attention_.forward_cached(ws.heads, cache, ws.kept.visible(context));
      reduce(y, ws, context);
    });
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    return attention_.workspace_bytes(rows, training) +
           rows * inputs() * (training ? 2 : 1) * static_cast<index_t>(sizeof(Scalar));
  }

  parameter<Scalar>& query() noexcept { return query_; }
  parameter<Scalar>& key() noexcept { return key_; }
  parameter<Scalar>& value() noexcept { return value_; }
  parameter<Scalar>& output() noexcept { return output_; }
  parameter<Scalar>& query_bias() noexcept { return query_bias_; }
  parameter<Scalar>& key_bias() noexcept { return key_bias_; }
  parameter<Scalar>& value_bias() noexcept { return value_bias_; }
  parameter<Scalar>& output_bias() noexcept { return output_bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("query", self.query_);
    visit("key", self.key_);
    visit("value", self.value_);
    visit("output", self.output_);
    if (self.has_bias_) {
      visit("query_bias", self.query_bias_);
      visit("key_bias", self.key_bias_);
      visit("value_bias", self.value_bias_);
    }
    if (self.has_output_bias_) visit("output_bias", self.output_bias_);
  }

private:
  static kernel::attention_shape shape_of(index_t width, const self_attention_options& o) {
    if (width < 1 || o.heads < 1 || o.key_heads < 0 || o.head_width < 0 || o.value_width < 0 ||
        (o.head_width == 0 && width % o.heads != 0))
      throw_invalid(
          "self_attention needs D >= 1, heads >= 1, D a multiple of heads where head_width is left out, and nothing "
          "below 0, not D ",
          width, ", ", o.heads, " heads, ", o.key_heads, " key heads, widths ", o.head_width, " and ", o.value_width);
    const index_t key_width = o.head_width == 0 ? width / o.heads : o.head_width;
    return {.heads = o.heads,
            .key_heads = o.key_heads == 0 ? o.heads : o.key_heads,
            .key_width = key_width,
            .value_width = o.value_width == 0 ? key_width : o.value_width,
            .scale = o.scale,
            .causal = causal,
            .sharing = o.sharing};
  }

  template <typename Memory>
  void project(tokens_in<Scalar> x, Memory& m, const context_type& context) const {
    attention_.resize(m.heads, x.rows());
    const auto map = [&](const parameter<Scalar>& weight, const parameter<Scalar>& bias, matrix_buffer<Scalar>& to) {
      linear_forward(x, weight, to.map(), context.executor);
      if (has_bias_) add_to_rows<Scalar>(to.map(), bias);
    };
    map(query_, query_bias_, m.heads.q);
    map(key_, key_bias_, m.heads.k);
    map(value_, value_bias_, m.heads.v);
  }
  template <typename Memory>
  void reduce(tokens_out<Scalar> y, const Memory& m, const context_type& context) const {
    linear_forward(m.heads.out.map(), output_, y, context.executor);
    if (has_output_bias_) add_to_rows<Scalar>(y, output_bias_);
  }

  template <typename Memory>
  void mix(tokens_in<Scalar> x, tokens_out<Scalar> y, Memory& m, const context_type& context) const {
    project(x, m, context);
    attention_.forward(m.heads, m.kept.visible(context));
    reduce(y, m, context);
  }

  void mix_backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t) {
    const executor_ref& executor = t.context.executor;
    t.heads.dout.set_zero(dy.rows(), attention_.out_columns());
    linear_backward(t.heads.out.map(), output_, dy, t.heads.dout.map(), executor);
    if (has_output_bias_) add_column_sums(dy, output_bias_.gradient());
    attention_.backward(t.heads, t.kept.visible(t.context));
    const auto back = [&](parameter<Scalar>& weight, parameter<Scalar>& bias, matrix_buffer<Scalar>& gradient) {
      linear_backward(t.kept.x(), weight, gradient.map(), dx, executor);
      if (has_bias_) add_column_sums<Scalar>(gradient.map(), bias.gradient());
    };
    back(query_, query_bias_, t.heads.dq);
    back(key_, key_bias_, t.heads.dk);
    back(value_, value_bias_, t.heads.dv);
  }

  dot_product_attention<Scalar> attention_;
  bool has_bias_, has_output_bias_;
  parameter<Scalar> query_, key_, value_, output_;
  parameter<Scalar> query_bias_, key_bias_, value_bias_, output_bias_;
};

}  // namespace sluice::inline SLUICE_ISA
