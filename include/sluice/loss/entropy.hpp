/// Entropy losses: how widely a group spreads its tokens over experts, and how sure every token is.
///
///   of        value                                                     minimised
///   mean      sum over e of q[e] log q[e] = -H(q),  >= -log E           spreads tokens
///   mean, with a threshold tau: max(0, tau - H(q))                      spreads them over about exp(tau) experts
///   tokens    mean over t of H(p[t]),  H(p) = - sum over e of p[e] log p[e]     makes every token sure of its experts
///   p[t] = softmax(L[t]),  q[e] = mean over t of p[t,e]
///
/// Gradients:
///   mean      c[e] = (log q[e] + 1) / T, none where H(q) > tau;  then the softmax's
///   tokens    dL[t,j] = -p[t,j] (log p[t,j] + H(p[t])) / T
/// With a modality, tokens of others count nowhere: LIMoE has for text
///   entropy_loss{.of = tokens, .modality = text}, entropy_loss{.threshold = log S, .modality = text}
/// and for images the second alone, with log S for about S experts; a group without tokens of the modality has value 0.
/// With parts, E experts stand in so many equal parts with a softmax and a value each, and the loss is their mean:
/// experts by head (attention/routed_value_attention.hpp).
/// 0 log 0 is 0. A negative coefficient turns the mean's round and concentrates it (HMoE's entropy term).
/// Groups, padding, NaN and coefficient 0: loss/common.hpp. Csordas et al. 2023 (sigma-MoE), arXiv:2310.10837;
/// Mustafa et al. 2022 (LIMoE), arXiv:2206.02770.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/loss/common.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace sluice::inline SLUICE_ISA {

/// Whose entropy: the mean's, or every token's.
enum class entropy_of { mean, tokens };

struct entropy_loss {
  double coefficient = 1e-2;
  loss_logits logits = loss_logits::clean;
  entropy_of of = entropy_of::mean;
  double threshold = (std::numeric_limits<double>::max)();  ///< tau of the mean; the default is none
  index_t modality = -1;                                    ///< of the tokens that count; -1 means all
  index_t parts = 1;                                        ///< of the experts, with a softmax each

  template <std::floating_point Scalar, typename Plan>
  Scalar operator()(const score_signals<Scalar>& seen, const Plan& plan, const routing_context<Scalar>& context,
                    score_gradients<Scalar>& gradients) const {
    return detail::mean_over_groups(*this, seen, plan, context, gradients);
  }

  /// Throws std::invalid_argument if there is a modality and the context has no modality_ids, or parts do not divide E.
  template <std::floating_point Scalar, typename Plan>
  Scalar group_value(const score_signals<Scalar>& seen, const Plan&, const routing_context<Scalar>& context,
                     index_t group, double scale, score_gradients<Scalar>& gradients) const {
    const token_range range = context.group(group, seen.clean.rows());
    if (modality >= 0 && context.modality_ids.empty() && range.size() > 0)
      throw_invalid("entropy_loss of modality ", modality, " needs routing_context.modality_ids");
    index_t count = 0;
    for (index_t t = range.begin; t < range.end; ++t) count += counts(context, t);
    if (count == 0) return 0;
    const matrix_buffer<Scalar>& read = detail::logits_of(seen, logits);
    matrix_buffer<Scalar>& dlogits = detail::logits_of(gradients, logits);
    if (parts < 1 || read.cols() % parts != 0)
      throw_invalid("entropy_loss cannot part ", read.cols(), " experts into ", parts);
    if (is_nan(threshold)) throw_invalid("entropy_loss cannot have the threshold ", threshold);
    const index_t size = read.cols() / parts;
    double value = 0;
    for (index_t part = 0; part < parts; ++part) {
      const detail::column_range columns{part * size, size};
      const double share = scale / static_cast<double>(parts);
      value += of == entropy_of::mean ? of_mean(read, context, range, count, columns, share, gradients, dlogits)
                                      : of_tokens(read, context, range, count, columns, share, gradients, dlogits);
    }
    return static_cast<Scalar>(value);
  }

private:
  template <std::floating_point Scalar>
  bool counts(const routing_context<Scalar>& context, index_t t) const {
    return !context.is_padding(t) && (modality < 0 || context.modality_ids[static_cast<std::size_t>(t)] == modality);
  }

  template <std::floating_point Scalar>
  double of_mean(const matrix_buffer<Scalar>& read, const routing_context<Scalar>& context, token_range range,
                 index_t count, detail::column_range columns, double scale, score_gradients<Scalar>& gradients,
                 matrix_buffer<Scalar>& dlogits) const {
    const index_t experts = columns.count;
    gradients.sum_scratch.assign(2 * experts, 0);
    double* q = gradients.sum_scratch.data();
    double* c = q + experts;
    const detail::group_probabilities<Scalar> p(read, context, range, loss_probability::softmax, gradients.row_scratch,
                                                0, 1, columns);
    for (index_t t = range.begin; t < range.end; ++t)  // a row of zeros has no part and no gradient
      if (!counts(context, t)) std::fill_n(gradients.row_scratch.row(t - range.begin), experts, Scalar(0));
    p.add_to(q);
    double value = 0;
    for (index_t e = 0; e < experts; ++e) {
      q[e] /= static_cast<double>(count);
      if (q[e] == 0) continue;  // every p[t,e] is 0 too, and with it the gradient
      value += q[e] * std::log(q[e]);
      c[e] = scale * (std::log(q[e]) + 1) / static_cast<double>(count);
    }
    if (has_threshold()) {
      value += threshold;
      if (value < 0) return 0;
    }
    p.backward(c, dlogits);
    return scale * value;
  }

  template <std::floating_point Scalar>
  double of_tokens(const matrix_buffer<Scalar>& read, const routing_context<Scalar>& context, token_range range,
                   index_t count, detail::column_range columns, double scale, score_gradients<Scalar>& gradients,
                   matrix_buffer<Scalar>& dlogits) const {
    const index_t experts = columns.count;
    matrix_buffer<Scalar>& rows = gradients.row_scratch;  // the entropy, and from column E on p
    rows.resize(range.size(), 2 * experts);
    const double share = scale / static_cast<double>(count);
    detail::for_tokens(context, range, experts, [&](index_t t) {
      Scalar* entropy = rows.row(t - range.begin);
      *entropy = 0;
      if (!counts(context, t)) return;
      Scalar* p = entropy + experts;
      kernel::softmax(read.row(t) + columns.first, p, experts);
      const auto log_of = [&](index_t e) { return p[e] == 0 ? 0.0 : std::log(static_cast<double>(p[e])); };
      double sum = 0;
      for (index_t e = 0; e < experts; ++e) sum -= static_cast<double>(p[e]) * log_of(e);
      for (index_t e = 0; e < experts; ++e)
        dlogits(t, columns.first + e) -= static_cast<Scalar>(share * static_cast<double>(p[e]) * (log_of(e) + sum));
      *entropy = static_cast<Scalar>(sum);
    });
    double sum = 0;
    detail::add_rows(context, range, rows, 1, &sum);
    return share * sum;
  }

  bool has_threshold() const noexcept { return threshold < (std::numeric_limits<double>::max)(); }
};

}  // namespace sluice::inline SLUICE_ISA
