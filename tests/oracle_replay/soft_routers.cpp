// Soft MoE: the authors' code and the widely used PyTorch port.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/router/every_expert/soft_moe.hpp>

namespace oracle {
namespace {

using namespace sluice;

/// Mean over groups and `kept` of the extremes over the rest, for [T,S] weights: the authors' metrics.
template <typename Scalar>
void check_metrics(oracle_case<Scalar>& c, const soft_plan<Scalar>& plan) {
  const auto dispatch = plan.dispatch().map();
  const auto combine = plan.combine().map();
  c.check("metric.combine_weights_max_mean", combine.rowwise().maxCoeff().mean());
  c.check("metric.combine_weights_min_mean", combine.rowwise().minCoeff().mean());
  Scalar largest = 0;
  Scalar smallest = 0;
  for (const token_range group : plan.groups()) {
    const auto own = dispatch.middleRows(group.begin, group.size());
    largest += own.colwise().maxCoeff().mean();
    smallest += own.colwise().minCoeff().mean();
  }
  c.check("metric.dispatch_weights_max_mean", largest / static_cast<Scalar>(plan.groups().size()));
  c.check("metric.dispatch_weights_min_mean", smallest / static_cast<Scalar>(plan.groups().size()));
}

template <typename Scalar>
void check_soft_plan(oracle_case<Scalar>& c, const soft_plan<Scalar>& plan) {
  c.check("dispatch", copy(plan.dispatch()));
  c.check("combine", copy(plan.combine()));
}

template <typename Scalar>
void soft_moe(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto P = c.template setting<index_t>("slots_per_expert");
  const auto groups = c.groups();
  routing_context<Scalar> context;
  context.training = true;
  context.groups = groups;
  moe_layer layer{soft_moe_router<Scalar>(D, E, {.slots_per_expert = P}),
                  expert_bank<ffn<Scalar, gelu_tanh>>(E, D, c.template setting<index_t>("H"), {.bias = true})};
  bindings<Scalar> bound;
  bound.bind("slots.mu", layer.router().slot_vectors(), 0, layout::transposed, E * P);
  bound.bind("slots.scale", layer.router().scale());
  bind_ffn(bound, layer.bank(), {"experts.kernel1", "experts.kernel2", layout::transposed, layout::transposed}, true);
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check("logits", copy(tape.router.seen.clean));
  check_soft_plan(c, tape.plan);
  check_metrics(c, tape.plan);
  // slot_inputs [G,E,P,D]; ours are expert by expert.
  matrix<Scalar> slots(tape.plan.rows(), D);
  for (index_t g = 0; g < context.group_count(); ++g)
    for (index_t s = 0; s < tape.plan.slot_count(); ++s)
      slots.row(g * tape.plan.slot_count() + s) = tape.rows.map().row(tape.plan.row(g, s));
  c.check("slot_inputs", slots);
}

template <typename Scalar, RowNorm Norm, typename Bank>
void run_port(oracle_case<Scalar>& c, Bank bank) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto groups = c.groups();
  std::vector<std::uint8_t> mask;
  if (c.has("mask"))
    for (const index_t real : c.integers("mask")) mask.push_back(real != 0);
  routing_context<Scalar> context;
  context.training = true;
  context.groups = groups;
  context.token_mask = mask;
  using router = soft_moe_router<Scalar, no_norm<Scalar>, Norm>;
  normalized_layer layer{moe_layer{router(D, E,
                                          {.slots_per_expert = c.template setting<index_t>("slots_per_expert"),
                                           .learned_scale = false,
                                           .padding = padding_output::mean_of_slots}),
                                   std::move(bank)},
                         Norm(D)};
  auto& inner = layer.layer();
  bindings<Scalar> bound;
  bound.bind("norm.gamma", layer.norm().gain());
  bound.bind("slot_norm.gamma", inner.router().slot_norm().gain());
  bound.bind("slot_embeds", inner.router().slot_vectors());
  if constexpr (requires { inner.bank().expert(0).gate(); })
    bind_value_then_gate(bound, inner.bank(), false);
  else
    bind_ffn(bound, inner.bank(), {"experts.weight1", "experts.weight2"}, true);
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check("logits", copy(tape.layer.router.seen.clean));
  check_soft_plan(c, tape.layer.plan);
}

template <typename Scalar, RowNorm Norm>
void with_port_experts(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto H = c.template setting<index_t>("H");
  if (c.template setting<bool>("geglu"))
    run_port<Scalar, Norm>(c, expert_bank<geglu<Scalar>>(E, D, H, {.bias = true}));
  else
    run_port<Scalar, Norm>(c, expert_bank<ffn<Scalar, gelu>>(E, D, H, {.bias = true}));
}

template <typename Scalar>
void soft_moe_lucidrains(oracle_case<Scalar>& c) {
  const auto norm = c.template setting<std::string>("norm");
  if (norm == "rmsnorm")
    with_port_experts<Scalar, rms_norm<Scalar>>(c);
  else if (norm == "layernorm")
    with_port_experts<Scalar, layer_norm<Scalar>>(c);
  else
    throw unsupported("norm " + norm);
}

}  // namespace

std::vector<replayer> soft_routers() {
  return {{"soft_moe", soft_moe<float>, soft_moe<double>},
          {"soft_moe_lucidrains", soft_moe_lucidrains<float>, soft_moe_lucidrains<double>}};
}

}  // namespace oracle
