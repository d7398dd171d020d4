// Every promise of a layer, tested on any of them by one call.
#pragma once

#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "support.hpp"

namespace sluice::test {

/// In double, so that gradients are among them. The layer gets the values that `seed` draws.
template <typename Layer>
void check_layer_promises(Layer layer, std::uint64_t seed) {
  static_assert(std::same_as<typename Layer::scalar, double>);
  initialize(layer, seed);
  const auto report = sluice::check_layer(layer, {.seed = seed, .gradients = {.most_entries = 100}});
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(report.find("gradients")->result == outcome::passed);
}

}  // namespace sluice::test
