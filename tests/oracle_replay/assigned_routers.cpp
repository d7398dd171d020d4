// Routers that assign all tokens together: Sinkhorn couplings in five published forms, BASE's auction, sparse transport.
#include "couplings.hpp"
#include "layer_run.hpp"
#include "replays.hpp"
#include "sublayers.hpp"

#include <sluice/capacity/batch_priority.hpp>
#include <sluice/capacity/position.hpp>
#include <sluice/expert/change.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/router/assigned/balanced_assignment.hpp>
#include <sluice/router/assigned/sinkhorn.hpp>
#include <sluice/router/assigned/sparse_transport.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

namespace oracle {
namespace {

using namespace sluice;

/// A coupling that stops by a tolerance is good to about 1e-5, potentials after Adam's steps to 3e-4: the files say so.
constexpr double stopped = 1e-5, ascended = 3e-4;

template <typename Scalar>
auto swiglu_bank(const oracle_case<Scalar>& c) {
  if (c.template setting<std::string>("activation") != "silu_glu") throw unsupported("activation");
  return expert_bank<swiglu<Scalar>>(c.template setting<index_t>("E"), c.template setting<index_t>("D"),
                                     c.template setting<index_t>("H"));
}

/// The layer of a case, run on its x; the rest is up to `check(tape, layer)`.
template <typename Scalar, typename Router, typename Check>
void run_swiglu(oracle_case<Scalar>& c, Router router, const routing_context<Scalar>& context, Check check) {
  moe_layer layer{std::move(router), swiglu_bank(c)};
  bindings<Scalar> bound;
  bound.bind("router.weight", layer.router().gate().weight());
  if (c.has("router.bias")) bound.bind("router.bias", layer.router().gate().bias());
  bind_gated(bound, layer.bank());
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check("logits", copy(tape.router.seen.clean));
  c.check("combine", tape.plan.dense_weights());
  check_loads(c, tape.plan);
  check(tape, layer);
}

template <typename Scalar>
std::vector<index_t> tokens_by_expert(const sparse_plan<Scalar>& plan) {
  std::vector<index_t> tokens;
  for (index_t i = 0; i < plan.size(); ++i) tokens.push_back(plan.token(i));
  return tokens;
}

template <typename Scalar>
std::vector<index_t> mask_of(const sparse_plan<Scalar>& plan) {
  std::vector<index_t> mask(static_cast<std::size_t>(plan.tokens() * plan.experts()), 0);
  for (index_t i = 0; i < plan.size(); ++i) mask[static_cast<std::size_t>(plan.token(i) * plan.experts() + plan.expert(i))] = 1;
  return mask;
}

template <typename Scalar>
capacity_limit limit_of(const oracle_case<Scalar>& c) {
  const auto limit = capacity_limit::vmoe(c.template setting<double>("capacity_factor"), capacity_rounding::up,
                                          c.template setting<index_t>("capacity_multiple_of"));
  const auto k = (std::max<index_t>)(1, c.template setting<index_t>("k", 1));
  if (limit.of({.tokens = c.template setting<index_t>("T"), .top_k = k, .experts = c.template setting<index_t>("E")}) !=
      c.template setting<index_t>("capacity"))
    throw unsupported("this capacity");
  return limit;
}

// ---- Sinkhorn --------------------------------------------------------------------------------------------------------

/// Megatron and S-BASE: balanced in training, weights from the logits.
template <typename Scalar>
void run_balanced_in_training(oracle_case<Scalar>& c, const sinkhorn_router_options& o) {
  routing_context<Scalar> context;
  context.training = c.template setting<bool>("train");
  const sinkhorn_router<Scalar> router(c.template setting<index_t>("D"), c.template setting<index_t>("E"), o);
  run_swiglu<Scalar>(c, router, context, [&](auto& tape, auto&) {
    c.check_integers("indices", tape.router.choices.expert.span());
    if (!context.training) return;
    c.check("plan", copy(tape.router.rule.coupling));
    c.check_integers("iterations", std::vector<index_t>{tape.router.rule.rounds});
  });
}

template <typename Scalar>
void run_blackmamba(oracle_case<Scalar>& c, const sinkhorn_router_options& o) {
  const linear_gate<Scalar> gate(c.template setting<index_t>("D"), c.template setting<index_t>("E"), {.bias = true});
  run_swiglu<Scalar>(c, sinkhorn_router<Scalar>(gate, o), {}, [&](auto& tape, auto& layer) {
    c.check_integers("indices", tape.router.choices.expert.span());
    c.check("weights", tape.router.choices.weight.span());
    routing_context<Scalar> training;
    training.training = true;
    layer.router().route(c.rows("x"), training, tape.plan, tape.router);
    c.check_integers("indices_by_plan", tape.router.choices.expert.span());
    c.check("plan", copy(tape.router.rule.coupling));
    c.check_integers("iterations", std::vector<index_t>{tape.router.rule.rounds});
  });
}

template <typename Scalar, typename Capacity>
void run_vmoe_tokens(oracle_case<Scalar>& c, const sinkhorn_router_options& o, const routing_context<Scalar>& context, Capacity capacity) {
  using router_type = sinkhorn_router<Scalar, linear_gate<Scalar>, gaussian_noise<Scalar>, Capacity>;
  const linear_gate<Scalar> gate(c.template setting<index_t>("D"), c.template setting<index_t>("E"));
  const gaussian_noise<Scalar> noise(c.template setting<Scalar>("noise_std"));
  run_swiglu<Scalar>(c, router_type(gate, o, noise, capacity), context, [&](auto& tape, auto& layer) {
    check_choices(c, tape.router, tape.plan);
    c.check("gates", copy(tape.router.scores));
    c.check("plan", copy(tape.router.rule.coupling));
    auto by_coupling = o;
    by_coupling.choice.weigh_by_coupling = true;
    const router_type other(layer.router().gate(), by_coupling, noise, capacity);
    other.route(c.rows("x"), context, tape.plan, tape.router);
    c.check("combine_with_plan", tape.plan.dense_weights());
  });
}

template <typename Scalar>
void run_vmoe_experts(oracle_case<Scalar>& c, const sinkhorn_options& o, const routing_context<Scalar>& context,
                      bool weigh_by_plan) {
  using router_type = sinkhorn_expert_choice_router<Scalar, linear_gate<Scalar>, gaussian_noise<Scalar>>;
  const linear_gate<Scalar> gate(c.template setting<index_t>("D"), c.template setting<index_t>("E"));
  const router_type router(
      gate, {.capacity = limit_of(c), .scores = weigh_by_plan ? expert_choice_score::coupled : expert_choice_score::softmax},
      gaussian_noise<Scalar>(c.template setting<Scalar>("noise_std")), {}, sinkhorn_coupling<Scalar>(o));
  run_swiglu<Scalar>(c, router, context, [&](auto& tape, auto&) {
    c.check_integers("indices", tokens_by_expert(tape.plan));
    c.check("plan", copy(tape.router.compared.coupling));
  });
}

template <typename Scalar>
void sinkhorn(oracle_case<Scalar>& c) {
  const auto variant = c.template setting<std::string>("variant");
  const auto k = c.template setting<index_t>("k", 1);
  auto o = variant == "megatron"     ? sinkhorn_router_options::megatron(k)
           : variant == "blackmamba" ? sinkhorn_router_options::blackmamba()
           : variant == "s_base"     ? sinkhorn_router_options::s_base(k)
                                     : sinkhorn_router_options::vmoe(k);
  o.coupling.tolerance = c.template setting<double>("tol", o.coupling.tolerance);
  o.coupling.rounds = c.template setting<index_t>("iterations", o.coupling.rounds);
  if (variant == "megatron" || variant == "s_base") return run_balanced_in_training(c, o);
  if (variant == "blackmamba") return run_blackmamba(c, o);
  o.choice.weigh_by_coupling = !c.template setting<bool>("use_softmax_combine_weights");
  const bool noisy = c.has("noise.normal");
  const auto normal = noisy ? c.file().template read_vector<double>("noise.normal") : std::vector<double>();
  routing_context<Scalar> context;
  context.training = noisy;
  context.random.replay(noise_site, normal);
  if (variant == "vmoe_expert_choice") return run_vmoe_experts(c, o.coupling, context, o.choice.weigh_by_coupling);
  if (variant != "vmoe_token_choice") throw unsupported("variant " + variant);
  if (c.template setting<bool>("batch_priority"))
    run_vmoe_tokens(c, o, context, batch_priority_capacity(limit_of(c)));
  else
    run_vmoe_tokens(c, o, context, position_capacity(limit_of(c)));
}

// ---- BlackMamba ------------------------------------------------------------------------------------------------------

template <typename Scalar, typename Router, typename Bank, typename Bind>
void run_mamba_experts(oracle_case<Scalar>& c, Router router, Bank bank, Bind bind) {
  moe_layer layer{std::move(router), std::move(bank)};
  bindings<Scalar> bound;
  bound.bind("router.weight", layer.router().gate().weight());
  bound.bind("router.bias", layer.router().gate().bias());
  bind(bound, layer.bank());
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, {});
  c.check("sinkhorn", copy(coupling_of(sinkhorn_coupling<Scalar>(sinkhorn_options::blackmamba()), copy(tape.router.seen.clean)).coupling), 0,
          stopped);
}

template <typename Scalar, typename Router>
void run_mamba(oracle_case<Scalar>& c, Router router) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto H = c.template setting<index_t>("H");
  if (!c.template setting<bool>("glu"))
    return run_mamba_experts<Scalar>(c, std::move(router), expert_bank<ffn<Scalar, gelu>>(E, D, H, {.bias = true}), [](auto& b, auto& bank) {
      bind_ffn(b, bank, {"experts.w1", "experts.w2", layout::as_stored, layout::as_stored, "experts.b1", "experts.b2"}, true);
    });
  run_mamba_experts<Scalar>(c, std::move(router), expert_bank<swiglu<Scalar>>(E, D, H, {.bias = true}), [](auto& b, auto& bank) {
    for (index_t e = 0; e < bank.experts(); ++e) {
      auto& expert = bank.expert(e);
      const index_t half = expert.gate().size(), hidden = expert.hidden();
      b.bind("experts.w1", expert.gate(), 2 * e * half);
      b.bind("experts.w1", expert.up(), (2 * e + 1) * half);
      b.bind("experts.b1", expert.gate_bias(), 2 * e * hidden);
      b.bind("experts.b1", expert.up_bias(), (2 * e + 1) * hidden);
      b.bind("experts.w2", expert.down(), e * expert.down().size());
      b.bind("experts.b2", expert.down_bias(), e * expert.outputs());
    }
  });
}

