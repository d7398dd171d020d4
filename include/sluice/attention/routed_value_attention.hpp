/// Attention whose values and outputs are experts' of every head: queries and keys are plain maps, but what a token
/// has to say in a head, and how a head's answer is put out, is up to the experts that are chosen for that head.
///
///   n = norm(x);   q = n W_q^T, k = n W_k^T [T, heads dk]
///   v_ta = sum over the value experts e of head a of w_te V_e x_t [dv]                 w = value router(n)
///   o = attention(q, k, v)
///   y_t = sum over heads a and the output experts e of a of w_te O_e o_ta             w = output router(n)
///
/// Both routers choose among all heads' experts, those of a head next to each other; who chooses as many for every head
/// has a group_limit that is `evenly`. Choices and keys depend on the normalised tokens, values on the tokens
/// themselves: with no_norm on the same. A router is given in a head_router, with its losses; entropy_loss with .parts
/// = heads keeps experts of every head busy. The value router draws from context.for_layer(0), the output router from
/// for_layer(1).
///
/// SwitchHead (Csordas et al. 2023, arXiv:2312.07987; 2024, arXiv:2405.16039) weighs by sigmoids that do not compete:
///   const sigmoid_router<float> router{D, A * E, switch_head_routing<float>(A, k)};
///   switch_head<float> attention{head_router{router}, head_router{router}, layer_norm<float>{D},
///                                {.heads = A, .key_width = d, .rotary = {.width = d / 2}}};
/// With one expert a head it has no value router, dense_router in its place, and the output's becomes a gate of the
/// head's result. Its expert dropout is the rule's. Initial values here: normal with deviation 1/sqrt(inputs).
///
/// Sequences, hidden tokens and cached calls are those of attention/self_attention.hpp; a token whose logits alone hold
/// NaN gets NaN. Causal if order and routers are. T = 0 is fine. Parameters: "query", "key", "value_router.router...",
/// "value.<e>.weight", "output_router.router...", "output.<e>.weight" and those of the norm, "norm...".
#pragma once

#include <sluice/attention/dot_product_attention.hpp>
#include <sluice/attention/head_router.hpp>
#include <sluice/attention/self_attention.hpp>
#include <sluice/core/checked_size.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/kernel/row_norm.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>

#include <cmath>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct routed_value_options {
  index_t heads = 1;
  index_t key_width = 64;   ///< dk
  index_t value_width = 0;  ///< dv; 0: dk
  double scale = 0;         ///< of scores; 0: 1 / sqrt(dk)
  kernel::rotary_options rotary{};
};

namespace detail {

/// A bank between which a head_router routes, and its memory.
template <typename Routing, typename Bank>
struct routed_bank_memory : Routing {
  typename Bank::tape bank;
};

template <typename ValueRouting, typename OutputRouting, typename Bank, typename Norm, typename Heads>
struct routed_value_memory {
  routed_bank_memory<ValueRouting, Bank> value;
  routed_bank_memory<OutputRouting, Bank> output;
  Heads heads;
  typename Norm::tape norm;
  matrix_buffer<typename Norm::scalar> normalized;
};
template <typename ValueRouting, typename OutputRouting, typename Bank, typename Norm, typename Heads>
struct routed_value_tape : routed_value_memory<ValueRouting, OutputRouting, Bank, Norm, Heads> {
  matrix_buffer<typename Norm::scalar> dnormalized;

  typename Norm::scalar loss() const { return this->value.loss() + this->output.loss(); }
};

template <typename ValueRouting, typename OutputRouting, typename Norm, MapStorage Storage>
struct routed_value_parts {
  using scalar = typename Norm::scalar;
  using bank = expert_bank<linear_expert<scalar, Storage>>;
  using attention = dot_product_attention<scalar>;
  using workspace = routed_value_memory<typename ValueRouting::workspace, typename OutputRouting::workspace, bank, Norm,
                                        typename attention::workspace>;
  using tape = routed_value_tape<typename ValueRouting::tape, typename OutputRouting::tape, bank, Norm,
                                 typename attention::tape>;
};

}  // namespace detail

template <typename ValueRouting, typename OutputRouting, RowNorm Norm = no_norm<typename OutputRouting::scalar>,
          attention_order Order = attention_order::causal,
          MapStorage Storage = full_precision<typename OutputRouting::scalar>>
