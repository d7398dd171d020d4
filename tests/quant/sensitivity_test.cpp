#include <sluice/quant/expert_sensitivity.hpp>

#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "support.hpp"

using namespace sluice;

TEST_CASE("expert_sensitivity: the change of the layer's output with one expert rounded", "[quant][sensitivity]") {
  moe_layer layer{top_k_router<float>{8, 3, {.top_k = 2}}, expert_bank<swiglu<float>>{3, 8, 6, {.bias = true}}};
  initialize(layer, 1);
  const matrix<float> x = test::random_matrix<float>(40, 8, 2);
  matrix<float> y(40, 8), changed(40, 8);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  expert_sensitivity<swiglu<float>> sensitivity(layer.bank()), by_threads(layer.bank());
  sensitivity.add(layer.bank(), x, workspace.plan.routed());
  test::shuffled_threads threads(2);
  by_threads.add(layer.bank(), x, workspace.plan.routed(), threads);
  CHECK(test::same_bits(sensitivity.errors(), by_threads.errors()));
  const round_by_groups round;
  for (index_t e = 0; e < 3; ++e) {
    CHECK(sensitivity.errors()(e, 0) > sensitivity.errors()(e, 2));
    for (index_t j = 0; j < 3; ++j) {
      auto other = layer;
      auto& expert = other.bank().expert(e);
      for (auto* weight : {&expert.gate(), &expert.up(), &expert.down()}) weight->assign(round(weight->to_matrix(), j));
      other.forward(x, changed, workspace);
      CHECK(sensitivity.errors()(e, j) == Approx(static_cast<double>((y - changed).norm())).epsilon(1e-4));
    }
  }
  layer.forward(x, y, workspace);
  const matrix<double> once = sensitivity.errors();
  sensitivity.add(layer.bank(), x, workspace.plan.routed());
  CHECK((sensitivity.errors() - 2 * once).cwiseAbs().maxCoeff() <= 1e-12 * once.norm());  // norms of batches add up
  CHECK_THROWS_AS(sensitivity.add(layer.bank(), x.leftCols(7), workspace.plan.routed()), std::invalid_argument);
  layer.bank().expert(1).up().fill([](index_t) { return quiet_nan<float>(); });
  CHECK_THROWS_WITH(sensitivity.add(layer.bank(), x, workspace.plan.routed()),
                    Catch::Matchers::Contains("has no code"));
}
