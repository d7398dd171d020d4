/// What experts that choose compare tokens by, and what they weigh them with: six forms of score and their gradients.
///
///   scores p [T,E] of logits L [T,E], weights w of what was taken, dL of the weights' gradients g (R: who took t)
///     softmax      p = softmax of L[t] over the experts     w = p   dl[t,j] = p[t,j] (g[t,j] 1[j in R] - sum of p g)
///     sigmoid      p = sigmoid(L)                           w = p   dl[t,j] = p[t,j] (1 - p[t,j]) g[t,j] for j in R
///     over_tokens  p = softmax of L[:,e] over the tokens    w = p   dl[t,e] = p[t,e] (g[t,e] 1[e took t] - sum of p g)
///     over_taken   p = L   w = softmax of L[:,e] over the tokens that e takes;   as over_tokens, among those
///     even         p = L   w = 1, no gradient
///     coupled      p = w = the coupling that experts compare, which has the gradient (router/assigned/coupling.hpp)
///
/// The tokens are those of a group and, where modalities divide it, of one modality; the experts those of the token's.
/// What the screen hides has scores of 0 in softmaxes over tokens. For the router see experts_choose/expert_choice.hpp.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/token_screen.hpp>
#include <sluice/kernel/column_softmax.hpp>
#include <sluice/kernel/logistic.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/router/experts_choose/token_queues.hpp>
#include <sluice/router/masked/modality_experts.hpp>
#include <sluice/router/weight_application.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

enum class expert_choice_score { softmax, sigmoid, over_tokens, over_taken, even, coupled };

/// What scores leave in a tape.
template <FloatOrDouble Scalar>
struct choice_score_memory {
  matrix_buffer<Scalar> scores;  ///< p [T,E]
  matrix_buffer<Scalar> gates;   ///< [T,E] w of what was taken, for over_taken
  buffer<Scalar> column;         ///< scratch: the logits of what an expert takes
};

/// One form of score, with the modalities and the number of experts of its router.
template <FloatOrDouble Scalar>
class choice_scores {
public:
  using kind = expert_choice_score;
  using memory = choice_score_memory<Scalar>;
  using plan = sparse_plan<Scalar>;

  choice_scores(kind k, const modality_experts& modalities, index_t experts)
      : kind_(k), modalities_(modalities), experts_(experts) {}

  /// Fills m.scores.
  void score(const matrix_buffer<Scalar>& logits, const routing_context<Scalar>& context,
             const token_screen<Scalar>& screen, memory& m) const {
    if (kind_ == kind::over_taken) {
      m.gates.resize(logits.rows(), experts_);
      m.column.reserve(logits.rows());
    }
    if (kind_ == kind::over_taken || kind_ == kind::even || kind_ == kind::coupled) {
      m.scores = logits;
      return;
    }
    m.scores.resize(logits.rows(), experts_);
    if (kind_ == kind::over_tokens) {
      for (index_t g = 0; g < context.group_count(); ++g)
        for (index_t modality = 0; modality < modalities_.modalities(); ++modality)
          column_softmax(
              logits, context.group(g, logits.rows()),
              [&](index_t token) {
                return screen.is_routed(token) && modalities_.modality(context, token) == modality;
              },
              m.scores, context.executor);
      screen.clear_hidden(m.scores);
      return;
    }
    context.executor.parallel_each(logits.rows(), 16 * experts_, [&](index_t token) {
      const Scalar* row = logits.row(token);
      Scalar* own = m.scores.row(token);
      if (kind_ == kind::softmax)
        score_by_softmax(context, token, row, own);
      else
        kernel::logistic(row, own, experts_);
    });
  }

  /// Once expert e has taken its tokens of a group.
  void weigh(index_t e, const token_queues<Scalar>& queues, memory& m) const {
    if (kind_ != kind::over_taken) return;
    const index_t taken = queues.taken[e];
    m.column.resize(taken);
    for (index_t c = 0; c < taken; ++c) m.column[c] = m.scores(queues.token(e, c), e);
    kernel::softmax(m.column.data(), m.column.data(), taken);
    for (index_t c = 0; c < taken; ++c) m.gates(queues.token(e, c), e) = m.column[c];
  }

