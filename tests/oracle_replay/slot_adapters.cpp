// Small experts beside and inside of frozen layers: Soft-MoA, MoVE-KD.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/adapter/adapted_feed_forward.hpp>
#include <sluice/adapter/slots.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

namespace oracle {
namespace {

using namespace sluice;

// ---- Soft-MoA --------------------------------------------------------------------------------------------------------

template <typename Scalar, typename Bank>
void bind_adapters(bindings<Scalar>& bound, Bank& bank) {
  for (index_t e = 0; e < bank.experts(); ++e) {
    auto& a = bank.expert(e);
    bound.bind("adapters.down.weight", a.up(), e * a.up().size());
    bound.bind("adapters.down.bias", a.up_bias(), e * a.up_bias().size());
    bound.bind("adapters.up.weight", a.down(), e * a.down().size());
    bound.bind("adapters.up.bias", a.down_bias(), e * a.down_bias().size());
  }
}

/// Slots [E,P,D]; the file has [D,E,P].
template <typename Scalar, typename Router>
void bind_slots(bindings<Scalar>& bound, Router& router) {
  auto& slots = router.slot_vectors();
  bound.bind("slot_params", slots, 0, layout::transposed, router.experts() * router.slots_per_expert());
}

template <typename Scalar, typename Layer>
void run_adapters(oracle_case<Scalar>& c, Layer& layer, const bindings<Scalar>& bound, bool has_gates = false) {
  bound.load(c);
  const auto groups = c.groups();
  routing_context<Scalar> context;
  context.training = true;
  context.groups = groups;
  typename Layer::tape tape;
  check_task(c, layer, tape, bound, context);
  if constexpr (requires { tape.plan.dense_weights(); })
    if (has_gates) c.check("gates", tape.plan.dense_weights());
}

template <typename Scalar>
void soft_moa_cases(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E");
  const auto hidden = c.template setting<index_t>("bottleneck"),
             slots = c.template setting<index_t>("slots_per_expert");
  bindings<Scalar> bound;
  if (c.template setting<std::string>("kind") == "dense") {
    auto layer = published::dense_moa<Scalar>(D, hidden, E);
    bind_adapters(bound, layer.bank());
    bound.bind("router.weight", layer.router().gate().weight());
    bound.bind("router.bias", layer.router().gate().bias());
    run_adapters(c, layer, bound, true);
  } else if (!c.template setting<bool>("normalize")) {
    auto layer = published::soft_moa<Scalar>(D, hidden, E, slots);
    bind_adapters(bound, layer.bank());
    bind_slots(bound, layer.router());
    run_adapters(c, layer, bound);
  } else {
    auto adapters = published::normalized_soft_moa<Scalar>(D, hidden, E, slots);
    const auto bind = [&](auto& own) {
      bind_adapters(bound, own.bank());
      bind_slots(bound, own.router());
      bound.bind("scale", own.router().scale());
    };
    if (!c.template setting<bool>("block")) {
      bind(adapters);
      run_adapters(c, adapters, bound);
      return;
    }
    // The file's feed-forward branch is not frozen: its gradients are compared as well.
    const index_t wide = c.axis("ffn.w1", 0);
    residual_layer block{
        normalized_layer{beside_layer{adapters, dense_layer{ffn<Scalar, gelu>{D, wide, {.bias = true}}}},
                         layer_norm<Scalar>{D, {.epsilon = Scalar(1e-12), .bias = true}}}};
    auto& both = block.layer().layer();
    bind(both.layer());
    auto& branch = both.other().expert();
    bound.bind("ffn.w1", branch.up());
    bound.bind("ffn.b1", branch.up_bias());
    bound.bind("ffn.w2", branch.down());
    bound.bind("ffn.b2", branch.down_bias());
    bound.bind("ln.weight", block.layer().norm().gain());
    bound.bind("ln.bias", block.layer().norm().bias());
    run_adapters(c, block, bound);
  }
}

// ---- MoVE-KD ---------------------------------------------------------------------------------------------------------

/// The sum of the straight-through choice, one-hot - sg(p) + p, times a matrix.
template <typename Scalar>
struct chosen_sum {
  const matrix<Scalar>* factors;

