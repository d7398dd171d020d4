// Experts merged into one by weight: SMEAR and its mixture of outputs, MANN, MEO.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/layer/merged/published.hpp>

#include <numeric>

namespace oracle {
namespace {

using namespace sluice;

/// The weights of a merged layer's groups [G,E], zero where an expert has no part.
template <typename Scalar>
matrix<Scalar> gates_of(const merging_weights<Scalar>& weights) {
  matrix<Scalar> gates = matrix<Scalar>::Zero(weights.groups(), weights.experts());
  for (index_t g = 0; g < weights.groups(); ++g)
    for (index_t e = 0; e < weights.experts(); ++e)
      if (weights.has(g, e)) gates(g, e) = weights.w(g, e);
  return gates;
}

// ---- SMEAR -----------------------------------------------------------------------------------------------------------

template <typename Scalar, typename Gate>
void bind_smear_gate(bindings<Scalar>& bound, Gate& gate) {
  bound.bind("router.input_ln.weight", gate.norm().gain());
  bound.bind("router.input_ln.bias", gate.norm().bias());
  bound.bind("router.kernel", gate.inner().weight(), 0, layout::transposed);
  bound.bind("router.bias", gate.inner().bias());
  if constexpr (requires { gate.inner().norm(); }) {
    bound.bind("router.weight_ln.weight", gate.inner().norm().gain());
    bound.bind("router.weight_ln.bias", gate.inner().norm().bias());
  }
}

template <typename Scalar, typename Layer, typename Gate, typename GatesOf>
void run_smear(oracle_case<Scalar>& c, Layer layer, Gate& (*gate_of)(Layer&), GatesOf of_tape) {
  bindings<Scalar> bound;
  bind_smear_gate(bound, gate_of(layer));
  for (index_t e = 0; e < layer.experts(); ++e) {
    auto& expert = layer.bank().expert(e);
    bound.bind("down.kernel", expert.up(), e * expert.up().size(), layout::transposed);
    bound.bind("down.bias", expert.up_bias(), e * expert.up_bias().size());
    bound.bind("up.kernel", expert.down(), e * expert.down().size(), layout::transposed);
  }
  bound.load(c);
  const auto groups = c.groups();
  routing_context<Scalar> context;
  context.training = true;
  context.groups = groups;
  typename Layer::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check("gates", of_tape(tape, context));
}

template <typename Scalar>
void smear(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E");
  const auto hidden = c.template setting<index_t>("bottleneck");
  const auto merged_gates = [](const auto& tape, const auto&) { return gates_of(tape.weights); };
  if (!c.template setting<bool>("normalize_router_weights")) {
    normalized_gate gate{linear_gate<Scalar>{D, E, {.bias = true}}, layer_norm<Scalar>{D, {.bias = true}}};
    merged_layer layer{moe_layer{dense_softmax_router<Scalar, decltype(gate)>{gate},
                                 expert_bank<ffn<Scalar, silu>>{E, D, hidden, {.bias = true, .output_bias = false}}}};
    using gate_type = decltype(gate);
    run_smear(
        c, layer, +[](decltype(layer)& l) -> gate_type& { return l.router().gate(); }, merged_gates);
    return;
  }
  const auto mode = c.template setting<std::string>("mode");
  if (mode == "parameter_averaging") {
    auto layer = published::smear<Scalar>(D, hidden, E);
    using layer_type = decltype(layer);
    using gate_type = std::remove_cvref_t<decltype(layer.router().gate())>;
    run_smear(
        c, layer, +[](layer_type& l) -> gate_type& { return l.router().gate(); }, merged_gates);
  } else if (mode == "soft_routing") {
    auto layer = published::smear_outputs<Scalar>(D, hidden, E);
    using layer_type = decltype(layer);
    using gate_type = std::remove_cvref_t<decltype(layer.router().gate().inner())>;
    run_smear(
        c, layer, +[](layer_type& l) -> gate_type& { return l.router().gate().inner(); },
        [](const auto& tape, const auto& context) {
          const matrix<Scalar> of_tokens = tape.plan.dense_weights();
          matrix<Scalar> gates(context.group_count(), of_tokens.cols());
          for (index_t g = 0; g < gates.rows(); ++g)
            gates.row(g) = of_tokens.row(context.group(g, of_tokens.rows()).begin);
          return gates;
        });
  } else {
    throw unsupported("SMEAR's mode " + mode);
  }
}

// ---- MANN ------------------------------------------------------------------------------------------------------------

template <typename Scalar>
void mann(oracle_case<Scalar>& c) {
  const auto E = c.template setting<index_t>("E");
  auto layer = published::mann<Scalar>(c.template setting<index_t>("D"), c.template setting<index_t>("H"),
                                       c.template setting<index_t>("O"), E, c.template setting<index_t>("gate_inputs"),
                                       c.template setting<index_t>("gate_H"));
  bindings<Scalar> bound;
  auto& network = layer.router().gate().inner().layer();
  bound.bind("gate.w0", network.template layer<0>().expert().weight());
  bound.bind("gate.b0", network.template layer<0>().expert().bias());
  bound.bind("gate.w1", network.template layer<1>().expert().weight());
  bound.bind("gate.b1", network.template layer<1>().expert().bias());
  bound.bind("gate.w2", network.template layer<2>().weight());
  bound.bind("gate.b2", network.template layer<2>().bias());
  const auto bind_layer = [&](const std::string& number, auto& bank) {
    for (index_t e = 0; e < E; ++e) {
      auto& weight = bank.expert(e).weight();
      auto& bias = bank.expert(e).bias();
      bound.bind("experts.w" + number, weight, e * weight.size());
      bound.bind("experts.b" + number, bias, e * bias.size());
    }
  };
  bind_layer("0", layer.bank().first());
  bind_layer("1", layer.bank().second().first());
  bind_layer("2", layer.bank().second().second());
  bound.load(c);
  const matrix<Scalar> gate_x = c.rows("gate_x");
  std::vector<index_t> samples(static_cast<std::size_t>(gate_x.rows()) + 1);
  std::iota(samples.begin(), samples.end(), index_t(0));
  routing_context<Scalar> context;
  context.training = true;
  context.groups = samples;
  context.group_features = gate_x;
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check("gates", matrix<Scalar>(gates_of(tape.weights).transpose()));
  c.check("grad.gate_x", copy(tape.layer.router.gate.features_gradient()));
}

// ---- MEO -------------------------------------------------------------------------------------------------------------

template <typename Scalar, typename Layer, typename MergedOf, typename TapeOf>
void run_meo(oracle_case<Scalar>& c, Layer layer, bindings<Scalar>& bound, MergedOf merged_of, TapeOf tape_of) {
  auto& merged = merged_of(layer);
  bound.bind("router.kernel", merged.router().gate().weight(), 0, layout::transposed);
  if (c.has("router.noise_kernel"))
    bound.bind("router.noise_kernel", merged.router().noise().weight(), 0, layout::transposed);
  for (index_t e = 0; e < merged.experts(); ++e) {
    auto& expert = merged.bank().expert(e);
    bound.bind("experts.weight", expert.weight(), e * expert.weight().size());
    if (c.has("experts.bias")) bound.bind("experts.bias", expert.bias(), e * expert.bias().size());
  }
  bound.load(c);
  std::vector<double> draws;
  if (c.has("noise")) draws = c.file().template read_vector<double>("noise");
  const auto groups = c.groups();
  routing_context<Scalar> context;
  context.training = c.template setting<bool>("train");
  context.groups = groups;
  context.random.replay(noise_site, draws);

  typename Layer::tape tape;
  const matrix<Scalar> zero = matrix<Scalar>::Zero(c.rows("x").rows(), layer.outputs());
  run_backward(c, layer, tape, bound, context, zero, "grad_aux_loss");
  c.check("aux_loss", tape.loss());
  c.check("gates", gates_of(tape_of(tape).weights));
  const auto& sums = tape_of(tape).layer.router.dseen.sum_scratch;  // the load loss left its load there
  std::vector<Scalar> load;
  for (index_t e = 0; e < merged.experts(); ++e) load.push_back(static_cast<Scalar>(sums.data()[e]));
  c.check("load", load);

  merged.layer().template loss<0>().coefficient = 0;
  merged.layer().template loss<1>().coefficient = 0;
  check_task(c, layer, tape, bound, context);
}

template <typename Scalar>
void meo(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D"), O = c.template setting<index_t>("O");
  const auto E = c.template setting<index_t>("E"), k = c.template setting<index_t>("k");
  const bool bias = c.template setting<bool>("bias");
  bindings<Scalar> bound;
  if (c.template setting<std::string>("level") == "sequence") {
    const auto same = [](auto& it) -> auto& { return it; };
    auto layer = published::meo<Scalar>(D, O, E, k, bias);
    run_meo(c, layer, bound, same, same);
    return;
  }
  auto layer = published::meo_of_tokens<Scalar>(D, O, E, k, c.axis("token.down.weight", 0), bias);
  run_meo(
      c, layer, bound,
      [&](auto& whole) -> auto& {
        auto& block = whole.template layer<0>().layer().expert();
        bound.bind("token.down.weight", block.up());
        bound.bind("token.down.bias", block.up_bias());
        bound.bind("token.up.weight", block.down());
        bound.bind("token.up.bias", block.down_bias());
        return whole.template layer<1>();
      },
      [](auto& tape) -> auto& { return std::get<1>(tape.layers); });
}

}  // namespace

std::vector<replayer> merged_experts() {
  return {
      {"smear", smear<float>, smear<double>}, {"mann", mann<float>, mann<double>}, {"meo", meo<float>, meo<double>}};
}

}  // namespace oracle
