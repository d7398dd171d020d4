// Adapters beside a frozen linear layer: MoV, MoLORA, Octavius, MoCLE, MixPHM.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/adapter/adapted.hpp>
#include <sluice/adapter/joined_low_rank.hpp>
#include <sluice/adapter/kronecker_adapters.hpp>
#include <sluice/adapter/per_instance.hpp>
#include <sluice/adapter/scaling_bank.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>

namespace oracle {
namespace {

using namespace sluice;

/// Forward and backward of a layer beside the case's frozen base, which is no part of the layer's gradients: its own
/// are compared all the same, computed here.
template <typename Scalar, typename Adapters>
void run_beside_base(oracle_case<Scalar>& c, Adapters adapters, const routing_context<Scalar>& context,
                     const auto& bind, const auto& look) {
  const matrix<Scalar> weight = c.rows("base.weight");
  linear_layer<Scalar> base(weight.cols(), weight.rows(), {.bias = c.has("base.bias")});
  base.weight().assign(weight);
  if (c.has("base.bias")) base.bias().assign(matrix<Scalar>(c.rows("base.bias").transpose()));
  adapted_layer layer{std::move(base), std::move(adapters)};
  bindings<Scalar> bound;
  bind(layer.adapters(), bound);
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  const matrix<Scalar> x = c.rows("x"), dy = c.rows("grad_out");
  c.check("grad.base.weight", matrix<Scalar>(dy.transpose() * x));
  c.check("grad.base.bias", matrix<Scalar>(dy.colwise().sum()));
  look(layer, tape);
}

/// The tensors of low-rank experts, [E,R,D] and [E,O,R], or transposed.
template <typename Scalar>
void bind_low_rank(bindings<Scalar>& bound, low_rank_expert<Scalar>& expert, index_t e, const std::string& a,
                   const std::string& b, layout stored = layout::as_stored) {
  bound.bind(a, expert.a(), e * expert.a().size(), stored);
  bound.bind(b, expert.b(), e * expert.b().size(), stored);
}

// ---- MoV and MoLORA -------------------------------------------------------------------------------------------------

/// f(router): all experts, or the k best with the probabilities that they had among all.
template <typename Scalar, typename F>
void with_soft_router(oracle_case<Scalar>& c, index_t inputs, F&& f) {
  const auto E = c.template setting<index_t>("E"), k = c.template setting<index_t>("k");
  if (k == E)
    f(dense_softmax_router<Scalar>(linear_gate<Scalar>(inputs, E, {.bias = true})));
  else
    f(top_k_router<Scalar>(linear_gate<Scalar>(inputs, E, {.bias = true}), {.top_k = k, .weights = weighting::pre}));
}

template <typename Scalar, typename Router>
void bind_gate(bindings<Scalar>& bound, Router& router) {
  bound.bind("router.kernel", router.gate().weight(), 0, layout::transposed);
  bound.bind("router.bias", router.gate().bias());
}

template <typename Scalar>
void mov(oracle_case<Scalar>& c) {
  const auto heads = std::max<index_t>(1, c.template setting<index_t>("heads"));
  const index_t width = c.rows("x").cols();  // of a head
  with_soft_router(c, width, [&](auto router) {
    moe_layer layer{std::move(router), scaling_bank<Scalar>(c.template setting<index_t>("E"), width, {.heads = heads})};
    bindings<Scalar> bound;
    bind_gate(bound, layer.router());
    bound.bind("mov_scaling", layer.bank().vectors());
    bound.load(c);
    typename decltype(layer)::tape tape;
    check_task(c, layer, tape, bound, routing_context<Scalar>());
    c.check("gates", tape.plan.dense_weights());
  });
}

/// All experts at once for soft gates, expert by expert for chosen ones.
template <typename Scalar>
void molora(oracle_case<Scalar>& c) {
  const auto E = c.template setting<index_t>("E"), D = c.template setting<index_t>("D");
  const auto rank = c.template setting<index_t>("rank"), outputs = c.template setting<index_t>("O");
  const Scalar scale = c.template setting<Scalar>("alpha") / static_cast<Scalar>(rank);
  const auto run = [&](auto layer, const auto& bind_bank) {
    run_beside_base(
        c, std::move(layer), {},
        [&](auto& adapters, bindings<Scalar>& bound) {
          bind_gate(bound, adapters.router());
          bind_bank(adapters.bank(), bound);
        },
        [&](auto& both, auto& tape) {
          c.check("gates", tape.layer.plan.dense_weights());
          matrix<Scalar> delta(c.rows("x").rows(), both.outputs());
          typename std::remove_cvref_t<decltype(both.adapters())>::workspace workspace;
          both.adapters().forward(c.rows("x"), delta, workspace);
          c.check("delta", delta);
        });
  };
  with_soft_router(c, D, [&](const auto& router) {
    if constexpr (std::same_as<std::remove_cvref_t<decltype(router)>, dense_softmax_router<Scalar>>) {
      run(moe_layer{router, joined_low_rank_bank<Scalar>(E, D, rank, {.outputs = outputs, .scale = scale})},
          [&](auto& bank, bindings<Scalar>& bound) {
            for (index_t e = 0; e < E; ++e)
              bound.bind_rows("lora_A", bank.a(), e * rank, rank, e * rank * D, layout::transposed);
            bound.bind("lora_B", bank.b());
          });
    } else {
      const low_rank_expert<Scalar> expert(D, rank, {.outputs = outputs, .scale = scale});
      run(moe_layer{router, expert_bank<low_rank_expert<Scalar>>(E, expert)}, [&](auto& bank, bindings<Scalar>& bound) {
        for (index_t e = 0; e < E; ++e) bind_low_rank(bound, bank.expert(e), e, "lora_A", "lora_B", layout::transposed);
      });
    }
  });
}

// ---- one decision a sample ------------------------------------------------------------------------------------------

/// Tables [B,E] of a router over samples: those of each sample's first token.
template <typename Scalar, typename RouterTape>
void check_samples(oracle_case<Scalar>& c, const RouterTape& tape, const sparse_plan<Scalar>& plan,
                   const routing_context<Scalar>& context, std::span<const double> noise = {}) {
  const auto experts = c.template setting<index_t>("E");
  const index_t samples = context.group_count(), k = tape.choices.top_k;
  matrix<Scalar> logits(samples, experts), gates(samples, experts);
  std::vector<index_t> chosen;
  for (index_t b = 0; b < samples; ++b) {
    const index_t t = context.group(b, plan.tokens()).begin;
    logits.row(b) = tape.seen.clean.map().row(t);
    gates.row(b) = plan.dense_weights().row(t);
    chosen.insert(chosen.end(), &tape.choices.expert[t * k], &tape.choices.expert[t * k] + k);
  }
  c.check("gates", gates);
  c.check_integers("indices", chosen);
  if (!c.has("expected.logits")) return;
  // The file's are before noise and temperature.
  logits *= c.template setting<Scalar>("temperature");
  for (std::size_t i = 0; i < noise.size(); ++i)
    logits.data()[i] -= static_cast<Scalar>(c.template setting<double>("noise_std") * noise[i]);
  c.check("logits", logits);
}

struct mocle_names {
  const char *clusters, *embedding, *weight, *bias, *noise, *width, *temperature;
  const char *a, *b, *universal_a, *universal_b;
};

template <typename Scalar>
void run_mocle(oracle_case<Scalar>& c, const mocle_names& names, bool training, Scalar scale) {
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E");
  const auto rank = c.template setting<index_t>("rank");
  const typename cluster_adapters<Scalar>::options o{.outputs = c.axis("base.weight", 0),
                                                     .clusters = c.template setting<index_t>("clusters"),
                                                     .embedding = c.template setting<index_t>(names.width),
                                                     .temperature = c.template setting<Scalar>(names.temperature),
                                                     .noise_std = c.template setting<Scalar>("noise_std"),
                                                     .scale = scale,
                                                     .by_best = true};
  const auto groups = c.groups();
  const auto of_sample = c.integers(names.clusters);
  std::vector<index_t> clusters;
  for (index_t t = 0; t < groups.back(); ++t)
    clusters.push_back(of_sample[static_cast<std::size_t>(t / c.axis("x", 1))]);
  std::vector<double> draws;
  if (c.has(names.noise)) draws = c.file().template read_vector<double>(names.noise);
  routing_context<Scalar> context;
  context.training = training;
  context.groups = groups;
  context.cluster_ids = clusters;
  context.random.replay(gate_noise_site, draws);

  const auto bind = [&](auto& router, auto& bank, bindings<Scalar>& bound) {
    cluster_gate<Scalar>& gate = router.gate().clusters();
    bound.bind(names.embedding, gate.embedding());
    bound.bind(names.weight, gate.weight());
    bound.bind(names.bias, gate.bias());
    for (index_t e = 0; e < E; ++e) bind_low_rank(bound, bank.expert(e), e, names.a, names.b);
  };
  if (c.template setting<bool>("universal")) {
    run_beside_base(
        c, cluster_adapters<Scalar>(D, E, rank, o), context,
        [&](auto& layer, bindings<Scalar>& bound) {
          bind(layer.router().inner(), layer.bank(), bound);
          bind_low_rank(bound, layer.universal(), 0, names.universal_a, names.universal_b);
        },
        [&](auto&, auto& tape) { check_samples(c, tape.layer.router.inner, tape.layer.router.own, context, draws); });
  } else {
    const mocle_gate<Scalar> gate(D, E, o.clusters, o.embedding,
                                  {.temperature = o.temperature, .noise_std = o.noise_std});
    const mocle_router<Scalar> router(gate, {.top_k = c.template setting<index_t>("k"), .weights = weighting::pre});
    const low_rank_expert<Scalar> expert(D, rank, {.outputs = o.outputs, .scale = scale});
    run_beside_base(
        c, moe_layer{router, expert_bank<low_rank_expert<Scalar>>(E, expert)}, context,
        [&](auto& layer, bindings<Scalar>& bound) { bind(layer.router(), layer.bank(), bound); },
        [&](auto&, auto& tape) { check_samples(c, tape.layer.router, tape.layer.plan, context, draws); });
  }
}

template <typename Scalar>
void mocle_gate_cases(oracle_case<Scalar>& c) {
  run_mocle<Scalar>(c,
                    {"cluster_ids", "router.embedding", "router.weight", "router.bias", "noise.normal", "embed_dim",
                     "temperature", "experts.lora_a", "experts.lora_b", "universal.lora_a", "universal.lora_b"},
                    c.template setting<bool>("train"), c.template setting<Scalar>("scaling"));
}

template <typename Scalar>
void mocle(oracle_case<Scalar>& c) {
  run_mocle<Scalar>(c,
                    {"cluster_id", "cluster_embedding", "gate.weight", "gate.bias", "noise", "embedding", "tau",
                     "lora_A", "lora_B", "universal_A", "universal_B"},
                    c.has("noise"), c.template setting<Scalar>("alpha") / c.template setting<Scalar>("rank"));
}

template <typename Scalar>
void octavius(oracle_case<Scalar>& c) {
  const auto E = c.template setting<index_t>("E");
  const auto tokens = c.template setting<index_t>("question_tokens");
  const matrix<Scalar> question = c.rows("question");
  std::vector<index_t> borders;
  for (index_t r = 0; r <= question.rows(); r += tokens) borders.push_back(r);
  // Logits are linear, so their mean over the question is that of its mean.
  matrix_buffer<Scalar> means;
  mean_of_each<Scalar>(borders, question, means);
  const auto groups = c.groups();
  const matrix<Scalar> features = copy(means);
  routing_context<Scalar> context;
  context.groups = groups;
  context.group_features = features;
  run_beside_base(
      c,
      instance_adapters<Scalar>(c.template setting<index_t>("D"), question.cols(), E,
                                c.template setting<index_t>("rank"),
                                {.outputs = c.axis("base.weight", 0), .top_k = c.template setting<index_t>("k")}),
      context,
      [&](auto& layer, bindings<Scalar>& bound) {
        bound.bind("gate.kernel", layer.router().gate().inner().weight(), 0, layout::transposed);
        for (index_t e = 0; e < E; ++e)
          bind_low_rank(bound, layer.bank().expert(e), e, "lora_A", "lora_B", layout::transposed);
      },
      [&](auto&, auto& tape) {
        check_samples(c, tape.layer.router, tape.layer.plan, context);
        matrix<Scalar> dquestion = matrix<Scalar>::Zero(question.rows(), question.cols());
        mean_of_each_backward<Scalar>(borders, tape.layer.router.gate.group_gradient(), dquestion);
        c.check("grad.question", dquestion);
      });
}

// ---- MixPHM ---------------------------------------------------------------------------------------------------------

template <typename Scalar>
void mixphm(oracle_case<Scalar>& c) {
  const auto E = c.template setting<index_t>("E");
  const auto mode = c.template setting<std::string>("mode");
  if (mode != "soup" && mode != "expert") throw unsupported("mode " + mode);
  const auto groups = c.groups();
  std::vector<std::uint8_t> mask;
  for (const index_t seen : c.integers("mask")) mask.push_back(seen != 0);
  const double draws[] = {(c.template setting<double>("expert_index") + 0.5) / static_cast<double>(E)};
  routing_context<Scalar> context;
  context.training = true;
  context.groups = groups;
  context.random.replay(kronecker_adapters_site, draws);

  const auto run = [&](Scalar redundancy, const matrix<Scalar>& dy, const std::string& prefix) {
    kronecker_adapters<Scalar> layer(c.template setting<index_t>("D"), c.template setting<index_t>("bottleneck"),
                                     {.experts = E,
                                      .terms = c.template setting<index_t>("phm_dim"),
                                      .rank = c.template setting<index_t>("rank"),
                                      .scale = c.template setting<Scalar>("ada_alpha"),
                                      .in_training = mode == "soup" ? kronecker_use::soup : kronecker_use::drawn,
                                      .redundancy = redundancy});
    bindings<Scalar> bound;
    bound.bind("phm_rule", layer.rule());
    bound.bind("down.W_left", layer.down_left());
    bound.bind("down.W_right", layer.down_right());
    bound.bind("down.b", layer.down_bias());
    bound.bind("up.W_left", layer.up_left());
    bound.bind("up.W_right", layer.up_right());
    bound.bind("up.b", layer.up_bias());
    if (c.has("expert_score")) bound.bind("expert_score", layer.scores());
    bound.load(c);
    typename kronecker_adapters<Scalar>::tape tape;
    run_backward(c, layer, tape, bound, context, dy, prefix);
    return tape.loss();
  };
  const matrix<Scalar> dy = c.rows("grad_out");
  run(0, dy, "grad");
  context.token_mask = mask;  // the mask is the loss's alone
  c.check("redundancy_loss", run(c.template setting<Scalar>("redundancy_lambda"),
                                 matrix<Scalar>::Zero(dy.rows(), dy.cols()), "grad_redundancy_loss"));
}

}  // namespace

std::vector<replayer> adapters() {
  return {{"mov", mov<float>, mov<double>},
          {"molora", molora<float>, molora<double>},
          {"octavius", octavius<float>, octavius<double>},
          {"mocle_gate", mocle_gate_cases<float>, mocle_gate_cases<double>},
          {"mocle", mocle<float>, mocle<double>},
          {"mixphm", mixphm<float>, mixphm<double>}};
}

}  // namespace oracle
