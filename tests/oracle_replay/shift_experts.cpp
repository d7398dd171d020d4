// Experts of powers of two, alone and beside an ordinary one (ShiftAddViT), and experts dealt from a student (MiniMoE).
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/convert/dealt_experts.hpp>
#include <sluice/convert/dealt_heads.hpp>
#include <sluice/expert/derived/power_of_two.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/gate/jitter.hpp>
#include <sluice/layer/output_normalized.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/every_expert/dense.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

namespace oracle {
namespace {

using namespace sluice;

// ---- shift experts ---------------------------------------------------------------------------------------------------

template <typename Scalar>
void bind_shift(bindings<Scalar>& bound, power_of_two_weights<Scalar>& weights) {
  const char* const names[] = {"fc1", "fc2"};
  for (const std::size_t which : {0U, 1U}) {
    const std::string name = names[which];
    bound.bind(name + ".shift", weights.shift(0, which));
    bound.bind(name + ".sign", weights.sign(0, which));
    bound.bind(name + ".bias", weights.bias(0, which));
  }
}

template <typename Scalar>
void check_first_matrix(oracle_case<Scalar>& c, shift_bank<Scalar>& bank) {
  c.check("weight1", bank.bank().written_out().expert(0).first_map(0).weight().to_matrix());
}

/// One map alone: the second one is the identity, and so is the activation between them.
template <typename Scalar>
void shift_linear(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D"), O = c.template setting<index_t>("O");
  power_of_two_weights<Scalar> weights(1, D, O, {.outputs = O});
  weights.assign(0, 1, matrix<Scalar>(matrix<Scalar>::Identity(O, O)));
  mapped_inputs_bank<computed_bank<power_of_two_weights<Scalar>, no_activation>, fixed_point<>> bank{
      computed_bank<power_of_two_weights<Scalar>, no_activation>{weights}};
  moe_layer layer{dense_router<Scalar>(D, 1), bank};
  bindings<Scalar> inside;
  auto& own = layer.bank().bank().weights();
  inside.bind("fc1.shift", own.shift(0, 0));
  inside.bind("fc1.sign", own.sign(0, 0));
  inside.bind("fc1.bias", own.bias(0, 0));
  inside.load(c);
  typename decltype(layer)::tape tape;
  routing_context<Scalar> context;
  context.training = true;
  check_task(c, layer, tape, inside, context);
  c.check("weight1", layer.bank().bank().written_out().expert(0).first_map(0).weight().to_matrix());
}

template <typename Scalar>
void shift_expert(oracle_case<Scalar>& c) {
  const std::string kind = c.template setting<std::string>("kind");
  if (kind == "linear") return shift_linear(c);
  const auto D = c.template setting<index_t>("D"), H = c.template setting<index_t>("H"),
             O = c.template setting<index_t>("O");
  const shift_bank<Scalar> shifts{{1, D, H, {.outputs = O}}};
  routing_context<Scalar> context;
  context.training = true;
  bindings<Scalar> bound;
  if (kind == "mlp") {
    moe_layer layer{dense_router<Scalar>(D, 1), shifts};
    bind_shift(bound, layer.bank().weights());
    bound.load(c);
    typename decltype(layer)::tape tape;
    check_task(c, layer, tape, bound, context);
    check_first_matrix(c, layer.bank());
    return;
  }
  moe_layer layer{
      top_k_router<Scalar>{linear_gate<Scalar>(D, 2, {.bias = true}), {.top_k = 1, .constant_weight = true}},
      expert_union{expert_bank<ffn<Scalar, gelu>>{1, D, H, {.outputs = O, .bias = true}}, shifts}};
  auto& ordinary = layer.bank().template bank<0>().expert(0);
  auto& shifted = layer.bank().template bank<1>();
  bound.bind("router.weight", layer.router().gate().weight());
  bound.bind("router.bias", layer.router().gate().bias());
  bound.bind("mlp.w1", ordinary.up());
  bound.bind("mlp.b1", ordinary.up_bias());
  bound.bind("mlp.w2", ordinary.down());
  bound.bind("mlp.b2", ordinary.down_bias());
  bind_shift(bound, shifted.weights());
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  check_choices(c, tape.router, tape.plan);
  check_first_matrix(c, shifted);
}

// ---- MiniMoE ---------------------------------------------------------------------------------------------------------

template <typename Scalar>
using minimoe_gate = added_jitter_gate<linear_gate<Scalar>>;
template <typename Scalar>
using minimoe_router = token_choice_router<minimoe_gate<Scalar>, softmax_rule<Scalar>>;

template <typename Scalar>
minimoe_router<Scalar> minimoe_router_of(const oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E");
  return {minimoe_gate<Scalar>(linear_gate<Scalar>(D, E, {.bias = true}), c.template setting<double>("epsilon")),
          softmax_rule<Scalar>({.top_k = 1, .weights = weighting::pre})};
}
template <typename Scalar>
void bind_minimoe_gate(bindings<Scalar>& b, const std::string& name, minimoe_router<Scalar>& router) {
  b.bind(name + ".weight", router.gate().inner().weight());
  b.bind(name + ".bias", router.gate().inner().bias());
}

/// The source keeps the loss apart for every expert: E times the mean probability times the share of tokens.
template <typename Scalar, typename Plan, typename RouterTape>
void check_minimoe_balance(oracle_case<Scalar>& c, const std::string& gate, const minimoe_router<Scalar>& router,
                           const routing_context<Scalar>& context, const Plan& plan, const RouterTape& tape) {
  const index_t E = plan.experts();
  std::vector<Scalar> balance;
  for (index_t e = 0; e < E; ++e)
    balance.push_back(static_cast<Scalar>(E * plan.load(e)) / static_cast<Scalar>(plan.tokens()) *
                      copy(tape.scores).col(e).mean());
  c.check("balance", std::span<const Scalar>(balance));
  moe_layer alone{router, expert_bank<identity_expert<Scalar>>(E, router.inputs()), switch_balance{.coefficient = 1}};
  bindings<Scalar> of_gate, with_bias;
  of_gate.bind(gate + ".weight", alone.router().gate().inner().weight());
  bind_minimoe_gate(with_bias, gate, alone.router());
  with_bias.load(c);
  typename decltype(alone)::tape alone_tape;
  const matrix<Scalar> zero = matrix<Scalar>::Zero(c.rows("x").rows(), router.inputs());
  run_backward(c, alone, alone_tape, of_gate, context, zero, "grad_balance");
}

template <typename Scalar>
void minimoe_attention(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E"),
             heads = c.template setting<index_t>("heads"), width = c.template setting<index_t>("head_dim");
  self_attention<Scalar, attention_order::bidirectional> dense(
      D, {.heads = heads, .head_width = width, .bias = true, .output_bias = true});
  bindings<Scalar> student;
  const auto bind_map = [&](const std::string& map, parameter<Scalar>& weight, parameter<Scalar>& bias) {
    student.bind("dense.attention." + map + ".weight", weight);
    student.bind("dense.attention." + map + ".bias", bias);
  };
  bind_map("self.query", dense.query(), dense.query_bias());
  bind_map("self.key", dense.key(), dense.key_bias());
  bind_map("self.value", dense.value(), dense.value_bias());
  bind_map("output.dense", dense.output(), dense.output_bias());
  student.load(c);
  const auto router = minimoe_router_of(c);
  output_normalized_layer layer{
      residual_layer{dealt_heads(dense, head_router{router},
                                 {.experts = E,
                                  .units = c.template setting<index_t>("expert_elements"),
                                  .shared = c.template setting<index_t>("shared_elements")})},
      layer_norm<Scalar>{D, {.epsilon = Scalar(1e-12), .bias = true}}};
  auto& mixture = layer.layer().layer();
  bindings<Scalar> bound;
  bind_minimoe_gate(bound, "attn_gate", mixture.routing().router());
  const auto bind_bank = [&](const std::string& map, auto& bank) {
    for (index_t e = 0; e < E; ++e) {
      auto& expert = bank.expert(e);
      const auto values = c.numbers("attention." + map + ".weight");
      const matrix<Scalar> dealt = expert.weight().to_matrix();
      if (!std::equal(dealt.data(), dealt.data() + dealt.size(), values.data() + e * dealt.size()))
        return c.fail(map + " was dealt otherwise");
      bound.bind("attention." + map + ".weight", expert.weight(), e * expert.weight().size());
      bound.bind("attention." + map + ".bias", expert.bias(), e * expert.bias().size());
    }
  };
  bind_bank("self.query", mixture.query());
  bind_bank("self.key", mixture.key());
  bind_bank("self.value", mixture.value());
  bind_bank("output.dense", mixture.output());
  bound.bind("attention.output.LayerNorm.weight", layer.norm().gain());
  bound.bind("attention.output.LayerNorm.bias", layer.norm().bias());
  bound.load(c);
  routing_context<Scalar> context;
  context.training = c.template setting<bool>("train");
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  check_minimoe_balance(c, "attn_gate", router, context, tape.layer.layer.plan, tape.layer.layer.router);
}

template <typename Scalar>
void minimoe(oracle_case<Scalar>& c) {
  if (c.template setting<std::string>("kind") == "attn") return minimoe_attention(c);
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E"),
             H = c.template setting<index_t>("H");
  ffn<Scalar, gelu> dense(D, H, {.bias = true});
  bindings<Scalar> student;
  student.bind("dense.intermediate.dense.weight", dense.up());
  student.bind("dense.intermediate.dense.bias", dense.up_bias());
  student.bind("dense.output.dense.weight", dense.down());
  student.bind("dense.output.dense.bias", dense.down_bias());
  student.load(c);
  auto experts = dealt_experts(dense, {.experts = E,
                                       .units = c.template setting<index_t>("expert_elements"),
                                       .shared = c.template setting<index_t>("shared_elements")});
  // What was dealt is what the file's experts hold.
  const auto same = [&](const std::string& tensor, const matrix<Scalar>& ours, index_t e) {
    const auto values = c.numbers(tensor);
    for (index_t i = 0; i < ours.size(); ++i)
      if (ours.data()[i] != values.at(as_size(e * ours.size() + i))) return c.fail(tensor + " was dealt otherwise");
  };
  for (index_t e = 0; e < E; ++e) {
    same("intermediate.dense.weight", experts.expert(e).up().to_matrix(), e);
    same("intermediate.dense.bias", experts.expert(e).up_bias().to_matrix(), e);
    same("output.dense.weight", experts.expert(e).down().to_matrix(), e);
    same("output.dense.bias", experts.expert(e).down_bias().to_matrix(), e);
  }
  const auto router = minimoe_router_of(c);
  routing_context<Scalar> context;
  context.training = c.template setting<bool>("train");
  std::vector<double> draws;
  if (c.has("uniform")) draws = c.file().template read_vector<double>("uniform");
  context.random.replay(logit_jitter_site, draws);
  output_normalized_layer layer{residual_layer{moe_layer{router, experts, switch_balance{.coefficient = 0}}},
                                layer_norm<Scalar>{D, {.epsilon = Scalar(1e-12), .bias = true}}};
  bindings<Scalar> bound;
  bind_minimoe_gate(bound, "ffn_gate", layer.router());
  bind_ffn(bound, layer.bank(),
           {"intermediate.dense.weight", "output.dense.weight", layout::as_stored, layout::as_stored,
            "intermediate.dense.bias", "output.dense.bias"},
           true);
  bound.bind("output.LayerNorm.weight", layer.norm().gain());
  bound.bind("output.LayerNorm.bias", layer.norm().bias());
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  check_minimoe_balance(c, "ffn_gate", router, context, tape.layer.layer.plan, tape.layer.layer.router);
}

}  // namespace

std::vector<replayer> shift_experts() {
  return {{"shift_expert", shift_expert<float>, shift_expert<double>}, {"minimoe", minimoe<float>, minimoe<double>}};
}

}  // namespace oracle