template <typename Scalar>
void blackmamba(oracle_case<Scalar>& c) {
  const linear_gate<Scalar> gate(c.template setting<index_t>("D"), c.template setting<index_t>("E"), {.bias = true});
  const auto mode = c.template setting<std::string>("mode");
  if (mode == "sinkhorn")
    run_mamba<Scalar>(c, sinkhorn_router<Scalar>(gate, sinkhorn_router_options::blackmamba()));
  else if (mode == "top1")
    run_mamba<Scalar>(c, top_k_router<Scalar>(gate, {.top_k = 1, .weights = weighting::pre}));
  else
    throw unsupported("mode " + mode);
}

// ---- BASE ------------------------------------------------------------------------------------------------------------

/// Tokens of every expert, ascending, and the rounds of the auction.
template <typename Scalar>
void check_assignment(oracle_case<Scalar>& c, std::span<const index_t> expert_of, index_t experts, index_t rounds) {
  std::vector<index_t> assignment;
  for (index_t e = 0; e < experts; ++e)
    for (std::size_t t = 0; t < expert_of.size(); ++t)
      if (expert_of[t] == e) assignment.push_back(static_cast<index_t>(t));
  c.check_integers("assignment", assignment);
  c.check_integers("iterations", std::vector<index_t>{rounds});
}

