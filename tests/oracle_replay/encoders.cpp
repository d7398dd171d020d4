// Mixtures of whole networks: MoVA's gate, MoE-VRD's experts with several outputs of logarithms.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/expert/linear.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/layer/encoders/text_and_image_gate.hpp>
#include <sluice/router/combined.hpp>
#include <sluice/router/masked/offered.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

namespace oracle {
namespace {

using namespace sluice;

// ---- MoE-VRD ---------------------------------------------------------------------------------------------------------

/// The J outputs stand side by side: columns first[j] .. first[j + 1].
template <typename Scalar>
std::vector<index_t> borders_of_outputs(const oracle_case<Scalar>& c) {
  std::vector<index_t> first{0};
  for (const index_t width : c.template setting<std::vector<index_t>>("outputs")) first.push_back(first.back() + width);
  return first;
}

template <typename Scalar>
void vrd_logsum(oracle_case<Scalar>& c) {
  const auto E = c.template setting<index_t>("E");
  const matrix<Scalar> x = c.rows("x");
  const auto first = borders_of_outputs(c);
  const index_t D = x.cols(), T = x.rows(), width = first.back();
  using router_type = top_k_router<Scalar>;
  moe_layer layer{
      combined_router{router_type{D, E, {.top_k = c.template setting<index_t>("k"), .weights = weighting::post}},
                      log_sum_exp{.weighted = c.template setting<bool>("multiply_by_gates")}},
      expert_bank<linear_expert<Scalar>>(E, linear_expert<Scalar>(D, width, {.bias = true}))};
  bindings<Scalar> bound;
  bound.bind("gate.kernel", layer.router().inner().gate().weight(), 0, layout::transposed);
  bound.load(c);

  const auto for_outputs = [&](auto&& f) {
    for (std::size_t j = 0; j + 1 < first.size(); ++j)
      f("experts." + std::to_string(j), std::to_string(j), first[j], first[j + 1] - first[j]);
  };
  matrix<Scalar> dy(T, width);
  std::vector<matrix<Scalar>> weights(static_cast<std::size_t>(E), matrix<Scalar>(width, D));
  for_outputs([&](const std::string& name, const std::string& j, index_t column, index_t count) {
    dy.middleCols(column, count) = c.rows("grad_out." + j);
    const matrix<Scalar> weight = c.rows(name + ".weight"), bias = c.rows(name + ".bias");
    for (index_t e = 0; e < E; ++e) {
      weights[static_cast<std::size_t>(e)].middleRows(column, count) = weight.middleRows(e * count, count);
      for (index_t o = 0; o < count; ++o)
        layer.bank().expert(e).bias().value()[static_cast<std::size_t>(column + o)] = bias(e, o);
    }
  });
  for (index_t e = 0; e < E; ++e) layer.bank().expert(e).weight().assign(weights[static_cast<std::size_t>(e)]);

  matrix<Scalar> y(T, width), dx(T, D);
  typename decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  layer.backward(dy, dx, tape);
  c.check("gates", tape.plan.dense_weights());
  c.check("grad.x", dx);
  bound.check_gradients(c, "grad");
  for_outputs([&](const std::string& name, const std::string& j, index_t column, index_t count) {
    c.check("y." + j, matrix<Scalar>(y.middleCols(column, count)));
    matrix<Scalar> dweight(E * count, D), dbias(E, count);
    for (index_t e = 0; e < E; ++e) {
      auto& expert = layer.bank().expert(e);
      dweight.middleRows(e * count, count) = expert.weight().gradient_matrix().middleRows(column, count);
      for (index_t o = 0; o < count; ++o) dbias(e, o) = expert.bias().gradient()[static_cast<std::size_t>(column + o)];
    }
    c.check("grad." + name + ".weight", dweight);
    c.check("grad." + name + ".bias", dbias);
  });
}

// ---- MoVA ------------------------------------------------------------------------------------------------------------

/// x + what the plan makes of the experts' outputs [B,E,N,D], which the file gives.
template <typename Scalar>
void mova_gate(oracle_case<Scalar>& c) {
  const auto E = c.template setting<index_t>("E");
  const auto N = c.template setting<index_t>("N");
  const matrix<Scalar> x = c.rows("x"), dy = c.rows("grad_out"), text = c.rows("text"), given = c.rows("expert_out");
  const index_t T = x.rows(), D = x.cols(), images = T / N;
  const auto mask = c.integers("mask");
  matrix<index_t> offers = matrix<index_t>::Constant(T, E, no_expert);
  for (index_t t = 0; t < T; ++t)
    for (index_t e = 0, next = 0; e < E; ++e)
      if (mask[static_cast<std::size_t>(t / N * E + e)] != 0) offers(t, next++) = e;
  const auto groups = c.groups();
  routing_context<Scalar> context;
  context.training = true;
  context.groups = groups;
  context.group_features = text;
  context.expert_ids = offers;

  using gate_type = text_and_image_gate<Scalar>;
  offered_router<Scalar, gate_type> router(gate_type(D, E, {.text = text.cols(), .hidden = c.axis("gate.w1", 0)}),
                                           {.top_k = c.template setting<index_t>("k")});
  auto& network = router.gate().inner().network();
  bindings<Scalar> bound;
  bound.bind("gate.w1", network.up());
  bound.bind("gate.b1", network.up_bias());
  bound.bind("gate.w2", network.down());
  bound.bind("gate.b2", network.down_bias());
  bound.load(c);
  ensure_gradients(router);

  sparse_plan<Scalar> plan;
  typename decltype(router)::tape tape;
  router.route(x, context, plan, tape);
  tape.dseen.zero_like(tape.seen);
  const auto place = [&](index_t i) {  // of row i of the plan among the given outputs
    return (plan.token(i) / N * E + plan.expert(i)) * N + plan.token(i) % N;
  };
  matrix<Scalar> outputs(plan.rows(), D), doutputs(plan.rows(), D), y(T, D), gates(images, E);
  for (index_t i = 0; i < plan.rows(); ++i) outputs.row(i) = given.row(place(i));
  combine(plan, outputs, y, context.executor);
  y += x;
  c.check("y", y);
  for (index_t b = 0; b < images; ++b) gates.row(b) = plan.dense_weights().row(b * N);
  // Nothing offered: the file lists the gate of no mask, and leaves the sum out.
  const matrix<Scalar> listed = c.rows("expected.gates");
  for (index_t b = 0; b < images; ++b)
    if (offers(b * N, 0) == no_expert) gates.row(b) = listed.row(b);
  c.check("gates", gates);

  sparse_plan_gradient<Scalar> dplan;
  combine_backward(plan, dy, outputs, doutputs, dplan, context.executor);
  matrix<Scalar> dgiven = matrix<Scalar>::Zero(given.rows(), D), dx = dy;
  for (index_t i = 0; i < plan.rows(); ++i) dgiven.row(place(i)) = doutputs.row(i);
  router.backward(x, context, plan, dplan, tape, dx);
  c.check("grad.x", dx);
  c.check("grad.expert_out", dgiven);
  c.check("grad.text", copy(gate_type::text_gradient(tape.gate.inner)));
  bound.check_gradients(c, "grad");
}

}  // namespace

std::vector<replayer> encoders() {
  return {{"vrd_logsum", vrd_logsum<float>, vrd_logsum<double>}, {"mova_gate", mova_gate<float>, mova_gate<double>}};
}

}  // namespace oracle
