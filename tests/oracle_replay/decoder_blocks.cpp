// Decoder blocks with rules or experts of their own: Phi-3.5-MoE, JetMoE, GPT-OSS, Llama-4, and Megatron's router.
#include "layer_run.hpp"
#include "loaded_layer.hpp"
#include "replays.hpp"

#include <sluice/loss/router_z.hpp>
#include <sluice/loss/switch_balance.hpp>

namespace oracle {
namespace {

using namespace sluice;

template <typename Scalar>
using bank = expert_bank<swiglu<Scalar>>;

struct sizes {
  index_t D, E, H;
};
template <typename Scalar>
sizes sizes_of(const oracle_case<Scalar>& c) {
  return {c.template setting<index_t>("D"), c.template setting<index_t>("E"), c.template setting<index_t>("H")};
}

template <typename Scalar>
void bind_router(bindings<Scalar>& b, auto& router) {
  b.bind("router.weight", router.gate().weight());
}

// ---- Phi-3.5-MoE

/// The draws of the case, in the order in which the router asks for them.
template <typename Scalar>
std::vector<double> sparse_mixer_draws(const oracle_case<Scalar>& c, index_t tokens, index_t experts) {
  std::vector<double> draws;
  if (!c.has("noise.exponential1")) return draws;
  const auto exponential = [&](const char* name) { return c.file().template read_vector<double>(name); };
  const std::vector<double> gumbel[] = {exponential("noise.exponential1"), exponential("noise.exponential2")};
  const std::vector<double> uniform[] = {exponential("noise.uniform1"), exponential("noise.uniform2")};
  for (index_t t = 0; t < tokens; ++t)
    for (int round = 0; round < 2; ++round) {
      for (index_t e = 0; e < experts; ++e)
        draws.push_back(-std::log(gumbel[round][static_cast<std::size_t>(t * experts + e)]));
      draws.push_back(uniform[round][static_cast<std::size_t>(t)]);
    }
  return draws;
}

template <typename Scalar>
void phimoe(oracle_case<Scalar>& c) {
  const auto [D, E, H] = sizes_of(c);
  const matrix<Scalar> x = c.rows("x");
  const auto draws = sparse_mixer_draws(c, x.rows(), E);
  routing_context<Scalar> context;
  context.training = c.template setting<bool>("train");
  context.random.replay(sparse_mixer_rule<Scalar>::site, draws);
  const auto bind = [](auto& layer) {
    bindings<Scalar> b;
    bind_router(b, layer.router());
    bind_gated(b, layer.bank());
    return b;
  };
  check_loaded<phimoe_layer<Scalar>>(c, {"per-expert", "stacked"}, bind, context);

  moe_layer layer{
      sparse_mixer_router<Scalar>(
          D, E, {.top_k = c.template setting<index_t>("k"), .jitter = c.template setting<Scalar>("jitter_eps")}),
      bank<Scalar>(E, D, H)};
  auto bound = bind(layer);
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check("logits", copy(tape.router.seen.clean));
  check_choices(c, tape.router, tape.plan);

  const matrix<Scalar> grad_weights = c.rows("grad_weights");
  typename decltype(layer)::plan_type::gradient dplan;
  dplan.weight.resize(tape.plan.size());
  for (index_t i = 0; i < tape.plan.size(); ++i) dplan.weight[i] = grad_weights(tape.plan.token(i), tape.plan.rank(i));
  matrix<Scalar> dx = matrix<Scalar>::Zero(x.rows(), x.cols());
  tape.router.dseen.zero_like(tape.router.seen);
  layer.router().backward(x, context, tape.plan, dplan, tape.router, dx);
  c.check("grad_weights.logits", copy(tape.router.dclean));
}

// ---- JetMoE -----------------------------------------------------------------------------

template <typename Scalar>
void jetmoe(oracle_case<Scalar>& c) {
  if (c.template setting<std::string>("kind") == "moa") return jetmoe_attention_block(c);
  const auto [D, E, H] = sizes_of(c);
  const auto bind = [H = H, D = D](auto& layer) {
    bindings<Scalar> b;
    bind_router(b, layer.layer().router());
    for (index_t e = 0; e < layer.experts(); ++e) {
      auto& expert = layer.layer().bank().expert(e);
      b.bind("experts.input", expert.gate(), 2 * e * H * D);
      b.bind("experts.input", expert.up(), (2 * e + 1) * H * D);
      b.bind("experts.output", expert.down(), e * D * H);
    }
    b.bind("bias", layer.bias());
    return b;
  };
  check_loaded<jetmoe_layer<Scalar>>(c, {"stacked"}, bind);

  output_bias_layer layer{
      moe_layer{top_k_router<Scalar>(D, E,
                                     {.top_k = c.template setting<index_t>("k"),
                                      .weights = weighting::post,
                                      .constant_weight = true}),
                bank<Scalar>(E, D, H)}};
  auto bound = bind(layer);
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, {});
  c.check("logits", copy(tape.layer.router.seen.clean));
  check_choices(c, tape.layer.router, tape.layer.plan);
}

// ---- GPT-OSS

template <typename Scalar>
void gpt_oss(oracle_case<Scalar>& c) {
  const auto [D, E, H] = sizes_of(c);
  const auto bind = [D = D, H = H](auto& layer) {
    bindings<Scalar> b;
    bind_router(b, layer.router());
    b.bind("router.bias", layer.router().gate().bias());
    for (index_t e = 0; e < layer.experts(); ++e) {
      auto& expert = layer.bank().expert(e);
      b.bind_at("experts.gate_up", expert.gate(), {e * D * 2 * H, 2, 2 * H});
      b.bind_at("experts.gate_up", expert.up(), {e * D * 2 * H + 1, 2, 2 * H});
      b.bind_at("experts.gate_up_bias", expert.gate_bias(), {e * 2 * H, 2, 1});
      b.bind_at("experts.gate_up_bias", expert.up_bias(), {e * 2 * H + 1, 2, 1});
      b.bind_at("experts.down", expert.down(), {e * H * D, 1, D});
      b.bind_at("experts.down_bias", expert.down_bias(), {e * D, 1, 1});
    }
    return b;
  };
  check_loaded<gpt_oss_layer<Scalar>>(c, {"stacked"}, bind);

  moe_layer layer{top_k_router<Scalar>(linear_gate<Scalar>(D, E, {.bias = true}),
                                       {.top_k = c.template setting<index_t>("k"),
                                        .weights = weighting::post,
                                        .constant_weight = true}),
                  expert_bank<clamped_glu<Scalar>>{E,
                                                   D,
                                                   H,
                                                   {.bias = true,
                                                    .gating = {.alpha = c.template setting<Scalar>("alpha"),
                                                               .limit = c.template setting<Scalar>("limit")}}}};
  auto bound = bind(layer);
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, {});
  c.check("logits", copy(tape.router.seen.clean));
  check_choices(c, tape.router, tape.plan);
}

