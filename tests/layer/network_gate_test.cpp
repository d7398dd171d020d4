#include <sluice/layer/network_gate.hpp>

#include <sluice/expert/ffn.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/conformance.hpp>

#include "gate/gate_check.hpp"

using namespace sluice;

namespace {

/// Two hidden layers with GELU and biases, then a linear map to E logits.
template <typename Scalar>
auto deep_gate(index_t inputs, index_t experts) {
  sequence network{dense_layer{ffn<Scalar, gelu>{inputs, 6, {.outputs = 5, .bias = true}}},
                   dense_layer{ffn<Scalar, gelu>{5, 4, {.outputs = 4, .bias = true}}},
                   linear_layer<Scalar>{4, experts}};
  return network_gate<decltype(network)>{network};
}

}  // namespace

TEST_CASE("network_gate: gradients through a sequence of layers equal central differences", "[layer][gate][gradient]") {
  auto gate = deep_gate<double>(5, 3);
  initialize(gate, 31);
  const auto report =
      test::check_gate(gate, test::random_matrix<double>(7, 5, 32), 33, test::training_context<double>());
  INFO(report.describe());
  CHECK(report.checked > 120);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("network_gate: a deep network as the gate of a router keeps every promise", "[layer][gate]") {
  const auto gate = deep_gate<double>(6, 4);
  top_k_router<double, dynamic, dynamic, std::remove_const_t<decltype(gate)>> router{gate, {.top_k = 2}};
  initialize(router, 3);
  const auto report = check_router(router);
  INFO(report.describe());
  CHECK(report.passed());
  std::string names;
  for_each_parameter(router, [&](const std::string& name, const auto&) { names += name + ' '; });
  CHECK(names.starts_with("gate.0.up "));
}
