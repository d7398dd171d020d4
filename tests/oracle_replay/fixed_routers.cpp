// Routers that learn nothing: hash layers, experts weights averaging, SMoE-Dropout's frozen gate and its schedules.
#include "layer_run.hpp"
#include "replays.hpp"
#include "sublayers.hpp"

#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/router/fixed/given.hpp>
#include <sluice/router/fixed/hash.hpp>
#include <sluice/router/over_training/scheduled_k.hpp>
#include <sluice/train/average_experts.hpp>

namespace oracle {
namespace {

using namespace sluice;

// ---- hash layer ------------------------------------------------------------------------------------------------------

template <typename Scalar>
void hash_layer(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto experts = c.integers("router.table");
  const matrix<index_t> table = Eigen::Map<const matrix<index_t>>(experts.data(), static_cast<index_t>(experts.size()), 1);
  moe_layer layer{hash_router<Scalar>(no_gate<Scalar>(D, E), table),
                  expert_bank<sublayers<Scalar>>(E, D, c.template setting<index_t>("H"), c.template setting<index_t>("L"))};
  bindings<Scalar> bound;
  bind_sublayers(bound, layer.bank(), [](auto& expert) -> auto& { return expert; });
  bound.load(c);
  const auto ids = c.integers("token_ids");
  routing_context<Scalar> context;
  context.training = true;
  context.token_ids = ids;
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check_integers("indices", tape.router.choices.expert.span());
  check_loads(c, tape.plan);
}

// ---- experts weights averaging ---------------------------------------------------------------------------------------

template <typename Scalar>
void ewa(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto H = c.template setting<index_t>("H");
  expert_bank<linear_expert<Scalar>> bank(E, D, H);
  const auto start = c.rows("w"), updates = c.rows("updates");
  for (index_t e = 0; e < E; ++e) bank.expert(e).weight().assign(start.middleRows(e * H, H));
  const auto steps = c.template setting<index_t>("steps");
  matrix<Scalar> trajectory(steps * E * H, D);
  for (index_t s = 0; s < steps; ++s) {
    for (index_t e = 0; e < E; ++e) {
      auto& weight = bank.expert(e).weight();
      weight.assign(matrix<Scalar>(weight.to_matrix() - updates.middleRows((s * E + e) * H, H)));
    }
    average_experts(bank, c.template setting<double>("beta"));
    for (index_t e = 0; e < E; ++e) trajectory.middleRows((s * E + e) * H, H) = bank.expert(e).weight().to_matrix();
  }
  c.check("trajectory", trajectory);
  auto dense = mean_expert(bank);
  c.check("dense", dense.weight().to_matrix());
}

// ---- SMoE-Dropout ----------------------------------------------------------------------------------------------------

template <typename Scalar>
void check_schedules(oracle_case<Scalar>& c) {
  const auto least = c.template setting<index_t>("k_min"), most = c.template setting<index_t>("k_max");
  const auto total = c.template setting<index_t>("overall_steps");
  const auto steps = c.integers("steps");
  const auto check = [&](const std::string& name, schedule_shape shape, bool rises) {
    const top_k_schedule schedule({.first = rises ? least : most, .last = rises ? most : least, .steps = total, .shape = shape});
    std::vector<index_t> k;
    for (const index_t step : steps) k.push_back(schedule(step));
    const std::string tensor = "expected." + name;
    if (shape == schedule_shape::doubling && c.has(tensor)) {
      // Past its end the source fails, and the file says -1: ours stays at the last number.
      const auto theirs = c.integers(tensor);
      for (std::size_t i = 0; i < k.size(); ++i) {
        if (theirs.at(i) != -1) continue;
        if (k[i] != (rises ? most : least)) c.fail(tensor + " does not stay at its end");
        k[i] = -1;
      }
    }
    c.check_integers(name, k);
  };
  check("linear_increase", schedule_shape::linear, true);
  check("linear_decrease", schedule_shape::linear, false);
  check("cosine_increase", schedule_shape::cosine, true);
  check("cosine_decrease", schedule_shape::cosine, false);
  check("exp_increase", schedule_shape::exponential, true);
  check("multi_step_increase", schedule_shape::doubling, true);
  check("multi_step_decrease", schedule_shape::doubling, false);
}

template <typename Scalar, typename Router>
void run_frozen_gate(oracle_case<Scalar>& c, Router router, routing_context<Scalar> context) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  moe_layer layer{std::move(router), expert_bank<swiglu<Scalar>>(E, D, c.template setting<index_t>("H"))};
  bindings<Scalar> frozen, bound;
  frozen.bind("router.weight", layer.router().gate().inner().weight());
  frozen.bind("router.bias", layer.router().gate().inner().bias());
  bind_gated(bound, layer.bank());
  frozen.load(c);
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  for_each_parameter(layer.router(), [&](const std::string& name, auto& p) {
    for (const Scalar g : p.gradient())
      if (g != 0) return c.fail("the frozen " + name + " has a gradient");
  });
  c.check("logits", copy(tape.router.seen.clean));
  c.check("combine", tape.plan.dense_weights());
  std::vector<index_t> mask(static_cast<std::size_t>(tape.plan.tokens() * tape.plan.experts()), 0);
  for (index_t i = 0; i < tape.plan.size(); ++i)
    mask[static_cast<std::size_t>(tape.plan.token(i) * tape.plan.experts() + tape.plan.expert(i))] = 1;
  c.check_integers("mask", mask);
}

template <typename Scalar>
void check_frozen_gate(oracle_case<Scalar>& c) {
  if (c.template setting<std::string>("activation") != "silu_glu") throw unsupported("activation");
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto k = c.template setting<index_t>("k");
  routing_context<Scalar> context;
  context.training = true;
  if (!c.template setting<bool>("dense_moe_flag"))
    return run_frozen_gate<Scalar>(c, smoe_dropout_router<Scalar>(D, E, {.schedule = {{.first = k, .last = k}}}), context);
  // Every expert, and all alike: a choice that is given.
  const index_t tokens = c.rows("x").rows();
  const matrix<index_t> all = Eigen::RowVectorX<index_t>::LinSpaced(E, 0, E - 1).replicate(tokens, 1);
  context.expert_ids = all;
  using gate_type = frozen_gate<linear_gate<Scalar>>;
  run_frozen_gate<Scalar>(c, given_router<Scalar, gate_type>(gate_type(linear_gate<Scalar>(D, E, {.bias = true}))), context);
}

template <typename Scalar>
void smoe_dropout(oracle_case<Scalar>& c) {
  const auto kind = c.template setting<std::string>("kind");
  if (kind == "schedule") return check_schedules(c);
  if (kind == "gate") return check_frozen_gate(c);
  if (kind == "dense_to_sparse") return mean_active_gate(c);
  throw unsupported("kind " + kind);
}

}  // namespace

std::vector<replayer> fixed_routers() {
  return {{"hash_layer", hash_layer<float>, hash_layer<double>},
          {"ewa", ewa<float>, ewa<double>},
          {"smoe_dropout", smoe_dropout<float>, smoe_dropout<double>}};
}

}  // namespace oracle