  Scalar weight(index_t token, index_t expert, const memory& m) const {
    switch (kind_) {
      case kind::over_taken:
        return m.gates(token, expert);
      case kind::even:
        return 1;
      default:
        return m.scores(token, expert);
    }
  }

  /// Adds to dlogits [T,E].
  void backward(const routing_context<Scalar>& context, const plan& p, const typename plan::gradient& dplan,
                const weight_application<Scalar>& application, const memory& m,
                matrix_buffer<Scalar>& dlogits) const {
    if (kind_ == kind::softmax || kind_ == kind::sigmoid)
      backward_by_token(context, p, dplan, application, m, dlogits);
    else if (kind_ != kind::even && kind_ != kind::coupled)
      backward_by_expert(context, p, dplan, application, m, dlogits);
  }

private:
  /// Over the experts of the token's modality; 0 for the others.
  void score_by_softmax(const routing_context<Scalar>& context, index_t token, const Scalar* row, Scalar* own) const {
    if (!modalities_.divides()) return kernel::softmax(row, own, experts_);
    std::fill_n(own, experts_, Scalar(0));
    if (context.is_padding(token)) return;  // whose modality may be anything
    const auto [first, count] = modalities_.of(modalities_.modality(context, token), experts_);
    kernel::softmax(row + first, own + first, count);
  }

  /// Scores that compete over a token's experts, or not at all.
  void backward_by_token(const routing_context<Scalar>& context, const plan& p, const typename plan::gradient& dplan,
                         const weight_application<Scalar>& application, const memory& m,
                         matrix_buffer<Scalar>& dlogits) const {
    context.executor.parallel_each(p.tokens(), 8 * experts_, [&](index_t token) {
      const Scalar* own = m.scores.row(token);
      Scalar* dl = dlogits.row(token);
      Scalar inner = 0;
      for (const index_t i : p.of_token(token)) {
        const index_t e = p.expert(i);
        const Scalar slope = kind_ == kind::softmax ? Scalar(1) : 1 - own[e];
        const Scalar dweight = application.gradient(dplan, i);
        dl[e] += own[e] * slope * dweight;
        inner += own[e] * dweight;
      }
      if (kind_ == kind::softmax && !p.of_token(token).empty())
        for (index_t e = 0; e < experts_; ++e) dl[e] -= own[e] * inner;
    });
  }

  /// Weights that compete over the tokens of a group. An expert's own stand group by group in the plan.
  void backward_by_expert(const routing_context<Scalar>& context, const plan& p, const typename plan::gradient& dplan,
                          const weight_application<Scalar>& application, const memory& m,
                          matrix_buffer<Scalar>& dlogits) const {
    context.executor.for_work(4 * experts_ * p.tokens()).parallel_for(experts_, [&](index_t e) {
      const row_range own = p.by_expert().of(e);
      const index_t modality = modalities_.served_by(e);
      index_t i = own.begin;
      for (index_t g = 0; g < context.group_count() && i < own.end; ++g) {
        const token_range group = context.group(g, p.tokens());
        const index_t first = i;
        Scalar inner = 0;
        for (; i < own.end && p.token(i) >= group.begin && p.token(i) < group.end; ++i) {
          const Scalar share = weight(p.token(i), e, m) * application.gradient(dplan, i);
          dlogits(p.token(i), e) += share;
          inner += share;
        }
        if (kind_ == kind::over_taken)
          for (index_t j = first; j < i; ++j) dlogits(p.token(j), e) -= m.gates(p.token(j), e) * inner;
        else if (i > first)
          for (index_t token = group.begin; token < group.end; ++token)
            if (modalities_.modality(context, token) == modality) dlogits(token, e) -= m.scores(token, e) * inner;
      }
    });
  }

  kind kind_;
  const modality_experts& modalities_;
  index_t experts_;
};

}  // namespace sluice::inline SLUICE_ISA
