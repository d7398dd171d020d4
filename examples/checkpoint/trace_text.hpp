/// A routing trace as CSV, a row a choice, and as JSON, an object a layer.
#pragma once

#include <nlohmann/json.hpp>

#include <array>
#include <charconv>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "routing_trace.hpp"

namespace checkpoint {

namespace detail {

/// Decimal, with a point in every locale; a float's shortest text that reads back as the same float.
template <typename Number>
void append(std::string& out, Number value) {
  std::array<char, 32> text;
  out.append(text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr);
}

}  // namespace detail

/// Hands the lines to `sink` piece by piece: a long trace need not be in memory twice.
template <typename Sink>
void write_csv(const routing_trace& trace, Sink sink) {
  constexpr std::size_t piece = std::size_t{1} << 16U;
  std::string text = "token,layer,rank,expert,weight\n";
  for (const traced_layer& layer : trace.layers())
    for (const traced_choice& choice : layer.choices) {
      detail::append(text, choice.token);
      text += ',' + layer.name + ',';
      detail::append(text, choice.rank);
      text += ',';
      detail::append(text, choice.expert);
      text += ',';
      detail::append(text, choice.weight);
      text += '\n';
      if (text.size() < piece) continue;
      sink(text);
      text.clear();
    }
  sink(text);
}

inline nlohmann::ordered_json to_json(const traced_layer& layer) {
  nlohmann::ordered_json pairs = nlohmann::ordered_json::array();
  for (const expert_pair& pair : layer.top_pairs())
    pairs.push_back({{"experts", {pair.first, pair.second}},
                     {"tokens", pair.tokens},
                     {"share_of_tokens", static_cast<double>(pair.tokens) / static_cast<double>(layer.tokens)},
                     {"lift", pair.lift}});
  nlohmann::ordered_json matrix = nlohmann::ordered_json::array();
  for (index_t e = 0; e < layer.experts; ++e)
    matrix.push_back(std::vector<index_t>(layer.together.row(e).begin(), layer.together.row(e).end()));
  return {{"layer", layer.name},
          {"tokens", layer.tokens},
          {"experts", layer.experts},
          {"assignments", layer.assignments()},
          {"dropped", layer.dropped},
          {"invalid_tokens", layer.invalid},
          {"load", layer.load},
          {"load_entropy_bits", layer.entropy_bits()},
          {"load_entropy_normalised", layer.entropy_normalised()},
          {"dead_experts", layer.dead_fraction()},
          {"max_over_mean_load", layer.max_over_mean()},
          {"top_pairs", std::move(pairs)},
          {"coactivation", std::move(matrix)}};
}

}  // namespace checkpoint
