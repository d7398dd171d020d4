/// How experts compete for one token (CompeteSMoE): from their outputs to winners, weights and targets, and back.
///
///   a[e] = |f_e|_2  (response::norm, first release)  or  mean over d of softplus(f_e[d])  (mean_softplus, second)
///   S = the k largest of a
///   norm           w = softmax of a over S               target = the same, 0 outside S
///   mean_softplus  w = a / (sum of a over S)             target = softmax of a over all experts
///   cosine[j,l] = <f_j, f_l> / (|f_j| |f_l|) for winners j, l, lengths at least 1e-12
///
///   norm           da[j] = w[j] (g[j] - sum over S of w g),            df_j += da[j] f_j / |f_j|  (0 where f_j = 0)
///   mean_softplus  da[j] = (g[j] - sum over S of w g) / sum of a,      df_j += da[j] sigmoid(f_j) / D'
///
/// The two forms can choose differently. Equal responses: the lower expert wins; NaN counts as -infinity. Should the
/// winners' softplus responses underflow to a sum of 0, each has weight 1/k, a constant.
/// Pham et al. 2024, arXiv:2402.02526; Nguyen et al. 2025, arXiv:2505.13380.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/choices.hpp>
#include <sluice/kernel/logistic.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

enum class response { norm, mean_softplus };

/// What a competition showed, all tokens of a call. Without a competition the arrays have no rows.
template <FloatOrDouble Scalar>
struct competition_results {
  bool competing = false;
  matrix_buffer<Scalar> responses;   ///< [T,E] a
  matrix_buffer<Scalar> policy;      ///< [T,E] softmax of the base router's clean logits
  matrix_buffer<Scalar> target;      ///< [T,E] what the policy should become
  matrix_buffer<index_t> winners;    ///< [T,k] best first; no_expert for padding
  matrix_buffer<Scalar> similarity;  ///< [T,k*k] cosines of the winners' outputs

  void reset(index_t tokens, index_t experts, index_t k) {
    for (auto* m : {&responses, &policy, &target}) m->set_zero(tokens, experts);
    winners.resize(tokens, k);
    std::fill_n(winners.data(), winners.size(), no_expert);
    similarity.set_zero(tokens, k * k);
  }
};

/// The competition for one token. Outputs come as f(e), a pointer to expert e's row of `width` numbers.
template <FloatOrDouble Scalar>
class competition {
public:
  competition(response form, index_t width) : form_(form), width_(width) {}

  /// Fills the token's row of everything in the results but the policy. set(e, w) receives the winners' weights.
  template <typename Outputs, typename Set>
  void judge(Outputs&& f, index_t token, competition_results<Scalar>& r, Set&& set) const {
    const index_t experts = r.responses.cols();
    const index_t k = r.winners.cols();
    Scalar* a = r.responses.row(token);
    Scalar* target = r.target.row(token);
    index_t* winners = r.winners.row(token);
    for (index_t e = 0; e < experts; ++e) a[e] = respond(f(e));
    kernel::top_k(a, experts, k, winners);
    Scalar* w = r.similarity.row(token);  // borrowed: k of its k*k numbers
    Scalar sum = 0;
    for (index_t j = 0; j < k; ++j) sum += w[j] = a[winners[j]];
    if (form_ == response::norm) {
      kernel::softmax(w, w, k);
      for (index_t j = 0; j < k; ++j) target[winners[j]] = w[j];
    } else {
      for (index_t j = 0; j < k; ++j) w[j] = sum == Scalar(0) ? 1 / static_cast<Scalar>(k) : w[j] / sum;
      kernel::softmax(a, target, experts);
    }
    for (index_t j = 0; j < k; ++j) set(winners[j], w[j]);
    for (index_t j = 0; j < k; ++j)
      for (index_t l = 0; l <= j; ++l)
        r.similarity(token, j * k + l) = r.similarity(token, l * k + j) =
            kernel::dot(f(winners[j]), f(winners[l]), width_) / (guarded(f(winners[j])) * guarded(f(winners[l])));
  }

  /// Adds to da [E] what comes through the weights; w(e) and g(e) are the weights and their gradients.
  template <typename Weight, typename Gradient>
  void backward_weights(const competition_results<Scalar>& r, index_t token, Weight&& w, Gradient&& g,
                        Scalar* da) const {
    const index_t* winners = r.winners.row(token);
    Scalar inner = 0;
    Scalar sum = 0;
    for (index_t j = 0; j < r.winners.cols(); ++j) {
      inner += w(winners[j]) * g(winners[j]);
      sum += r.responses(token, winners[j]);
    }
    for (index_t j = 0; j < r.winners.cols(); ++j) {
      const Scalar centred = g(winners[j]) - inner;
      if (form_ == response::norm)
        da[winners[j]] += w(winners[j]) * centred;
      else if (sum != Scalar(0))
        da[winners[j]] += centred / sum;
    }
  }

  /// df += da times the derivative of the response by the output.
  void backward_response(const Scalar* f, Scalar a, Scalar da, Scalar* df) const {
    if (form_ == response::norm) {
      if (a != Scalar(0)) kernel::add_scaled(da / a, f, df, width_);
    } else {
      for (index_t d = 0; d < width_; ++d) df[d] += da / static_cast<Scalar>(width_) * kernel::logistic(f[d]);
    }
  }

  /// d cosine / d f_j = (f_l / |f_l| - cosine f_j / |f_j|) / |f_j|; df(e) is where the gradient of expert e's row goes.
  template <typename Outputs, typename Gradients>
  void backward_similarity(Outputs&& f, const competition_results<Scalar>& r, const Scalar* dsimilarity, index_t token,
                           Gradients&& df) const {
    const index_t* winners = r.winners.row(token);
    const index_t k = r.winners.cols();
    for (index_t j = 0; j < k; ++j)
      for (index_t l = 0; l < k; ++l) {
        const Scalar upstream = dsimilarity[j * k + l] + dsimilarity[l * k + j];
        if (l == j || upstream == Scalar(0)) continue;
        const Scalar* own = f(winners[j]);
        const Scalar length = guarded(own);
        kernel::add_scaled(upstream / (length * guarded(f(winners[l]))), f(winners[l]), df(winners[j]), width_);
        if (length > smallest_length)  // below, the length is a constant
          kernel::add_scaled(-upstream * r.similarity(token, j * k + l) / (length * length), own, df(winners[j]),
                             width_);
      }
  }

private:
  static constexpr Scalar smallest_length = Scalar(1e-12);

  Scalar length(const Scalar* f) const { return std::sqrt(kernel::dot(f, f, width_)); }
  Scalar guarded(const Scalar* f) const { return (std::max)(length(f), smallest_length); }

  Scalar respond(const Scalar* f) const {
    if (form_ == response::norm) return length(f);
    Scalar sum = 0;
    for (index_t d = 0; d < width_; ++d) sum += kernel::softplus(f[d]);
    return sum / static_cast<Scalar>(width_);
  }

  response form_;
  index_t width_;
};

}  // namespace sluice::inline SLUICE_ISA
