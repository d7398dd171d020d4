/// A frozen layer with adapters beside it: y = base(x) + adapters(x), of which only the adapters learn.
///
///   dx = base's dx + adapters' dx;   the base's parameters are frozen for good
///
///   adapted_layer layer{dense_layer{linear_expert<float, bfloat16_storage>{64, 64}}, moe_layer{...}};
///   adapted_layer layer{loaded_layer, dense_layer{low_rank_expert<float>{64, 8, {.scale = 2}}}};
///   model_part adapters{layer, of_adapters};            // what optimisers step, and files of adapters alone hold
///
/// The base may be any layer: a dense or linear one, a whole mixture, its weights in any storage that passes gradients
/// on. Frozen matrices of experts have no memory for gradients. Parameters are "base. ..." and "adapters. ...":
/// initialisers and files of the whole model see both, of_adapters leaves out everything of a base, its states too, and
/// after_step is the adapters' alone. The calls are those of moe_layer; plan, router, bank and losses are the
/// adapters'. Padding gets zero, a NaN token NaN, and neither reaches a gradient; T = 0 is fine.
/// A single low-rank expert may also become part of the base's weights: adapter/merge.hpp.
#pragma once

#include <sluice/layer/beside.hpp>

#include <string_view>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// Takes every parameter but those of frozen bases: for train/model_part.hpp.
inline bool of_adapters(std::string_view name) {
  constexpr std::string_view base = "base.";
  return !name.starts_with(base) && name.find(".base.") == std::string_view::npos;
}

template <typename Base, typename Adapters>
class adapted_layer : public beside_layer<Adapters, Base> {
  using both = beside_layer<Adapters, Base>;

public:
  using typename both::tape;

  /// Throws std::invalid_argument if the widths differ.
  adapted_layer(Base base, Adapters adapters) : both(std::move(adapters), std::move(base)) {
    detail::for_each_unnamed_parameter(this->base(), [](auto& p) { p.set_frozen(true); });
  }

  Base& base() noexcept { return this->other(); }
  const Base& base() const noexcept { return this->other(); }
  Adapters& adapters() noexcept { return this->layer(); }
  const Adapters& adapters() const noexcept { return this->layer(); }

  void after_step(tape& t) { adapters().after_step(t.layer); }

  /// The same layers with the weights of their experts rounded to another storage, for inference.
  template <typename Storage>
  auto stored_as(const auto&... format) const {
    auto base = this->base().template stored_as<Storage>(format...);
    auto adapters = this->adapters().template stored_as<Storage>(format...);
    return adapted_layer<decltype(base), decltype(adapters)>(std::move(base), std::move(adapters));
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Base>) visit("base", self.other());
    if constexpr (HasParameters<Adapters>) visit("adapters", self.layer());
  }
};

}  // namespace sluice::inline SLUICE_ISA