class routed_value_attention
    : public token_mixer<routed_value_attention<ValueRouting, OutputRouting, Norm, Order, Storage>,
                         typename Norm::scalar,
                         typename detail::routed_value_parts<ValueRouting, OutputRouting, Norm, Storage>::workspace,
                         typename detail::routed_value_parts<ValueRouting, OutputRouting, Norm, Storage>::tape> {
  using parts = detail::routed_value_parts<ValueRouting, OutputRouting, Norm, Storage>;
  using base =
      token_mixer<routed_value_attention, typename Norm::scalar, typename parts::workspace, typename parts::tape>;
  friend base;
  using bank_type = typename parts::bank;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  using typename base::workspace;
  static constexpr bool causal = Order == attention_order::causal && ValueRouting::causal && OutputRouting::causal;
  static constexpr bool exact_gradient = has_exact_gradient<ValueRouting> && has_exact_gradient<OutputRouting>;

  /// Throws std::invalid_argument if the heads make no sense, or a router's experts are not as many for every head or
  /// read another width than the other's or the norm's.
  explicit routed_value_attention(ValueRouting value, OutputRouting output, Norm norm, const routed_value_options& o)
      : attention_(shape_of(o), o.rotary),
        value_router_(std::move(value)),
        output_router_(std::move(output)),
        norm_(std::move(norm)),
        query_(map_of(checked_product(o.heads, o.key_width), inputs())),
        key_(map_of(checked_product(o.heads, o.key_width), inputs())),
        value_(checked_experts(value_router_.experts()), inputs(), attention_shape().value_width),
        output_(checked_experts(output_router_.experts()), attention_shape().value_width, inputs()) {
    if (value_router_.inputs() != inputs())
      throw_invalid("the value router reads tokens of width ", value_router_.inputs(), ", the output router of width ",
                    inputs());
    check_norm_width("routed_value_attention", norm_, inputs());
  }

  index_t inputs() const noexcept { return output_router_.inputs(); }
  const kernel::attention_shape& attention_shape() const noexcept { return attention_.shape(); }

  /// As self_attention's: tokens that continue the cache's sequences.
  void forward_cached(tokens_in<scalar> x, tokens_out<scalar> y, key_value_cache<scalar>& cache, workspace& ws,
                      const context_type& context = {}) const requires causal {
    check_context(context, x.rows());
    attention_.check_cache(x.rows(), cache, context);
    this->run(x, y, ws, context, [&](tokens_in<scalar> seen) {
      const context_type visible = ws.kept.visible(context);
      map(seen, ws, visible);
      attention_.forward_cached(ws.heads, cache, visible);
      reduce(y, ws, visible);
    });
  }

  void after_step(tape& t) {
    value_router_.after_step(t.value);
    output_router_.after_step(t.output);
  }

  /// The same layer with its experts' weights rounded to another storage, for inference.
  template <typename Other>
  auto stored_as(const auto&... format) const {
    return routed_value_attention<ValueRouting, OutputRouting, Norm, Order, Other>(
        *this, value_.template stored_as<Other>(format...), output_.template stored_as<Other>(format...));
  }

  /// Bytes that a workspace (or tape) will take for so many rows: tokens, or assignments where tokens have several.
  index_t workspace_bytes(index_t rows, bool training = false) const {
    return attention_.workspace_bytes(rows, training) + value_.workspace_bytes(rows, training) +
           output_.workspace_bytes(rows, training) +
           2 * rows * inputs() * (training ? 2 : 1) * static_cast<index_t>(sizeof(scalar));
  }

  ValueRouting& value_router() noexcept { return value_router_; }
  OutputRouting& output_router() noexcept { return output_router_; }
  Norm& norm() noexcept { return norm_; }
  parameter<scalar>& query() noexcept { return query_; }
  parameter<scalar>& key() noexcept { return key_; }
  bank_type& value() noexcept { return value_; }
  bank_type& output() noexcept { return output_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Norm>) visit("norm", self.norm_);
    visit("query", self.query_);
    visit("key", self.key_);
    visit("value_router", self.value_router_);
    visit("value", self.value_);
    visit("output_router", self.output_router_);
    visit("output", self.output_);
  }

