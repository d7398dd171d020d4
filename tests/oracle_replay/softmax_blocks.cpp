// Decoder blocks with SwiGLU experts: Mixtral, OLMoE, Qwen2-MoE, Qwen3-MoE, DeepSeek-V2, DeepSeek-V3.
#include "layer_run.hpp"
#include "loaded_layer.hpp"
#include "replays.hpp"

#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/shared_expert.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

namespace oracle {
namespace {

using namespace sluice;

template <typename Scalar>
using bank = expert_bank<swiglu<Scalar>>;

/// Binds the router and the routed experts of a layer.
template <typename Scalar, typename Layer>
bindings<Scalar> bind_block(Layer& layer) {
  bindings<Scalar> b;
  b.bind("router.weight", layer.router().gate().weight());
  bind_gated(b, layer.bank());
  return b;
}

/// Group tables of the group-limited routers, recomputed from the scores that selection used.
template <typename Scalar>
void check_groups(oracle_case<Scalar>& c, const group_limit& limit, const matrix<Scalar>& selection) {
  const index_t experts = selection.cols();
  const index_t size = experts / limit.groups;
  matrix<Scalar> group_scores(selection.rows(), limit.groups);
  std::vector<index_t> mask;
  for (index_t t = 0; t < selection.rows(); ++t)
    for (index_t g = 0; g < limit.groups; ++g) {
      const Scalar* row = &selection(t, 0);
      group_scores(t, g) = limit.score_of(row + g * size, size);
      mask.push_back(limit.keeps(row, experts, g));
    }
  c.check("group_scores", group_scores);
  c.check_integers("group_mask", mask);
}

template <typename Scalar, typename LayerTape>
void check_tables(oracle_case<Scalar>& c, const LayerTape& tape, const group_limit& limit) {
  c.check("logits", copy(tape.router.seen.clean));
  c.check("scores", copy(tape.router.scores));
  check_choices(c, tape.router, tape.plan);
  matrix<Scalar> selection = copy(tape.router.scores);
  if (c.has("router.bias")) selection.rowwise() += c.rows("router.bias").row(0);
  check_groups(c, limit, selection);
}

template <typename Scalar, typename Layer>
bindings<Scalar> bind_shared(Layer& layer) {
  auto bound = bind_block<Scalar>(layer.layer());
  bound.bind("shared.gate_proj", layer.shared().gate());
  bound.bind("shared.up_proj", layer.shared().up());
  bound.bind("shared.down_proj", layer.shared().down());
  if constexpr (requires { layer.gate(); }) bound.bind("shared.router_weight", layer.gate());
  return bound;
}

constexpr std::initializer_list<const char*> layouts{"per-expert", "stacked", "stacked-apart"};

/// The block with its shared expert: with or without a sigmoid gate.
template <typename Scalar, typename Layer>
void run_shared(oracle_case<Scalar>& c, Layer layer, const group_limit& limit) {
  check_loaded<Layer>(c, layouts, bind_shared<Scalar, Layer>);
  auto bound = bind_shared<Scalar>(layer);
  bound.load(c);
  typename Layer::tape tape;
  check_task(c, layer, tape, bound, {});
  check_tables(c, tape.layer, limit);
}

/// Runs the block with or without a shared expert, whatever the file has.
template <typename Scalar, typename Router>
void run_block(oracle_case<Scalar>& c, Router router, const group_limit& limit = {}) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto H = c.template setting<index_t>("H");
  moe_layer layer{std::move(router), bank<Scalar>(E, D, H)};
  if (c.has("shared.router_weight")) {
    run_shared(c, shared_expert_layer{std::move(layer), swiglu<Scalar>(D, c.axis("shared.gate_proj", 0)), gated}, limit);
  } else if (c.has("shared.gate_proj")) {
    run_shared(c, shared_expert_layer{std::move(layer), swiglu<Scalar>(D, c.axis("shared.gate_proj", 0))}, limit);
  } else {
    check_loaded<decltype(layer)>(c, layouts, bind_block<Scalar, decltype(layer)>);
    auto bound = bind_block<Scalar>(layer);
    bound.load(c);
    typename decltype(layer)::tape tape;
    check_task(c, layer, tape, bound, {});
    check_tables(c, tape, limit);
  }
}

/// The load-balancing loss of these models: E * sum over the k choices of mean(one-hot) * mean(p), also under a mask.
template <typename Scalar>
void check_balance(oracle_case<Scalar>& c, const top_k_router<Scalar>& router) {
  const auto one = [&](const std::string& name, const routing_context<Scalar>& context) {
    check_losses(c, name, router, [](auto& r, bindings<Scalar>& b) { b.bind("router.weight", r.gate().weight()); }, context, 0,
                 switch_balance{.coefficient = 1, .share = balance_share::per_token});
  };
  one("aux_loss", {});
  if (!c.has("attention_mask")) return;
  std::vector<std::uint8_t> mask;
  for (const Scalar kept : c.numbers("attention_mask")) mask.push_back(kept != 0);
  routing_context<Scalar> context;
  context.token_mask = mask;
  one("aux_loss_masked", context);
}

template <typename Scalar>
void softmax_block(oracle_case<Scalar>& c) {
  const top_k_router<Scalar> router(
      c.template setting<index_t>("D"), c.template setting<index_t>("E"),
      {.top_k = c.template setting<index_t>("k"),
       .weights = c.template setting<bool>("renormalise") ? weighting::renorm : weighting::pre,
       .constant_weight = true});
  run_block(c, router);
  check_balance(c, router);
}

template <typename Scalar>
void deepseek_v2(oracle_case<Scalar>& c) {
  group_limit groups;
  const auto method = c.template setting<std::string>("method");
  if (method == "group_limited_greedy") {
    groups.groups = c.template setting<index_t>("n_group");
    groups.kept = c.template setting<index_t>("topk_group");
  } else if (method != "greedy") {
    throw unsupported("method " + method);
  }
  run_block(c, top_k_router<Scalar>(c.template setting<index_t>("D"), c.template setting<index_t>("E"),
                                    {.top_k = c.template setting<index_t>("k"),
                                     .weights = weighting::pre,
                                     .scaling = c.template setting<Scalar>("routed_scaling"),
                                     .groups = groups}),
            groups);
}

template <typename Scalar>
void deepseek_v3(oracle_case<Scalar>& c) {
  const auto method = c.template setting<std::string>("method");
  if (method != "noaux_tc") throw unsupported("method " + method);
  const group_limit groups{.groups = c.template setting<index_t>("n_group"),
                           .kept = c.template setting<index_t>("topk_group"),
                           .score = group_limit::group_score::sum_of_two};
  sigmoid_router<Scalar> router(c.template setting<index_t>("D"), c.template setting<index_t>("E"),
                                {.top_k = c.template setting<index_t>("k"),
                                 .renormalize = c.template setting<bool>("renormalise"),
                                 .constant_weight = true,
                                 .scaling = c.template setting<Scalar>("routed_scaling"),
                                 .groups = groups});
  const auto bias = c.numbers("router.bias");
  std::copy(bias.begin(), bias.end(), router.bias().begin());
  run_block(c, std::move(router), groups);
}

}  // namespace

std::vector<replayer> softmax_blocks() {
  std::vector<replayer> all;
  for (const char* system : {"mixtral", "olmoe", "qwen2_moe", "qwen3_moe"})
    all.push_back({system, softmax_block<float>, softmax_block<double>});
  all.push_back({"deepseek_v2", deepseek_v2<float>, deepseek_v2<double>});
  all.push_back({"deepseek_v3", deepseek_v3<float>, deepseek_v3<double>});
  return all;
}

}  // namespace oracle
