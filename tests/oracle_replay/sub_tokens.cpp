// MH-MoE: tokens are cut into heads, which are routed apart.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/capacity/batch_priority.hpp>
#include <sluice/capacity/position.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/layer/split/sub_tokens.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

namespace oracle {
namespace {

using namespace sluice;

template <typename Scalar, typename Capacity>
void run_heads(oracle_case<Scalar>& c, Capacity capacity) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto heads = c.template setting<index_t>("heads");
  const bool divides = c.template setting<bool>("renormalise");
  top_k_router<Scalar, dynamic, dynamic, linear_gate<Scalar>, no_noise<Scalar>, Capacity> router(
      linear_gate<Scalar>(D / heads, E),
      {.top_k = c.template setting<index_t>("k"),
       .weights = divides ? weighting::renorm : weighting::pre,
       .smallest_sum = divides ? std::numeric_limits<Scalar>::epsilon() : Scalar(0)},
      {}, std::move(capacity));
  moe_layer mixture{std::move(router), expert_bank<ffn<Scalar, gelu>>(E, D / heads, c.template setting<index_t>("H"), {.bias = true}),
                    switch_balance{.coefficient = 0}};
  sequence layer{linear_layer<Scalar>{D, D}, sub_token_layer{std::move(mixture), heads}, linear_layer<Scalar>{D, D}};
  auto& inner = layer.template layer<1>().layer();
  bindings<Scalar> bound;
  bound.bind("multi_heads.weight", layer.template layer<0>().weight());
  bound.bind("multi_heads.bias", layer.template layer<0>().bias());
  bound.bind("router.weight", inner.router().gate().weight());
  bind_ffn(bound, inner.bank(), {"experts.w1", "experts.w2", layout::as_stored, layout::as_stored, "experts.b1", "experts.b2"}, true);
  bound.bind("out_proj.weight", layer.template layer<2>().weight());
  bound.bind("out_proj.bias", layer.template layer<2>().bias());
  bound.load(c);
  routing_context<Scalar> context;
  context.training = c.template setting<bool>("train");
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check("combine", std::get<1>(tape.layers).layer.plan.dense_weights());

  inner.template loss<0>().coefficient = 1;
  const matrix<Scalar> zero = matrix<Scalar>::Zero(c.rows("x").rows(), D);
  run_backward(c, layer, tape, bound, context, zero, "grad_aux_loss");
  c.check("aux_loss", tape.loss());
}

template <typename Scalar>
void heads(oracle_case<Scalar>& c) {
  // Training: k ceil(S / E), which is tutel's with factor 1; evaluation: ceil(f S), which is switch's with factor f E.
  const auto limit = c.template setting<bool>("train")
                         ? capacity_limit::tutel(1)
                         : capacity_limit::switch_transformer(c.template setting<double>("eval_fraction") * c.template setting<double>("E"));
  if (c.template setting<bool>("batch_priority"))
    run_heads<Scalar>(c, batch_priority_capacity(limit));
  else
    run_heads<Scalar>(c, position_capacity(limit));
}

}  // namespace

std::vector<replayer> sub_tokens() { return {{"mh_moe", heads<float>, heads<double>}}; }

}  // namespace oracle
