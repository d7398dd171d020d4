// One small model of every published family, and what its layers must hold once loaded.
#pragma once

#include <sluice/checkpoint/load_layer.hpp>

#include "../io/temporary_folder.hpp"
#include "../support.hpp"
#include "published_files.hpp"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace sluice::test {

struct small_model {
  model_family family;
  std::vector<std::string> layouts;
};

inline std::vector<small_model> small_models() {
  const std::vector<std::string> usual{"per-expert", "stacked", "stacked-apart"};
  return {{model_family::switch_transformers, {"per-expert"}},
          {model_family::mixtral, usual},
          {model_family::olmoe, usual},
          {model_family::qwen2_moe, usual},
          {model_family::qwen3_moe, usual},
          {model_family::deepseek_v2, usual},
          {model_family::deepseek_v3, usual},
          {model_family::phimoe, usual},
          {model_family::jetmoe, {"stacked"}},
          {model_family::gpt_oss, {"stacked"}},
          {model_family::llama4, {"stacked", "per-expert"}},
          {model_family::megatron, {"per-expert", "grouped"}}};
}

/// E = 4, D = 6, H = 5, shared width 7, two experts a token, blocks 0 and 2 of 3 are mixtures.
inline model_config small_config(model_family family) {
  model_config c;
  c.family = family;
  c.inputs = 6;
  c.hidden = 5;
  c.experts = 4;
  c.top_k = family == model_family::switch_transformers ? 1 : 2;
  c.renormalize =
      family == model_family::mixtral || family == model_family::qwen3_moe || family == model_family::deepseek_v3;
  const bool has_shared = family == model_family::qwen2_moe || family == model_family::deepseek_v2 ||
                          family == model_family::deepseek_v3 || family == model_family::llama4;
  c.shared_hidden = has_shared ? 7 : 0;
  if (family == model_family::deepseek_v3) {
    c.scaling = 2.5;
    c.groups = {.groups = 2, .kept = 1, .score = group_limit::group_score::sum_of_two};
  }
  if (family == model_family::deepseek_v2) c.groups = {.groups = 2, .kept = 1};
  if (family == model_family::phimoe) c.jitter = 0.01;
  if (family == model_family::gpt_oss) c.clamp = 7;
  c.router_bias = family == model_family::gpt_oss;
  if (family == model_family::megatron) c.capacity_factor = 1.5;
  if (family == model_family::switch_transformers) c.capacity = 64;
  c.layers = 3;
  c.moe_layers = {0, 2};
  return c;
}

inline block_weights small_weights(std::uint64_t seed) { return block_weights::random(4, 6, 5, 7, seed); }

/// The parameters of a layer by name, in whatever they are kept. One visitor for layers of all types: what layers have in common is
/// compiled once.
struct held_parameters {
  std::vector<std::pair<std::string, matrix<double>>> all;

  template <typename Scalar, typename Element>
  void operator()(const std::string& name, const parameter<Scalar, Element>& p) {
    all.emplace_back(name, p.to_matrix().template cast<double>());
  }
};

/// The numbers that the parameter of that name should hold, in row-major order.
inline std::vector<double> expected_numbers(std::string name, const block_weights& w) {
  while (name.starts_with("layer.")) name = name.substr(6);
  if (name.starts_with("experts.")) {
    const auto dot = name.find('.', 8);
    const index_t e = std::stoll(name.substr(8, dot - 8));
    const std::map<std::string, const std::vector<double>*> all{{"gate", &w.gate},       {"up", &w.up},
                                                                {"down", &w.down},       {"gate_bias", &w.gate_bias},
                                                                {"up_bias", &w.up_bias}, {"down_bias", &w.down_bias}};
    const auto& numbers = *all.at(name.substr(dot + 1));
    return published::slice(numbers, e, static_cast<index_t>(numbers.size()) / w.E);
  }
  const std::map<std::string, const std::vector<double>*> all{{"router.gate.weight", &w.router},
                                                              {"router.gate.bias", &w.router_bias},
                                                              {"router.rule.bias", &w.selection_bias},
                                                              {"shared.gate", &w.shared_gate},
                                                              {"shared.up", &w.shared_up},
                                                              {"shared.down", &w.shared_down},
                                                              {"shared_gate", &w.shared_router},
                                                              {"bias", &w.output_bias}};
  return *all.at(name);
}

/// Whether every parameter holds its numbers exactly.
inline void check_hold(const held_parameters& held, const block_weights& w) {
  for (const auto& [name, values] : held.all) {
    CAPTURE(name);
    const std::vector<double> expected = expected_numbers(name, w);
    REQUIRE(values.size() == static_cast<index_t>(expected.size()));
    CHECK(std::equal(expected.begin(), expected.end(), values.data()));
  }
  CHECK(held.all.size() >= 4 * 2 + 1);
}

template <typename Layer>
void check_holds(const Layer& layer, const block_weights& w) {
  held_parameters held;
  for_each_parameter(layer, held);
  check_hold(held, w);
}

}  // namespace sluice::test