template <typename Scalar>
void run_auction(oracle_case<Scalar>& c) {
  using rule_type = balanced_assignment_rule<Scalar>;
  const auto T = c.template setting<index_t>("T");
  const auto E = c.template setting<index_t>("E");
  typename rule_type::tape tape;
  choice_table<Scalar> choices;
  choices.reset(T, 1);
  const batch_of_scores<Scalar> scores(c.rows("scores"));
  rule_type(E).assign(scores.batch(), choices, tape);
  c.check_integers("indices", choices.expert.span());
  check_assignment<Scalar>(c, choices.expert.span(), E, tape.solver.rounds);
  Scalar total = 0;
  for (index_t t = 0; t < T; ++t) total += tape.scores(choices.expert[t], t);
  c.check("total_score", total);
}

template <typename Scalar>
void base_layer(oracle_case<Scalar>& c) {
  const auto kind = c.template setting<std::string>("kind");
  if (kind == "auction") return run_auction(c);
  if (kind != "layer") throw unsupported("kind " + kind);
  if (c.template setting<bool>("shuffle")) throw unsupported("shuffled tokens");
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  using expert_type = change_expert<sublayers<Scalar>>;
  const expert_type expert(sublayers<Scalar>(D, c.template setting<index_t>("H"), c.template setting<index_t>("L")));
  residual_layer layer{moe_layer{base_router<Scalar>(D, E), expert_bank<expert_type>(E, expert)}};
  bindings<Scalar> bound;
  bound.bind("router.centroids", layer.router().gate().weight());
  bind_sublayers(bound, layer.bank(), [](auto& e) -> auto& { return e.inner(); });
  bound.load(c);
  routing_context<Scalar> context;
  context.training = c.template setting<bool>("train");
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  const auto& router = tape.layer.router;
  c.check("scores", copy(router.seen.clean));
  c.check("weights", router.choices.weight.span());
  c.check_integers("indices", router.choices.expert.span());
  check_loads(c, tape.layer.plan);
  if (context.training) check_assignment<Scalar>(c, router.choices.expert.span(), E, router.rule.solver.rounds);
}

