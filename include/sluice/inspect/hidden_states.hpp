/// What happens inside of experts: the activations of their hidden units, and how many are at work.
///
///   hidden_states    h_e [T,H] = phi(X W_gate^T + b_gate), without the factor W_up x; of ffn phi(X W1^T + b1)
///   unit_activity    a_e [H]: the part of tokens at which |h| of a unit is above a threshold
///   active_share     [T,E]: the part of an expert's units that a token sets to work
///
/// How alike states of two experts are: output_similarity(states). Experts may differ in H but for that. A token with
/// NaN has NaN in its states, counts for no unit's activity, and its own share is NaN. T = 0: no states, activity NaN.
/// Lo et al. 2024, arXiv:2406.18219, section 5.3.
#pragma once

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/kernel/mixed_map.hpp>

#include <cmath>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Phi, typename Scalar>
matrix<Scalar> activated_states(tokens_in<Scalar> x, const LinearMap auto& first, const parameter<Scalar>& bias) {
  const matrix<Scalar> w = visit_map(first, [](const auto& map) { return matrix<Scalar>(map.weight().to_matrix()); });
  matrix<Scalar> h = x * w.transpose();
  for (index_t t = 0; t < h.rows(); ++t)
    for (index_t j = 0; j < h.cols(); ++j)
      h(t, j) = Phi::value(h(t, j) + (bias.size() == 0 ? Scalar(0) : bias.element_at(j)));
  return h;
}

template <typename Scalar, Activation<Scalar> Phi, MapStorage Storage>
matrix<Scalar> states_of(const gated_ffn<Scalar, Phi, Storage>& expert, tokens_in<Scalar> x) {
  return activated_states<Phi, Scalar>(x, expert.first_map(0), expert.gate_bias());
}
template <typename Scalar, Activation<Scalar> Phi, MapStorage Storage>
matrix<Scalar> states_of(const ffn<Scalar, Phi, Storage>& expert, tokens_in<Scalar> x) {
  return activated_states<Phi, Scalar>(x, expert.first_map(0), expert.up_bias());
}

}  // namespace detail

/// Of a bank of gated_ffn or ffn. Throws std::invalid_argument if x does not have the bank's width.
template <typename Expert>
std::vector<matrix<typename Expert::scalar>> hidden_states(const expert_bank<Expert>& bank,
                                                           tokens_in<typename Expert::scalar> x) {
  if (x.cols() != bank.inputs())
    throw_invalid("the experts read tokens of width ", bank.inputs(), "; x is [", x.rows(), ", ", x.cols(), "]");
  std::vector<matrix<typename Expert::scalar>> states;
  for (index_t e = 0; e < bank.experts(); ++e) states.push_back(detail::states_of(bank.expert(e), x));
  return states;
}

/// [E][H].
template <typename Scalar>
std::vector<std::vector<double>> unit_activity(const std::vector<matrix<Scalar>>& states, Scalar threshold) {
  std::vector<std::vector<double>> activity;
  for (const matrix<Scalar>& h : states) {
    std::vector<double> sums(as_size(h.cols()), 0);
    double seen = 0;
    for (index_t t = 0; t < h.rows(); ++t) {
      if (any_nan(h.data() + t * h.cols(), h.cols())) continue;
      seen += 1;
      for (index_t j = 0; j < h.cols(); ++j) sums[as_size(j)] += (std::abs)(h(t, j)) > threshold ? 1 : 0;
    }
    for (double& sum : sums) sum = seen > 0 ? sum / seen : quiet_nan<double>();
    activity.push_back(std::move(sums));
  }
  return activity;
}

/// [T,E].
template <typename Scalar>
matrix<double> active_share(const std::vector<matrix<Scalar>>& states, Scalar threshold) {
  const auto E = static_cast<index_t>(states.size());
  matrix<double> share(E == 0 ? 0 : states[0].rows(), E);
  for (index_t e = 0; e < E; ++e) {
    const matrix<Scalar>& h = states[as_size(e)];
    if (h.rows() != share.rows() || h.cols() < 1)
      throw_invalid("expert ", e, " has states [", h.rows(), ", ", h.cols(), "], the first has ", share.rows(),
                    " tokens");
    for (index_t t = 0; t < h.rows(); ++t) {
      index_t above = 0;
      for (index_t j = 0; j < h.cols(); ++j) above += (std::abs)(h(t, j)) > threshold ? 1 : 0;
      share(t, e) = any_nan(h.data() + t * h.cols(), h.cols())
                        ? quiet_nan<double>()
                        : static_cast<double>(above) / static_cast<double>(h.cols());
    }
  }
  return share;
}

}  // namespace sluice::inline SLUICE_ISA
