#include <sluice/layer/depth/forecast.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/depth/state_chain.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/layer/split/columns.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "../../support.hpp"

#include <vector>

using namespace sluice;

TEST_CASE("forecast: a stream that is what the layer will read foresees all experts and changes nothing", "[layer][depth]") {
  moe_layer layer{top_k_router<float>{6, 8, {.top_k = 2}}, expert_bank<swiglu<float>>{8, 6, 5}};
  initialize(layer, 3);
  // Two streams of equal steps, begun alike: the second one says what the first will be.
  const dense_layer step{swiglu<float>{6, 4}};
  state_chain streams{column_layers{residual_layer{step}, residual_layer{step}}, 6, first_state::x};
  initialize(streams.layer().layer(), 4);
  initialize(streams.layer().other(), 4);
  const matrix<float> x = test::random_matrix<float>(3, 6, 5);
  matrix<float> h(3, 6), y(3, 6), plain(3, 6);
  decltype(streams)::workspace ahead;
  streams.forward(x, h, ahead);
  decltype(layer)::workspace workspace, alone;
  layer.forward(h, plain, alone);

  decltype(workspace.plan) foreseen;
  decltype(workspace.router) memory;
  const matrix<float> early = streams.state(ahead);
  layer.router().route(early, {}, foreseen, memory);
  std::vector<index_t> loaded;
  for_each_needed_expert(foreseen, [&](index_t e) { loaded.push_back(e); });
  layer.forward(h, y, workspace);
  CHECK(test::same_bits(y, plain));
  const foresight all = compare_forecast(foreseen, workspace.plan);
  CHECK(all.rate() == 1);
  CHECK(all.in_vain == 0);
  CHECK(static_cast<index_t>(loaded.size()) == all.needed);
  for (const index_t e : loaded) CHECK(workspace.plan.load(e) > 0);
}

TEST_CASE("forecast: what was missed and what was in vain are counted", "[layer][depth]") {
  const auto plan_of = [](std::vector<index_t> experts) {
    sparse_plan<float> plan;
    plan.reset(static_cast<index_t>(experts.size()), 5);
    for (index_t t = 0; t < static_cast<index_t>(experts.size()); ++t) plan.add(t, experts[as_size(t)], 1.0f);
    plan.finish();
    return plan;
  };
  const foresight seen = compare_forecast(plan_of({0, 1, 1, 4}), plan_of({1, 2, 3, 3}));
  CHECK(seen.needed == 3);
  CHECK(seen.foreseen == 1);
  CHECK(seen.in_vain == 2);
  CHECK(seen.rate() == Approx(1.0 / 3));
  CHECK(compare_forecast(plan_of({}), plan_of({})).rate() == 1);
  sparse_plan<float> other;
  other.reset(0, 4);
  other.finish();
  CHECK_THROWS_WITH(compare_forecast(other, plan_of({})), Catch::Matchers::Contains("for 4 experts"));
}
