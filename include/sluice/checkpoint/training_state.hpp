/// Tensors beside the weights of a mixture: what a training left in the file.
///
///   counters    num_batches_tracked, expert_usage_count, tokens_per_expert ...: a number, or one an expert, that no
///               output depends on. Layers are loaded without them.
///   state       selection biases, tables of experts, running means: not learned by gradients, and precise. One step of a selection
///               bias moves it by 0.001 where bfloat16 has steps of 0.03, so a conversion leaves the type as it is.
#pragma once

#include <sluice/core/types.hpp>
#include <sluice/io/tensor_info.hpp>

#include <algorithm>
#include <array>
#include <string_view>

namespace sluice::inline SLUICE_ISA::detail {

inline std::string_view last_part(std::string_view name) { return name.substr(name.rfind('.') + 1); }

/// Whether a tensor of a block of that many experts is a counter.
inline bool is_training_counter(const tensor_info& tensor, index_t experts) {
  constexpr std::array<std::string_view, 7> words{"num_batches_tracked", "count", "tokens_per_expert", "num_tokens",
                                                  "tokens_seen",         "usage", "expert_load"};
  const std::string_view name = last_part(tensor.name);
  if (name == "_extra_state") return true;  // Transformer Engine's, one a linear map
  const bool is_small =
      tensor.elements() == 1 || (tensor.shape.size() == 1 && tensor.shape.front() == std::int64_t{experts});
  return is_small && (name.ends_with("step") || name.ends_with("steps") ||
                      std::any_of(words.begin(), words.end(), [name](std::string_view word) {
                        return name.find(word) != std::string_view::npos;
                      }));
}

/// Whether a tensor of any family is state by its name.
inline bool is_training_state(std::string_view full_name) {
  constexpr std::array<std::string_view, 6> names{"e_score_correction_bias", "expert_bias", "running_mean",
                                                  "running_var", "expert_biases", "tid2eid"};
  return std::find(names.begin(), names.end(), last_part(full_name)) != names.end();
}

}  // namespace sluice::inline SLUICE_ISA::detail
