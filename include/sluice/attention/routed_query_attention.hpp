/// Attention whose queries and outputs are experts': every token asks with the heads of the experts that it is routed
/// to, and all of them look at the same keys and values.
///
///   S_t, w_t = router(x_t)                     k = x W_k^T, v = x W_v^T [T, key_heads d]
///   q_ti = W_q^e x_t [key_heads d]             for the i-th of the experts e of S_t
///   o_ti = attention(q_ti, k, v)               its j-th head looks at the j-th of the key heads
///   y_t  = sum over i of w_ti W_o^e o_ti (+ b)
///
///   routed_query_attention attention{top_k_router<float>{D, 8, {.top_k = 2}}, {.key_heads = 4, .head_width = 64}};
///
/// The decision is made once, for queries and outputs, by any router of sparse plans, and the auxiliary losses that
/// stand behind the options see it. Where tokens have different numbers of experts, attention costs as much as if all
/// had the most. Keys and values take memory once, whatever the number of experts. Experts may be of any storage
/// (stored_as).
///
/// Sequences, hidden tokens and cached calls are those of attention/self_attention.hpp: padding and tokens with NaN are
/// seen by nobody and get zero and NaN; a token whose logits alone hold NaN gets NaN and is seen. Causal if order and
/// router are. T = 0 is fine. Parameters: those of the router, "query.<e>.weight", "key", "value", "output.<e>.weight"
/// and "output_bias".
///
/// Mixture of attention heads (Zhang et al. 2022, arXiv:2210.05144) has one key head, more experts than heads, and the
/// softmax's probabilities as weights: as they are in the published code (weighting::pre), divided by their detached
/// sum in the paper (renorm_detached); its sampling is drawn_tail_router. Its losses are importance_loss of the chosen
/// probabilities, unbiased, switch_balance of the survivors, and router_z_loss, which counts padding there and does not
/// here. JetMoE's (Shen et al. 2024, arXiv:2404.07413) has a softmax over the chosen logits (post), rotary positions on
/// whole heads and a bias.
#pragma once

#include <sluice/attention/dot_product_attention.hpp>
#include <sluice/attention/head_router.hpp>
#include <sluice/attention/self_attention.hpp>
#include <sluice/core/checked_size.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include <cmath>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct routed_query_options {
  index_t key_heads = 1;    ///< and query heads of an expert
  index_t head_width = 64;  ///< d
  double scale = 0;         ///< of scores; 0: 1 / sqrt(d)
  bool output_bias = false;
  kernel::rotary_options rotary{};
};

namespace detail {

template <typename Routing, typename Bank, typename Heads>
struct routed_query_memory : Routing {
  typename Bank::tape query, output;
  Heads heads;
};

template <typename Router, MapStorage Storage, typename... Losses>
struct routed_query_parts {
  using scalar = typename Router::scalar;
  using routing = head_router<Router, Losses...>;
  using bank = expert_bank<linear_expert<scalar, Storage>>;
  using attention = dot_product_attention<scalar>;
  using workspace = routed_query_memory<typename routing::workspace, bank, typename attention::workspace>;
  using tape = routed_query_memory<typename routing::tape, bank, typename attention::tape>;
};

}  // namespace detail

template <typename Router, attention_order Order = attention_order::causal,
          MapStorage Storage = full_precision<typename Router::scalar>, typename... Losses>
