/// Several attentions over one sequence, all of them for every token, added by the token's own weights.
///
///   w_t = softmax(W_g x_t) [N]           a_j = attention j of x [T, heads dv], before its output map
///   y_t = sum over the N attentions j of w_tj W_o^j a_tj
///   backward:  da_tj = w_tj dy_t W_o^j      dw_tj = <dy_t W_o^j, a_tj>      and through the softmax to W_g and x
///
///   weighed_attention<float> attention{D, {.experts = 4, .heads = 8}};                         // every expert its own keys
///   auto mixture = weighed_attention<float>::of_layers(dense_models, keys_of::all);           // one set of keys, the mean
///   residual_layer block{normalized_layer{beside_layer{moe_layer{...}, mixture}, rms_norm<float>{D}}};
///
/// Keys and values are each expert's own, or one set for all (heads h of all experts then read key head h). The heads
/// of all experts are heads of one attention, so that projections, kernel, cache, sequences, positions and hidden
/// tokens are those of attention/self_attention.hpp; a decoded token has the bits of the whole sequence. T = 0 is fine.
/// Equal bits for any number of threads. Parameters: those of attention_projections, experts one after the other (rows
/// of queries, keys and values, columns of the output map), and "gate" [N,D], at first zero: all weights are 1/N.
///
/// Zhang et al. 2024, "BAM! Just Like That: Simple and Efficient Parameter Upcycling for Mixture of Experts":
/// keys_of::each is its mixture with expert KV, keys_of::all the one with shared KV. Its parallel block is the
/// example's last line, in which the gate reads the normed x as all else does. Branches have output maps of their own
/// and are added, which equals the paper's one map of all side by side. No auxiliary loss stands on these weights.
#pragma once

#include <sluice/attention/self_attention.hpp>
#include <sluice/kernel/softmax.hpp>

#include <span>

