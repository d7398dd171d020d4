/// Rules whose choice has nothing to do with their weights: what weighs the chosen experts is a rule of its own.
///
///   even_weights    w = 1/k for every expert, no gate and no gradient
///   given_weights   w as the context gives them (router/fixed/given.hpp)
///   any choice rule of which score, weigh and backward are used: softmax_rule, sigmoid_rule, yours
///
/// A rule that derives from weighed_by<Scalar, Weights> writes top_k and choose or assign; all else is passed on.
#pragma once

#include <sluice/core/parameter.hpp>
#include <sluice/core/statistics.hpp>
#include <sluice/router/rule_calls.hpp>

#include <algorithm>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// Every expert of a token weighs the same, whatever the scores.
template <FloatOrDouble Scalar>
struct even_weights {
  void score(const choice_row<Scalar>& row, Scalar* scores) const { std::fill_n(scores, row.experts, Scalar(0)); }
  void weigh(const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) const {
    std::fill_n(weights, ids.size(), 1 / static_cast<Scalar>(row.k));
  }
  void backward(const choice_row<Scalar>&, const weighed_experts<Scalar>&, Scalar*) const {}
};

/// A rule's weights, to derive from.
template <FloatOrDouble Scalar, typename Weights>
class weighed_by {
public:
  explicit weighed_by(Weights weights) : weights_(std::move(weights)) {}

  const Weights& weights() const noexcept { return weights_; }
  Weights& weights() noexcept { return weights_; }

  void validate(index_t experts) const {
    if constexpr (requires { weights_.validate(experts); }) weights_.validate(experts);
  }
  void validate_call(const choice_call<Scalar>& call) const {
    if constexpr (requires { weights_.validate_call(call); }) weights_.validate_call(call);
  }
  void score(const choice_row<Scalar>& row, Scalar* scores) const { weights_.score(row, scores); }
  void weigh(const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) const {
    weights_.weigh(row, ids, weights);
  }
  void backward(const choice_row<Scalar>& row, const weighed_experts<Scalar>& weighed, Scalar* dlogits) const {
    weights_.backward(row, weighed, dlogits);
  }
  bool weighs_clean() const { return detail::weighs_clean(weights_); }
  void after_step(const routing_statistics& statistics) {
    if constexpr (requires { weights_.after_step(statistics); }) weights_.after_step(statistics);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Weights>) Weights::visit_parameters(self.weights_, visit);
  }

private:
  Weights weights_;
};

}  // namespace sluice::inline SLUICE_ISA
