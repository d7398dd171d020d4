/// Attention of which every token takes part in some heads only: experts are heads that attend among their own tokens.
///
///   plan = router(x)        every token's experts, with weights w; an expert is one head, or a few
///   expert e of one sequence, whose tokens there are t_1 < t_2 < .. < t_n, for each of its heads:
///     q_i = W_q^e x_(t_i) (+ b_q^e) [dk], k_i [dk] and v_i [dv] alike; q_i and k_i are turned by t_i's place in there
///     o_i = attention(q_i; k_j, v_j of j <= i, or of all j)
///   y_t = sum over the experts e of t of w_te (W_o^e o^e_t (+ b_o^e))
///
/// Projections and attention cost what is chosen: with half of the heads a token, half of the projections and a quarter
/// of the scores. All heads with weight 1 are self_attention. Gradients are exact for the router's choice. An expert
/// whose token is alone in its sequence sees itself.
///
///   const unit_weights_router router{position_share_router<float>{D, A, {.top_k = A / 2}}};
///   selective_attention attention{head_router{router}, {.head_width = D / A, .bias = true, .rotary = {.width = 8}}};
///
/// is the selective attention of Union of Experts (Yang et al. 2025, arXiv:2503.02495) as far as its paper and released
/// code agree: there a head's result is not weighed either, and shorter lists are filled up with tokens that chose
/// nothing, which a list of its own length for every head does not need.
///
/// With options.among = attended::all_tokens a token looks at all of its sequence, whatever expert keys come from: it
/// has one expert then, for all four maps, and head j of an expert reads head j of every other one. That is MiniMoE's
/// mixture (Zhang et al. 2023, arXiv:2305.12129), whose experts convert/dealt_heads.hpp makes of one attention.
///
/// Sequences and hidden tokens are those of attention/self_attention.hpp; a token whose logits alone hold NaN gets NaN
/// and is seen by nobody, a token without an expert gets zero. Causal if order and router are. T = 0 is fine. Equal
/// bits for any number of threads. Parameters: "router.router...", "query.<e>.weight", "key", "value", "output" and
/// their "bias".
#pragma once

#include <sluice/attention/dot_product_attention.hpp>
#include <sluice/attention/head_router.hpp>
#include <sluice/attention/selected_rows.hpp>
#include <sluice/attention/self_attention.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/kernel/dispatch.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

struct selective_attention_options {
  index_t heads = 1;        ///< of an expert
  index_t head_width = 64;  ///< dk
  index_t value_width = 0;  ///< dv; 0: dk
  bool bias = false;        ///< of all four maps
  double scale = 0;         ///< of scores; 0: 1 / sqrt(dk)
  attended among = attended::own_tokens;
  kernel::rotary_options rotary{};
};

namespace detail {

template <typename Routing, typename Bank, typename Heads>
struct selective_memory : Routing {
  using scalar = typename Bank::scalar;

  typename Bank::tape query, key, value, output;
  Heads heads;
  selected_rows rows;  ///< of the heads
  kernel::rotary_table<scalar> rotary;
};

template <typename Routing, MapStorage Storage>
struct selective_parts {
  using scalar = typename Routing::scalar;
  using bank = expert_bank<linear_expert<scalar, Storage>>;
  using attention = dot_product_attention<scalar>;
  using workspace = selective_memory<typename Routing::workspace, bank, typename attention::workspace>;
  using tape = selective_memory<typename Routing::tape, bank, typename attention::tape>;
};

}  // namespace detail

template <typename Routing, attention_order Order = attention_order::causal,
          MapStorage Storage = full_precision<typename Routing::scalar>>
