/// The four ways of tuning a frozen mixture by small experts beside it or in it (PERFT), around any layer.
///
///   perft_routed    y = base(x) + sum over the K chosen of M of g_j a_j(x)     a router of their own; K <= M
///   perft_embedded  y = sum over e of w_e (f_e(x) + a_e(x))                    the base's router, an adapter an expert
///   perft_dense     y = base(x) + sum over all M of a_j(x)                     all of them, weight 1
///   perft_single    y = base(x) + a(x)
///
///   auto base = load_layer<olmoe_layer<float>>(model, {.layer = 3});
///   auto layer = published::perft_routed(base, low_rank_expert<float>{2048, 16}, {.adapters = 4, .top_k = 2});
///   model_part adapters{layer, of_adapters};       // what optimisers step and files of adapters hold
///
/// a is any expert functor, copied M times: ffn with zero_output is the parallel adapter U phi(D x), low_rank_expert is
/// LoRA. Initialise adapters, not the base: initialize(layer.adapters(), seed), or of perft_embedded
/// initialize(layer.bank().adapters(), seed). The base is frozen, in any storage that passes gradients on. An embedded
/// base is a moe_layer, or what it has inside of wrappers: router and bank are taken from it, its losses are not.
/// g is the softmax over all M, not renormalised, as OLMoE's router is; the paper's abstract and option names were
/// readable, so .weights says otherwise where wanted. Liu et al. 2024, arXiv:2411.08212 (PERFT).
#pragma once

#include <sluice/adapter/adapted.hpp>
#include <sluice/adapter/adapted_bank.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/every_expert/dense.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA::published {

struct perft_options {
  index_t adapters = 4;  ///< M
  index_t top_k = 1;     ///< K
  weighting weights = weighting::pre;
};

/// Throws std::invalid_argument if widths differ, or K > M.
template <typename Base, typename Adapter>
auto perft_routed(Base base, const Adapter& adapter, perft_options o = {}) {
  const top_k_router<typename Base::scalar> router{base.inputs(), o.adapters, {.top_k = o.top_k, .weights = o.weights}};
  return adapted_layer{std::move(base), moe_layer{router, expert_bank<Adapter>(o.adapters, adapter)}};
}

/// Throws std::invalid_argument if widths differ.
template <typename Base, typename Adapter>
auto perft_embedded(const Base& base, const Adapter& adapter) {
  moe_layer layer{base.router(), adapted_bank{base.bank(), expert_bank<Adapter>(base.experts(), adapter)}};
  detail::freeze(layer.router());
  return layer;
}

/// Throws std::invalid_argument if widths differ, or M < 1.
template <typename Base, typename Adapter>
auto perft_dense(Base base, const Adapter& adapter, index_t adapters) {
  const index_t inputs = base.inputs();
  return adapted_layer{std::move(base), moe_layer{dense_router<typename Base::scalar>{inputs, adapters},
                                                  expert_bank<Adapter>(adapters, adapter)}};
}

/// Throws std::invalid_argument if widths differ.
template <typename Base, typename Adapter>
auto perft_single(Base base, const Adapter& adapter) {
  return adapted_layer{std::move(base), dense_layer{adapter}};
}

}  // namespace sluice::inline SLUICE_ISA::published
