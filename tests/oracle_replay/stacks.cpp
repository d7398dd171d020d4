// MomentumSMoE and AdamSMoE: a state that goes from mixture to mixture.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/expert/ffn.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/depth/momentum.hpp>
#include <sluice/layer/depth/state_chain.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/output_normalized.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/layer/split/columns.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

namespace oracle {
namespace {

using namespace sluice;

template <typename Scalar>
auto stack_mixture(const oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  return moe_layer{top_k_router<Scalar>{linear_gate<Scalar>(D, E, {.bias = true}),
                                        {.top_k = c.template setting<index_t>("k"), .weights = weighting::post, .constant_weight = true}},
                   expert_bank<ffn<Scalar>>(E, D, c.template setting<index_t>("H"), {.bias = true})};
}

template <typename Scalar>
layer_norm<Scalar> stack_norm(const oracle_case<Scalar>& c) {
  return layer_norm<Scalar>{c.template setting<index_t>("D"), {.bias = true}};
}

template <typename Scalar>
momentum_step<Scalar> momentum_of(const oracle_case<Scalar>& c) {
  return {.decay = c.template setting<Scalar>("mu"), .rate = c.template setting<Scalar>("gamma2")};
}

template <typename Scalar, typename Layer>
void bind_stack_mixture(bindings<Scalar>& bound, const std::string& prefix, Layer& layer) {
  bound.bind(prefix + "gate.weight", layer.router().gate().weight());
  bound.bind(prefix + "gate.bias", layer.router().gate().bias());
  const std::string names[] = {prefix + "w1", prefix + "w2", prefix + "b1", prefix + "b2"};
  bind_ffn(bound, layer.bank(),
           {names[0].c_str(), names[1].c_str(), layout::as_stored, layout::as_stored, names[2].c_str(), names[3].c_str()}, true);
}

template <typename Scalar, typename Norm>
void bind_stack_norm(bindings<Scalar>& bound, const std::string& prefix, Norm& norm) {
  bound.bind(prefix + "weight", norm.gain());
  bound.bind(prefix + "bias", norm.bias());
}

/// Task, states and gradients of a chain whose parameters bind(bindings) binds.
template <typename Scalar, typename Chain, typename Bind>
void run_chain(oracle_case<Scalar>& c, Chain& chain, typename Chain::tape& tape, Bind bind) {
  bindings<Scalar> bound;
  bind(bound);
  bound.load(c);
  routing_context<Scalar> context;
  context.training = true;
  check_task(c, chain, tape, bound, context);
  const auto D = c.template setting<index_t>("D");
  const matrix<Scalar> state = chain.state(tape);
  const auto block = [&](index_t i) { return matrix<Scalar>(state.middleCols(i * D, D)); };
  c.check("momentum", block(0));
  if (state.cols() > D) {
    c.check("p", block(1));
    c.check("v", block(2));
  }
}

/// What a layer of the chain read is what the one before it gave.
template <typename Scalar, typename LinkTape>
void check_hidden(oracle_case<Scalar>& c, index_t layer, const LinkTape& next) {
  c.check("hidden." + std::to_string(layer), matrix<Scalar>(next.kept.x().leftCols(c.template setting<index_t>("D"))));
}

template <typename Scalar, typename First>
void pre_norm(oracle_case<Scalar>& c, First first) {
  const auto D = c.template setting<index_t>("D");
  const auto block = [&] { return normalized_layer{stack_mixture(c), stack_norm(c)}; };
  const linked_layer later{block(), momentum_of(c), First::states};
  state_chain chain{sequence{linked_layer{block(), first}, later, later}, D};
  typename decltype(chain)::tape tape;
  run_chain(c, chain, tape, [&](bindings<Scalar>& bound) {
    const auto one = [&](const std::string& prefix, auto& link) {
      bind_stack_mixture(bound, prefix, link.layer().layer());
      bind_stack_norm(bound, prefix + "norm.", link.layer().norm());
    };
    one("layers.0.", chain.layer().template layer<0>());
    one("layers.1.", chain.layer().template layer<1>());
    one("layers.2.", chain.layer().template layer<2>());
  });
  check_hidden(c, 0, std::get<1>(tape.layer.layers));
  check_hidden(c, 1, std::get<2>(tape.layer.layers));
  c.check("hidden.2", matrix<Scalar>(tape.outputs.map().leftCols(D)));
}

/// x' = norm2(x + norm(x - m)): the step is normalised, and so is its sum with x, which enters twice.
template <typename Scalar>
void post_norm_with_outer_residual(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto normed = [&] {
    return column_layers{output_normalized_layer{dense_layer{identity_expert<Scalar>{D}}, stack_norm(c)},
                         dense_layer{identity_expert<Scalar>{D}}};
  };
  const sequence block{residual_layer{sequence{linked_layer{stack_mixture(c), momentum_of(c)}, normed()}, D}, normed()};
  state_chain chain{sequence{block, block}, D};
  typename decltype(chain)::tape tape;
  const auto link_of = [](auto& one) -> auto& { return one.template layer<0>().layer(); };
  run_chain(c, chain, tape, [&](bindings<Scalar>& bound) {
    const auto one = [&](const std::string& prefix, auto& whole) {
      bind_stack_mixture(bound, prefix, link_of(whole).template layer<0>().layer());
      bind_stack_norm(bound, prefix + "norm.", link_of(whole).template layer<1>().layer().norm());
      bind_stack_norm(bound, prefix + "norm2.", whole.template layer<1>().layer().norm());
    };
    one("layers.0.", chain.layer().template layer<0>());
    one("layers.1.", chain.layer().template layer<1>());
  });
  check_hidden(c, 0, std::get<0>(std::get<0>(std::get<1>(tape.layer.layers).layers).layer.layers));
  c.check("hidden.1", matrix<Scalar>(tape.outputs.map().leftCols(D)));
}

template <typename Scalar>
void momentum_smoe(oracle_case<Scalar>& c) {
  const bool outer = c.template setting<bool>("outer_norm"), pre = c.template setting<bool>("pre_norm");
  const auto kind = c.template setting<std::string>("kind");
  const auto layers = c.template setting<index_t>("layers");
  if (outer && !pre && kind == "momentum" && layers == 2) return post_norm_with_outer_residual(c);
  if (outer || !pre || layers != 3) throw unsupported("another stack");
  if (kind == "momentum") return pre_norm<Scalar>(c, momentum_of(c));
  pre_norm<Scalar>(c, adam_step<Scalar>{.momentum = momentum_of(c),
                                        .first = c.template setting<Scalar>("beta1"),
                                        .second = c.template setting<Scalar>("beta2"),
                                        .rate = c.template setting<Scalar>("gamma1")});
}

}  // namespace

std::vector<replayer> stacks() { return {{"momentum_smoe", momentum_smoe<float>, momentum_smoe<double>}}; }

}  // namespace oracle
