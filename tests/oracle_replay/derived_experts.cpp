// Experts whose weights are made of others': AutoMoE, RMoE, compressed experts.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/capacity/dropless.hpp>
#include <sluice/capacity/random.hpp>
#include <sluice/expert/derived/compressed_bank.hpp>
#include <sluice/expert/derived/core_and_rest.hpp>
#include <sluice/expert/derived/sliced_bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/gate/sliced.hpp>
#include <sluice/router/auxiliary_choices.hpp>
#include <sluice/router/overflow.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

namespace oracle {
namespace {

using namespace sluice;

// ---- AutoMoE ---------------------------------------------------------------------------------------------------------

template <typename Scalar>
using sliced_top_1 = token_choice_router<sliced_gate<Scalar>, softmax_rule<Scalar>>;

/// Experts `first` .. of the tensors, and the gate.
template <typename Scalar, typename Layer>
void run_automoe(oracle_case<Scalar>& c, Layer& layer, sliced_gate<Scalar>& gate, sliced_bank<Scalar>& bank,
                 index_t first, const routing_context<Scalar>& context) {
  const auto widths = c.config().at("H").template get<std::vector<index_t>>();
  gate.select(static_cast<index_t>(widths.size()), c.template setting<index_t>("D"));
  bank.select(c.template setting<index_t>("D"), {widths.begin() + first, widths.end()});
  bindings<Scalar> bound;
  bound.bind("switch.weight", gate.weight());
  bound.bind("switch.bias", gate.bias());
  for (index_t e = 0; e < bank.most_experts(); ++e) {
    auto& expert = bank.expert(e);
    const index_t place = e + first;
    bound.bind("experts.w1", expert.up(), place * expert.up().size());
    bound.bind("experts.w2", expert.down(), place * expert.down().size());
    bound.bind("experts.b1", expert.up_bias(), place * expert.up_bias().size());
    bound.bind("experts.b2", expert.down_bias(), place * expert.down_bias().size());
  }
  bound.load(c);
  typename Layer::tape tape;
  check_task(c, layer, tape, bound, context);
  std::vector<index_t> indices, kept;
  for (index_t t = 0; t < tape.plan.tokens(); ++t) {
    const index_t e = tape.plan.expert(tape.plan.of_token(t)[0]);
    kept.push_back(e < gate.experts());
    indices.push_back(e);
  }
  if constexpr (requires {
                  tape.router.choices.expert;
                  tape.router.own;
                })
    for (std::size_t t = 0; t < indices.size(); ++t) indices[t] = tape.router.choices.expert[static_cast<index_t>(t)];
  c.check_integers("indices", indices);
  c.check_integers("kept", kept);
}

template <typename Scalar>
void automoe(oracle_case<Scalar>& c) {
  const auto most = c.template setting<index_t>("super_E"), D = c.template setting<index_t>("super_D"),
             H = c.template setting<index_t>("super_H");
  const weighting weights =
      c.template setting<bool>("scale_by_probability") ? weighting::pre : weighting::renorm_detached;
  sliced_gate<Scalar> gate(D, most, {.bias = true});
  const softmax_rule<Scalar> rule({.top_k = 1, .weights = weights});
  routing_context<Scalar> context;
  context.training = true;
  if (!c.template setting<bool>("drop_tokens")) {
    moe_layer layer{sliced_top_1<Scalar>(gate, rule), sliced_bank<Scalar>{most, D, H, {.bias = true}}};
    run_automoe(c, layer, layer.router().gate(), layer.bank(), 0, context);
    return;
  }
  // The smallest order values stay, of the library the largest draws. Expert 0 is the identity, the last one carries what
  // was dropped.
  std::vector<double> draws;
  for (const index_t place : c.integers("order")) draws.push_back(1 - static_cast<double>(place) / 100);
  context.random.replay(random_capacity::site, draws);
  gate.select(static_cast<index_t>(c.config().at("H").size()), D);
  sliced_bank<Scalar> own{most - 1, D, H, {.bias = true}};
  own.select(D, std::vector<index_t>(c.config().at("H").size() - 1, H));
  const expert_bank<identity_expert<Scalar>> copy_expert(1, c.template setting<index_t>("D"));
  moe_layer layer{overflow_router(sliced_top_1<Scalar>(gate, rule),
                                  random_capacity(capacity_limit::fixed(c.template setting<index_t>("capacity")))),
                  expert_union{copy_expert, own, copy_expert}};
  run_automoe(c, layer, layer.router().inner().gate(), layer.bank().template bank<1>(), 1, context);
}

// ---- RMoE ------------------------------------------------------------------------------------------------------------

template <typename Scalar>
void rmoe(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E"),
             k = c.template setting<index_t>("k"), rank = c.template setting<index_t>("rank");
  moe_layer layer{top_k_router<Scalar>{D, E, {.top_k = k, .constant_weight = true}},
                  core_and_rest_bank<Scalar>{{E, D, c.template setting<index_t>("H"), {.rank = rank}}}};
  auto& weights = layer.bank().weights();
  bindings<Scalar> bound;
  bound.bind("router.weight", layer.router().gate().weight());
  bindings<Scalar> rests;
  const char* const names[] = {"wi", "wo"};
  for (const std::size_t which : {0U, 1U}) {
    const std::string name = names[which];
    bound.bind("core." + name, weights.core(which));
    for (index_t e = 0; e < E; ++e)
      if (rank == 0) {
        rests.bind("residual." + name, weights.rest(which, e), e * weights.rest(which, e).size());
      } else {
        rests.bind("residual." + name + "_left", weights.left(which, e), e * weights.left(which, e).size(),
                   oracle::layout::transposed);
        rests.bind("residual." + name + "_right", weights.right(which, e), e * weights.right(which, e).size());
      }
  }
  bound.load(c);
  const matrix<Scalar> x = c.rows("x");
  matrix<Scalar> y(x.rows(), D);
  typename decltype(layer)::workspace workspace;
  for (index_t e = 0; e < E; ++e)
    for (const std::size_t which : {0U, 1U})
      if (rank == 0)
        weights.rest(which, e).fill([](index_t) { return Scalar(0); });
      else
        weights.left(which, e).fill([](index_t) { return Scalar(1); });  // right is zero
  layer.forward(x, y, workspace);
  c.check("core_only_y", y);
  rests.load(c);
  layer.forward(x, y, workspace);
  c.check("y", y);
  check_choices(c, workspace.router, workspace.plan);
}

// ---- compressed experts ----------------------------------------------------------------------------------------------

template <typename Scalar>
void compressed_experts(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E"),
             mains = c.template setting<index_t>("main");
  const index_t k = mains + c.template setting<index_t>("auxiliary");
  moe_layer layer{auxiliary_choices_router{top_k_router<Scalar>{D, E, {.top_k = k, .weights = weighting::pre}}, mains},
                  compressed_bank{expert_bank<swiglu<Scalar>>{E, D, c.axis("experts.up_proj", 1)}}};
  bindings<Scalar> bound;
  bound.bind("router.weight", layer.router().inner().gate().weight());
  bind_gated(bound, layer.bank().bank());
  bound.bind("theta", layer.bank().theta());
  bound.load(c);
  const matrix<Scalar> x = c.rows("x");
  matrix<Scalar> y(x.rows(), D);
  typename decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  c.check("y", y);
  c.check("theta_mix", copy(workspace.experts.mixed));
  check_choices(c, workspace.router.inner, workspace.router.own);
}

}  // namespace

std::vector<replayer> derived_experts() {
  return {{"automoe", automoe<float>, automoe<double>},
          {"rmoe", rmoe<float>, rmoe<double>},
          {"compressed_experts", compressed_experts<float>, compressed_experts<double>}};
}

}  // namespace oracle
