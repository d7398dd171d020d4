/// Token conflict loss (STGC): a token whose gradient pulls an expert against its other tokens should leave it.
///
///   row i of the plan: token t at expert e with weight w       q[i] = w dy[t], the gradient at the expert's output
///   qbar[e] = mean of q over the expert's rows       i conflicts where cos(q[i], qbar[e]) < largest_cosine
///   value = mean over all rows that conflict of p[t,e],  p = softmax(L[t]);   who conflicts is a constant
///           with conflict_form::log_complement   of -log(1 - p[t,e]), which is 0 where a token has one expert only
///
/// It needs the gradient dy [T,D'] of the layer's output, so it runs between forward and backward, on the tape:
///
///   layer.forward(x, y, tape, context);   ... dy ...
///   value = token_conflict{.coefficient = 0.1}(tape.router.seen, tape.plan, dy, context, tape.router.dseen, memory);
///   layer.backward(dy, dx, tape);
///
/// q is the gradient of a bias at the expert's output: the paper takes gradients of an expert's parameters, this part
/// of them is free. The form of the loss, too, is a *reading* of the paper. Padding and invalid tokens are in no plan.
/// A q of zeros conflicts with nobody. Where all q of an expert cancel, so that qbar is 0, they all conflict unless
/// largest_cosine is negative. No conflict gives 0.
/// Yang et al. 2024, "Solving Token Gradient Conflict in Mixture-of-Experts for Large Vision-Language Model",
/// arXiv:2406.19905.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/kernel/logistic.hpp>
#include <sluice/kernel/vector_math.hpp>
#include <sluice/loss/common.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace sluice::inline SLUICE_ISA {

/// What token_conflict needs from call to call.
template <FloatOrDouble Scalar>
struct conflict_memory {
  buffer<std::uint8_t> conflicts;  ///< of each row of the plan: 1 where it conflicts
  matrix_buffer<Scalar> sums;      ///< [E,D'] of an expert's q
};

enum class conflict_form { probability, log_complement };

struct token_conflict {
  double coefficient = 1e-2;
  double largest_cosine = 0;
  conflict_form form = conflict_form::probability;
  loss_logits logits = loss_logits::clean;

  /// Finds the rows of the plan that conflict. Throws std::invalid_argument unless dy has a row a token.
  template <FloatOrDouble Scalar>
  void find(const sparse_plan<Scalar>& plan, tokens_in<Scalar> dy, const routing_context<Scalar>& context,
            conflict_memory<Scalar>& memory) const {
    if (dy.rows() != plan.tokens())
      throw_invalid("token_conflict has a plan of T = ", plan.tokens(), " and gradients of ", dy.rows(), " tokens");
    auto& conflicts = memory.conflicts;
    auto& sums = memory.sums;
    conflicts.assign(plan.size(), 0);
    sums.set_zero(plan.experts(), dy.cols());
    const index_t work = plan.size() / plan.experts() * dy.cols();
    context.executor.parallel_blocks(plan.experts(), 1, work, [&, this](index_t begin, index_t end) {
      for (index_t e = begin; e < end; ++e) {
        const row_range own = plan.by_expert().of(e);
        const auto row = [&](index_t i) { return dy.data() + plan.token(i) * dy.outerStride(); };
        for (index_t i = own.begin; i < own.end; ++i)
          kernel::add_scaled(plan.weight(i), row(i), sums.row(e), dy.cols());
        const auto length = [&](const Scalar* v) {
          return std::sqrt(static_cast<double>(kernel::dot(v, v, dy.cols())));
        };
        const double whole = length(sums.row(e));
        for (index_t i = own.begin; i < own.end; ++i) {
          // The weight scales q alone, but for its sign.
          const double own_length = length(row(i));
          const double size = own_length * whole;
          const double sign = plan.weight(i) < Scalar(0) ? -1 : plan.weight(i) > Scalar(0) ? 1 : 0;
          const double product = sign * static_cast<double>(kernel::dot(row(i), sums.row(e), dy.cols()));
          conflicts[i] = sign != 0 && own_length > 0 &&
              (whole > 0 ? size > 0 && product < largest_cosine * size : largest_cosine >= 0);
        }
      }
    });
  }

