// Three systems that ask much of the interfaces: MoE++, DynMoE, PEER.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/expert/constant.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/neuron_bank.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/loss/dynmoe.hpp>
#include <sluice/router/threshold/dynmoe.hpp>
#include <sluice/router/tokens_choose/moe_plus_plus.hpp>
#include <sluice/router/tokens_choose/product_key.hpp>

namespace oracle {
namespace {

using namespace sluice;

// ---- MoE++ -----------------------------------------------------------------------------------------------------------

template <typename Scalar, typename Gate, typename BindGate>
void run_moe_plus_plus(oracle_case<Scalar>& c, Gate gate, BindGate bind_gate) {
  const auto D = c.template setting<index_t>("D");
  const auto H = c.template setting<index_t>("H");
  const auto ffns = c.template setting<index_t>("ffn_experts");
  const auto constants = c.template setting<index_t>("constant_experts");
  using router_type = moe_plus_plus_router<Scalar, Gate>;
  router_type router(std::move(gate),
                     {.top_k = c.template setting<index_t>("k"),
                      .weights = c.template setting<bool>("mixtral_gating") ? moe_plus_plus_weights::mixtral
                                                                             : moe_plus_plus_weights::released,
                      .target_deviation = c.template setting<bool>("logits_norm") ? c.template setting<Scalar>("gate_norm_std") : Scalar(0),
                      .multiply_input = c.template setting<bool>("multiply_input_by_k"),
                      .constant_weight = true});
  moe_layer layer{std::move(router),
                  expert_union{expert_bank<swiglu<Scalar>>(ffns, D, H), expert_bank<constant_expert<Scalar>>(constants, D),
                               expert_bank<identity_expert<Scalar>>(1, D), expert_bank<zero_expert<Scalar>>(1, D)}};
  bindings<Scalar> bound;
  bind_gate(layer.router().gate(), bound);
  bind_gated(bound, layer.bank().template bank<0>());
  for (index_t e = 0; e < constants; ++e) {
    auto& expert = layer.bank().template bank<1>().expert(e);
    bound.bind("constant.wg", expert.weight(), e * 2 * D);
    bound.bind("constant.value", expert.value(), e * D);
  }
  bound.load(c);
  matrix<Scalar> previous;
  routing_context<Scalar> context;
  if (c.has("gate_residual")) {
    previous = c.rows("gate_residual");
    context.previous_logits = previous;
  }
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  if constexpr (requires { tape.router.gate.previous_logits_gradient(); })
    c.check("grad.gate_residual", copy(tape.router.gate.previous_logits_gradient()));
  c.check("logits", copy(tape.router.seen.clean));
  check_choices(c, tape.router, tape.plan);
}

template <typename Scalar>
void moe_plus_plus(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const bool two_layers = c.template setting<bool>("two_layer_gate");
  const bool residual = c.template setting<bool>("gate_residual");
  const auto bind_one = [](linear_gate<Scalar>& g, bindings<Scalar>& b) { b.bind("router.weight", g.weight()); };
  const auto bind_two = [](two_layer_gate<Scalar>& g, bindings<Scalar>& b) {
    b.bind("router.weight1", g.weight1());
    b.bind("router.weight2", g.weight2());
  };
  const auto with_residual = [](auto bind_inner) {
    return [bind_inner](auto& g, bindings<Scalar>& b) {
      bind_inner(g.inner(), b);
      b.bind("router.residual_weight", g.residual());
    };
  };
  if (two_layers && residual)
    run_moe_plus_plus(c, residual_gate<two_layer_gate<Scalar>>(D, E), with_residual(bind_two));
  else if (two_layers)
    run_moe_plus_plus(c, two_layer_gate<Scalar>(D, E), bind_two);
  else if (residual)
    run_moe_plus_plus(c, residual_gate<linear_gate<Scalar>>(D, E), with_residual(bind_one));
  else
    run_moe_plus_plus(c, linear_gate<Scalar>(D, E), bind_one);
}

// ---- PEER ------------------------------------------------------------------------------------------------------------

template <typename Scalar, typename LayerTape>
void check_product_keys(oracle_case<Scalar>& c, const product_key_router<Scalar>& router, const LayerTape& tape) {
  const auto& seen = tape.router.seen;
  c.check_integers("indices", {seen.expert.data(), static_cast<std::size_t>(seen.expert.size())});
  c.check("scores", copy(seen.scores));
  c.check("weights", copy(seen.weights));
  // similarity [2,T,heads,n]
  const index_t T = seen.scores.rows();
  matrix<Scalar> all(2 * T * router.heads(), c.template setting<index_t>("num_keys"));
  for (index_t half = 0; half < 2; ++half)
    for (index_t h = 0; h < router.heads(); ++h) {
      const matrix<Scalar> own = router.similarities(tape.router, h, half);
      for (index_t t = 0; t < T; ++t) all.row((half * T + t) * router.heads() + h) = own.row(t);
    }
  c.check("similarity", all);
}

template <typename Scalar, typename Phi>
void run_peer(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto keys = c.template setting<index_t>("num_keys");
  product_key_router<Scalar> router(D, keys,
                                    {.heads = c.template setting<index_t>("heads"),
                                     .top_k = c.template setting<index_t>("k"),
                                     .key_width = c.template setting<index_t>("dim_key"),
                                     .candidates = c.template setting<index_t>("product_key_topk"),
                                     .weights = c.template setting<bool>("non_competing") ? product_key_weights::relu
                                                                                          : product_key_weights::softmax,
                                     .separate_experts = c.template setting<bool>("separate_embed_per_head")});
  const index_t experts = router.experts();
  moe_layer layer{std::move(router), neuron_bank<Scalar, Phi>(experts, D)};
  const auto bind = [](auto& l, bindings<Scalar>& b) {
    b.bind("router.query_weight", l.router().query_weight());
    b.bind("router.keys", l.router().keys());
    b.bind("experts.down", l.bank().down());
    b.bind("experts.up", l.bank().up());
  };
  bindings<Scalar> bound;
  const routing_context<Scalar> context;
  if (!c.template setting<bool>("pre_rmsnorm")) {
    bind(layer, bound);
    bound.load(c);
    typename decltype(layer)::tape tape;
    check_task(c, layer, tape, bound, context);
    check_product_keys(c, layer.router(), tape);
    return;
  }
  normalized_layer normalized{std::move(layer), rms_norm<Scalar>(D)};
  bind(normalized.layer(), bound);
  bound.bind("norm.gamma", normalized.norm().gain());
  bound.load(c);
  for (Scalar& gain : normalized.norm().gain().value()) gain += 1;  // the source's gain is gamma + 1
  typename decltype(normalized)::tape tape;
  check_task(c, normalized, tape, bound, context);
  check_product_keys(c, normalized.layer().router(), tape.layer);
}

template <typename Scalar>
void peer(oracle_case<Scalar>& c) {
  const auto activation = c.template setting<std::string>("activation");
  if (activation == "GELU")
    run_peer<Scalar, gelu>(c);
  else if (activation == "ReLU")
    run_peer<Scalar, relu>(c);
  else if (activation == "SiLU")
    run_peer<Scalar, silu>(c);
  else
    throw unsupported("activation " + activation);
}

// ---- DynMoE ----------------------------------------------------------------------------------------------------------

template <typename Scalar>
void dynmoe(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  top_any_router<Scalar> router(D, E);
  const auto bind = [](auto& r, bindings<Scalar>& b) {
    b.bind("router.sim_matrix", r.gate().sim_matrix(), 0, layout::transposed);
    b.bind("router.gates", r.threshold());
    b.bind("router.temperature", r.gate().temperature());
  };
  const auto live = c.numbers("router.experts_mask");
  std::copy(live.begin(), live.end(), router.live().value().begin());
  routing_context<Scalar> context;
  context.training = c.template setting<bool>("train");
  moe_layer layer{router, expert_bank<ffn<Scalar, gelu>>(E, D, c.template setting<index_t>("H"), {.bias = true})};
  bindings<Scalar> bound;
  bind(layer.router(), bound);
  bind_ffn(bound, layer.bank(), {"experts.weight1", "experts.weight2"}, true);
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  const auto& seen = tape.router.seen;
  c.check("scores", copy(seen.scores));
  c.check("thresholds", seen.thresholds.span());
  c.check_integers("top_k", seen.count.span());
  std::vector<index_t> mask, counts;
  for (index_t i = 0; i < seen.active.size(); ++i) mask.push_back(seen.active.data()[i] != 0);
  for (index_t e = 0; e < E; ++e) counts.push_back(tape.plan.load(e));
  c.check_integers("mask", mask);
  c.check_integers("counts", counts);
  c.check("combine", tape.plan.dense_weights());
  check_slots(c, tape.plan, context);
  check_losses(c, "diversity_loss", router, bind, context, 0, dynmoe_loss{.coefficient = 1, .load = 0, .efficiency = 0});
  check_losses(c, "aux_loss", router, bind, context, 0, dynmoe_loss{.coefficient = 1});
}

}  // namespace

std::vector<replayer> probes() {
  return {{"moe_plus_plus", moe_plus_plus<float>, moe_plus_plus<double>},
          {"dynmoe", dynmoe<float>, dynmoe<double>},
          {"peer", peer<float>, peer<double>}};
}

}  // namespace oracle
