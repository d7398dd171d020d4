// A reading of GraphMoE: low-rank experts beside a frozen map that are routed in rounds (layer/recurrent.hpp).
#include <sluice/adapter/adapted.hpp>
#include <sluice/adapter/low_rank.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/gate/recurrent.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/recurrent.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

auto rethinking(index_t rounds) {
  using router = top_k_router<double, dynamic, dynamic, recurrent_gate<double>>;
  moe_layer experts{router{recurrent_gate<double>(5, 4, 3), {.top_k = 2}},
                    expert_bank<low_rank_expert<double>>{4, 5, 2, {.scale = 2}}};
  adapted_layer layer{dense_layer{linear_expert<double>{5, 5}},
                      recurrent_layer{std::move(experts), {.rounds = rounds}}};
  std::uint64_t seed = 300;
  for_each_parameter(layer, [&](const std::string&, auto& p) {
    p.assign(test::random_matrix<double>(p.rows(), p.cols(), ++seed) * 0.5);
  });
  return layer;
}

}  // namespace

TEST_CASE("adapters in rounds: one round is a plain mixture of low-rank experts", "[adapter][recurrent]") {
  const auto layer = rethinking(1);
  const matrix<double> x = test::random_matrix<double>(7, 5, 301);
  matrix<double> y(7, 5), mixture(7, 5), base(7, 5);
  std::remove_cvref_t<decltype(layer)>::workspace workspace;
  layer.forward(x, y, workspace);
  const auto& experts = layer.adapters().layer();
  std::remove_cvref_t<decltype(experts)>::workspace own;
  experts.forward(x, mixture, own);
  std::remove_cvref_t<decltype(layer.base())>::workspace of_base;
  layer.base().forward(x, base, of_base);
  CHECK(test::same_bits(y, matrix<double>(mixture + base)));
  matrix<double> again(7, 5);
  rethinking(2).forward(x, again, workspace);
  CHECK_FALSE(test::same_bits(y, again));
}

TEST_CASE("adapters in rounds: keep every promise of a layer", "[adapter][recurrent][conformance][gradient]") {
  const auto report = check_layer(rethinking(3));
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(report.find("gradients")->result == outcome::passed);
}
