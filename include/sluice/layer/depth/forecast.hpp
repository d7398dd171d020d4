/// Experts foreseen: who will be needed by a layer ahead, so that weights can be on their way before its tokens are.
///
///   layer.router().route(early, context, foreseen, router_tape);   early [T,D]: what hidden states will resemble
///   for_each_needed_expert(foreseen, [&](index_t e) { prefetch(e); });
///   layer.forward(x, y, workspace, context);                        routed by the true x, whatever was foreseen
///   foresight seen = compare_forecast(foreseen, workspace.plan);    seen.rate() of what was needed was on its way
///
/// Routing changes nothing of a layer, so a forecast changes no output. `early` may be an earlier hidden state, or a
/// stream of its own that runs ahead: column_layers in a state_chain that begins with x (layer/depth/state_chain.hpp),
/// the second columns of which go through small adapters. For plans that list assignments by expert. This is our
/// reading of M2R2 (Bhendawade et al. 2025, arXiv:2502.02040), of which the abstract was at hand: the form of its
/// adapters, their rates and losses are not in it; the name m2r2 stays free for its exact form.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/types.hpp>

namespace sluice::inline SLUICE_ISA {

/// f(expert) for every expert that has a token in the plan, in ascending order.
template <typename Plan, typename F>
void for_each_needed_expert(const Plan& plan, F&& f) {
  for (index_t e = 0; e < plan.experts(); ++e)
    if (plan.by_expert().of(e).size() > 0) f(e);
}

/// What a forecast was worth.
struct foresight {
  index_t needed = 0;    ///< experts that have a token
  index_t foreseen = 0;  ///< those of them that the forecast had
  index_t in_vain = 0;   ///< experts that only the forecast had

  /// The share of needed experts that were foreseen; 1 if none was needed.
  double rate() const noexcept { return needed == 0 ? 1 : static_cast<double>(foreseen) / static_cast<double>(needed); }
};

/// Throws std::invalid_argument unless both plans are for the same experts.
template <typename Plan>
foresight compare_forecast(const Plan& forecast, const Plan& plan) {
  if (forecast.experts() != plan.experts())
    throw_invalid("a forecast for ", forecast.experts(), " experts says nothing of a plan for ", plan.experts());
  foresight seen;
  for (index_t e = 0; e < plan.experts(); ++e) {
    const bool is_needed = plan.by_expert().of(e).size() > 0, is_foreseen = forecast.by_expert().of(e).size() > 0;
    seen.needed += is_needed;
    seen.foreseen += is_needed && is_foreseen;
    seen.in_vain += is_foreseen && !is_needed;
  }
  return seen;
}

}  // namespace sluice::inline SLUICE_ISA
