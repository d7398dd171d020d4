// Union of Experts: whole sequences choose slices of one network; tokens weigh experts by shares.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/expert/ffn.hpp>
#include <sluice/gate/per_group.hpp>
#include <sluice/layer/output_normalized.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/router/tokens_choose/position_share.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

namespace oracle {
namespace {

using namespace sluice;

template <typename Scalar, typename Layer, typename RouterTape>
void run_selection(oracle_case<Scalar>& c, Layer layer, RouterTape router_tape) {
  bindings<Scalar> bound;
  auto& gate = layer.router().gate().inner();
  bound.bind("switch.weight", gate.weight());
  bound.bind("switch.bias", gate.bias());
  bind_ffn(bound, layer.bank(), {"experts.w1", "experts.w2", layout::transposed, layout::transposed, "experts.b1", "experts.b2"}, true);
  if constexpr (requires { layer.norm(); }) {
    bound.bind("norm.weight", layer.norm().gain());
    bound.bind("norm.bias", layer.norm().bias());
  }
  bound.load(c);
  const auto groups = c.groups();
  routing_context<Scalar> context;
  context.training = true;
  context.groups = groups;
  typename Layer::tape tape;
  check_task(c, layer, tape, bound, context);
  const auto& routed = router_tape(tape);
  const auto k = c.template setting<index_t>("k");
  matrix<Scalar> gates(context.group_count(), c.template setting<index_t>("E"));
  std::vector<index_t> chosen;
  for (index_t g = 0; g < gates.rows(); ++g) {
    const index_t first = groups[static_cast<std::size_t>(g)];
    gates.row(g) = routed.scores.map().row(first);
    for (index_t j = 0; j < k; ++j) chosen.push_back(routed.choices.expert[first * k + j]);
  }
  c.check("gates", gates);
  c.check_integers("indices", chosen);
}

template <typename Scalar>
void expert_selection(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  per_group_gate<linear_gate<Scalar>, group_source::all_tokens> gate(D, {c.template setting<index_t>("N") * D, E, {.bias = true}});
  top_k_router<Scalar, dynamic, dynamic, decltype(gate)> router(
      std::move(gate), {.top_k = c.template setting<index_t>("k"), .weights = weighting::one, .constant_weight = true});
  residual_layer block{moe_layer{std::move(router), expert_bank<ffn<Scalar, gelu>>(E, D, c.template setting<index_t>("H") / E, {.bias = true})}};
  if (c.template setting<bool>("pre_norm"))
    run_selection(c, std::move(block), [](const auto& tape) -> const auto& { return tape.layer.router; });
  else
    run_selection(c, output_normalized_layer{std::move(block), layer_norm<Scalar>{D, {.bias = true}}},
                  [](const auto& tape) -> const auto& { return tape.layer.layer.router; });
}

template <typename Scalar>
void data_gate(oracle_case<Scalar>& c) {
  position_share_router<Scalar> router(linear_gate<Scalar>(c.template setting<index_t>("D"), c.template setting<index_t>("E"), {.bias = true}),
                                       {.top_k = c.template setting<index_t>("k"),
                                        .capacity_factor = c.template setting<double>("capacity_factor"),
                                        .epsilon = c.template setting<Scalar>("epsilon")});
  bindings<Scalar> bound;
  bound.bind("router.weight", router.gate().weight());
  bound.bind("router.bias", router.gate().bias());
  bound.load(c);
  const auto sequences = c.groups();
  routing_context<Scalar> context;
  context.training = true;
  context.sequences = sequences;
  const matrix<Scalar> x = c.rows("x"), cotangent = c.rows("grad_weights");
  typename decltype(router)::plan plan;
  typename decltype(router)::tape tape;
  router.route(x, context, plan, tape);
  c.check("weights", plan.dense_weights());
  tape.dseen.zero_like(tape.seen);
  typename decltype(router)::plan::gradient dplan;
  dplan.weight.resize(plan.size());
  for (index_t e = 0; e < plan.experts(); ++e)
    for (index_t i = plan.by_expert().of(e).begin; i < plan.by_expert().of(e).end; ++i) dplan.weight[i] = cotangent(plan.token(i), e);
  ensure_gradients(router);
  matrix<Scalar> dx = matrix<Scalar>::Zero(x.rows(), x.cols());
  router.backward(x, context, plan, dplan, tape, dx);
  c.check("grad_weights.x", dx);
  bound.check_gradients(c, "grad_weights");
}

template <typename Scalar>
void union_of_experts_case(oracle_case<Scalar>& c) {
  const auto kind = c.template setting<std::string>("kind");
  if (kind == "expert_selection") return expert_selection(c);
  if (kind == "data_gate") return data_gate(c);
  throw unsupported("kind " + kind);
}

}  // namespace

std::vector<replayer> union_of_experts() { return {{"uoe", union_of_experts_case<float>, union_of_experts_case<double>}}; }

}  // namespace oracle
