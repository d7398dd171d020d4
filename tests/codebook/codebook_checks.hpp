// What tests of quantisers share.
#pragma once

#include <sluice/codebook/quantizer.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

namespace sluice::test {

/// Every promise of a layer but exact gradients, in double. The quantiser gets the values that `seed` draws.
template <Quantizer Q>
void check_quantizer_promises(Q quantizer, std::uint64_t seed) {
  static_assert(std::same_as<typename Q::scalar, double>);
  initialize(quantizer, seed);
  const auto report = sluice::check_layer(quantizer, {.seed = seed});
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(report.find("gradients")->result == outcome::skipped);
}

}  // namespace sluice::test