// ---- Llama-4

template <typename Scalar>
void llama4(oracle_case<Scalar>& c) {
  const auto [D, E, H] = sizes_of(c);
  const auto bind = [D = D, H = H](auto& layer) {
    bindings<Scalar> b;
    bind_router(b, layer.layer().router());
    for (index_t e = 0; e < layer.experts(); ++e) {
      auto& expert = layer.layer().bank().expert(e);
      b.bind_at("experts.gate_up", expert.gate(), {e * D * 2 * H, 1, 2 * H});
      b.bind_at("experts.gate_up", expert.up(), {e * D * 2 * H + H, 1, 2 * H});
      b.bind_at("experts.down", expert.down(), {e * H * D, 1, D});
    }
    b.bind("shared.gate_proj", layer.shared().gate());
    b.bind("shared.up_proj", layer.shared().up());
    b.bind("shared.down_proj", layer.shared().down());
    return b;
  };
  check_loaded<llama4_layer<Scalar>>(c, {"stacked"}, bind);

  shared_expert_layer layer{moe_layer{sigmoid_router<Scalar>(D, E,
                                                             {.top_k = c.template setting<index_t>("k"),
                                                              .renormalize = false,
                                                              .selection_bias = false,
                                                              .use = weight_use::input}),
                                      bank<Scalar>(E, D, H)},
                            swiglu<Scalar>(D, c.axis("shared.gate_proj", 0))};
  auto bound = bind(layer);
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, {});
  c.check("logits", copy(tape.layer.router.seen.clean));
  const auto& choices = tape.layer.router.choices;
  c.check_integers("indices", choices.expert.span());
  c.check("weights", choices.weight.span());
  matrix<Scalar> input_scale = matrix<Scalar>::Zero(choices.tokens, E);
  for (index_t i = 0; i < tape.layer.plan.size(); ++i)
    input_scale(tape.layer.plan.token(i), tape.layer.plan.expert(i)) = tape.layer.plan.input_scale(i);
  c.check("combine", input_scale);
}