private:
  template <typename V, typename O, RowNorm N, attention_order A, MapStorage S>
  friend class routed_value_attention;

  /// What `other` is but for the storage of its experts.
  template <typename Other>
  routed_value_attention(const Other& other, bank_type value, bank_type output)
      : attention_(other.attention_),
        value_router_(other.value_router_),
        output_router_(other.output_router_),
        norm_(other.norm_),
        query_(other.query_),
        key_(other.key_),
        value_(std::move(value)),
        output_(std::move(output)) {}

  static kernel::attention_shape shape_of(const routed_value_options& o) noexcept {
    return {.heads = o.heads,
            .key_heads = o.heads,
            .key_width = o.key_width,
            .value_width = o.value_width == 0 ? o.key_width : o.value_width,
            .scale = o.scale,
            .causal = Order == attention_order::causal};
  }
  static parameter<scalar> map_of(index_t out, index_t in) {
    return {{out, in}, parameter_role::weight, initial_values::normal(1 / std::sqrt(static_cast<double>(in)))};
  }
  index_t checked_experts(index_t experts) const {
    if (experts % heads() != 0)
      throw_invalid("a router of ", experts, " experts has not as many for each of ", heads(), " heads");
    return experts;
  }
  index_t heads() const noexcept { return attention_.shape().heads; }

  /// Rows of a matrix of heads, one for every head of a token.
  matrix_map<scalar> by_head(matrix_buffer<scalar>& rows) const {
    return {rows.data(), rows.rows() * heads(), rows.cols() / heads()};
  }

  /// What choices, queries and keys are made of.
  template <typename Memory>
  static const_matrix_map<scalar> selected(const Memory& m) {
    if constexpr (leaves_rows<Norm>)
      return m.kept.x();
    else
      return m.normalized.map();
  }

  template <typename Routing, typename Memory>
  void route(const Routing& router, const bank_type& bank, tokens_in<scalar> n, const context_type& context,
             Memory& m) const {
    router.route(n, context, m);
    const index_t of_a_head = router.experts() / heads();
    Routing::give_rows(m, heads(), [&](index_t expert) { return expert / of_a_head; });
    bank.prepare(
        m.bank, m.plan.most_rows(), requires { m.losses; });
  }

  template <typename Memory>
  void map(tokens_in<scalar> x, Memory& m, const context_type& context) const {
    if constexpr (!leaves_rows<Norm>) {
      m.normalized.resize(x.rows(), x.cols());
      norm_.forward(x, m.normalized.map(), m.norm, context.executor);
    }
    const auto n = selected(m);
    route(value_router_, value_, n, context.for_layer(0), m.value);
    route(output_router_, output_, n, context.for_layer(1), m.output);
    attention_.resize(m.heads, x.rows());
    m.heads.v.map().setZero();
    value_.forward_routed(x, ValueRouting::weighted_to_heads(m.value), by_head(m.heads.v), m.value.bank,
                          context.executor);
    linear_forward(n, query_, m.heads.q.map(), context.executor);
    linear_forward(n, key_, m.heads.k.map(), context.executor);
  }

  template <typename Memory>
  void reduce(tokens_out<scalar> y, Memory& m, const context_type& context) const {
    detail::clear_rows<scalar>(y, context.executor);
    output_.forward_routed(by_head(m.heads.out), OutputRouting::from_heads(m.output), y, m.output.bank,
                           context.executor);
    detail::write_invalid<scalar>(m.value.plan, y);
    detail::write_invalid<scalar>(m.output.plan, y);
  }

  template <typename Memory>
  void mix(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context) const {
    const context_type visible = m.kept.visible(context);
    map(x, m, visible);
    attention_.forward(m.heads, visible);
    reduce(y, m, visible);
  }

  void mix_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    const context_type visible = t.kept.visible(t.context);
    const executor_ref& executor = visible.executor;
    const auto x = t.kept.x(), n = selected(t);
    for (const auto* plan : {&t.value.plan, &t.output.plan})
      for (const index_t token : plan->invalid_tokens()) t.kept.gradient().row(token).setZero();  // dy is there

    t.heads.dout.set_zero(dy.rows(), attention_.out_columns());
    output_.backward_routed(by_head(t.heads.out), OutputRouting::from_heads(t.output), dy, by_head(t.heads.dout),
                            t.output.bank, OutputRouting::weight_gradients(t.output), nullptr, executor);
    attention_.backward(t.heads, visible);
    value_.backward_routed(x, ValueRouting::weighted_to_heads(t.value), by_head(t.heads.dv), dx, t.value.bank,
                           ValueRouting::weight_gradients(t.value), nullptr, executor);

    t.dnormalized.set_zero(x.rows(), x.cols());
    const auto dn = t.dnormalized.map();
    linear_backward(n, query_, t.heads.dq.map(), dn, executor);
    linear_backward(n, key_, t.heads.dk.map(), dn, executor);
    value_router_.backward(n, visible.for_layer(0), t.value, dn);
    output_router_.backward(n, visible.for_layer(1), t.output, dn);
    detail::backward_of_used_rows(norm_, x, t.dnormalized, t.norm, dx, executor);
  }

  dot_product_attention<scalar> attention_;
  ValueRouting value_router_;
  OutputRouting output_router_;
  Norm norm_;
  parameter<scalar> query_, key_;
  bank_type value_, output_;
};

/// The routing of SwitchHead: k sigmoids for every head.
template <FloatOrDouble Scalar>
typename sigmoid_rule<Scalar>::options switch_head_routing(index_t heads, index_t top_k, double expert_dropout = 0) {
  return {.top_k = heads * top_k,
          .renormalize = false,
          .selection_bias = false,
          .groups = {.groups = heads, .kept = heads, .evenly = true},
          .expert_dropout = expert_dropout};
}

template <FloatOrDouble Scalar, typename... Losses>
using switch_head = routed_value_attention<head_router<sigmoid_router<Scalar>, Losses...>,
                                           head_router<sigmoid_router<Scalar>, Losses...>, layer_norm<Scalar>>;

}  // namespace sluice::inline SLUICE_ISA
