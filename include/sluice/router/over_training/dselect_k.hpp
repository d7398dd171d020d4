/// DSelect-k router: k soft selectors that learn binary codes of experts and end up choosing exactly one expert each.
///
///   m = ceil(log2 E) bits   codes Z [k,m] and mixing logits a [k] from the gate, the same for all tokens or per token
///   r[i,e] = product over bits b of (bit b of e ? S(Z[i,b]) : 1 - S(Z[i,b])), most significant bit first
///   S: smooth step of width gamma (kernel/smooth_step.hpp)      alpha = softmax(a)
///   weight of expert e = sum over i of alpha[i] r[i,e]
///
/// Static gates are dselect_k_router<float, static_selectors<float>>; the default reads every token (linear_selectors).
/// The plan holds the pairs with weight > 0: nearly all at first, at most k a token once every bit is saturated
/// (|Z| >= gamma/2), fewer where selectors agree. That is exact: where a weight is 0 so is its derivative by every
/// parameter, since S and 1 - S are 0 only where S' is. Of a token's experts the one with the lowest index has rank 0.
/// If E is no power of two, weights may sum to less than 1 (mass on codes without expert); they are not renormalised,
/// and loss/dselect.hpp has a penalty against it. Its entropy loss drives the bits to saturation.
/// Gradients, G the gradients of the weights:
///   dZ[i,b] = S'(Z[i,b]) sum over e of alpha[i] G[e] (+1 or -1 by bit b of e) * product over the other bits
///   da[i]   = alpha[i] (sum over e of G[e] r[i,e] - sum over e of G[e] weight[e])
///
/// Before bits saturate a token has k 2^m products of a code and a plan of up to E rows: of 256 experts up to three
/// times the work of a top-2 router. A saturated bit has no gradient and stays. Padding is not routed. NaN in a token,
/// its Z or a gives it no expert and output NaN. The number of selectors is part of the parameters: a call may not name
/// another k. Hazimeh et al. 2021, "DSelect-k", arXiv:2106.03760.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/token_screen.hpp>
#include <sluice/gate/selectors.hpp>
#include <sluice/kernel/smooth_step.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/loss/selector_signals.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, SelectorGate GateType = linear_selectors<Scalar>>
class dselect_k_router {
public:
  using scalar = Scalar;
  using plan = sparse_plan<Scalar>;
  static constexpr bool causal = is_causal<GateType>;

  struct options {
    index_t selectors = 2;  ///< k
    Scalar gamma = 1;
  };

  struct tape {
    selector_signals<Scalar> seen;
    selector_gradients<Scalar> dseen;
    token_screen<Scalar> screen;  ///< who is routed, and what the gate saw
    matrix_buffer<Scalar> codes;  ///< Z [N, k·m]
    matrix_buffer<Scalar> mixing_logits;
    matrix_buffer<Scalar> weights;  ///< [N,E]
    matrix_buffer<Scalar> dcodes;
    matrix_buffer<Scalar> dmixing;
    matrix_buffer<Scalar> dweights;
  };

  /// Throws std::invalid_argument unless D, E and k are at least 1 and gamma is positive.
  dselect_k_router(index_t inputs, index_t experts, options o = {})
      : options_(checked(inputs, experts, o)),
        experts_(experts),
        bits_(bits_for(experts)),
        gate_(inputs, o.selectors, bits_, o.gamma) {}

  index_t inputs() const noexcept { return gate_.inputs(); }
  index_t experts() const noexcept { return experts_; }
  index_t selectors() const noexcept { return options_.selectors; }
  /// Bits of a code.
  index_t bits() const noexcept { return bits_; }

  void route(tokens_in<Scalar> x, const routing_context<Scalar>& context, plan& p, tape& t) const {
    check_tokens(x, inputs(), context);
    if (context.top_k != 0 && context.top_k != selectors())
      throw_invalid("dselect_k_router has k = ", selectors(), " selectors; the call asks for k = ", context.top_k);
    const index_t rows = GateType::per_token ? x.rows() : 1;
    t.codes.resize(rows, selectors() * bits());
    t.mixing_logits.resize(rows, selectors());
    const auto row_of = [](index_t token) { return GateType::per_token ? token : 0; };
    t.screen.score(
        x, context,
        [&](tokens_in<Scalar> seen) { gate_.forward(seen, context, t.codes.map(), t.mixing_logits.map()); },
        [&](index_t token) {
          return any_nan(t.codes.row(row_of(token)), t.codes.cols()) ||
                 any_nan(t.mixing_logits.row(row_of(token)), selectors());
        });
    select(context, t);
    p.reset(x.rows(), experts());
    for (index_t token = 0; token < x.rows(); ++token)
      if (t.screen.is_invalid(token)) p.mark_invalid(token);
    p.assign_positive([&](index_t token) { return t.screen.is_routed(token) ? t.weights.row(row_of(token)) : nullptr; },
                      [&](index_t token, index_t e) { return t.weights(row_of(token), e); });
  }

  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<Scalar> dx) {
    const index_t rows = t.codes.rows();
    t.dweights.set_zero(rows, experts());
    for (index_t i = 0; i < p.size(); ++i)
      t.dweights(GateType::per_token ? p.token(i) : 0, p.expert(i)) += dplan.weight[i];
    t.dcodes.set_zero(rows, t.codes.cols());
    t.dmixing.set_zero(rows, selectors());
    context.executor.parallel_each(rows, 8 * selectors() * experts(), [&](index_t n) {
      if (t.seen.counted[n]) backward_row(t, n);
    });
    gate_.backward(t.screen.of(x), context, t.dcodes.map(), t.dmixing.map(), dx);
  }

  GateType& gate() noexcept { return gate_; }
  const GateType& gate() const noexcept { return gate_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("gate", self.gate_);
  }

