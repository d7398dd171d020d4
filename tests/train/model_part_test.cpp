#include <sluice/train/model_part.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/straight_through.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/initialize.hpp>
#include <sluice/train/sgd.hpp>

#include "../io/messages.hpp"
#include "../support.hpp"

using namespace sluice;

namespace {

using part_bank = expert_bank<ffn<double, silu>>;
using part_layer = moe_layer<top_k_router<double>, part_bank>;
using straight_layer = moe_layer<straight_through_router<double>, part_bank>;

template <typename Object>
std::vector<double> part_values(const Object& object) {
  std::vector<double> all;
  for_each_parameter(object, [&](const std::string&, const auto& p) {
    all.insert(all.end(), p.value().begin(), p.value().end());
  });
  return all;
}

/// Half the squared distance of y from twice x, and its gradients.
template <typename Layer>
double part_pass(Layer& layer, const matrix<double>& x) {
  typename Layer::tape tape;
  matrix<double> y(x.rows(), x.cols()), dx(x.rows(), x.cols());
  zero_gradients(layer);
  layer.forward(x, y, tape);
  const matrix<double> off = y - 2 * x;
  layer.backward(off, dx, tape);
  return off.squaredNorm() / 2;
}

}  // namespace

TEST_CASE("model_part: is visited, counted and stepped like a model of its own", "[train][part]") {
  part_layer layer{top_k_router<double>{4, 3, {.top_k = 2}}, part_bank{3, 4, 5}};
  initialize(layer, 1);
  model_part routers{layer, named("router")};
  model_part experts{layer, named("experts")};
  CHECK(parameter_count(routers) == parameter_count(layer.router()));
  CHECK(parameter_count(experts) == parameter_count(layer.bank()));
  std::vector<std::string> names;
  for_each_parameter(routers, [&](const std::string& name, auto&) { names.push_back(name); });
  CHECK(names == std::vector<std::string>{"router.gate.weight"});
  const model_part by_shape{layer, [](const std::string&, const auto& p) { return p.rows() == 3; }};
  CHECK(by_shape.arrays() == 1);

  // One after the other they take the step of the whole.
  part_layer whole = layer;
  const matrix<double> x = test::random_matrix<double>(8, 4, 2);
  part_pass(layer, x);
  part_pass(whole, x);
  sgd<double> of_routers{{.learning_rate = 0.1, .momentum = 0.5}}, of_experts = of_routers, of_all = of_routers;
  const auto experts_before = part_values(experts);
  of_routers.step(routers);
  CHECK(part_values(experts) == experts_before);
  of_experts.step(experts);
  of_all.step(whole);
  CHECK(part_values(layer) == part_values(whole));
}

TEST_CASE("model_part: routers and experts are trained in turns, each against the other standing still",
          "[train][part]") {
  straight_layer layer{straight_through_router<double>{4, 3, {.all_experts = true}}, part_bank{3, 4, 6}};
  initialize(layer, 3);
  model_part routers{layer, named("router")};
  model_part experts{layer, named("experts")};
  adamw<double> router_steps{{.learning_rate = 0.01}}, expert_steps{{.learning_rate = 0.01}};
  const matrix<double> x = test::random_matrix<double>(24, 4, 5);
  const double at_first = part_pass(layer, x);
  for (int step = 0; step < 150; ++step) {
    {
      const auto before = part_values(experts);
      frozen_part still(experts);
      part_pass(layer, x);
      bool has_gradient = false;
      for_each_parameter(experts, [&](const std::string& name, auto& p) {
        has_gradient = has_gradient || (name.find("weight") != std::string::npos && p.has_gradient());
      });
      CHECK_FALSE(has_gradient);
      router_steps.step(routers);
      CHECK(part_values(experts) == before);
    }
    const auto before = part_values(routers);
    frozen_part still(routers);
    part_pass(layer, x);
    expert_steps.step(experts);
    CHECK(part_values(routers) == before);
  }
  for_each_parameter(layer, [](const std::string&, const parameter<double>& p) { CHECK(p.is_learned()); });
  CHECK(part_pass(layer, x) < 0.2 * at_first);
}

TEST_CASE("model_part: a stage freezes for good, and what was frozen before stays so", "[train][part]") {
  part_layer layer{top_k_router<double>{4, 3, {.top_k = 2}}, part_bank{3, 4, 5}};
  initialize(layer, 1);
  model_part routers{layer, named("router")};
  routers.set_frozen(true);
  {
    frozen_part still(routers);
  }
  for_each_parameter(layer.router(), [](const std::string&, parameter<double>& p) { CHECK_FALSE(p.is_learned()); });
  const auto before = part_values(layer.router());
  sgd<double> steps{{.learning_rate = 0.1}};
  part_pass(layer, test::random_matrix<double>(8, 4, 2));
  steps.step(layer);
  CHECK(part_values(layer.router()) == before);
  routers.set_frozen(false);
  for_each_parameter(layer.router(), [](const std::string&, parameter<double>& p) { CHECK(p.is_learned()); });
}

TEST_CASE("model_part: of nothing, or of a model that has changed, is refused", "[train][part]") {
  part_layer layer{top_k_router<double>{4, 3, {.top_k = 2}}, part_bank{3, 4, 5}};
  initialize(layer, 1);
  CHECK_THROWS_WITH((model_part{layer, named("rout")}), test::contains("none of the model's"));
  model_part experts{layer, named("experts")};
  layer = part_layer{top_k_router<double>{4, 5, {.top_k = 2}}, part_bank{5, 4, 5}};
  CHECK_THROWS_WITH(zero_gradients(experts), test::contains("which has others"));
}