class routed_query_attention
    : public token_mixer<routed_query_attention<Router, Order, Storage, Losses...>, typename Router::scalar,
                         typename detail::routed_query_parts<Router, Storage, Losses...>::workspace,
                         typename detail::routed_query_parts<Router, Storage, Losses...>::tape> {
  using parts = detail::routed_query_parts<Router, Storage, Losses...>;
  using base =
      token_mixer<routed_query_attention, typename Router::scalar, typename parts::workspace, typename parts::tape>;
  friend base;
  using routing = typename parts::routing;
  using attention = typename parts::attention;
  using bank_type = typename parts::bank;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  using typename base::workspace;
  static constexpr bool causal = Order == attention_order::causal && routing::causal;
  static constexpr bool exact_gradient = has_exact_gradient<Router>;

  /// Throws std::invalid_argument if the heads make no sense (kernel::check_heads, kernel::check_rotary).
  explicit routed_query_attention(Router router, const routed_query_options& o = {}, Losses... losses)
      : options_(o),
        routing_(std::move(router), std::move(losses)...),
        query_(checked_experts(o), routing_.inputs(), o.key_heads * o.head_width),
        key_(map_of(checked_product(o.key_heads, o.head_width), inputs())),
        value_(map_of(checked_product(o.key_heads, o.head_width), inputs())),
        output_(experts(), o.key_heads * o.head_width, inputs()) {
    if (o.output_bias) output_bias_ = {{inputs()}, parameter_role::vector};
  }

  index_t inputs() const noexcept { return routing_.inputs(); }
  index_t experts() const noexcept { return routing_.experts(); }
  /// With the heads of one expert.
  kernel::attention_shape attention_shape() const noexcept { return shape_of(options_, 1); }
  const routed_query_options& options() const noexcept { return options_; }

  /// As self_attention's: tokens that continue the cache's sequences.
  void forward_cached(tokens_in<scalar> x, tokens_out<scalar> y, key_value_cache<scalar>& cache, workspace& ws,
                      const context_type& context = {}) const requires causal {
    check_context(context, x.rows());
    heads_of(1).check_cache(x.rows(), cache, context);
    this->run(x, y, ws, context, [&](tokens_in<scalar> seen) {
      const context_type visible = ws.kept.visible(context);
      const attention heads = map(seen, ws, visible);
      heads.forward_cached(ws.heads, cache, visible);
      reduce(y, ws, visible);
    });
  }

  void after_step(tape& t) { routing_.after_step(t); }

  /// The same layer with its experts' weights rounded to another storage, for inference.
  template <typename Other>
  auto stored_as(const auto&... format) const {
    return routed_query_attention<Router, Order, Other, Losses...>(*this, query_.template stored_as<Other>(format...),
                                                                   output_.template stored_as<Other>(format...));
  }

  /// Bytes that a workspace (or tape) will take for so many rows: tokens, or assignments where tokens have several.
  index_t workspace_bytes(index_t rows, bool training = false) const {
    return heads_of(1).workspace_bytes(rows, training) + query_.workspace_bytes(rows, training) +
           output_.workspace_bytes(rows, training) +
           rows * inputs() * (training ? 2 : 1) * static_cast<index_t>(sizeof(scalar));
  }

  Router& router() noexcept { return routing_.router(); }
  const Router& router() const noexcept { return routing_.router(); }
  bank_type& query() noexcept { return query_; }
  bank_type& output() noexcept { return output_; }
  parameter<scalar>& key() noexcept { return key_; }
  parameter<scalar>& value() noexcept { return value_; }
  parameter<scalar>& output_bias() noexcept { return output_bias_; }
  template <std::size_t I>
  auto& loss() noexcept {
    return routing_.template loss<I>();
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    routing::visit_parameters(self.routing_, visit);
    visit("query", self.query_);
    visit("key", self.key_);
    visit("value", self.value_);
    visit("output", self.output_);
    if (self.options_.output_bias) visit("output_bias", self.output_bias_);
  }

private:
  template <typename R, attention_order O, MapStorage S, typename... L>
  friend class routed_query_attention;

  /// What `other` is but for the storage of its experts.
  template <typename Other>
  routed_query_attention(const Other& other, bank_type query, bank_type output)
      : options_(other.options_),
        routing_(other.routing_),
        query_(std::move(query)),
        key_(other.key_),
        value_(other.value_),
        output_(std::move(output)),
        output_bias_(other.output_bias_) {}

  index_t checked_experts(const routed_query_options& o) const {
    kernel::check_heads(shape_of(o, 1));
    kernel::check_rotary(o.rotary, o.head_width);
    return experts();
  }
  static parameter<scalar> map_of(index_t out, index_t in) {
    return {{out, in}, parameter_role::weight, initial_values::normal(1 / std::sqrt(static_cast<double>(in)))};
  }
  static kernel::attention_shape shape_of(const routed_query_options& o, index_t rows_a_token) noexcept {
    return {.heads = rows_a_token * o.key_heads,
            .key_heads = o.key_heads,
            .key_width = o.head_width,
            .value_width = o.head_width,
            .scale = o.scale,
            .causal = Order == attention_order::causal,
            .sharing = key_sharing::repeated};
  }
  attention heads_of(index_t rows_a_token) const {
    return attention(shape_of(options_, rows_a_token), options_.rotary);
  }

  /// Rows of a matrix of heads, one for every slot of a token.
  static matrix_map<scalar> by_slot(matrix_buffer<scalar>& heads, index_t rows_a_token) {
    return {heads.data(), heads.rows() * rows_a_token, heads.cols() / rows_a_token};
  }

  template <typename Memory>
  attention map(tokens_in<scalar> x, Memory& m, const context_type& context) const {
    constexpr bool training = std::same_as<Memory, tape>;
    routing_.route(x, context, m);
    routing::give_each_a_row(m);
    const index_t most_rows = m.plan.most_rows();
    query_.prepare(m.query, most_rows, training);
    output_.prepare(m.output, most_rows, training);
    const attention heads = heads_of(m.rows_a_token);
    heads.resize(m.heads, x.rows());
    m.heads.q.set_zero(x.rows(), heads.query_columns());
    query_.forward_routed(x, routing::to_heads(m), by_slot(m.heads.q, m.rows_a_token), m.query, context.executor);
    linear_forward(x, key_, m.heads.k.map(), context.executor);
    linear_forward(x, value_, m.heads.v.map(), context.executor);
    return heads;
  }

  template <typename Memory>
  void reduce(tokens_out<scalar> y, Memory& m, const context_type& context) const {
    detail::clear_rows<scalar>(y, context.executor);
    output_.forward_routed(by_slot(m.heads.out, m.rows_a_token), routing::from_heads(m), y, m.output, context.executor);
    if (options_.output_bias) add_to_rows<scalar>(y, output_bias_);
    detail::write_invalid<scalar>(m.plan, y);
  }

  template <typename Memory>
  void mix(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context) const {
    const context_type visible = m.kept.visible(context);
    map(x, m, visible).forward(m.heads, visible);
    reduce(y, m, visible);
  }

  void mix_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    const context_type visible = t.kept.visible(t.context);
    const executor_ref& executor = visible.executor;
    const auto x = t.kept.x();
    const attention heads = heads_of(t.rows_a_token);
    for (const index_t token : t.plan.invalid_tokens()) t.kept.gradient().row(token).setZero();  // dy is there
    if (options_.output_bias) add_column_sums(dy, output_bias_.gradient());

    t.heads.dout.set_zero(dy.rows(), heads.out_columns());
    output_.backward_routed(by_slot(t.heads.out, t.rows_a_token), routing::from_heads(t), dy,
                            by_slot(t.heads.dout, t.rows_a_token), t.output, routing::weight_gradients(t), nullptr,
                            executor);
    heads.backward(t.heads, visible);
    query_.backward_routed(x, routing::to_heads(t), by_slot(t.heads.dq, t.rows_a_token), dx, t.query, nullptr, nullptr,
                           executor);
    linear_backward(x, key_, t.heads.dk.map(), dx, executor);
    linear_backward(x, value_, t.heads.dv.map(), dx, executor);
    routing_.backward(x, visible, t, dx);
  }

  routed_query_options options_;
  routing routing_;
  bank_type query_;
  parameter<scalar> key_, value_;
  bank_type output_;
  parameter<scalar> output_bias_;
};

template <typename Router, typename... Losses>
routed_query_attention(Router, const routed_query_options&, Losses...)
    -> routed_query_attention<Router, attention_order::causal, full_precision<typename Router::scalar>, Losses...>;

/// Its router has .weights = weighting::pre, or renorm_detached.
template <FloatOrDouble Scalar, attention_order Order = attention_order::bidirectional, typename... Losses>
using mixture_of_attention_heads =
    routed_query_attention<top_k_router<Scalar>, Order, full_precision<Scalar>, Losses...>;

/// The attention of JetMoE: k = 2 of 8 experts with .weights = weighting::post, 16 key heads of width 128,
/// {.output_bias = true, .rotary = {.width = 128}}.
template <FloatOrDouble Scalar, MapStorage Storage = full_precision<Scalar>>
using jetmoe_attention = routed_query_attention<top_k_router<Scalar>, attention_order::causal, Storage>;

}  // namespace sluice::inline SLUICE_ISA
