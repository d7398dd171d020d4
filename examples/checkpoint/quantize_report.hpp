/// What quantising a model came to, expert by expert, as a table.
#pragma once

#include <sluice/core/types.hpp>

#include <string>
#include <vector>

#include "../shared/text.hpp"
#include "relative_error.hpp"

namespace checkpoint {

using sluice::index_t;

struct rounded_expert {
  std::string layer;
  index_t expert = 0;
  std::string format = {};
  double numbers = 0, bytes = 0;
  relative_error weights = {}, outputs = {};                  ///< of what was done
  relative_error nearest_weights = {}, nearest_outputs = {};  ///< of rounding every weight on its own to as many bits
  index_t tokens = 0;                                         ///< of the calibration
  bool has_few_tokens = false;                                ///< and is therefore rounded to nearest

  double bits() const { return 8 * bytes / numbers; }
  void add(const rounded_expert& other) {
    numbers += other.numbers, bytes += other.bytes, tokens += other.tokens;
    if (format != other.format) format = format.empty() ? other.format : "mixed";
    weights.add(other.weights), outputs.add(other.outputs);
    nearest_weights.add(other.nearest_weights), nearest_outputs.add(other.nearest_outputs);
  }
};

inline rounded_expert sum_of(const std::vector<rounded_expert>& experts, const std::string& name) {
  rounded_expert all{.layer = name};
  for (const rounded_expert& expert : experts) all.add(expert);
  return all;
}

/// The first row is the head, the last the sum.
inline std::vector<std::vector<std::string>> table_of(const std::vector<rounded_expert>& experts, bool is_calibrated) {
  std::vector<std::vector<std::string>> rows{{"expert", "format", "bits a weight", "error of weights"}};
  if (is_calibrated)
    for (const char* const word : {"if to nearest", "error of outputs", "if to nearest", "tokens"})
      rows[0].emplace_back(word);
  const auto add = [&](const std::string& name, const rounded_expert& e) {
    rows.push_back({name, e.format, shared::fixed(e.bits(), 2), shared::fixed(e.weights.value(), 5)});
    if (!is_calibrated) return;
    const auto output = [&](const relative_error& error) {
      return error.whole > 0 ? shared::fixed(error.value(), 5) : "-";
    };
    for (const std::string& word : {shared::fixed(e.nearest_weights.value(), 5), output(e.outputs),
                                    output(e.nearest_outputs), std::to_string(e.tokens)})
      rows.back().push_back(word);
  };
  for (const rounded_expert& e : experts) add(e.layer + " expert " + std::to_string(e.expert), e);
  add("all", sum_of(experts, "all"));
  return rows;
}

/// Who was rounded to nearest for lack of tokens, a line a layer; empty if nobody was.
inline std::string few_tokens(const std::vector<rounded_expert>& experts, index_t least) {
  std::string text, layer;
  for (const rounded_expert& e : experts) {
    if (!e.has_few_tokens) continue;
    if (e.layer != layer)
      text += (text.empty() ? "" : "\n") + e.layer + ": fewer than " + std::to_string(least) +
              " tokens, so rounded to nearest: expert";
    layer = e.layer;
    text += ' ' + std::to_string(e.expert);
  }
  return text.empty() ? text : text + '\n';
}

}  // namespace checkpoint
