/// What routers that wrap another router share: the inner router, and every call passed on to it that they leave alone.
///
/// A decorator of your own derives from router_decorator<Inner>, writes route and backward, and has a tape: one that
/// derives from the inner router's shows losses what that saw, and after_step is passed on as it is.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/statistics.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class router_decorator {
  static_assert(explain_differentiable_router<Inner>());

public:
  using scalar = typename Inner::scalar;
  using plan = typename Inner::plan;
  static constexpr bool causal = is_causal<Inner>;
  static constexpr bool exact_gradient = has_exact_gradient<Inner>;

  explicit router_decorator(Inner inner) : inner_(std::move(inner)) {}

  index_t inputs() const noexcept { return inner_.inputs(); }
  index_t experts() const noexcept { return inner_.experts(); }

  void after_step(const routing_statistics& statistics, typename Inner::tape& t) {
    if constexpr (requires { inner_.after_step(statistics, t); }) inner_.after_step(statistics, t);
  }

  Inner& inner() noexcept { return inner_; }
  const Inner& inner() const noexcept { return inner_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Inner>) Inner::visit_parameters(self.inner(), visit);
  }

private:
  Inner inner_;
};

}  // namespace sluice::inline SLUICE_ISA