class selective_attention : public token_mixer<selective_attention<Routing, Order, Storage>, typename Routing::scalar,
                                               typename detail::selective_parts<Routing, Storage>::workspace,
                                               typename detail::selective_parts<Routing, Storage>::tape> {
  using parts = detail::selective_parts<Routing, Storage>;
  using base = token_mixer<selective_attention, typename Routing::scalar, typename parts::workspace,
                           typename parts::tape>;
  friend base;
  using bank_type = typename parts::bank;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  using typename base::workspace;
  static constexpr bool causal = Order == attention_order::causal && Routing::causal;
  static constexpr bool exact_gradient = has_exact_gradient<Routing>;

  /// Throws std::invalid_argument if heads, widths, scale or positions make no sense.
  explicit selective_attention(Routing routing, const selective_attention_options& o = {})
      : attention_(shape_of(o)),
        rotary_(o.rotary),
        among_(o.among),
        routing_(std::move(routing)),
        query_(bank_of(inputs(), attention_.query_columns(), o)),
        key_(bank_of(inputs(), attention_.key_columns(), o)),
        value_(bank_of(inputs(), attention_.value_columns(), o)),
        output_(bank_of(attention_.out_columns(), inputs(), o)) {
    kernel::check_rotary(rotary_, o.head_width);
  }

  index_t inputs() const noexcept { return routing_.inputs(); }
  index_t experts() const noexcept { return routing_.experts(); }
  /// Of one expert.
  const kernel::attention_shape& attention_shape() const noexcept { return attention_.shape(); }

  void after_step(tape& t) { routing_.after_step(t); }

  /// The same layer with the weights of its experts rounded to another storage, for inference.
  template <typename Other>
  auto stored_as(const auto&... format) const {
    return selective_attention<Routing, Order, Other>(
        *this, query_.template stored_as<Other>(format...), key_.template stored_as<Other>(format...),
        value_.template stored_as<Other>(format...), output_.template stored_as<Other>(format...));
  }

  /// Bytes that a workspace (or tape) will take for so many rows: assignments of tokens to experts.
  index_t workspace_bytes(index_t rows, bool training = false) const {
    index_t bytes =
        attention_.workspace_bytes(rows, training) + rows * inputs() * static_cast<index_t>(sizeof(scalar));
    for (const bank_type* bank : {&query_, &key_, &value_, &output_}) bytes += bank->workspace_bytes(rows, training);
    return bytes;
  }

  Routing& routing() noexcept { return routing_; }
  bank_type& query() noexcept { return query_; }
  bank_type& key() noexcept { return key_; }
  bank_type& value() noexcept { return value_; }
  bank_type& output() noexcept { return output_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("router", self.routing_);
    visit("query", self.query_);
    visit("key", self.key_);
    visit("value", self.value_);
    visit("output", self.output_);
  }

private:
  template <typename R, attention_order A, MapStorage S>
  friend class selective_attention;

  /// What `other` is but for the storage of its experts.
  template <typename Other>
  selective_attention(const Other& other, bank_type query, bank_type key, bank_type value, bank_type output)
      : attention_(other.attention_),
        rotary_(other.rotary_),
        among_(other.among_),
        routing_(other.routing_),
        query_(std::move(query)),
        key_(std::move(key)),
        value_(std::move(value)),
        output_(std::move(output)) {}

  static kernel::attention_shape shape_of(const selective_attention_options& o) noexcept {
    return {.heads = o.heads,
            .key_heads = o.heads,
            .key_width = o.head_width,
            .value_width = o.value_width == 0 ? o.head_width : o.value_width,
            .scale = o.scale,
            .causal = Order == attention_order::causal};
  }
  bank_type bank_of(index_t in, index_t out, const selective_attention_options& o) const {
    using expert = linear_expert<scalar, Storage>;
    return bank_type(experts(), in, out, typename expert::options{.bias = o.bias});
  }

  /// Rows that see each other are the sequences of the heads' rows.
  template <typename Memory>
  static context_type of_rows(const Memory& m, const context_type& context) {
    context_type rows;
    rows.executor = context.executor;
    rows.sequences = m.rows.borders.span();
    rows.token_mask = m.rows.taken.span();
    return rows;
  }

  template <typename Memory>
  void turn_rows(Memory& m, matrix_buffer<scalar>& q, matrix_buffer<scalar>& k, kernel::turn direction,
                 const executor_ref& executor) const {
    if (rotary_.width == 0) return;
    const index_t heads = attention_shape().heads, width = attention_shape().key_width;
    executor.parallel_each(q.rows(), 2 * heads * rotary_.width, [&](index_t i) {
      for (auto* rows : {&q, &k}) m.rotary.rotate(rows->row(i), heads, width, m.rows.positions[i], direction);
    });
  }

  template <typename Memory>
  void mix(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context) const {
    const context_type visible = m.kept.visible(context);
    const executor_ref& executor = visible.executor;
    routing_.route(x, visible, m);
    m.rows.lay_out(m.plan, among_, visible, m.places, m.heads.ranges);
    attention_.resize(m.heads, m.rows.count());
    const auto map = [&](const bank_type& bank, typename bank_type::tape& memory, matrix_buffer<scalar>& to) {
      bank.prepare(
          memory, m.plan.most_rows(), requires { m.dplan; });
      to.map().setZero();
      bank.forward_routed(x, Routing::to_heads(m), to.map(), memory, executor);
    };
    map(query_, m.query, m.heads.q);
    map(key_, m.key, m.heads.k);
    map(value_, m.value, m.heads.v);
    if (rotary_.width > 0) m.rotary.prepare(rotary_, x.rows());
    turn_rows(m, m.heads.q, m.heads.k, kernel::turn::forward, executor);
    attention_.forward(m.heads, of_rows(m, visible));
    output_.prepare(
        m.output, m.plan.most_rows(), requires { m.dplan; });
    detail::clear_rows<scalar>(y, executor);
    output_.forward_routed(m.heads.out.map(), Routing::from_heads(m), y, m.output, executor);
    detail::write_invalid<scalar>(m.plan, y);
  }

  void mix_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    const context_type visible = t.kept.visible(t.context);
    const executor_ref& executor = visible.executor;
    for (const index_t token : t.plan.invalid_tokens()) t.kept.gradient().row(token).setZero();  // dy is there
    t.heads.dout.set_zero(t.rows.count(), attention_.out_columns());
    output_.backward_routed(t.heads.out.map(), Routing::from_heads(t), dy, t.heads.dout.map(), t.output,
                            Routing::weight_gradients(t), nullptr, executor);
    attention_.backward(t.heads, of_rows(t, visible));
    turn_rows(t, t.heads.dq, t.heads.dk, kernel::turn::back, executor);
    const auto map_backward = [&](bank_type& bank, typename bank_type::tape& memory, matrix_buffer<scalar>& gradient) {
      bank.backward_routed(t.kept.x(), Routing::to_heads(t), gradient.map(), dx, memory, nullptr, nullptr, executor);
    };
    map_backward(query_, t.query, t.heads.dq);
    map_backward(key_, t.key, t.heads.dk);
    map_backward(value_, t.value, t.heads.dv);
    routing_.backward(t.kept.x(), visible, t, dx);
  }

  dot_product_attention<scalar> attention_;
  kernel::rotary_options rotary_;
  attended among_;
  Routing routing_;
  bank_type query_, key_, value_, output_;
};

}  // namespace sluice::inline SLUICE_ISA