namespace sluice::inline SLUICE_ISA {

/// Whose keys and values an expert's queries read: its own, or one set that all have.
enum class keys_of { each, all };

struct weighed_attention_options {
  index_t experts = 2;     ///< N
  index_t heads = 1;       ///< of an expert
  index_t head_width = 0;  ///< dk = dv; 0: D / heads
  keys_of keys = keys_of::each;
  double scale = 0;  ///< 0: 1 / sqrt(dk)
  kernel::rotary_options rotary{};
};

namespace detail {

template <typename Scalar>
struct weighed_attention_workspace : self_attention_workspace<Scalar> {
  matrix_buffer<Scalar> weights;  ///< [T,N]
  matrix_buffer<Scalar> weighed;  ///< [T, N heads dv]
};
template <typename Scalar>
struct weighed_attention_tape : self_attention_tape<Scalar> {
  matrix_buffer<Scalar> weights, weighed, dweighed, dlogits;
};

}  // namespace detail

template <FloatOrDouble Scalar, attention_order Order = attention_order::causal>
class weighed_attention
    : public token_mixer<weighed_attention<Scalar, Order>, Scalar, detail::weighed_attention_workspace<Scalar>,
                         detail::weighed_attention_tape<Scalar>> {
  using base = token_mixer<weighed_attention, Scalar, detail::weighed_attention_workspace<Scalar>,
                           detail::weighed_attention_tape<Scalar>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::tape;
  using typename base::workspace;
  static constexpr bool causal = Order == attention_order::causal;

  /// Throws std::invalid_argument unless N >= 1 and heads and widths are as self_attention needs them.
  explicit weighed_attention(index_t width, const weighed_attention_options& o = {})
      : experts_(o.experts),
        attention_(shape_of(width, o), o.rotary),
        maps_(width, attention_, {}),
        gate_({o.experts, width}, parameter_role::weight, initial_values::constant(0)) {}

  /// The mixture of trained layers, which have one shape, a key head a head and no biases: of keys_of::all, keys and
  /// values are the mean of theirs. The gate is zero: y is the mean of theirs, if keys are their own. Throws
  /// std::invalid_argument if the layers do not fit each other.
  static weighed_attention of_layers(std::span<const self_attention<Scalar, Order>> layers,
                                     keys_of keys = keys_of::each) {
    if (layers.empty()) throw_invalid("weighed_attention::of_layers needs a layer");
    const auto& first = layers.front();
    const kernel::attention_shape& s = first.attention_shape();
    for (const auto& layer : layers) check_layer_of(layer, first);
    const index_t N = static_cast<index_t>(layers.size());
    weighed_attention mixture(first.inputs(), {.experts = N,
                                               .heads = s.heads,
                                               .head_width = s.key_width,
                                               .keys = keys,
                                               .scale = s.score_scale(),
                                               .rotary = first.rotary()});
    matrix<Scalar> query = mixture.query().to_matrix(),
                   key = matrix<Scalar>::Zero(mixture.key().rows(), mixture.key().cols());
    matrix<Scalar> value = key, output = mixture.output().to_matrix();
    for (index_t j = 0; j < N; ++j) {
      self_attention<Scalar, Order> layer = layers[as_size(j)];
      const index_t rows = s.heads * s.key_width, place = keys == keys_of::each ? j * rows : 0;
      const Scalar part = keys == keys_of::each ? Scalar(1) : 1 / static_cast<Scalar>(N);
      query.middleRows(j * rows, rows) = layer.query().to_matrix();
      key.middleRows(place, rows) += part * layer.key().to_matrix();
      value.middleRows(place, rows) += part * layer.value().to_matrix();
      output.middleCols(j * rows, rows) = layer.output().to_matrix();
    }
    mixture.query().assign(query), mixture.key().assign(key);
    mixture.value().assign(value), mixture.output().assign(output);
    return mixture;
  }

  index_t inputs() const noexcept { return maps_.inputs(); }
  index_t experts() const noexcept { return experts_; }
  const kernel::attention_shape& attention_shape() const noexcept { return attention_.shape(); }

  /// As self_attention's: tokens that continue the cache's sequences.
  void forward_cached(tokens_in<Scalar> x, tokens_out<Scalar> y, key_value_cache<Scalar>& cache, workspace& ws,
                      const context_type& context = {}) const requires causal {
    check_context(context, x.rows());
    attention_.check_cache(x.rows(), cache, context);
    this->run(x, y, ws, context, [&](tokens_in<Scalar> seen) {
      maps_.project(seen, ws.heads, context.executor);
      attention_.forward_cached(ws.heads, cache, ws.kept.visible(context));
      add_by_weight(seen, y, ws, context.executor);
    });
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    const index_t numbers = (attention_.out_columns() + experts_ + inputs()) * (training ? 2 : 1);
    return attention_.workspace_bytes(rows, training) + rows * numbers * static_cast<index_t>(sizeof(Scalar));
  }

  parameter<Scalar>& query() noexcept { return maps_.query(); }
  parameter<Scalar>& key() noexcept { return maps_.key(); }
  parameter<Scalar>& value() noexcept { return maps_.value(); }
  parameter<Scalar>& output() noexcept { return maps_.output(); }
  parameter<Scalar>& gate() noexcept { return gate_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    std::remove_cvref_t<decltype(self.maps_)>::visit_parameters(self.maps_, visit);
    visit("gate", self.gate_);
  }

private:
  static kernel::attention_shape shape_of(index_t width, const weighed_attention_options& o) {
    if (width < 1 || o.experts < 1 || o.heads < 1 || o.head_width < 0 || (o.head_width == 0 && width % o.heads != 0))
      throw_invalid(
          "weighed_attention needs D, experts and heads >= 1, and D a multiple of heads where head_width is 0, not D ",
          width, ", ", o.experts, " experts, ", o.heads, " heads, width ", o.head_width);
    const index_t head = o.head_width == 0 ? width / o.heads : o.head_width,
                  heads = checked_product(o.experts, o.heads);
    return {.heads = heads,
            .key_heads = o.keys == keys_of::each ? heads : o.heads,
            .key_width = head,
            .value_width = head,
            .scale = o.scale,
            .causal = causal,
            .sharing = key_sharing::repeated};
  }
  static void check_layer_of(const self_attention<Scalar, Order>& layer, const self_attention<Scalar, Order>& first) {
    const kernel::attention_shape &s = layer.attention_shape(), &f = first.attention_shape();
    bool fits = layer.inputs() == first.inputs() && s.heads == f.heads && s.key_heads == s.heads &&
                s.key_width == f.key_width && s.value_width == s.key_width && s.score_scale() == f.score_scale() &&
                layer.rotary() == first.rotary();
    for_each_parameter(layer, [&](const auto& name, const auto&) { fits &= !name.ends_with("bias"); });
    if (!fits)
      throw_invalid(
          "weighed_attention::of_layers needs layers of one shape, one scale and one kind of positions, with a key "
          "head a head, values as wide as keys and no biases");
  }

  index_t expert_columns() const noexcept { return attention_.out_columns() / experts_; }

  /// y of m.heads.out.
  template <typename Memory>
  void add_by_weight(tokens_in<Scalar> x, tokens_out<Scalar> y, Memory& m, const executor_ref& executor) const {
    m.weights.resize(x.rows(), experts_);
    m.weighed.resize(x.rows(), attention_.out_columns());
    linear_forward(x, gate_, m.weights.map(), executor);
    executor.parallel_each(x.rows(), attention_.out_columns(), [&](index_t t) {
      kernel::softmax(m.weights.row(t), m.weights.row(t), experts_);
      for (index_t j = 0; j < experts_; ++j)
        kernel::copy_scaled(m.weights(t, j), m.heads.out.row(t) + j * expert_columns(),
                            m.weighed.row(t) + j * expert_columns(), expert_columns());
    });
    maps_.reduce(m.weighed.map(), y, executor);
  }

  template <typename Memory>
  void mix(tokens_in<Scalar> x, tokens_out<Scalar> y, Memory& m, const context_type& context) const {
    maps_.project(x, m.heads, context.executor);
    attention_.forward(m.heads, m.kept.visible(context));
    add_by_weight(x, y, m, context.executor);
  }

  void mix_backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t) {
    const executor_ref& executor = t.context.executor;
    const index_t columns = expert_columns();
    maps_.reduce_backward(t.weighed.map(), dy, t.dweighed, executor);
    t.dlogits.resize(dy.rows(), experts_);
    t.heads.dout.resize(dy.rows(), attention_.out_columns());
    executor.parallel_each(dy.rows(), attention_.out_columns(), [&](index_t r) {
      const Scalar *w = t.weights.row(r), *d = t.dweighed.row(r);
      Scalar *dl = t.dlogits.row(r), mean = 0;
      for (index_t j = 0; j < experts_; ++j) {
        kernel::copy_scaled(w[j], d + j * columns, t.heads.dout.row(r) + j * columns, columns);
        dl[j] = kernel::dot(d + j * columns, t.heads.out.row(r) + j * columns, columns);
        mean += w[j] * dl[j];
      }
      for (index_t j = 0; j < experts_; ++j) dl[j] = w[j] * (dl[j] - mean);
    });
    attention_.backward(t.heads, t.kept.visible(t.context));
    maps_.project_backward(t.kept.x(), t.heads, dx, executor);
    linear_backward(t.kept.x(), gate_, t.dlogits.map(), dx, executor);
  }

  index_t experts_;
  dot_product_attention<Scalar> attention_;
  attention_projections<Scalar> maps_;
  parameter<Scalar> gate_;
};

}  // namespace sluice::inline SLUICE_ISA
