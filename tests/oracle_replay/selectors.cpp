// Routers without top-k: DSelect-k's selectors and ReMoE's ReLU, with their losses and the controller.
#include "couplings.hpp"
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/expert/gated_ffn.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/loss/adaptive_l1.hpp>
#include <sluice/loss/dselect.hpp>
#include <sluice/loss/relu_l1.hpp>
#include <sluice/loss/router_z.hpp>
#include <sluice/router/assigned/sinkhorn_coupling.hpp>
#include <sluice/router/over_training/dselect_k.hpp>
#include <sluice/router/threshold/relu.hpp>

namespace oracle {
namespace {

using namespace sluice;

// ---- DSelect-k -------------------------------------------------------------------------------------------------------

template <typename Scalar>
void bind_gate(bindings<Scalar>& b, static_selectors<Scalar>& gate) {
  b.bind("z_logits", gate.codes());
  b.bind("w_logits", gate.mixing());
}
template <typename Scalar>
void bind_gate(bindings<Scalar>& b, linear_selectors<Scalar>& gate) {
  b.bind("z.kernel", gate.code_weight(), 0, layout::transposed);
  b.bind("z.bias", gate.code_bias());
  b.bind("w.kernel", gate.mixing_weight(), 0, layout::transposed);
  b.bind("w.bias", gate.mixing_bias());
}

template <typename Scalar, typename Gate>
void run_dselect(oracle_case<Scalar>& c, const matrix<Scalar>& x) {
  const auto E = c.template setting<index_t>("E");
  const index_t T = x.rows();
  dselect_k_router<Scalar, Gate> router(x.cols(), E,
                                        {.selectors = c.template setting<index_t>("k"), .gamma = c.template setting<Scalar>("gamma")});
  bindings<Scalar> bound;
  bind_gate(bound, router.gate());
  bound.load(c);
  const routing_context<Scalar> context;
  typename decltype(router)::plan plan;
  typename decltype(router)::tape tape;
  router.route(x, context, plan, tape);
  c.check("selectors", copy(tape.seen.selectors));
  c.check("selector_weights", copy(tape.seen.mixing));
  const matrix<Scalar> weights = plan.dense_weights();
  c.check("weights", Gate::per_token ? weights : matrix<Scalar>(weights.topRows(1)));

  // The file gives the experts' outputs [E,T,O]; ours are the rows of the plan.
  const auto outputs = c.rows("expert_outputs");
  matrix<Scalar> rows(plan.rows(), outputs.cols());
  for (index_t i = 0; i < plan.rows(); ++i) rows.row(i) = outputs.row(plan.expert(i) * T + plan.token(i));
  matrix<Scalar> y(T, outputs.cols());
  combine(plan, rows, y, context.executor);
  c.check("y", y);

  const auto backward = [&](const std::string& prefix, const typename decltype(plan)::gradient& dplan) {
    matrix<Scalar> dx = matrix<Scalar>::Zero(T, x.cols());
    zero_gradients(router);
    ensure_gradients(router);
    router.backward(x, context, plan, dplan, tape, dx);
    if (Gate::per_token) c.check(prefix + ".x", dx);
    bound.check_gradients(c, prefix);
  };
  typename decltype(plan)::gradient dplan;
  matrix<Scalar> drows(plan.rows(), outputs.cols());
  combine_backward(plan, c.rows("grad_out"), rows, drows, dplan, context.executor);
  matrix<Scalar> doutputs = matrix<Scalar>::Zero(outputs.rows(), outputs.cols());
  for (index_t i = 0; i < plan.rows(); ++i) doutputs.row(plan.expert(i) * T + plan.token(i)) = drows.row(i);
  c.check("grad.expert_outputs", doutputs);
  tape.dseen.zero_like(tape.seen);
  backward("grad", dplan);

  const double entropy_reg = c.template setting<double>("entropy_reg");
  const auto evaluate = [&](const auto& loss) {
    tape.dseen.zero_like(tape.seen);
    return loss(tape.seen, plan, context, tape.dseen);
  };
  dplan.weight.fill(0);
  const dselect_reachability penalty{.coefficient = 1};
  c.check("entropy", evaluate(dselect_entropy<>{.coefficient = {.first = 1}}));
  const Scalar entropy_loss = evaluate(dselect_entropy<>{.coefficient = {.first = entropy_reg}});
  c.check("entropy_loss", entropy_loss);
  backward("grad_entropy_loss", dplan);
  const Scalar reachability = evaluate(penalty);
  c.check("reachability_penalty", reachability);
  backward("grad_reachability_penalty", dplan);
  c.check("aux_loss", entropy_loss + reachability);
}

template <typename Scalar>
void dselect_k(oracle_case<Scalar>& c) {
  const auto mode = c.template setting<std::string>("mode");
  if (mode == "static")
    run_dselect<Scalar, static_selectors<Scalar>>(c, matrix<Scalar>::Zero(c.axis("expert_outputs", 1), 1));
  else if (mode == "per_example")
    run_dselect<Scalar, linear_selectors<Scalar>>(c, c.rows("x"));
  else
    throw unsupported("mode " + mode);
}

// ---- ReMoE -----------------------------------------------------------------------------------------------------------

template <typename Scalar>
void l1_trajectory(oracle_case<Scalar>& c) {
  // The published controller keeps its coefficient in float; relative 1e-5 is the advice for it.
  adaptive_l1<float> controller(c.template setting<index_t>("E"), c.template setting<index_t>("k"),
                                {.initial = c.template setting<double>("coeff_init"), .multiplier = c.template setting<double>("multiplier")});
  std::vector<Scalar> coefficients;
  for (const Scalar sparsity : c.numbers("sparsity")) {
    controller.update(static_cast<double>(sparsity));
    coefficients.push_back(static_cast<Scalar>(controller.value()));
  }
  c.check("coeff", coefficients, 1e-5);
}

template <typename Scalar>
void z_loss(oracle_case<Scalar>& c) {
  score_signals<Scalar> seen;
  const auto logits = c.rows("logits");
  seen.clean.resize(logits.rows(), logits.cols());
  seen.clean.map() = logits;
  score_gradients<Scalar> gradients;
  gradients.zero_like(seen);
  const sparse_plan<Scalar> plan;
  c.check("z_loss", router_z_loss{.coefficient = c.template setting<double>("z_coeff")}(seen, plan, {}, gradients));
  c.check("grad_z_loss.logits", copy(gradients.clean));
  // Where it stops depends on the data; 1e-5 is the file's own tolerance.
  c.check("sinkhorn", copy(coupling_of(sinkhorn_coupling<Scalar>(sinkhorn_options::megatron()), logits).coupling), 0, 1e-5);
}

template <typename Scalar>
void remoe(oracle_case<Scalar>& c) {
  if (c.has("expected.coeff")) return l1_trajectory(c);
  if (c.has("expected.z_loss")) return z_loss(c);
  if (c.template setting<std::string>("activation") != "silu_glu") throw unsupported("activation");
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto k = c.template setting<index_t>("k");
  const relu_l1 loss(k, fixed_l1{c.template setting<double>("l1_coeff")});
  moe_layer layer{relu_router<Scalar>(D, E), expert_bank<swiglu<Scalar>>(E, D, c.template setting<index_t>("H")), loss};
  const auto bind = [](auto& l) {
    bindings<Scalar> b;
    b.bind("router.weight", l.router().gate().weight());
    bind_gated(b, l.bank());
    return b;
  };
  auto bound = bind(layer);
  bound.load(c);
  const routing_context<Scalar> context;
  typename decltype(layer)::tape tape;
  run_backward(c, layer, tape, bound, context, c.rows("grad_out"), "grad_total");
  c.check("aux_loss", tape.loss());
  c.check("logits", copy(tape.router.seen.clean));
  c.check("combine", tape.plan.dense_weights());
  std::vector<index_t> mask(static_cast<std::size_t>(tape.plan.tokens() * E), 0), counts, per_token;
  for (index_t i = 0; i < tape.plan.size(); ++i) mask[static_cast<std::size_t>(tape.plan.token(i) * E + tape.plan.expert(i))] = 1;
  for (index_t e = 0; e < E; ++e) counts.push_back(tape.plan.load(e));
  for (index_t t = 0; t < tape.plan.tokens(); ++t) per_token.push_back(static_cast<index_t>(tape.plan.of_token(t).size()));
  c.check_integers("mask", mask);
  c.check_integers("counts", counts);
  c.check_integers("active_per_token", per_token);
  c.check("sparsity", 1 - static_cast<Scalar>(tape.plan.size()) / static_cast<Scalar>(mask.size()));

  const matrix<Scalar> zero = matrix<Scalar>::Zero(tape.x.rows(), D);
  run_backward(c, layer, tape, bound, context, zero, "grad_aux_loss");
  moe_layer without_loss{layer.router(), layer.bank()};
  const auto bound_again = bind(without_loss);
  typename decltype(without_loss)::tape task;
  check_task(c, without_loss, task, bound_again, context);
  moe_layer with_unscaled{layer.router(), layer.bank(), relu_l1(k, fixed_l1{1.0})};
  typename decltype(with_unscaled)::tape unscaled;
  matrix<Scalar> y(zero.rows(), D);
  with_unscaled.forward(c.rows("x"), y, unscaled, context);
  c.check("l1_loss_unscaled", unscaled.loss());
}

}  // namespace

std::vector<replayer> selectors() {
  return {{"dselect_k", dselect_k<float>, dselect_k<double>}, {"remoe", remoe<float>, remoe<double>}};
}

}  // namespace oracle
