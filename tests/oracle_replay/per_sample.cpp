// One decision a sample: MoCLE and Octavius with low-rank experts beside a dense layer, AdvMoE with scores from elsewhere.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/expert/ffn.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/router/masked/per_sample.hpp>

namespace oracle {
namespace {

using namespace sluice;

/// What lies between the two maps of a low-rank expert.
struct nothing_between {
  template <typename V>
  static V value(V z) {
    return z;
  }
  template <typename V>
  static V derivative(V) {
    return sluice::detail::constant<V>(1);
  }
};
template <typename Scalar>
using low_rank = ffn<Scalar, nothing_between>;

/// f(x) = factor B A x: the factor is in B while the layer runs. The file's tensors are [E,rank,D] and [E,O,rank], or
/// transposed.
template <typename Scalar>
struct low_rank_tensors {
  std::string a, b;
  Scalar factor;
  layout stored = layout::as_stored;

  template <typename Bank>
  void bind(bindings<Scalar>& bound, Bank& bank) const {
    for (index_t e = 0; e < bank.experts(); ++e) {
      bound.bind(a, bank.expert(e).up(), e * bank.expert(e).up().size(), stored);
      bound.bind(b, bank.expert(e).down(), e * bank.expert(e).down().size(), stored);
    }
  }
  template <typename Bank>
  void scale_values(Bank& bank) const {
    for (index_t e = 0; e < bank.experts(); ++e)
      for (Scalar& v : bank.expert(e).down().value()) v *= factor;
  }
  template <typename Bank>
  void scale_gradients(Bank& bank) const {
    for (index_t e = 0; e < bank.experts(); ++e)
      for (Scalar& v : bank.expert(e).down().gradient()) v *= factor;
  }
};

/// y = base x (+ bias) + mixture(x), forward and backward; `each_bank(f)` calls f(bank, its tensors).
template <typename Scalar, typename Layer, typename EachBank>
void run_beside_base(oracle_case<Scalar>& c, Layer& layer, typename Layer::tape& tape, bindings<Scalar>& bound,
                     const routing_context<Scalar>& context, EachBank each_bank) {
  each_bank([&](auto& bank, const auto& tensors) { tensors.bind(bound, bank); });
  bound.load(c);
  each_bank([&](auto& bank, const auto& tensors) { tensors.scale_values(bank); });
  const matrix<Scalar> x = c.rows("x"), dy = c.rows("grad_out"), base = c.rows("base.weight");
  matrix<Scalar> y(x.rows(), layer.outputs()), dx(x.rows(), x.cols());
  zero_gradients(layer);
  layer.forward(x, y, tape, context);
  layer.backward(dy, dx, tape);
  y += x * base.transpose();
  if (c.has("base.bias")) y.rowwise() += c.rows("base.bias").row(0);
  c.check("y", y);
  c.check("grad.x", matrix<Scalar>(dx + dy * base));
  c.check("grad.base.weight", matrix<Scalar>(dy.transpose() * x));
  c.check("grad.base.bias", matrix<Scalar>(dy.colwise().sum()));
  each_bank([&](auto& bank, const auto& tensors) { tensors.scale_gradients(bank); });
  bound.check_gradients(c, "grad");
}

/// Tables [B, ...] of a router over samples: those of each sample's first token.
template <typename Scalar, typename RouterTape>
void check_samples(oracle_case<Scalar>& c, const RouterTape& tape, const sparse_plan<Scalar>& plan,
                   const routing_context<Scalar>& context, index_t experts, std::span<const double> noise = {}) {
  const index_t samples = context.group_count(), k = tape.choices.top_k;
  matrix<Scalar> logits(samples, experts), gates(samples, experts);
  std::vector<index_t> chosen;
  for (index_t b = 0; b < samples; ++b) {
    const index_t t = context.group(b, plan.tokens()).begin;
    logits.row(b) = tape.seen.clean.map().row(t);
    gates.row(b) = plan.dense_weights().row(t).head(experts);
    chosen.insert(chosen.end(), &tape.choices.expert[t * k], &tape.choices.expert[t * k] + k);
  }
  c.check("gates", gates);
  c.check_integers("indices", chosen);
  if (c.has("expected.logits")) {
    // The file's are before noise and temperature.
    logits *= c.template setting<Scalar>("temperature");
    for (std::size_t i = 0; i < noise.size(); ++i)
      logits.data()[i] -= static_cast<Scalar>(c.template setting<double>("noise_std") * noise[i]);
    c.check("logits", logits);
  }
}

// ---- MoCLE -----------------------------------------------------------------------------------------------------------

struct mocle_names {
  const char *clusters, *embedding, *weight, *bias, *noise, *width, *temperature;
};

template <typename Scalar>
void run_mocle(oracle_case<Scalar>& c, const mocle_names& names, bool training, const low_rank_tensors<Scalar>& own,
               const low_rank_tensors<Scalar>& shared) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto rank = c.template setting<index_t>("rank");
  const index_t outputs = c.axis("base.weight", 0);
  const mocle_gate<Scalar> gate(D, E, c.template setting<index_t>("clusters"), c.template setting<index_t>(names.width),
                                {.temperature = c.template setting<Scalar>(names.temperature),
                                 .noise_std = c.template setting<Scalar>("noise_std")});
  const mocle_router<Scalar> router(gate, {.top_k = c.template setting<index_t>("k"), .weights = weighting::pre});
  const expert_bank<low_rank<Scalar>> experts(E, D, rank, {.outputs = outputs});

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

