/// Soft MoE router: every slot is an average of all tokens, every token's output an average of all slots.
///
///   X [T,D]   slots Phi [E,P,D]   S = E·P   scale, a learned number
///   A [T,S] = scale * token_norm(X) slot_norm(Phi)^T (+ noise)
///   dispatch = softmax of A over the tokens of the group (columns sum to 1)
///   combine  = softmax of A over the slots (rows sum to 1)
///
/// The slots average X itself, not token_norm(X). The defaults are the authors': unit_norm on both sides, with 1e-6
/// inside the root. The widely used PyTorch form averages normalised tokens and has no scale: wrap the layer in
/// layer/normalized.hpp,
///   normalized_layer{moe_layer{soft_moe_router<float, no_norm<float>, rms_norm<float>>{...}, ...}, rms_norm<float>{D}}
/// Gradients are exact for X, Phi, scale and gains:
///   dA = combine * (dcombine - sum over slots of combine dcombine)
///      + dispatch * (ddispatch - sum over tokens of dispatch ddispatch)
///
/// Needs no auxiliary loss. Every token of a group meets every other one, so it is not causal. Groups never mix.
/// Padding is left out of every slot and has output zero, or the mean of all slots if padding_output asks for that
/// port's quirk. A token with NaN or infinity in X, or NaN in A, is left out likewise and has output NaN; infinities
/// that only A holds are values. P is fixed by Phi; T may differ from call to call. A call may not name a k.
/// Puigcerver et al. 2024, "From Sparse to Soft Mixtures of Experts", arXiv:2308.00951.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/signals.hpp>
#include <sluice/core/soft_plan.hpp>
#include <sluice/kernel/column_softmax.hpp>
#include <sluice/kernel/gemm.hpp>
#include <sluice/kernel/row_norm.hpp>
#include <sluice/kernel/soft_dispatch.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/router/noise.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// The authors' number of slots an expert for groups of this many tokens: T * factor / E, rounded half to even. Throws
/// std::invalid_argument if that is less than 1.
inline index_t soft_moe_slots(index_t tokens, index_t experts, double factor = 1) {
  const double wanted = static_cast<double>(tokens) * factor / static_cast<double>(experts);
  if (experts < 1 || !is_at_least(wanted, 0) || std::nearbyint(wanted) < 1)
    throw_invalid("soft_moe_slots: T = ", tokens, ", E = ", experts, " and factor ", factor,
                  " give less than one slot an expert");
  return static_cast<index_t>(std::nearbyint(wanted));
}

/// What a padding token gets.
enum class padding_output { zero, mean_of_slots };

template <FloatOrDouble Scalar, RowNorm TokenNorm = unit_norm<Scalar>, RowNorm SlotNorm = unit_norm<Scalar>>
class soft_moe_router {
  static_assert(std::is_same_v<typename TokenNorm::scalar, Scalar> && std::is_same_v<typename SlotNorm::scalar, Scalar>,
                "sluice: Soft MoE's router and its norms need the same scalar");

public:
  using scalar = Scalar;
  using plan = soft_plan<Scalar>;
  static constexpr bool causal = false;

  struct options {
    index_t slots_per_expert = 1;
    bool learned_scale = true;  ///< false: scale is 1
    Scalar noise_std = 0;       ///< deviation of normal noise added to A in training, not divided by E
    padding_output padding = padding_output::zero;
  };

  struct tape {
    score_signals<Scalar> seen;  ///< A, [T,S]
    score_gradients<Scalar> dseen;
    matrix_buffer<Scalar> tokens;     ///< token_norm(X)
    matrix_buffer<Scalar> slot_rows;  ///< slot_norm(Phi)
    matrix_buffer<Scalar> scaled;     ///< scale * slots
    matrix_buffer<Scalar> dlogits;
    matrix_buffer<Scalar> dtokens;
    matrix_buffer<Scalar> dslots;
    buffer<std::uint8_t> state;  ///< what became of each token
    typename TokenNorm::tape token_norm;
    typename SlotNorm::tape slot_norm;
  };

  /// Throws std::invalid_argument unless D, E and the slots are at least 1 and noise_std is not negative.
  soft_moe_router(index_t inputs, index_t experts, options o = {})
      : soft_moe_router(inputs, experts, o, TokenNorm(inputs), SlotNorm(inputs)) {}