// ---- sparse transport ------------------------------------------------------------------------------------------------

template <typename Scalar>
void ksparse_ot(oracle_case<Scalar>& c) {
  const linear_gate<Scalar> gate(c.template setting<index_t>("D"), c.template setting<index_t>("E"));
  const sparse_coupling_options o{.gamma = c.template setting<double>("gamma"),
                                  .steps = c.template setting<index_t>("iterations"),
                                  .learning_rate = c.template setting<double>("adam_lr")};
  const auto limit = limit_of(c);
  const auto check = [&](auto& tape, const auto& coupling) {
    c.check("gates", copy(tape.router.scores));
    c.check_integers("mask", mask_of(tape.plan));
    c.check("plan", copy(coupling.coupling), 0, ascended);
    c.check("potential", coupling.ascent.potential.span(), 0, ascended);
  };
  const auto mode = c.template setting<std::string>("mode");
  if (mode == "expert_choice") {
    if (c.template setting<index_t>("nonzeros") != c.template setting<index_t>("capacity")) throw unsupported("nonzeros");
    run_swiglu<Scalar>(c, sparse_expert_choice_router<Scalar>(gate, {.capacity = limit, .coupling = o}), {},
                       [&](auto& tape, auto&) { check(tape, tape.router.compared); });
  } else if (mode == "token_choice") {
    const auto k = c.template setting<index_t>("k");
    if (c.template setting<index_t>("nonzeros") != k) throw unsupported("nonzeros");
    const sparse_token_choice_router<Scalar, linear_gate<Scalar>, position_capacity> router(gate, {.top_k = k, .coupling = o},
                                                                                            position_capacity(limit));
    run_swiglu<Scalar>(c, router, {}, [&](auto& tape, auto&) { check(tape, tape.router.rule); });
  } else {
    throw unsupported("mode " + mode);
  }
}

}  // namespace

std::vector<replayer> assigned_routers() {
  return {{"sinkhorn", sinkhorn<float>, sinkhorn<double>},
          {"blackmamba", blackmamba<float>, blackmamba<double>},
          {"base_layer", base_layer<float>, base_layer<double>},
          {"ksparse_ot", ksparse_ot<float>, ksparse_ot<double>}};
}

}  // namespace oracle
