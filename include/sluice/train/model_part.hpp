/// A part of a model's parameters, chosen by name: what an optimiser steps, what is frozen, counted or clipped alone.
///
///   model_part routers{layer, named("router")};          // those with "router" among the parts of their names
///   model_part experts{layer, named("experts")};         // any f(name) -> bool will do, and f(name, parameter)
///   for (each batch) {                                   // AdvMoE's alternation: routers against fixed experts, then
///     { frozen_part still(experts);                      // experts against fixed routers, each on examples of its own
///       forward, backward;  router_steps.step(routers); }
///     { frozen_part still(routers);
///       zero_gradients(layer);  forward, backward;  expert_steps.step(experts); }
///   }
///
/// A part is visited like a model, under the model's names, so optimisers, clipping, counts and files take it. An
/// optimiser remembers one part: each part has one of its own. Gradients of what is not stepped are still added up
/// unless it is frozen; frozen experts get none, and no time is spent on them, but the memory of their gradients is
/// given back and taken anew. frozen_part freezes what was learned until then for as long as it lives; set_frozen does
/// so for good, for training in stages.
/// The model has to stay where it is. Names are looked at once: a model that has lost or got parameters since is
/// refused with std::invalid_argument. Zhang et al. 2023, "Robust Mixture-of-Expert Training for Convolutional Neural
/// Networks", arXiv:2308.10110.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/parameter.hpp>

#include <concepts>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// Takes the parameters whose name has this word between its dots: "router" takes "0.router.gate.weight".
inline auto named(std::string word) {
  return [word = std::move(word)](std::string_view name) {
    return ('.' + std::string(name) + '.').find('.' + word + '.') != std::string::npos;
  };
}

template <typename Model>
class model_part {
public:
  /// Throws std::invalid_argument if no parameter is taken.
  template <typename F>
  model_part(Model& model, F&& takes) : model_(std::addressof(model)) {
    for_each_parameter(model, [&](const std::string& name, auto& p) {
      const bool taken = is_taken(takes, name, std::as_const(p));
      names_.push_back(taken ? name : std::string());
      arrays_ += taken;
    });
    if (arrays_ == 0) throw_invalid("none of the model's ", names_.size(), " parameters is in this part of it");
  }

  /// How many parameters are in it.
  index_t arrays() const noexcept { return arrays_; }

  /// Whether the model has as many parameters as it had.
  bool fits() const {
    std::size_t count = 0;
    detail::for_each_unnamed_parameter(*model_, [&](auto&) { ++count; });
    return count == names_.size();
  }

  void set_frozen(bool frozen) const {
    for_each(*model_, [&](const std::string&, auto& p) { p.set_frozen(frozen); });
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (std::is_const_v<Self>)
      self.for_each(std::as_const(*self.model_), visit);
    else
      self.for_each(*self.model_, visit);
  }

private:
  template <typename F, typename P>
  static bool is_taken(F& takes, const std::string& name, const P& p) {
    if constexpr (std::invocable<F&, const std::string&, const P&>)
      return takes(name, p);
    else
      return takes(name);
  }

  template <typename M, typename F>
  void for_each(M& model, F&& f) const {
    if (!fits()) throw_invalid("the part is of a model of ", names_.size(), " parameters, which has others now");
    std::size_t next = 0;
    detail::for_each_unnamed_parameter(model, [&](auto& p) {
      const std::string& name = names_[next++];
      if (!name.empty()) f(name, p);
    });
  }

  Model* model_;
  std::vector<std::string> names_;  ///< of all parameters in order; empty where it is not in the part
  index_t arrays_ = 0;
};

/// Freezes the learned parameters of a part, and lets go of them in the end.
template <typename Model>
class frozen_part {
public:
  explicit frozen_part(model_part<Model>& part) : part_(part) {
    detail::for_each_unnamed_parameter(part, [&](auto& p) {
      was_learned_.push_back(p.is_learned());
      if (was_learned_.back()) p.set_frozen(true);
    });
  }
  ~frozen_part() {
    if (!part_.fits()) return;
    detail::for_each_unnamed_parameter(part_, [&, next = std::size_t(0)](auto& p) mutable {
      if (was_learned_[next++]) p.set_frozen(false);
    });
  }
  frozen_part(const frozen_part&) = delete;
  frozen_part& operator=(const frozen_part&) = delete;

private:
  model_part<Model>& part_;
  std::vector<bool> was_learned_;
};

}  // namespace sluice::inline SLUICE_ISA
