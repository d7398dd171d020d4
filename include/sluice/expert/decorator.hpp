/// What experts that wrap another expert share: the inner expert, its widths and its parameters, by its own names.
///
/// A decorator of your own derives from expert_decorator<Inner> and writes forward and backward.
#pragma once

#include <sluice/core/concepts.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class expert_decorator {
  static_assert(explain_expert<Inner>());

public:
  using scalar = typename Inner::scalar;

  explicit expert_decorator(Inner inner) : inner_(std::move(inner)) {}

  index_t inputs() const noexcept { return inner_.inputs(); }
  index_t outputs() const noexcept { return inner_.outputs(); }
  index_t saved_columns() const noexcept { return inner_.saved_columns(); }

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
