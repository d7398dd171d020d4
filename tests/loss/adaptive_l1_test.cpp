#include <sluice/loss/adaptive_l1.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/loss/relu_l1.hpp>
#include <sluice/router/threshold/relu.hpp>
#include <sluice/train/initialize.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

routing_statistics counted(index_t tokens, index_t assignments) {
  routing_statistics statistics;
  statistics.tokens = tokens;
  statistics.assignments = assignments;
  return statistics;
}

}  // namespace

TEST_CASE("adaptive_l1: up while too dense, down otherwise, equality down", "[loss][adaptive_l1]") {
  adaptive_l1<double> controller(4, 1, {.initial = 1e-3});
  CHECK(controller.target_sparsity() == 0.75);
  controller.update(2.0 / 3);
  CHECK(std::abs(controller.value() - 1.2e-3) < 1e-15);
  controller.update(0.8);
  CHECK(std::abs(controller.value() - 1e-3) < 1e-15);
  controller.update(0.75);
  CHECK(std::abs(controller.value() - 1e-3 / 1.2) < 1e-15);
}

TEST_CASE("adaptive_l1: the paper's sign form stays where it is at equality", "[loss][adaptive_l1]") {
  adaptive_l1<double> controller(4, 1, {.initial = 1e-3, .at_target = on_target::keep});
  controller.update(0.75);
  CHECK(controller.value() == 1e-3);
  controller.after_layer(counted(300, 300));
  CHECK(controller.value() == 1e-3);
  controller.after_layer(counted(300, 301));
  CHECK(controller.value() > 1e-3);
}

TEST_CASE("adaptive_l1: counts decide equality exactly", "[loss][adaptive_l1]") {
  adaptive_l1<float> controller(3, 1, {.initial = 1});  // 1 - 1/3 is no binary number
  controller.after_layer(counted(3'000'000'000, 3'000'000'001));
  CHECK(controller.value() > 1);
  controller.after_layer(counted(3'000'000'000, 3'000'000'000));
  CHECK(std::abs(controller.value() - 1) < 1e-6);
  controller.after_layer(counted(3'000'000'000, 2'999'999'999));
  CHECK(controller.value() < 0.9);
}

TEST_CASE("adaptive_l1: a hundred steps up, and back", "[loss][adaptive_l1]") {
  adaptive_l1<double> controller(8, 2);
  CHECK(controller.value() == 1e-8);
  for (int i = 0; i < 100; ++i) controller.update(0);
  CHECK(std::abs(controller.value() - 0.828) < 5e-4);
  for (int i = 0; i < 100; ++i) controller.update(1);
  CHECK(std::abs(controller.value() / 1e-8 - 1) < 1e-12);
}

TEST_CASE("adaptive_l1: never reaches zero or infinity", "[loss][adaptive_l1]") {
  adaptive_l1<float> controller(8, 2);
  for (int i = 0; i < 2000; ++i) controller.update(1);
  CHECK(controller.value() > 0);
  for (int i = 0; i < 2000; ++i) controller.update(0);
  CHECK(std::isfinite(controller.value()));
  for (int i = 0; i < 1000; ++i) controller.update(1);
  CHECK(controller.value() < 1);
}

TEST_CASE("adaptive_l1: a step without tokens changes nothing", "[loss][adaptive_l1]") {
  adaptive_l1<double> controller(8, 2);
  controller.after_layer(counted(0, 0));
  controller.step();
  CHECK(controller.value() == 1e-8);
}

TEST_CASE("adaptive_l1: one controller for several layers takes their mean", "[loss][adaptive_l1]") {
  adaptive_l1<double> controller(8, 2, {.initial = 1});
  shared_l1<double> first(controller);
  shared_l1<double> second(controller);
  first.after_layer(counted(10, 35));  // denser than k = 2
  CHECK(controller.value() == 1);      // not before step()
  second.after_layer(counted(10, 3));  // sparser: 38 of 40 together
  controller.step();
  CHECK(controller.value() < 1);
  CHECK(first.value() == controller.value());
  controller.step();
  CHECK(second.value() == controller.value());
  CHECK(controller.value() == 1 / 1.2);  // nothing gathered since: unchanged
}

TEST_CASE("adaptive_l1: the layer steers it, and it is saved with the model", "[loss][adaptive_l1]") {
  moe_layer layer{relu_router<float>{4, 3}, expert_bank<ffn<float>>{3, 4, 5}, relu_l1{1, adaptive_l1<float>{3, 1}}};
  initialize(layer, 3);
  index_t found = 0;
  for_each_parameter(layer, [&](const std::string& name, parameter<float>& p) {
    if (name != "loss.0.coefficient.lambda") return;
    ++found;
    CHECK(p.role() == parameter_role::state);
    CHECK(p.data()[0] == 1e-8F);
  });
  CHECK(found == 1);
  layer.router().gate().weight().map().setConstant(1);  // all active on positive tokens
  const matrix<float> x = matrix<float>::Ones(5, 4);
  matrix<float> y(5, 4);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  const double before = tape.loss();
  CHECK(std::abs(before / (1e-8 * 3 * 3 * 4) - 1) < 1e-6);  // E/(k T^2) * 3 experts * a = 20 * n = 5
  layer.after_step(tape);
  layer.forward(x, y, tape);
  CHECK(std::abs(tape.loss() / before - 1.2) < 1e-6);
}

TEST_CASE("adaptive_l1: refuses what makes no sense", "[loss][adaptive_l1]") {
  using Catch::Matchers::Contains;
  CHECK_THROWS_WITH((adaptive_l1<float>{4, 5}), Contains("k = 5"));
  CHECK_THROWS_WITH((adaptive_l1<float>{4, 0}), Contains("k = 0"));
  CHECK_THROWS_WITH((adaptive_l1<float>{4, 2, {.initial = 0}}), Contains("above 0"));
  CHECK_THROWS_WITH((adaptive_l1<float>{4, 2, {.multiplier = 1}}), Contains("above 1"));
}
