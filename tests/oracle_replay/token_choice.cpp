// Routers in which tokens choose: learned noise, Switch, GShard-style top-2, ST-MoE, Tutel.
#include "layer_run.hpp"
#include "loaded_layer.hpp"
#include "replays.hpp"

#include <sluice/capacity/batch_priority.hpp>
#include <sluice/capacity/position.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/gate/cosine.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/loss/load.hpp>
#include <sluice/loss/router_z.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/tokens_choose/gshard_top2.hpp>
#include <sluice/router/tokens_choose/noisy_top_k.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include <numbers>

namespace oracle {
namespace {

using namespace sluice;

const auto bind_linear = [](auto& router, auto& b) { b.bind("router.weight", router.gate().weight()); };

/// A loss whose value is stored times a coefficient that its gradients have as well.
template <typename Scalar>
double setting_or(const oracle_case<Scalar>& c, const char* name, double otherwise) {
  return c.template setting<double>(name, otherwise);
}

// ---- Shazeer et al. 2017, as in FastMoE ------------------------------------------------------------------------------

/// The load vector of the learned form, from the tape: what the loss squares and sums. Of all experts, or without noise,
/// it is a count.
template <typename Scalar>
std::vector<Scalar> learned_load(const score_signals<Scalar>& seen, const sparse_plan<Scalar>& plan) {
  const index_t E = seen.clean.cols();
  const index_t k = seen.top_k;
  std::vector<Scalar> load(static_cast<std::size_t>(E), Scalar(0));
  if (k == E || !seen.has_noise) {
    for (index_t e = 0; e < E; ++e) load[as_size(e)] = static_cast<Scalar>(plan.load(e));
    return load;
  }
  for (index_t t = 0; t < seen.clean.rows(); ++t) {
    std::vector<Scalar> sorted(seen.noisy().row(t), seen.noisy().row(t) + E);
    std::sort(sorted.rbegin(), sorted.rend());
    for (index_t e = 0; e < E; ++e) {
      const Scalar next = sorted[static_cast<std::size_t>(k)];
      const Scalar threshold = seen.noisy()(t, e) > next ? next : sorted[static_cast<std::size_t>(k - 1)];
      const Scalar u = (seen.clean(t, e) - threshold) / seen.noise_std(t, e);
      load[static_cast<std::size_t>(e)] += Scalar(0.5) * std::erfc(-u / std::numbers::sqrt2_v<Scalar>);
    }
  }
  return load;
}

template <typename Scalar>
void noisy_topk(oracle_case<Scalar>& c) {
  const auto E = c.template setting<index_t>("E");
  const auto k = c.template setting<index_t>("k");
  learned_noise_top_k_router<Scalar> router(
      c.template setting<index_t>("D"), E, {.top_k = k, .noise_epsilon = c.template setting<Scalar>("noise_epsilon")});
  const auto bind = [](auto& r, bindings<Scalar>& b) {
    b.bind("router.weight", r.gate().weight());
    b.bind("router.noise_weight", r.noise().weight());
  };
  std::vector<double> normal;
  if (c.has("noise.normal")) normal = c.file().template read_vector<double>("noise.normal");
  routing_context<Scalar> context;
  context.training = c.template setting<bool>("train");
  context.random.replay(noise_site, normal);

  bindings<Scalar> bound;
  bind(router, bound);
  bound.load(c);
  typename decltype(router)::plan plan;
  typename decltype(router)::tape tape;
  const matrix<Scalar> x = c.rows("x");
  router.route(x, context, plan, tape);
  tape.dseen.zero_like(tape.seen);
  c.check("clean_logits", copy(tape.seen.clean));
  c.check("noisy_logits", copy(tape.seen.noisy()));
  c.check("noise_std", copy(tape.seen.noise_std));
  check_choices(c, tape, plan);
  const matrix<Scalar> importance = plan.dense_weights().colwise().sum();
  c.check("importance", importance);
  c.check("load", learned_load(tape.seen, plan));

  // The cotangent is on the weights [T,k] themselves.
  const matrix<Scalar> grad_weights = c.rows("grad_weights");
  typename decltype(router)::plan::gradient dplan;
  dplan.weight.resize(plan.size());
  for (index_t i = 0; i < plan.size(); ++i) dplan.weight[i] = grad_weights(plan.token(i), plan.rank(i));
  matrix<Scalar> dx = matrix<Scalar>::Zero(x.rows(), x.cols());
  router.backward(x, context, plan, dplan, tape, dx);
  c.check("grad.x", dx);
  bound.check_gradients(c, "grad");

  // 1e-4: the advice for this system's losses, whose variance divides by a small mean.
  check_losses(c, "aux_loss", router, bind, context, 1e-4,
               importance_loss{.coefficient = 1, .source = importance_source::sparse_gates, .form = variance::unbiased},
               load_loss{.coefficient = 1, .noise = load_form::learned_noise, .form = variance::unbiased});
}

// ---- Switch ----------------------------------------------------------------------------------------------------------

template <typename Scalar>
void switch_transformer(oracle_case<Scalar>& c) {
  if (c.template setting<std::string>("activation") != "relu") throw unsupported("activation");
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const bool bias = c.template setting<bool>("router_bias");
  const auto N = c.template setting<index_t>("N");
  using gate = linear_gate<Scalar>;
  const top_k_router<Scalar, dynamic, dynamic, gate, no_noise<Scalar>, position_capacity> router(
      gate(D, E, {.bias = bias}), {.top_k = 1, .weights = weighting::pre}, {},
      position_capacity(capacity_limit::fixed(c.template setting<index_t>("capacity"))));
  const auto bind = [bias](auto& r, bindings<Scalar>& b) {
    b.bind("router.weight", r.gate().weight());
    if (bias) b.bind("router.bias", r.gate().bias());
  };
  const auto groups = c.groups();
  routing_context<Scalar> context;
  context.groups = groups;
  const auto bind_all = [bind](auto& layer) {
    bindings<Scalar> bound;
    bind(layer.router(), bound);
    bind_ffn(bound, layer.bank(), {"experts.weight1", "experts.weight2"}, false);
    return bound;
  };
  check_loaded<switch_layer<Scalar>>(c, {"per-expert"}, bind_all, context);
  moe_layer layer{router, expert_bank<ffn<Scalar>>(E, D, c.template setting<index_t>("H"))};
  auto bound = bind_all(layer);
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check("logits", copy(tape.router.seen.clean));
  c.check("gates", copy(tape.router.scores));
  check_choices(c, tape.router, tape.plan);
  std::vector<index_t> asked(static_cast<std::size_t>(context.group_count() * E), 0);
  for (const index_t pair : tape.router.choices.order)
    ++asked[static_cast<std::size_t>(pair / N * E + tape.router.choices.expert[pair])];
  c.check_integers("counts_before_drop", asked);
  check_losses(c, "aux_loss_before_drop", router, bind, context, 0, switch_balance{.coefficient = 1});
  check_losses(c, "aux_loss", router, bind, context, 0,
               switch_balance{.coefficient = 1, .share = balance_share::first_choice_or_zero});
  check_losses(c, "z_loss", router, bind, context, 0, router_z_loss{.coefficient = 1});
}

// ---- GShard and ST-MoE -----------------------------------------------------------------------------------------------

template <typename Scalar>
using top_n_router = gshard_router<Scalar>;

template <typename Scalar>
position_capacity st_moe_capacity(const oracle_case<Scalar>& c) {
  return position_capacity(capacity_limit::st_moe(c.template setting<double>("capacity_factor"),
                                                  c.template setting<index_t>("min_capacity")));
}

template <typename Scalar>
void top2_gshard(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto T = c.template setting<index_t>("T");
  const auto policy = c.template setting<std::string>("second_policy");
  choice_policy<Scalar> further{.policy = policy == "all"      ? further_choices::all
                                          : policy == "none"   ? further_choices::none
                                          : policy == "random" ? further_choices::random
                                                               : throw unsupported("second choice policy " + policy),
                                .threshold = {c.template setting<Scalar>("threshold")}};
  const top_n_router<Scalar> router(D, E,
                                    {.top_k = c.template setting<index_t>("k"),
                                     .training = further,
                                     .inference = further,
                                     .smallest_sum = 0,
                                     .added_to_sum = Scalar(1e-9)},
                                    st_moe_capacity(c));
  // The file has draws for the second choices only; the router numbers draws rank by rank.
  std::vector<double> draws(static_cast<std::size_t>(T), 0.0);
  if (c.has("uniform")) {
    const auto second = c.file().template read_vector<double>("uniform");
    draws.insert(draws.end(), second.begin(), second.end());
  }
  const auto groups = c.groups();
  routing_context<Scalar> context;
  context.training = true;
  context.groups = groups;
  context.random.replay(gshard_rule<Scalar>::thinning_site, draws);
  moe_layer layer{router, expert_bank<ffn<Scalar>>(E, D, c.template setting<index_t>("H"))};
  bindings<Scalar> bound;
  bind_linear(layer.router(), bound);
  bind_ffn(bound, layer.bank(), {"experts.kernel1", "experts.kernel2", layout::transposed, layout::transposed}, false);
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check("gates", copy(tape.router.scores));
  check_choices(c, tape.router, tape.plan);
  check_slots(c, tape.plan, context);
  check_losses(c, "aux_loss", router, bind_linear, context, 0, switch_balance{.coefficient = c.template setting<double>("loss_coef")});
}

template <typename Scalar>
void st_moe(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  choice_policy<Scalar> further{.policy = further_choices::random};
  if (c.config().at("threshold").is_array())
    further.threshold = c.template setting<std::vector<Scalar>>("threshold");
  else
    further.threshold = {c.template setting<Scalar>("threshold")};
  const top_n_router<Scalar> router(D, E,
                                    {.top_k = c.template setting<index_t>("k"),
                                     .training = further,
                                     .inference = further,
                                     .smallest_sum = Scalar(1e-9),
                                     .straight_through = c.template setting<bool>("straight_through_dispatch")},
                                    st_moe_capacity(c));
  const auto draws = c.file().template read_vector<double>("uniform");
  const auto groups = c.groups();
  routing_context<Scalar> context;
  context.training = c.template setting<bool>("train");
  context.groups = groups;
  context.random.replay(gshard_rule<Scalar>::thinning_site, draws);
  moe_layer layer{router, expert_bank<geglu<Scalar>>(E, D, c.template setting<index_t>("H"), {.bias = true, .hidden_scale = true})};
  bindings<Scalar> bound;
  bind_linear(layer.router(), bound);
  bind_value_then_gate(bound, layer.bank(), true);
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check("gates", copy(tape.router.scores));
  check_choices(c, tape.router, tape.plan);
  check_slots(c, tape.plan, context);
  const double balance_coef = c.template setting<double>("balance_coef");
  const double z_coef = c.template setting<double>("z_coef");
  const switch_balance balance{.coefficient = 1, .share = balance_share::first_choice_kept};
  const router_z_loss z{.coefficient = 1};
  check_losses(c, "balance_loss", router, bind_linear, context, 0, balance);
  check_losses(c, "router_z_loss", router, bind_linear, context, 0, z);
  check_losses(c, "aux_loss", router, bind_linear, context, 0,
               switch_balance{.coefficient = balance_coef, .share = balance_share::first_choice_kept},
               router_z_loss{.coefficient = z_coef});
}

// ---- Tutel -----------------------------------------------------------------------------------------------------------

template <typename Scalar, typename GateType, typename Capacity, typename Bind>
void run_tutel(oracle_case<Scalar>& c, GateType gate, Capacity capacity, Bind bind) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto k = c.template setting<index_t>("k");
  const auto noise = c.template setting<Scalar>("gate_noise");
  const bool renormalizes = k > 1 && c.template setting<bool>("normalize_gate");
  const top_k_router<Scalar, dynamic, dynamic, GateType, gaussian_noise<Scalar>, Capacity> router(
      std::move(gate),
      {.top_k = k,
       .weights = renormalizes ? weighting::renorm : weighting::pre,
       .smallest_sum = renormalizes ? std::numeric_limits<Scalar>::epsilon() : Scalar(0)},
      gaussian_noise<Scalar>(noise), capacity);
  const auto normal = noise > 0 ? c.file().template read_vector<double>("noise.normal") : std::vector<double>();
  routing_context<Scalar> context;
  context.training = true;
  context.random.replay(noise_site, normal);
  moe_layer layer{router, expert_bank<ffn<Scalar>>(E, D, c.template setting<index_t>("H"), {.bias = true})};
  bindings<Scalar> bound;
  bind(layer.router(), bound);
  bind_ffn(bound, layer.bank(), {"experts.weight1", "experts.weight2", layout::as_stored, layout::transposed}, true);
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check("logits", copy(tape.router.seen.clean));
  c.check("scores", copy(tape.router.scores));
  check_choices(c, tape.router, tape.plan);
  const auto loss = c.template setting<std::string>("loss");
  if (loss == "gshard")
    check_losses(c, "aux_loss", router, bind, context, 0, switch_balance{.coefficient = 1});
  else if (loss == "load_importance")
    check_losses(c, "aux_loss", router, bind, context, 0, importance_loss{.coefficient = 0.5, .form = variance::unbiased},
                 load_loss{.coefficient = 0.5, .noise = load_form::scores_over_logits, .form = variance::unbiased});
  else
    throw unsupported("loss " + loss);
}

template <typename Scalar, typename GateType, typename Bind>
void with_tutel_capacity(oracle_case<Scalar>& c, GateType gate, Bind bind) {
  const auto limit = capacity_limit::tutel(c.template setting<double>("capacity_factor"), c.template setting<index_t>("alignment"));
  if (c.template setting<bool>("batch_priority"))
    run_tutel(c, std::move(gate), batch_priority_capacity(limit), bind);
  else
    run_tutel(c, std::move(gate), position_capacity(limit), bind);
}

template <typename Scalar>
void tutel(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto router = c.template setting<std::string>("router");
  if (router == "linear") {
    with_tutel_capacity(c, linear_gate<Scalar>(D, E), bind_linear);
  } else if (router == "cosine") {
    with_tutel_capacity(c, cosine_gate<Scalar>(D, E, {.projected = c.template setting<index_t>("proj_dim")}),
                        [](auto& r, bindings<Scalar>& b) {
                          b.bind("router.projector.weight", r.gate().projector_weight());
                          b.bind("router.projector.bias", r.gate().projector_bias());
                          b.bind("router.sim_matrix", r.gate().sim_matrix(), 0, layout::transposed);
                          b.bind("router.temperature", r.gate().temperature());
                        });
  } else {
    throw unsupported("router " + router);
  }
}

}  // namespace

std::vector<replayer> token_choice() {
  return {{"noisy_topk", noisy_topk<float>, noisy_topk<double>},
          {"switch", switch_transformer<float>, switch_transformer<double>},
          {"top2_gshard", top2_gshard<float>, top2_gshard<double>},
          {"st_moe", st_moe<float>, st_moe<double>},
          {"tutel", tutel<float>, tutel<double>}};
}

}  // namespace oracle