  const auto run = [&](auto layer, auto& inner_of, auto each_bank) {
    bindings<Scalar> bound;
    auto& clusters_of = inner_of(layer).gate().clusters();
    bound.bind(names.embedding, clusters_of.embedding());
    bound.bind(names.weight, clusters_of.weight());
    bound.bind(names.bias, clusters_of.bias());
    typename decltype(layer)::tape tape;
    run_beside_base(c, layer, tape, bound, context, [&](auto&& f) { each_bank(layer, f); });
    if constexpr (requires { tape.router.own; })
      check_samples(c, tape.router.inner, tape.router.own, context, E, draws);
    else
      check_samples(c, tape.router, tape.plan, context, E, draws);
  };
  if (!c.template setting<bool>("universal")) {
    const auto inner_of = [](auto& layer) -> auto& { return layer.router(); };
    run(moe_layer{router, experts}, inner_of, [&](auto& layer, auto&& f) { f(layer.bank(), own); });
    return;
  }
  const auto inner_of = [](auto& layer) -> auto& { return layer.router().inner(); };
  run(moe_layer{universal_expert_router<mocle_router<Scalar>>(router, {.by_best = true}),
                expert_union{experts, expert_bank<low_rank<Scalar>>(1, D, rank, {.outputs = outputs})}},
      inner_of, [&](auto& layer, auto&& f) {
        f(layer.bank().template bank<0>(), own);
        f(layer.bank().template bank<1>(), shared);
      });
}

template <typename Scalar>
void mocle_gate_cases(oracle_case<Scalar>& c) {
  const auto factor = c.template setting<Scalar>("scaling");
  run_mocle<Scalar>(
      c,
      {"cluster_ids", "router.embedding", "router.weight", "router.bias", "noise.normal", "embed_dim", "temperature"},
      c.template setting<bool>("train"), {"experts.lora_a", "experts.lora_b", factor},
      {"universal.lora_a", "universal.lora_b", factor});
}

template <typename Scalar>
void mocle(oracle_case<Scalar>& c) {
  const Scalar factor = c.template setting<Scalar>("alpha") / c.template setting<Scalar>("rank");
  run_mocle<Scalar>(c, {"cluster_id", "cluster_embedding", "gate.weight", "gate.bias", "noise", "embedding", "tau"},
                    c.has("noise"), {"lora_A", "lora_B", factor}, {"universal_A", "universal_B", factor});
}

// ---- Octavius --------------------------------------------------------------------------------------------------------

template <typename Scalar>
void octavius(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto tokens = c.template setting<index_t>("question_tokens");
  // Logits are linear, so their mean over the question is that of its mean.
  const matrix<Scalar> question = c.rows("question");
  const index_t samples = question.rows() / tokens;
  matrix<Scalar> means(samples, question.cols());
  for (index_t b = 0; b < samples; ++b) means.row(b) = question.middleRows(b * tokens, tokens).colwise().mean();
  const auto groups = c.groups();
  routing_context<Scalar> context;
  context.groups = groups;
  context.group_features = means;

  using gate = per_group_gate<linear_gate<Scalar>, group_source::group_vector>;
  moe_layer layer{
      instance_router<Scalar>(gate(D, linear_gate<Scalar>(question.cols(), E)),
                              {.top_k = c.template setting<index_t>("k"), .added_to_sum = Scalar(1e-9)}),
      expert_bank<low_rank<Scalar>>(E, D, c.template setting<index_t>("rank"), {.outputs = c.axis("base.weight", 0)})};
  bindings<Scalar> bound;
  bound.bind("gate.kernel", layer.router().gate().inner().weight(), 0, layout::transposed);
  const low_rank_tensors<Scalar> tensors{"lora_A", "lora_B", 1, layout::transposed};
  typename decltype(layer)::tape tape;
  run_beside_base(c, layer, tape, bound, context, [&](auto&& f) { f(layer.bank(), tensors); });
  check_samples(c, tape.router, tape.plan, context, E);
  const matrix<Scalar> dmeans = tape.router.gate.group_gradient().map();
  matrix<Scalar> dquestion(question.rows(), question.cols());
  for (index_t r = 0; r < question.rows(); ++r) dquestion.row(r) = dmeans.row(r / tokens) / static_cast<Scalar>(tokens);
  c.check("grad.question", dquestion);
}

// ---- AdvMoE ----------------------------------------------------------------------------------------------------------

template <typename Scalar>
void advmoe(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto groups = c.groups();
  const matrix<Scalar> scores = c.rows("scores");
  routing_context<Scalar> context;
  context.training = true;
  context.groups = groups;
  context.group_features = scores;
  using gate = per_group_gate<identity_gate<Scalar>, group_source::group_vector>;
  for (const bool all : {false, true}) {
    moe_layer layer{advmoe_router<Scalar>(gate(D, identity_gate<Scalar>(E)), {.all_experts = all}),
                    expert_bank<linear_expert<Scalar>>(E, D, c.template setting<index_t>("W"))};
    bindings<Scalar> bound;
    for (index_t e = 0; e < E; ++e)
      bound.bind("experts.weight", layer.bank().expert(e).weight(), e * layer.bank().expert(e).weight().size());
    bound.load(c);
    typename decltype(layer)::tape tape;
    check_task(c, layer, tape, bound, context);
    c.check(all ? "full_estimator" : "grad.scores", copy(tape.router.gate.group_gradient()));
    std::vector<index_t> chosen;
    for (index_t b = 0; b < context.group_count(); ++b) {
      const index_t t = groups[static_cast<std::size_t>(b)];
      chosen.push_back(tape.router.choices.expert[t * tape.router.choices.top_k]);
    }
    c.check_integers("indices", chosen);
  }
}

}  // namespace

std::vector<replayer> per_sample() {
  return {{"mocle_gate", mocle_gate_cases<float>, mocle_gate_cases<double>},
          {"mocle", mocle<float>, mocle<double>},
          {"octavius", octavius<float>, octavius<double>},
          {"advmoe", advmoe<float>, advmoe<double>}};
}

}  // namespace oracle
