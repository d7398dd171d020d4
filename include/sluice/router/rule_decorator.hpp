/// What rules that wrap another rule share: the inner rule, and every call passed on to it.
///
/// A decorator of your own derives from rule_decorator<Scalar, Inner> and writes what it changes, usually choose. The
/// inner rule chooses token by token (router/choice_rule.hpp); decorators nest.
#pragma once

#include <sluice/core/parameter.hpp>
#include <sluice/core/statistics.hpp>
#include <sluice/router/rule_calls.hpp>

#include <span>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, typename Inner>
class rule_decorator {
  static_assert(explain_choice_rule<Inner, Scalar>());
  static_assert(!CanAssignExperts<Inner, Scalar>,
                "sluice: rules that assign experts to all tokens cannot be decorated");

public:
  static constexpr bool causal = is_causal_rule<Inner, Scalar>;
  static constexpr bool exact_gradient = has_exact_gradient<Inner>;

  explicit rule_decorator(Inner inner) : inner_(std::move(inner)) {}

  index_t top_k() const { return inner_.top_k(); }
  index_t top_k(const routing_context<Scalar>& context) const { return detail::top_k_of(inner_, context); }
  void validate(index_t experts) const {
    if constexpr (requires { inner_.validate(experts); }) inner_.validate(experts);
  }
  void validate_call(const choice_call<Scalar>& call) const {
    if constexpr (requires { inner_.validate_call(call); }) inner_.validate_call(call);
  }

  void score(const choice_row<Scalar>& row, Scalar* scores) const { inner_.score(row, scores); }
  index_t choose(const choice_row<Scalar>& row, index_t* ids) const { return inner_.choose(row, ids); }
  void weigh(const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) const {
    inner_.weigh(row, ids, weights);
  }
  void backward(const choice_row<Scalar>& row, const weighed_experts<Scalar>& weighed, Scalar* dlogits) const {
    inner_.backward(row, weighed, dlogits);
  }
  bool weighs_clean() const { return detail::weighs_clean(inner_); }
  bool keeps(const choice_row<Scalar>& row, index_t rank, Scalar weight) const {
    return detail::keeps(inner_, row, rank, weight);
  }
  Scalar priority(const choice_row<Scalar>& row) const { return detail::priority_of(inner_, row); }
  void after_step(const routing_statistics& statistics) {
    if constexpr (requires { inner_.after_step(statistics); }) inner_.after_step(statistics);
  }

  Inner& inner() noexcept { return inner_; }
  const Inner& inner() const noexcept { return inner_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Inner>) Inner::visit_parameters(self.inner_, visit);
  }

private:
  Inner inner_;
};

}  // namespace sluice::inline SLUICE_ISA
