// Mixtures of whole networks: MoE-VRD's experts with several outputs of logarithms.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/expert/linear.hpp>
#include <sluice/router/combined.hpp>
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

}  // namespace

std::vector<replayer> encoders() { return {{"vrd_logsum", vrd_logsum<float>, vrd_logsum<double>}}; }

}  // namespace oracle
