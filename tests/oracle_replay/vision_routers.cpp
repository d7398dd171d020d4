// V-MoE: noisy top-k with capacity and batch priority, its three losses, expert choice, and the table of capacities.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/capacity/batch_priority.hpp>
#include <sluice/capacity/position.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/loss/load.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/experts_choose/expert_choice.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

namespace oracle {
namespace {

using namespace sluice;

capacity_rounding rounding_of(const std::string& name) {
  if (name == "ceil") return capacity_rounding::up;
  if (name == "round") return capacity_rounding::half_to_even;
  throw unsupported("capacity rounding " + name);
}

template <typename Scalar>
capacity_limit rounded_limit_of(const oracle_case<Scalar>& c) {
  return capacity_limit::vmoe(c.template setting<double>("capacity_factor"),
                              rounding_of(c.template setting<std::string>("capacity_rounding")),
                              c.template setting<index_t>("capacity_multiple_of"));
}

template <typename Scalar, typename Layer>
bindings<Scalar> bind_layer(Layer& layer) {
  bindings<Scalar> b;
  b.bind("router.weight", layer.router().gate().weight());
  bind_ffn(b, layer.bank(), {"experts.kernel1", "experts.kernel2", layout::transposed, layout::transposed}, true);
  return b;
}

template <typename Scalar>
auto bank_of(const oracle_case<Scalar>& c) {
  return expert_bank<ffn<Scalar, gelu_tanh>>(c.template setting<index_t>("E"), c.template setting<index_t>("D"),
                                             c.template setting<index_t>("H"), {.bias = true});
}

template <typename Scalar, typename Capacity>
void run_top_k(oracle_case<Scalar>& c, Capacity capacity) {
  using gate = linear_gate<Scalar>;
  const bool noisy = !c.template setting<bool>("deterministic");
  const auto E = c.template setting<index_t>("E");
  const top_k_router<Scalar, dynamic, dynamic, gate, gaussian_noise<Scalar>, Capacity> router(
      gate(c.template setting<index_t>("D"), E), {.top_k = c.template setting<index_t>("k"), .weights = weighting::pre},
      gaussian_noise<Scalar>(c.template setting<Scalar>("noise_std")), capacity);
  const auto groups = c.groups();
  const auto normal = noisy ? c.file().template read_vector<double>("noise.normal") : std::vector<double>();
  routing_context<Scalar> context;
  context.training = noisy;
  context.groups = groups;
  context.random.replay(noise_site, normal);

  moe_layer layer{router, bank_of(c)};
  auto bound = bind_layer<Scalar>(layer);
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check("logits", copy(tape.router.seen.clean));
  c.check("gates", copy(tape.router.scores));
  check_choices(c, tape.router, tape.plan);
  check_slots(c, tape.plan, context);
  // The order in which tokens were served: by first choice, relative to the start of the group.
  std::vector<index_t> order;
  for (const index_t pair : tape.router.choices.order)
    if (pair % router.top_k() == 0) order.push_back(pair / router.top_k() % c.template setting<index_t>("S"));
  c.check_integers("priority_order", order);

  const auto bind = [](auto& r, bindings<Scalar>& b) { b.bind("router.weight", r.gate().weight()); };
  const switch_balance gshard{.coefficient = 1};
  const importance_loss importance{.coefficient = 1};
  const load_loss load{.coefficient = 1};
  check_losses(c, "gshard_loss", router, bind, context, 0, gshard);
  check_losses(c, "importance_loss", router, bind, context, 0, importance);
  check_losses(c, "load_loss", router, bind, context, 0, load);
  const auto weights = c.template setting<std::vector<double>>("loss_weights");
  check_losses(c, "aux_loss", router, bind, context, 0, switch_balance{.coefficient = weights.at(0)},
               importance_loss{.coefficient = weights.at(1)}, load_loss{.coefficient = weights.at(2)});
}

template <typename Scalar>
void run_expert_choice(oracle_case<Scalar>& c) {
  const bool noisy = !c.template setting<bool>("deterministic");
  const auto normal = noisy ? c.file().template read_vector<double>("noise.normal") : std::vector<double>();
  const auto E = c.template setting<index_t>("E");
  const auto S = c.template setting<index_t>("S");
  using gate = linear_gate<Scalar>;
  expert_choice_router<Scalar, gate, gaussian_noise<Scalar>> router(gate(c.template setting<index_t>("D"), E),
                                                                    {.capacity = rounded_limit_of(c)},
                                                                    gaussian_noise<Scalar>(c.template setting<Scalar>("noise_std")));
  const auto groups = c.groups();
  routing_context<Scalar> context;
  context.training = noisy;
  context.groups = groups;
  context.random.replay(noise_site, normal);
  moe_layer layer{std::move(router), bank_of(c)};
  auto bound = bind_layer<Scalar>(layer);
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check("logits", copy(tape.router.seen.clean));
  c.check("gates", copy(tape.router.scores));
  c.check("combine", tape.plan.dense_weights());
  check_slots(c, tape.plan, context);
  std::vector<index_t> per_token, expert_tokens;
  for (index_t t = 0; t < tape.plan.tokens(); ++t) per_token.push_back(static_cast<index_t>(tape.plan.of_token(t).size()));
  c.check_integers("experts_per_token", per_token);
  for (index_t g = 0; g < context.group_count(); ++g)
    for (const row_range& own : tape.plan.by_expert())
      for (index_t i = own.begin; i < own.end; ++i)
        if (tape.plan.token(i) / S == g) expert_tokens.push_back(tape.plan.token(i) % S);
  c.check_integers("expert_tokens", expert_tokens);
}

template <typename Scalar>
void capacity_table(oracle_case<Scalar>& c) {
  const auto tokens = c.integers("num_tokens");
  const auto experts = c.integers("num_experts");
  const auto multiple = c.integers("multiple_of");
  const auto mode = c.integers("round_mode");
  const auto factor = c.numbers("capacity_factor");
  std::vector<index_t> capacities;
  for (std::size_t i = 0; i < tokens.size(); ++i)
    capacities.push_back(capacity_limit::vmoe(static_cast<double>(factor[i]),
                                              mode[i] == 0 ? capacity_rounding::up : capacity_rounding::half_to_even, multiple[i])
                             .of({.tokens = tokens[i], .top_k = 1, .experts = experts[i]}));
  c.check_integers("capacity", capacities);
}

template <typename Scalar>
void vmoe(oracle_case<Scalar>& c) {
  if (c.has("expected.capacity")) return capacity_table(c);
  const auto mode = c.template setting<std::string>("mode");
  if (mode == "ec") return run_expert_choice(c);
  if (mode != "topk") throw unsupported("mode " + mode);
  if (c.template setting<bool>("batch_priority"))
    run_top_k(c, batch_priority_capacity(rounded_limit_of(c)));
  else
    run_top_k(c, position_capacity(rounded_limit_of(c)));
}

}  // namespace

std::vector<replayer> vision_routers() { return {{"vmoe", vmoe<float>, vmoe<double>}}; }

}  // namespace oracle
