/// Expert targets: cross-entropy of the router's softmax with the expert that a token should have gone to.
///
///   value = mean over t of (log sum over e of exp L[t,e] - L[t,c[t]])      c = context.cluster_ids, 0 <= c < E
///   dL[t,j] = (p[t,j] - 1[j = c]) / T
/// or, where the form is squared_shortfall,
///   value = mean over t of (1 - p[t,c])^2;   dL[t,j] = 2 (1 - p[t,c]) p[t,c] (p[t,j] - 1[j = c]) / T
///
/// Super-class guidance of Mobile V-MoE: c is the super-class of the image's label, one of E that come from clustering
/// a dense model's confusions, and a per_group_gate makes one decision an image: then the value is the mean over images
/// (groups), and inference needs no labels. The paper's coefficient could not be confirmed; 0.3 is a guess. A target
/// outside 0..E-1 leaves its token out: -1 where there is no label. A call without cluster_ids throws
/// std::invalid_argument. Groups, padding, NaN and coefficient 0: loss/common.hpp. Daxberger et al. 2023,
/// arXiv:2309.04354.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/loss/common.hpp>

namespace sluice::inline SLUICE_ISA {

/// How far a token is from its expert: the cross-entropy, or what the expert's probability lacks of 1, squared.
enum class target_form { cross_entropy, squared_shortfall };

struct expert_target_loss {
  double coefficient = 0.3;
  loss_logits logits = loss_logits::clean;
  target_form form = target_form::cross_entropy;

  template <std::floating_point Scalar, typename Plan>
  Scalar operator()(const score_signals<Scalar>& seen, const Plan& plan, const routing_context<Scalar>& context,
                    score_gradients<Scalar>& gradients) const {
    return detail::mean_over_groups(*this, seen, plan, context, gradients);
  }

  template <std::floating_point Scalar, typename Plan>
  Scalar group_value(const score_signals<Scalar>& seen, const Plan&, const routing_context<Scalar>& context,
                     index_t group, double scale, score_gradients<Scalar>& gradients) const {
    const token_range range = context.group(group, seen.clean.rows());
    if (context.cluster_ids.empty() && range.size() > 0)
      throw_invalid("expert_target_loss needs routing_context.cluster_ids, the expert of each token");
    const matrix_buffer<Scalar>& scores = detail::logits_of(seen, logits);
    matrix_buffer<Scalar>& dscores = detail::logits_of(gradients, logits);
    const index_t experts = scores.cols();
    const auto target = [&](index_t t) { return context.cluster_ids[static_cast<std::size_t>(t)]; };
    index_t tokens = 0;
    for (index_t t = range.begin; t < range.end; ++t)
      tokens += !context.is_padding(t) && target(t) >= 0 && target(t) < experts;
    if (tokens == 0) return 0;
    matrix_buffer<Scalar>& rows = gradients.row_scratch;  // the token's value, then the row's exponentials
    rows.resize(range.size(), experts + 1);
    const double share = scale / static_cast<double>(tokens);
    detail::for_tokens(context, range, experts, [&](index_t t) {
      Scalar* row = rows.row(t - range.begin);
      row[0] = 0;
      if (target(t) < 0 || target(t) >= experts) return;
      const auto e = kernel::exponentiate(scores.row(t), row + 1, experts);
      double slope = share;
      if (form == target_form::cross_entropy) {
        row[0] = e.maximum + std::log(e.sum) - scores(t, target(t));
      } else {
        const Scalar p = row[1 + target(t)] / e.sum, lacking = 1 - p;
        row[0] = lacking * lacking;
        slope *= 2 * static_cast<double>(lacking * p);
      }
      for (index_t j = 0; j < experts; ++j)
        dscores(t, j) += static_cast<Scalar>(slope * (static_cast<double>(row[1 + j] / e.sum) - (j == target(t))));
    });
    double sum = 0;
    detail::add_rows(context, range, rows, 1, &sum);
    return static_cast<Scalar>(share * sum);
  }
};

}  // namespace sluice::inline SLUICE_ISA
