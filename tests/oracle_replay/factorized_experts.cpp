// Experts whose weights are products of smaller ones: MPOE's chains of cores.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/capacity/position.hpp>
#include <sluice/expert/factorized/matrix_product.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/tokens_choose/gshard_top2.hpp>

namespace oracle {
namespace {

using namespace sluice;

template <typename Scalar>
using top_2_router = gshard_router<Scalar, dynamic, dynamic, linear_gate<Scalar>, position_capacity>;

template <typename Scalar>
void bind_chain(bindings<Scalar>& bound, core_chain<Scalar>& chain, const std::string& name) {
  for (std::size_t k = 0; k < chain.cores(); ++k) bound.bind(name + ".core." + std::to_string(k), chain.core(k));
}

template <typename Phi, typename Scalar>
void run_mpoe(oracle_case<Scalar>& c) {
  const auto E = c.template setting<index_t>("E"), D = c.template setting<index_t>("D");
  const auto numbers = [&](const char* name) { return c.config().at(name).template get<std::vector<index_t>>(); };
  const choice_policy<Scalar> further{.policy = c.template setting<std::string>("second_policy") == "all"
                                                    ? further_choices::all
                                                    : further_choices::none};
  // The source's capacity is trunc(N factor / E), whatever k is, and no more than N.
  const auto capacity = c.template setting<double>("capacity");
  const position_capacity limit(capacity_limit::fixed(static_cast<index_t>(capacity)));
  const top_2_router<Scalar> router(
      linear_gate<Scalar>(D, E),
      {.top_k = 2, .training = further, .inference = further, .smallest_sum = 0, .added_to_sum = Scalar(1e-9)}, limit);
  computed_bank<matrix_product_weights<Scalar>, Phi> bank{
      {E, numbers("in_shape"), numbers("out_shape"), {.bonds = numbers("bonds"), .centre = 2}}};
  moe_layer layer{router, bank};
  const auto bind_gate = [](auto& r, bindings<Scalar>& b) {
    b.bind("gate.kernel", r.gate().weight(), 0, layout::transposed);
  };
  bindings<Scalar> bound;
  bind_gate(layer.router(), bound);
  auto& weights = layer.bank().weights();
  bind_chain(bound, weights.up(), "w1");
  bind_chain(bound, weights.down(), "w2");
  bound.bind("b1", weights.up_bias());
  bound.bind("b2", weights.down_bias());
  bound.load(c);
  const auto groups = c.groups();
  routing_context<Scalar> context;
  context.training = true;
  context.groups = groups;
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  check_choices(c, tape.router, tape.plan);
  std::vector<Scalar> up;
  const auto written = layer.bank().written_out();
  for (index_t e = 0; e < E; ++e) {
    const matrix<Scalar> w = written.expert(e).first_map(0).weight().to_matrix();
    up.insert(up.end(), w.data(), w.data() + w.size());
  }
  c.check("w1", std::span<const Scalar>(up));
  check_losses(c, "aux_loss", router, bind_gate, context, 0,
               switch_balance{.coefficient = c.template setting<double>("loss_coef")});
}

template <typename Scalar>
void mpoe(oracle_case<Scalar>& c) {
  if (c.template setting<std::string>("activation") == "gelu")
    run_mpoe<gelu>(c);
  else
    run_mpoe<relu>(c);
}

}  // namespace

std::vector<replayer> factorized_experts() { return {{"mpoe", mpoe<float>, mpoe<double>}}; }

}  // namespace oracle