private:
  static constexpr index_t row_block = 32;
  static constexpr std::size_t most_bits = 63;

  static options checked(index_t inputs, index_t experts, options o) {
    if (inputs < 1 || experts < 1 || o.selectors < 1 || !is_above(o.gamma, 0))
      throw_invalid("dselect_k_router needs D >= 1, E >= 1, k >= 1 and gamma > 0, not D = ", inputs, ", E = ", experts,
                    ", k = ", o.selectors, ", gamma = ", o.gamma);
    return o;
  }
  static index_t bits_for(index_t experts) {
    index_t bits = 0;
    while ((index_t(1) << bits) < experts) ++bits;
    return bits;
  }
  bool has_bit(index_t expert, index_t b) const noexcept { return (expert >> (bits_ - 1 - b)) & 1; }

  /// The steps of one selector's bits.
  using steps = std::array<kernel::smooth_step<Scalar>, most_bits>;
  void fill_steps(const tape& t, index_t n, index_t i, steps& s) const {
    for (index_t b = 0; b < bits(); ++b) s[static_cast<std::size_t>(b)] = {t.codes(n, i * bits() + b), options_.gamma};
  }
  Scalar factor(const steps& s, index_t expert, index_t b) const {
    const auto& step = s[static_cast<std::size_t>(b)];
    return has_bit(expert, b) ? step.high : step.low;
  }

  /// r[e] of one selector for all experts: bit by bit, the products of the bits so far, which are those of 2^b codes,
  /// become those of the next. In place, from the last code down: two codes grow out of one at or below them.
  void multiply_out(const steps& s, Scalar* r) const {
    r[0] = 1;
    for (index_t b = 0; b < bits(); ++b) {
      const auto& step = s[static_cast<std::size_t>(b)];
      const index_t behind = bits() - 1 - b;  // what is beyond the last expert takes no part
      const index_t codes = ((experts() - 1) >> behind) + 1;
      for (index_t code = codes - 1; code > 0; --code) r[code] = r[code / 2] * (code % 2 != 0 ? step.high : step.low);
      r[0] *= step.low;
    }
  }

  /// Selectors, mixing and weights of every row.
  void select(const routing_context<Scalar>& context, tape& t) const {
    const index_t rows = t.codes.rows();
    t.seen.experts = experts();
    t.seen.selectors.set_zero(rows, selectors() * experts());
    t.seen.mixing.set_zero(rows, selectors());
    t.seen.counted.assign(rows, 0);
    t.weights.set_zero(rows, experts());
    context.executor.parallel_blocks(rows, row_block, 8 * selectors() * experts(), [&](index_t begin, index_t end) {
      steps s;
      for (index_t n = begin; n < end; ++n) {
        const bool is_hidden = GateType::per_token && !t.screen.is_routed(n);
        if (is_hidden || any_nan(t.codes.row(n), t.codes.cols()) || any_nan(t.mixing_logits.row(n), selectors()))
          continue;
        t.seen.counted[n] = 1;
        kernel::softmax(t.mixing_logits.row(n), t.seen.mixing.row(n), selectors());
        for (index_t i = 0; i < selectors(); ++i) {
          fill_steps(t, n, i, s);
          Scalar* r = t.seen.selector(n, i);
          multiply_out(s, r);
          kernel::add_scaled(t.seen.mixing(n, i), r, t.weights.row(n), experts());
        }
      }
    });
  }

  void backward_row(tape& t, index_t n) const {
    const Scalar* alpha = t.seen.mixing.row(n);
    const Scalar* dw = t.dweights.row(n);
    Scalar* da = t.dmixing.row(n);
    steps s;
    Scalar inner = 0;
    for (index_t i = 0; i < selectors(); ++i) {
      da[i] = t.dseen.mixing(n, i);
      for (index_t e = 0; e < experts(); ++e) da[i] += dw[e] * t.seen.selector(n, i)[e];
      inner += alpha[i] * da[i];
    }
    for (index_t i = 0; i < selectors(); ++i) {
      da[i] = alpha[i] * (da[i] - inner);
      fill_steps(t, n, i, s);
      Scalar* dz = t.dcodes.row(n) + i * bits();
      for (index_t e = 0; e < experts(); ++e)
        add_leave_one_out(s, e, alpha[i] * dw[e] + t.dseen.selectors(n, i * experts() + e), dz);
      for (index_t b = 0; b < bits(); ++b) dz[b] *= s[static_cast<std::size_t>(b)].slope;
    }
  }

  /// dz[b] += ±dr * product of the factors of all other bits, by prefix and suffix products: a factor may be 0.
  void add_leave_one_out(const steps& s, index_t expert, Scalar dr, Scalar* dz) const {
    std::array<Scalar, most_bits> before;
    Scalar product = 1;
    for (index_t b = 0; b < bits(); ++b) {
      before[static_cast<std::size_t>(b)] = product;
      product *= factor(s, expert, b);
    }
    Scalar after = dr;
    for (index_t b = bits() - 1; b >= 0; --b) {
      const Scalar others = before[static_cast<std::size_t>(b)] * after;
      dz[b] += has_bit(expert, b) ? others : -others;
      after *= factor(s, expert, b);
    }
  }

  options options_;
  index_t experts_;
  index_t bits_;
  GateType gate_;
};

static_assert(DifferentiableRouter<dselect_k_router<float>>);
static_assert(DifferentiableRouter<dselect_k_router<double, static_selectors<double>>>);

}  // namespace sluice::inline SLUICE_ISA