// ---- Megatron ---------------------------------------------------------------------------

template <typename Capacity, typename Scalar, typename MakeCapacity>
void run_megatron(oracle_case<Scalar>& c, MakeCapacity make_capacity) {
  const auto [D, E, H] = sizes_of(c);
  const auto k = c.template setting<index_t>("k");
  const auto capacity = c.template setting<index_t>("capacity");
  const index_t T = c.rows("x").rows();
  const auto bind = [](auto& layer) {
    bindings<Scalar> b;
    bind_router(b, layer.router());
    bind_gated(b, layer.bank());
    return b;
  };
  if constexpr (std::is_same_v<Capacity, probability_capacity>)  // which is what the published layer has
    check_loaded<megatron_layer<Scalar>>(c, {"per-expert", "grouped"}, bind);

  using router_type = top_k_router<Scalar, dynamic, dynamic, linear_gate<Scalar>, no_noise<Scalar>, Capacity>;
  const router_type router(
      linear_gate<Scalar>(D, E),
      {.top_k = k,
       .weights = c.template setting<bool>("pre_softmax") ? weighting::pre : weighting::post,
       .constant_weight = true},
      {},
      make_capacity(capacity_limit::fixed(capacity > 0 ? capacity : T * k)));
  moe_layer layer{router, bank<Scalar>(E, D, H)};
  auto bound = bind(layer);
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, {});
  c.check("logits", copy(tape.router.seen.clean));
  c.check("combine", tape.plan.dense_weights());
  const auto& choices = tape.router.choices;
  matrix<Scalar> asked = matrix<Scalar>::Zero(T, E);
  std::vector<index_t> counts(static_cast<std::size_t>(E), 0);
  std::vector<index_t> mask(static_cast<std::size_t>(T * E), 0);
  for (index_t i = 0; i < T * k; ++i) {
    const index_t e = choices.expert[i];
    asked(i / k, e) = choices.weight[i];
    ++counts[static_cast<std::size_t>(e)];
    mask[static_cast<std::size_t>(i / k * E + e)] = choices.kept[i];
  }
  c.check("combine_before_drop", asked);
  c.check_integers("counts_before_drop", counts);
  c.check_integers("mask", mask);
  const auto bind_gate = [](auto& r, bindings<Scalar>& b) { bind_router(b, r); };
  check_losses(
      c, "aux_loss", router, bind_gate, {}, 0,
      switch_balance{.coefficient = c.template setting<double>("aux_coeff"), .share = balance_share::per_slot});
  check_losses(c, "z_loss", router, bind_gate, {}, 0,
               router_z_loss{.coefficient = c.template setting<double>("z_coeff")});
}

template <typename Scalar>
void megatron(oracle_case<Scalar>& c) {
  const auto policy = c.template setting<std::string>("drop_policy");
  if (policy == "probs")
    run_megatron<probability_capacity>(c, [](capacity_limit limit) { return probability_capacity(limit); });
  else if (policy == "position")
    run_megatron<position_capacity>(
        c, [](capacity_limit limit) { return position_capacity(limit, position_order::by_token); });
  else
    throw unsupported("drop policy " + policy);
}

}  // namespace

std::vector<replayer> decoder_blocks() {
  return {{"phimoe", phimoe<float>, phimoe<double>},
          {"jetmoe", jetmoe<float>, jetmoe<double>},
          {"gpt_oss", gpt_oss<float>, gpt_oss<double>},
          {"llama4", llama4<float>, llama4<double>},
          {"megatron", megatron<float>, megatron<double>}};
}

}  // namespace oracle