  template <typename Plan>
  Scalar operator()(const score_signals<Scalar>& seen, const Plan&, const routing_context<Scalar>&,
                    score_gradients<Scalar>& gradients) const {
    if (factors == nullptr) return 0;
    Scalar sum = 0;
    matrix<Scalar> p(1, seen.clean.cols());
    for (index_t t = 0; t < seen.clean.rows(); ++t) {
      kernel::softmax(seen.clean.row(t), p.data(), p.cols());
      sum += (*factors)(t, kernel::arg_max(seen.clean.row(t), p.cols()));
      const Scalar inner = p.row(0).dot(factors->row(t));
      for (index_t e = 0; e < p.cols(); ++e) gradients.noisy_or_clean()(t, e) += p(0, e) * ((*factors)(t, e) - inner);
    }
    return sum;
  }
};

template <typename Scalar, typename Router>
void run_move_kd(oracle_case<Scalar>& c, Router router) {
  const auto D = c.template setting<index_t>("D"), H = c.template setting<index_t>("H");
  const auto E = c.template setting<index_t>("E"), rank = c.template setting<index_t>("rank");
  using map = linear_expert<Scalar>;
  using adapter = ffn<Scalar, no_activation>;
  const expert_bank<adapter> ups(E, H, rank, typename adapter::options{.outputs = D, .bias = true});
  adapted_feed_forward layer{
      map{D, H, {.bias = true}},
      map{H, D, {.bias = true}},
      moe_layer{std::move(router), expert_bank<adapter>{E, D, rank, {.outputs = H, .bias = true}},
                chosen_sum<Scalar>{nullptr}},
      ups,
      c.template setting<Scalar>("alpha") / static_cast<Scalar>(rank),
      quick_gelu{}};
  for_each_parameter(layer,
                     [](const std::string&, auto& p) { p.set_frozen(false); });  // the file has the base's gradients
  bindings<Scalar> bound;
  const auto bind_bank = [&](const std::string& site, auto& bank) {
    for (index_t e = 0; e < E; ++e) {
      auto& a = bank.expert(e);
      bound.bind(site + ".A.weight", a.up(), e * a.up().size());
      bound.bind(site + ".A.bias", a.up_bias(), e * a.up_bias().size());
      bound.bind(site + ".B.weight", a.down(), e * a.down().size());
      bound.bind(site + ".B.bias", a.down_bias(), e * a.down_bias().size());
    }
  };
  bind_bank("down", layer.first_adapters());
  bind_bank("up", layer.second_adapters());
  bound.bind("fc1.weight", layer.first().weight());
  bound.bind("fc1.bias", layer.first().bias());
  bound.bind("fc2.weight", layer.second().weight());
  bound.bind("fc2.bias", layer.second().bias());
  bound.bind("router.weight", layer.router().gate().weight());
  bound.bind("router.bias", layer.router().gate().bias());
  bound.load(c);
  const auto groups = c.groups();
  routing_context<Scalar> context;
  context.training = true;
  context.groups = groups;
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  matrix<Scalar> gates(c.rows("x").rows(), E), choice = matrix<Scalar>::Zero(gates.rows(), E);
  for (index_t t = 0; t < gates.rows(); ++t) {
    kernel::softmax(tape.layer.router.seen.clean.row(t), gates.row(t).data(), E);
    choice(t, kernel::arg_max(tape.layer.router.seen.clean.row(t), E)) = 1;
  }
  c.check("gates", gates);
  c.check("choice", choice);
  const matrix<Scalar> factors = c.rows("grad_choice"), zero = matrix<Scalar>::Zero(gates.rows(), D);
  layer.layer().template loss<0>().factors = &factors;
  run_backward(c, layer, tape, bound, context, zero, "grad_choice");
}

template <typename Scalar>
void move_kd(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E");
  const linear_gate<Scalar> gate(D, E, {.bias = true});
  if (c.template setting<bool>("dense"))
    run_move_kd(c, dense_softmax_router<Scalar>{gate});
  else
    run_move_kd(c, top_k_router<Scalar>{gate, {.top_k = 1, .weights = weighting::post, .constant_weight = true}});
}

}  // namespace

std::vector<replayer> slot_adapters() {
  return {{"soft_moa", soft_moa_cases<float>, soft_moa_cases<double>}, {"move_kd", move_kd<float>, move_kd<double>}};
}

}  // namespace oracle
