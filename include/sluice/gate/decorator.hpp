/// What gates that wrap another gate share: the inner gate, its sizes, its parameters under their own names.
///
/// Decorators nest: standardized_gate<residual_gate<two_layer_gate<float>>>. The tape of a decorator holds the inner
/// tape and passes on previous_logits_gradient() if there is a residual gate inside.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/statistics.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
struct decorated_tape {
  typename Inner::tape inner;

  const auto& previous_logits_gradient() const noexcept
    requires requires(const typename Inner::tape& t) { t.previous_logits_gradient(); }
  {
    return inner.previous_logits_gradient();
  }
};

template <typename Inner>
class gate_decorator {
  static_assert(explain_differentiable_gate<Inner>());

public:
  using scalar = typename Inner::scalar;
  static constexpr bool causal = is_causal<Inner>;
  static constexpr bool exact_gradient = has_exact_gradient<Inner>;
  static constexpr bool shows_nan = sluice::shows_nan<Inner>;

  explicit gate_decorator(Inner inner) : inner_(std::move(inner)) {}

  index_t inputs() const noexcept { return inner_.inputs(); }
  index_t experts() const noexcept { return inner_.experts(); }

  template <typename Tape>
  void after_step(const routing_statistics& statistics, Tape& t)
    requires requires(Inner& inner) { inner.after_step(statistics, t.inner); }
  {
    inner_.after_step(statistics, t.inner);
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
