/// A dense feed-forward layer: one expert that every token passes.
///
///   y[t] = f(x[t])
///   dense_layer block{swiglu<float>{64, 256}};      dense_layer lift{ffn<float>{64, 256, {.bias = true}}};
///
/// It is a moe_layer of one expert (router/every_expert/dense.hpp), with all of its calls, kernels and promises: any
/// expert functor will do, it converts to other storages, padding gets zero, NaN stays in its token and reaches no
/// gradient. Its parameters bear the expert's own names: "up", "down".
#pragma once

#include <sluice/expert/bank.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/every_expert/dense.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Expert>
class dense_layer : public moe_layer<dense_router<detail::scalar_of<Expert>>, expert_bank<Expert>> {
  using router_type = dense_router<detail::scalar_of<Expert>>;
  using base = moe_layer<router_type, expert_bank<Expert>>;

public:
  explicit dense_layer(Expert expert) : base(router_type(expert.inputs(), 1), expert_bank<Expert>(1, expert)) {}

  Expert& expert() noexcept { return this->bank().expert(0); }
  const Expert& expert() const noexcept { return this->bank().expert(0); }

  /// The same layer with its weights rounded to another storage, for inference.
  template <typename Storage>
  auto stored_as(const auto&... format) const {
    auto bank = this->bank().template stored_as<Storage>(format...);
    return dense_layer<typename decltype(bank)::expert_type>(std::move(bank.expert(0)));
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Expert>) visit("", self.expert());
  }
};

}  // namespace sluice::inline SLUICE_ISA