  /// coefficient × value; adds coefficient × gradient.
  template <FloatOrDouble Scalar>
  Scalar operator()(const score_signals<Scalar>& seen, const sparse_plan<Scalar>& plan, tokens_in<Scalar> dy,
                    const routing_context<Scalar>& context, score_gradients<Scalar>& gradients,
                    conflict_memory<Scalar>& memory) const {
    detail::check_coefficient(coefficient);
    if (!is_finite(largest_cosine)) throw_invalid("token_conflict cannot ask for a cosine below ", largest_cosine);
    if (coefficient == 0) return 0;
    find(plan, dy, context, memory);
    const auto& conflicts = memory.conflicts;
    index_t count = 0;
    for (const std::uint8_t one : conflicts) count += one;
    if (count == 0) return 0;
    const index_t experts = seen.clean.cols();
    const double share = coefficient / static_cast<double>(count);
    const matrix_buffer<Scalar>& read = detail::logits_of(seen, logits);
    matrix_buffer<Scalar>& dlogits = detail::logits_of(gradients, logits);
    matrix_buffer<Scalar>& rows = gradients.row_scratch;  // the token's value, and from column E on p
    rows.resize(plan.tokens(), 2 * experts);
    detail::for_tokens(context, {0, plan.tokens()}, experts, [&](index_t t) {
      Scalar* const values = rows.row(t);
      *values = 0;
      if (form == conflict_form::probability)
        add_probabilities(plan, conflicts, t, read.row(t), share, values, dlogits);
      else
        add_complements(plan, conflicts, t, read.row(t), share, values, dlogits);
    });
    double sum = 0;
    detail::add_rows(context, {0, plan.tokens()}, rows, 1, &sum);
    return static_cast<Scalar>(share * sum);
  }

private:
  /// values: the token's value, and from column E on its softmax.
  template <typename Scalar>
  static void add_probabilities(const sparse_plan<Scalar>& plan, const buffer<std::uint8_t>& conflicts, index_t t,
                                const Scalar* logits, double share, Scalar* values, matrix_buffer<Scalar>& dlogits) {
    const index_t experts = dlogits.cols();
    Scalar* const p = values + experts;
    for (const index_t i : plan.of_token(t)) {
      if (!conflicts[i]) continue;
      if (*values == Scalar(0)) kernel::softmax(logits, p, experts);
      *values += p[plan.expert(i)];
      dlogits(t, plan.expert(i)) += static_cast<Scalar>(share * static_cast<double>(p[plan.expert(i)]));
    }
    for (index_t e = 0; e < experts && *values != Scalar(0); ++e)
      dlogits(t, e) -= static_cast<Scalar>(share * static_cast<double>(*values) * static_cast<double>(p[e]));
  }

  /// -log(1 - p[e]) = log(1 + exp(l[e] - lse of the others)): finite however sure the router is.
  template <typename Scalar>
  static void add_complements(const sparse_plan<Scalar>& plan, const buffer<std::uint8_t>& conflicts, index_t t,
                              const Scalar* logits, double share, Scalar* value, matrix_buffer<Scalar>& dlogits) {
    const index_t experts = dlogits.cols();
    for (const index_t i : plan.of_token(t)) {
      if (!conflicts[i]) continue;
      const index_t own = plan.expert(i);
      double largest = -std::numeric_limits<double>::infinity();
      for (index_t e = 0; e < experts; ++e)
        if (e != own) largest = (std::max)(largest, static_cast<double>(logits[e]));
      if (!is_finite(largest)) continue;  // nowhere else to go
      double sum = 0;
      for (index_t e = 0; e < experts; ++e)
        if (e != own) sum += std::exp(static_cast<double>(logits[e]) - largest);
      const double others = largest + std::log(sum);
      const double ahead = static_cast<double>(logits[own]) - others, p = kernel::logistic(ahead);
      *value += static_cast<Scalar>(kernel::softplus(ahead));
      for (index_t e = 0; e < experts; ++e)
        dlogits(t, e) += static_cast<Scalar>(
            share * p * (e == own ? 1 : -std::exp(static_cast<double>(logits[e]) - others)));
    }
  }
};

}  // namespace sluice::inline SLUICE_ISA
