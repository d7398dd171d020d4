// Routers that give one token more experts than another: XMoE, and MC-MoE's pruning at inference.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/capacity/position.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/threshold/skip.hpp>
#include <sluice/router/threshold/token_importance.hpp>
#include <sluice/router/threshold/top_p.hpp>

namespace oracle {
namespace {

using namespace sluice;

// ---- XMoE ------------------------------------------------------------------------------------------------------------

/// The last columns of a [T,E] table of a plan: the file leaves the placeholder out.
template <typename Scalar>
void check_xmoe_plan(oracle_case<Scalar>& c, const sparse_plan<Scalar>& plan, index_t placeholders) {
  const index_t T = plan.tokens(), E = plan.experts() - placeholders;
  matrix<index_t> wanted = matrix<index_t>::Zero(T, E), kept = wanted, slot = wanted;
  std::vector<index_t> count(static_cast<std::size_t>(T), 0), load;
  const auto want = [&](index_t token, index_t expert) {
    ++count[static_cast<std::size_t>(token)];
    if (expert >= placeholders) wanted(token, expert - placeholders) = 1;
  };
  for (index_t i = 0; i < plan.size(); ++i) {
    want(plan.token(i), plan.expert(i));
    if (plan.expert(i) >= placeholders) kept(plan.token(i), plan.expert(i) - placeholders) = 1;
  }
  for (const auto& d : plan.dropped()) want(d.token, d.expert);
  // The source numbers the kept tokens of an expert in token order.
  for (index_t e = 0; e < E; ++e) {
    index_t next = 0;
    for (index_t t = 0; t < T; ++t)
      if (kept(t, e) != 0) slot(t, e) = next++;
    load.push_back(next);
  }
  const auto numbers = [](const matrix<index_t>& m) {
    return std::span<const index_t>(m.data(), static_cast<std::size_t>(m.size()));
  };
  c.check_integers("wanted", count);
  c.check_integers("mask_before_drop", numbers(wanted));
  c.check_integers("mask", numbers(kept));
  c.check_integers("slot", numbers(slot));
  c.check_integers("counts", load);
  c.check("combine", matrix<Scalar>(plan.dense_weights().rightCols(E)));
}

template <typename Scalar, typename Experts>
void run_xmoe(oracle_case<Scalar>& c, const xmoe_router<Scalar>& router, Experts experts, index_t placeholders) {
  const auto bind = [](auto& r, bindings<Scalar>& b) { b.bind("router.weight", r.gate().weight()); };
  moe_layer layer{router, std::move(experts)};
  bindings<Scalar> bound;
  bind(layer.router(), bound);
  if constexpr (requires { layer.bank().template bank<1>(); })
    bind_gated(bound, layer.bank().template bank<1>());
  else
    bind_gated(bound, layer.bank());
  bound.load(c);
  const routing_context<Scalar> context;
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check("logits", copy(tape.router.seen.clean));
  c.check("gates", copy(tape.router.scores));
  check_xmoe_plan(c, tape.plan, placeholders);
  check_losses(c, "aux_loss", router, bind, context, 0,
               switch_balance{.coefficient = 1, .share = balance_share::first_choice});
}

template <typename Scalar>
void xmoe(oracle_case<Scalar>& c) {
  if (c.template setting<std::string>("activation") != "silu_glu") throw unsupported("activation");
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto H = c.template setting<index_t>("H");
  const bool placeholder = c.template setting<bool>("placeholder");
  capacity_limit limit =
      capacity_limit::xmoe(c.template setting<double>("capacity_factor"), c.template setting<index_t>("min_capacity"));
  if (placeholder) limit = limit.without_limit({0});
  const index_t capacity = limit.of({.tokens = c.rows("x").rows(), .top_k = E, .experts = E}, E - 1);
  if (capacity != c.template setting<index_t>("capacity")) c.fail("capacity " + std::to_string(capacity));
  const xmoe_router<Scalar> router(linear_gate<Scalar>(D, E), {.threshold = c.template setting<Scalar>("threshold")},
                                   {}, position_capacity(limit));
  if (placeholder)
    run_xmoe(c, router, expert_union{expert_bank<zero_expert<Scalar>>(1, D), expert_bank<swiglu<Scalar>>(E - 1, D, H)},
             1);
  else
    run_xmoe(c, router, expert_bank<swiglu<Scalar>>(E, D, H), 0);
}

// ---- MC-MoE ----------------------------------------------------------------------------------------------------------

/// The importance of the tokens by the attention that they receive (the text) or pay (the released code), averaged over heads.
template <typename Scalar>
std::vector<Scalar> importance_of(const oracle_case<Scalar>& c, bool received) {
  const matrix<Scalar> x = c.rows("x"), heads = c.rows("attention");
  const index_t T = x.rows();
  matrix<Scalar> attention = matrix<Scalar>::Zero(T, T);
  for (index_t h = 0; h < heads.rows(); h += T) attention += heads.middleRows(h, T);
  attention *= static_cast<Scalar>(T) / static_cast<Scalar>(heads.rows());
  std::vector<Scalar> importance(as_size(T));
  token_importance<Scalar>(x, attention, importance, received ? attention_share::received : attention_share::paid);
  return importance;
}

template <typename Scalar>
void mc_moe(oracle_case<Scalar>& c) {
  if (c.template setting<std::string>("kind") != "pruning") return mc_moe_bits(c);
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const index_t T = c.rows("x").rows();
  const linear_gate<Scalar> gate(D, E);
  const auto k = c.template setting<index_t>("k");
  moe_layer layer{
      skipping_router<Scalar>(gate, softmax_rule<Scalar>({.top_k = k}), {.ratio = c.template setting<Scalar>("beta")}),
      expert_bank<swiglu<Scalar>>(E, D, c.template setting<index_t>("H"))};
  bindings<Scalar> bound;
  bound.bind("router.weight", layer.router().gate().weight());
  bind_gated(bound, layer.bank());
  bound.load(c);
  for (const bool received : {false, true}) {
    const std::string form = received ? "_received" : "_row";
    const std::vector<Scalar> importance = importance_of(c, received);
    c.check("importance" + form, std::span<const Scalar>(importance));
    std::vector<std::uint8_t> sees_experts(as_size(T)), keeps_all = sees_experts;
    prune_tokens<Scalar>(
        importance,
        {.least = c.template setting<double>("tau_low"), .most = c.template setting<double>("tau_high")}, sees_experts,
        keeps_all);
    routing_context<Scalar> context;
    context.token_mask = sees_experts;  // who is left out altogether passes as padding does
    context.protected_tokens = keeps_all;
    typename decltype(layer)::workspace workspace;
    matrix<Scalar> y(T, D);
    layer.forward(c.rows("x"), y, workspace, context);
    c.check("y" + form, y);
    c.check("combine" + form, workspace.plan.dense_weights());
    std::vector<index_t> kept;
    for (index_t t = 0; t < T; ++t)
      for (index_t rank = 0; rank < k; ++rank)
        kept.push_back(static_cast<std::size_t>(rank) < workspace.plan.of_token(t).size());
    c.check_integers("mask" + form, kept);
  }
  moe_layer whole{top_k_router<Scalar>(layer.router().gate(), {.top_k = k}), layer.bank()};
  typename decltype(whole)::workspace workspace;
  matrix<Scalar> y(T, D);
  whole.forward(c.rows("x"), y, workspace);
  c.check_integers("indices", workspace.router.choices.expert.span());
}

}  // namespace

std::vector<replayer> thresholds() {
  return {{"xmoe", xmoe<float>, xmoe<double>}, {"mc_moe", mc_moe<float>, mc_moe<double>}};
}

}  // namespace oracle
