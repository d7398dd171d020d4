/// The layers that are measured, built from a shape.
#pragma once

#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/kernel/block_storage.hpp>
#include <sluice/kernel/format/formats.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include <string>

#include "shapes.hpp"

namespace bench {

using router = sluice::top_k_router<float>;

template <typename Expert>
using layer_of = sluice::moe_layer<router, sluice::expert_bank<Expert>>;

/// What the report calls a format of quantised weights, with activations in float and in 8 bits.
struct format_names {
  const char* floats;
  const char* bytes;
};
template <typename Format>
inline constexpr format_names format_name{};
template <>
inline constexpr format_names format_name<sluice::int8_format>{"int8 exact", "int8"};
template <>
inline constexpr format_names format_name<sluice::int4_format>{"int4", "int4 8-bit"};
template <>
inline constexpr format_names format_name<sluice::q4_k_format>{"Q4_K", "Q4_K 8-bit"};
template <>
inline constexpr format_names format_name<sluice::q6_k_format>{"Q6_K", "Q6_K 8-bit"};
template <>
inline constexpr format_names format_name<sluice::mxfp4_format>{"MXFP4", "MXFP4 8-bit"};
template <>
inline constexpr format_names format_name<sluice::ternary_format>{"ternary", "ternary 8-bit"};

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

/// Codes with scales: the arithmetic is in the name, since both lie in memory alike.
template <typename Format, sluice::arithmetic By>
struct storage<sluice::swiglu<float, sluice::coded_storage<Format, By>>> {
  static constexpr bool is_bytes = By == sluice::arithmetic::bytes;
  static constexpr const char* name = is_bytes ? format_name<Format>.bytes : format_name<Format>.floats;
  static constexpr double bytes = Format::bits_a_weight / 8;
};

/// Weights of a layer whose experts are copies of one.
inline constexpr index_t large_layer = 10'000'000;

/// Random weights. The experts of a large layer are copies of one, each in memory of its own: a billion normal numbers would
/// take longer to draw than the benchmark to run, and the time of a product does not depend on the numbers.
template <typename Expert>
layer_of<Expert> make_layer(const shape& s) {
  Expert expert(s.inputs, s.hidden);
  sluice::initialize(expert, /*seed=*/1);
  layer_of<Expert> layer{router{s.inputs, s.experts, {.top_k = s.top_k, .constant_weight = s.top_k == 1}},
                         sluice::expert_bank<Expert>(s.experts, expert)};
  if (s.size() <= large_layer)
    sluice::initialize(layer, /*seed=*/1);
  else
    sluice::initialize(layer.router(), /*seed=*/2);
  return layer;
}

/// The same layer with its weights rounded. Where experts are copies of one, that one is rounded once.
template <typename Stored, typename Expert>
layer_of<Stored> rounded_layer(const layer_of<Expert>& layer, const shape& s) {
  using storage = typename Stored::storage;
  if (s.size() <= large_layer) return layer.template stored_as<storage>();
  const Stored one = layer.bank().expert(0).template stored_as<storage>();
  return layer_of<Stored>(layer.router(), sluice::expert_bank<Stored>(s.experts, one));
}

}  // namespace bench
