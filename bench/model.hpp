/// The layers that are measured, built from a shape.
#pragma once

#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/kernel/block_storage.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include <string>

#include "shapes.hpp"

namespace bench {

using router = sluice::top_k_router<float>;

template <typename Expert>
using layer_of = sluice::moe_layer<router, sluice::expert_bank<Expert>>;

/// How the weights of an expert are stored: the name for the report, and the bytes that a roofline counts.
template <typename Expert>
struct storage;

template <>
struct storage<sluice::swiglu<float>> {
  static constexpr const char* name = "float32";
  static constexpr double bytes = 4;
};

template <>
struct storage<sluice::swiglu<float, sluice::bfloat16_storage>> {
  static constexpr const char* name = "bfloat16";
  static constexpr double bytes = 2;
};

/// Codes, and a scale of two bytes for 32 of them.
template <>
struct storage<sluice::swiglu<float, sluice::int8_blocks>> {
  static constexpr const char* name = "int8";
  static constexpr double bytes = 1 + 2 / 32.0;
};
template <>
struct storage<sluice::swiglu<float, sluice::int4_blocks>> {
  static constexpr const char* name = "int4";
  static constexpr double bytes = 0.5 + 2 / 32.0;
};

/// Random weights. The experts of a large layer are copies of one, each in memory of its own: a billion normal numbers would
/// take longer to draw than the benchmark to run, and the time of a product does not depend on the numbers.
template <typename Expert>
layer_of<Expert> make_layer(const shape& s) {
  constexpr index_t small = 10'000'000;
  Expert expert(s.inputs, s.hidden);
  sluice::initialize(expert, /*seed=*/1);
  layer_of<Expert> layer{router{s.inputs, s.experts, {.top_k = s.top_k, .constant_weight = s.top_k == 1}},
                         sluice::expert_bank<Expert>(s.experts, expert)};
  if (s.size() <= small)
    sluice::initialize(layer, /*seed=*/1);
  else
    sluice::initialize(layer.router(), /*seed=*/2);
  return layer;
}

}  // namespace bench
