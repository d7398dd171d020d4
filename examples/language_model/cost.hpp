/// What a token costs: the weights that it is multiplied with, each counted as often as it is, and its attention.
#pragma once

#include <sluice/core/parameter.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <charconv>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

namespace language_model {

using sluice::index_t;

struct cost {
  double parameters = 0;
  double per_key = 0;  ///< multiplications for every token that it looks at

  friend cost operator+(const cost& a, const cost& b) { return {a.parameters + b.parameters, a.per_key + b.per_key}; }

  /// Additions and multiplications, if windows have this length.
  double flops(index_t length) const { return 2 * (parameters + per_key * static_cast<double>(length + 1) / 2); }
};

/// The expert whose parameter this is: the number in "experts.3.up" or "query.3.weight"; -1 if it is everybody's.
inline index_t expert_of(std::string_view name) {
  while (!name.empty()) {
    const std::string_view part = name.substr(0, name.find('.'));
    name.remove_prefix(std::min(name.size(), part.size() + 1));
    index_t expert = 0;
    if (std::from_chars(part.data(), part.data() + part.size(), expert).ptr == part.data() + part.size()) return expert;
  }
  return -1;
}

/// What the parameters of experts whose names begin like this add, as this plan sends tokens to them.
template <typename Layer, typename Plan>
double routed_parameters(const Layer& layer, const Plan& plan, std::string_view prefix, index_t tokens) {
  double sum = 0;
  sluice::for_each_parameter(layer, [&](const std::string& name, const auto& p) {
    const index_t expert = name.starts_with(prefix) ? expert_of(name) : -1;
    if (expert < 0 || p.role() == sluice::parameter_role::state) return;
    const double share = static_cast<double>(plan.by_expert().load(expert)) / static_cast<double>(tokens);
    sum += static_cast<double>(p.size()) * (share - 1);  // all of them were counted once
  });
  return sum;
}

/// Of the last call with this memory, which had so many tokens: parameters of an expert count by the share of the
/// tokens that it saw, all others once.
template <typename Layer, typename Memory>
cost cost_of(const Layer& layer, const Memory& memory, index_t tokens) {
  cost c;
  if constexpr (requires {
                  layer.template layer<0>();
                  memory.layers;
                }) {  // one after the other
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      ((c = c + cost_of(layer.template layer<I>(), std::get<I>(memory.layers), tokens)), ...);
    }
    (std::make_index_sequence<Layer::size>{});
  } else if constexpr (requires {
                         layer.layer();
                         memory.layer;
                       }) {  // around another layer
    c = cost_of(layer.layer(), memory.layer, tokens);
    c.parameters += static_cast<double>(sluice::parameter_count(layer) - sluice::parameter_count(layer.layer()));
  } else {
    c.parameters = static_cast<double>(sluice::parameter_count(layer));
    if constexpr (requires { memory.plan.by_expert(); })
      c.parameters += routed_parameters(layer, memory.plan, "", tokens);
    if constexpr (requires {
                    memory.value.plan;
                    memory.output.plan;
                  })  // attention that routes twice
      c.parameters += routed_parameters(layer, memory.value.plan, "value.", tokens) +
                      routed_parameters(layer, memory.output.plan, "output.", tokens);
    if constexpr (requires { layer.attention_shape(); }) {
      const auto& s = layer.attention_shape();
      c.per_key = static_cast<double>(s.heads * (s.key_width + s.value_width));
      if constexpr (requires { memory.rows_a_token; })
        c.per_key *= static_cast<double>(memory.rows_a_token);  // heads of every choice
    }
  }
  return c;
}

}  // namespace language_model
