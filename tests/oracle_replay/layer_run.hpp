// Runs a layer on a case and compares what every layer has: output, gradients, losses, and the plan's tables.
#pragma once

#include "binding.hpp"

#include <sluice/core/context.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/layer/moe_layer.hpp>

namespace oracle {

/// Forward and backward with cotangent dy; gradients are compared under `prefix` ("grad", "grad_aux_loss", ...).
template <typename Scalar, typename Layer>
void run_backward(oracle_case<Scalar>& c, Layer& layer, typename Layer::tape& tape, const bindings<Scalar>& bound,
                  const sluice::routing_context<Scalar>& context, const sluice::matrix<Scalar>& dy, const std::string& prefix) {
  const sluice::matrix<Scalar> x = c.rows("x");
  sluice::matrix<Scalar> y(x.rows(), layer.outputs());
  sluice::matrix<Scalar> dx(x.rows(), x.cols());
  sluice::zero_gradients(layer);
  layer.forward(x, y, tape, context);
  layer.backward(dy, dx, tape);
  if (prefix == "grad") c.check("y", y);
  c.check(prefix + ".x", dx);
  bound.check_gradients(c, prefix);
}

/// The task gradients: cotangent grad_out.
template <typename Scalar, typename Layer>
void check_task(oracle_case<Scalar>& c, Layer& layer, typename Layer::tape& tape, const bindings<Scalar>& bound,
                const sluice::routing_context<Scalar>& context) {
  run_backward(c, layer, tape, bound, context, c.rows("grad_out"), "grad");
}

/// Coefficient × value of one group, for losses whose coefficient was multiplied by the number of groups.
template <typename Scalar, typename Loss, typename Tape>
Scalar group_value(const Loss& loss, Tape& tape, const sluice::routing_context<Scalar>& context, index_t g) {
  if constexpr (requires { loss.group_value(tape.router.seen, tape.plan, context, g, 1.0, tape.router.dseen); }) {
    const double coefficient = loss.coefficient / static_cast<double>(context.group_count());
    if (coefficient == 0) return 0;
    return loss.group_value(tape.router.seen, tape.plan, context, g, coefficient, tape.router.dseen);
  } else {
    throw unsupported("a loss that has no value per group");
  }
}

/// Losses alone, cotangent zero: the sum over groups of the sum of the losses, whose gradients the file lists under
/// grad_<name>. Each loss's own coefficient counts; values are compared group by group.
template <typename Scalar, typename Router, typename Bind, typename... Losses>
void check_losses(oracle_case<Scalar>& c, const std::string& name, const Router& router, Bind bind,
                  const sluice::routing_context<Scalar>& context, double relative_tolerance, Losses... losses) {
  const bool has_gradient = c.has("expected.grad_" + name + ".x");
  if (!c.has("expected." + name) && !has_gradient) return;
  const auto groups = static_cast<double>(context.group_count());
  const bool per_group = c.has("expected." + name) && c.numbers("expected." + name).size() == context.groups.size() - 1;
  // A loss is a mean over groups; the files differentiate the sum where they list one value a group.
  if (per_group) ((losses.coefficient *= groups), ...);
  sluice::moe_layer layer{router, sluice::expert_bank<sluice::identity_expert<Scalar>>(router.experts(), router.inputs()), losses...};
  bindings<Scalar> bound;
  bind(layer.router(), bound);
  bound.load(c);
  typename decltype(layer)::tape tape;
  const sluice::matrix<Scalar> zero = sluice::matrix<Scalar>::Zero(c.rows("x").rows(), layer.outputs());
  run_backward(c, layer, tape, bound, context, zero, "grad_" + name);
  if (!per_group) {
    c.check(name, tape.loss(), relative_tolerance);
    return;
  }
  std::vector<Scalar> values;
  for (index_t g = 0; g < context.group_count(); ++g)
    values.push_back((Scalar(0) + ... + group_value(losses, tape, context, g)));
  c.check(name, std::span<const Scalar>(values), relative_tolerance);
}

/// Tables of a token-choice router: what was asked, what was kept, where.
template <typename Scalar, typename RouterTape>
void check_choices(oracle_case<Scalar>& c, const RouterTape& tape, const sluice::sparse_plan<Scalar>& plan) {
  const auto& choices = tape.choices;
  c.check_integers("indices", choices.expert.span());
  c.check("weights", choices.weight.span());
  c.check("combine", plan.dense_weights());
  std::vector<index_t> kept(choices.kept.begin(), choices.kept.end());
  c.check_integers("kept", kept);
  c.check_integers("slot", choices.slot.span());
  std::vector<index_t> counts;
  for (index_t e = 0; e < plan.experts(); ++e) counts.push_back(plan.load(e));
  c.check_integers("counts", counts);
}

/// combine_by_slot and dispatch_by_slot [G,S,E,C]: slots count from 0 within each group.
template <typename Scalar>
void check_slots(oracle_case<Scalar>& c, const sluice::sparse_plan<Scalar>& plan, const sluice::routing_context<Scalar>& context) {
  const std::string stored = "expected.combine_by_slot";
  if (!c.has(stored)) return;
  const index_t experts = plan.experts();
  const index_t capacity = c.axis(stored, c.rank(stored) - 1);
  std::vector<Scalar> combine(static_cast<std::size_t>(plan.tokens() * experts * capacity), Scalar(0));
  std::vector<index_t> dispatch(combine.size(), 0);
  for (index_t g = 0; g < context.group_count(); ++g) {
    const auto group = context.group(g, plan.tokens());
    for (index_t e = 0; e < experts; ++e) {
      index_t slot = 0;
      const sluice::row_range own = plan.by_expert().of(e);
      for (index_t i = own.begin; i < own.end; ++i) {
        if (plan.token(i) < group.begin || plan.token(i) >= group.end) continue;
        if (slot >= capacity) {
          c.fail("expert " + std::to_string(e) + " has more tokens than slots");
          return;
        }
        const auto place = static_cast<std::size_t>((plan.token(i) * experts + e) * capacity + slot++);
        combine[place] = plan.weight(i);
        dispatch[place] = 1;
      }
    }
  }
  c.check("combine_by_slot", std::span<const Scalar>(combine));
  c.check_integers("dispatch_by_slot", dispatch);
}

extern template void check_slots(oracle_case<float>&, const sluice::sparse_plan<float>&, const sluice::routing_context<float>&);
extern template void check_slots(oracle_case<double>&, const sluice::sparse_plan<double>&, const sluice::routing_context<double>&);

/// Matrices of a tape as Eigen matrices.
template <typename Scalar>
sluice::matrix<Scalar> copy(const sluice::matrix_buffer<Scalar>& m) {
  return m.map();
}

}  // namespace oracle