  soft_moe_router(index_t inputs, index_t experts, options o, TokenNorm token_norm, SlotNorm slot_norm)
      : options_(o), token_norm_(std::move(token_norm)), slot_norm_(std::move(slot_norm)) {
    if (inputs < 1 || experts < 1 || o.slots_per_expert < 1 || !is_at_least(o.noise_std, 0))
      throw_invalid("soft_moe_router needs D >= 1, E >= 1, slots >= 1 and noise_std >= 0, not D = ", inputs,
                    ", E = ", experts, ", slots = ", o.slots_per_expert, ", noise_std = ", o.noise_std);
    check_norm_width("soft_moe_router", token_norm_, inputs);
    check_norm_width("soft_moe_router", slot_norm_, inputs);
    if constexpr (requires { slot_norm_.slots_per_expert(); })
      if (slot_norm_.slots_per_expert() != o.slots_per_expert)
        throw_invalid("soft_moe_router has ", o.slots_per_expert, " slots an expert; its norm is for ",
                      slot_norm_.slots_per_expert());
    slots_ = {{experts, o.slots_per_expert, inputs},
              parameter_role::weight,
              initial_values::normal(1 / std::sqrt(static_cast<double>(inputs)))};
    scale_ = {{1}, parameter_role::vector, initial_values::constant(1)};
  }

  index_t inputs() const noexcept { return slots_.shape()[2]; }
  index_t experts() const noexcept { return slots_.shape()[0]; }
  index_t slots_per_expert() const noexcept { return options_.slots_per_expert; }

  void route(tokens_in<Scalar> x, const routing_context<Scalar>& context, plan& p, tape& t) const {
    check_tokens(x, inputs(), context);
    if (context.top_k != 0) throw_invalid("soft_moe_router has no k; the call asks for k = ", context.top_k);
    p.reset(x.rows(), experts(), slots_per_expert(), context);
    score(x, context, t);
    classify(x, context, t);
    const matrix_buffer<Scalar>& logits = t.seen.noisy();
    for (index_t g = 0; g < context.group_count(); ++g)
      column_softmax(
          logits, context.group(g, x.rows()), [&](index_t r) { return t.state[r] == routed; }, p.dispatch(),
          context.executor);
    context.executor.parallel_each(x.rows(), 16 * p.slot_count(), [&](index_t r) {
      if (t.state[r] == routed)
        kernel::softmax(logits.row(r), p.combine().row(r), p.slot_count());
      else
        p.leave_out(r);
      if (t.state[r] == padding && options_.padding == padding_output::mean_of_slots)
        std::fill_n(p.combine().row(r), p.slot_count(), 1 / static_cast<Scalar>(p.slot_count()));
    });
    for (index_t r = 0; r < x.rows(); ++r)
      if (t.state[r] == invalid) p.mark_invalid(r);
  }

  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<Scalar> dx) {
    logit_gradients(context, p, dplan, t);
    // Rows of dA that are zero belong to tokens without a part in anything; their x may be NaN and is not read.
    const index_t slot_count = p.slot_count();
    matrix_map<Scalar> dslots = (t.dslots.set_zero(slot_count, inputs()), t.dslots.map());
    t.dtokens.resize(x.rows(), inputs());
    detail::for_each_used_run(t.dlogits, 0, x.rows(), [&](index_t begin, index_t end) {
      const index_t count = end - begin;
      context.executor.parallel_blocks(slot_count, row_block, count * inputs() / 4, [&](index_t first, index_t last) {
        kernel::multiply_tn(last - first, inputs(), count, t.dlogits.row(begin) + first, slot_count,
                            t.tokens.row(begin), inputs(), t.dslots.row(first), inputs(), kernel::write::accumulate);
      });
      context.executor.parallel_blocks(count, row_block, slot_count * inputs() / 4, [&](index_t first, index_t last) {
        kernel::multiply_nn(last - first, inputs(), slot_count, t.dlogits.row(begin + first), slot_count,
                            t.scaled.data(), inputs(), t.dtokens.row(begin + first), inputs());
      });
      token_norm_.backward(x.middleRows(begin, count), t.dtokens.map().middleRows(begin, count), t.token_norm,
                           dx.middleRows(begin, count), context.executor, begin);
    });
    if (options_.learned_scale) {
      Scalar sum = 0;
      for (index_t s = 0; s < slot_count; ++s) sum += kernel::dot(t.dslots.row(s), t.slot_rows.row(s), inputs());
      scale_.gradient()[0] += sum;
      dslots *= scale_.data()[0];
    }
    slot_norm_.backward(as_rows(slots_.data()), dslots, t.slot_norm, as_rows(slots_.gradient().data()),
                        context.executor);
  }

  parameter<Scalar>& slot_vectors() noexcept { return slots_; }
  parameter<Scalar>& scale() noexcept { return scale_; }
  TokenNorm& token_norm() noexcept { return token_norm_; }
  SlotNorm& slot_norm() noexcept { return slot_norm_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("slots", self.slots_);
    if (self.options_.learned_scale) visit("scale", self.scale_);
    if constexpr (HasParameters<TokenNorm>) visit("token_norm", self.token_norm_);
    if constexpr (HasParameters<SlotNorm>) visit("slot_norm", self.slot_norm_);
  }

