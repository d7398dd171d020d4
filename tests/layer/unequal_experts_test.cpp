// Experts of unequal widths in one layer, and the loss that charges the router for their size (HMoE).
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/gate/identity.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "layer_promises.hpp"
#include "router/layer_checks.hpp"

using namespace sluice;

namespace {

expert_bank<swiglu<double>> experts_of(const std::vector<index_t>& widths) {
  std::vector<swiglu<double>> experts;
  for (const index_t width : widths) experts.emplace_back(6, width);
  return expert_bank<swiglu<double>>(std::move(experts));
}

}  // namespace

TEST_CASE("unequal experts: every promise of a layer and any order of experts", "[layer][unequal]") {
  const std::vector<index_t> widths{9, 11, 23, 1};
  test::check_layer_promises(
      moe_layer{top_k_router<double>{6, 4, {.top_k = 2}}, experts_of(widths),
                switch_balance{.coefficient = 0.1, .share = balance_share::per_token, .cost = {9, 11, 23, 1}}},
      11);
  moe_layer layer{top_k_router<double>{6, 4, {.top_k = 2}}, experts_of(widths)};
  initialize(layer, 12);
  const std::vector<index_t> order{2, 0, 3, 1};
  std::vector<swiglu<double>> moved;
  for (const index_t e : order) moved.push_back(layer.bank().expert(e));
  moe_layer other{layer.router(), expert_bank<swiglu<double>>(std::move(moved))};
  for (index_t e = 0; e < 4; ++e)
    other.router().gate().weight().map().row(e) = layer.router().gate().weight().map().row(order[as_size(e)]);
  const matrix<double> x = test::random_matrix<double>(10, 6, 13);
  matrix<double> y(10, 6), z(10, 6);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  other.forward(x, z, workspace);
  CHECK(test::largest_difference(y, z) <= test::bound<double>(40, 4.0));
}

TEST_CASE("unequal experts: the penalty by hand", "[layer][unequal][loss]") {
  // Two experts of widths 2 and 6; probabilities .7 .3, .4 .6, .9 .1, .2 .8.
  const auto penalty = [](std::vector<double> cost) {
    moe_layer layer{top_k_router<double, dynamic, dynamic, identity_gate<double>>(
                        identity_gate<double>(2), {.top_k = 1, .weights = weighting::pre}),
                    expert_bank<swiglu<double>>({swiglu<double>(2, 2), swiglu<double>(2, 6)}),
                    switch_balance{.coefficient = 1, .share = balance_share::per_token, .cost = std::move(cost)}};
    initialize(layer, 1);
    matrix<double> x(4, 2), y(4, 2);
    x << .7, .3, .4, .6, .9, .1, .2, .8;
    x = x.array().log();
    decltype(layer)::tape tape;
    layer.forward(x, y, tape);
    return tape.loss();
  };
  CHECK(penalty({2, 6}) == Approx(3.8).epsilon(1e-12));
  CHECK(penalty({}) == Approx(1.0).epsilon(1e-12));
}