private:
  enum token_state : std::uint8_t { routed, padding, invalid };
  static constexpr index_t row_block = 32;

  /// Phi or its gradient as [S,D].
  matrix_map<Scalar> as_rows(Scalar* numbers) const {
    return {numbers, slots_.shape()[0] * slots_.shape()[1], inputs()};
  }
  const_matrix_map<Scalar> as_rows(const Scalar* numbers) const {
    return {numbers, slots_.shape()[0] * slots_.shape()[1], inputs()};
  }

  void score(tokens_in<Scalar> x, const routing_context<Scalar>& context, tape& t) const {
    const index_t slot_count = experts() * slots_per_expert();
    t.tokens.resize(x.rows(), inputs());
    t.slot_rows.resize(slot_count, inputs());
    t.seen.clean.resize(x.rows(), slot_count);
    t.seen.top_k = experts();
    token_norm_.forward(x, t.tokens.map(), t.token_norm, context.executor);
    slot_norm_.forward(as_rows(slots_.data()), t.slot_rows.map(), t.slot_norm, context.executor);
    t.scaled = t.slot_rows;
    if (options_.learned_scale) t.scaled.map() *= scale_.data()[0];
    context.executor.parallel_blocks(x.rows(), row_block, slot_count * inputs() / 4, [&](index_t begin, index_t end) {
      kernel::multiply_nt(end - begin, slot_count, inputs(), t.tokens.row(begin), inputs(), t.scaled.data(), inputs(),
                          t.seen.clean.row(begin), slot_count);
    });
    t.seen.has_noise = context.training && options_.noise_std > 0;
    t.seen.sigma = t.seen.has_noise ? options_.noise_std : Scalar(0);
    if (!t.seen.has_noise) return;
    t.seen.noisy_storage.resize(x.rows(), slot_count);
    for (index_t i = 0; i < t.seen.clean.size(); ++i)
      t.seen.noisy_storage.data()[i] =
          t.seen.clean.data()[i] + t.seen.sigma * static_cast<Scalar>(context.random.normal(noise_site, i));
  }

  void classify(tokens_in<Scalar> x, const routing_context<Scalar>& context, tape& t) const {
    const auto infinite = order_key(std::numeric_limits<Scalar>::infinity());
    t.state.resize(x.rows());
    for (index_t r = 0; r < t.state.size(); ++r) {
      const Scalar* row = x.data() + r * x.outerStride();
      const bool has_infinity =
          std::any_of(row, row + x.cols(), [&](const Scalar& v) { return (std::abs)(order_key(v)) == infinite; });
      const bool is_invalid = has_infinity || any_nan(t.seen.clean.row(r), t.seen.clean.cols());
      t.state[r] = context.is_padding(r) ? padding : is_invalid ? invalid : routed;
    }
  }

  /// dA from the plan's gradients and from losses: both softmaxes' backward.
  void logit_gradients(const routing_context<Scalar>& context, const plan& p, const typename plan::gradient& dplan,
                       tape& t) const {
    const index_t slot_count = p.slot_count();
    t.dlogits = t.dseen.noisy_or_clean();
    if (t.seen.has_noise) t.dlogits.map() += t.dseen.clean.map();
    context.executor.parallel_each(p.tokens(), 4 * slot_count, [&](index_t r) {
      if (t.state[r] != routed) {  // whatever a loss says of such a token
        std::fill_n(t.dlogits.row(r), slot_count, Scalar(0));
        return;
      }
      const Scalar inner = kernel::dot(p.combine().row(r), dplan.combine.row(r), slot_count);
      for (index_t s = 0; s < slot_count; ++s) t.dlogits(r, s) += p.combine()(r, s) * (dplan.combine(r, s) - inner);
    });
    for (index_t g = 0; g < context.group_count(); ++g)
      column_softmax_backward(
          p.dispatch(), dplan.dispatch, context.group(g, p.tokens()), [&](index_t r) { return t.state[r] == routed; },
          t.dlogits, context.executor);
  }

  options options_;
  TokenNorm token_norm_;
  SlotNorm slot_norm_;
  parameter<Scalar> slots_;
  parameter<Scalar> scale_;
};

static_assert(DifferentiableRouter<soft_moe_router<float>>);
static_assert(DifferentiableRouter<soft_moe_router<double, no_norm<double>, rms_norm<double>>>);

}  // namespace sluice::inline SLUICE_ISA
