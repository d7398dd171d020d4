/// Training in stages: in each of them only some parameters learn, and the others stand still.
///
///   training_stages stages(model);                                  // all that learns now may learn in a stage
///   stages.begin(named_any({"attention", "experts.0"}));            // images          (VLMo, its three stages)
///   stages.begin(named("experts.1"));                               // text: attention and other experts stand still
///   stages.begin_all();                                             // pairs of both
///
/// A stage is any f(name) -> bool, as for a model_part (train/model_part.hpp); `experts.0` are the parameters of expert
/// 0. What was frozen before the first stage never learns, states neither. Frozen experts cost no gradients. An
/// optimiser remembers one set of parameters: take one a stage, on model_part(model, the same names) or on the model.
/// Others that were described:
///
///   Uni-MoE    the connectors;  then the experts of each modality alone, on its data;  then adapters and routers
///              on all (of_adapters in adapter/)
///   MedPLIB    each expert alone on its task;  then routers with them
///   MoMa       everything with one expert a modality;  then everything with the experts that it becomes by copying;
///              then, for decoding, what predicts the choices alone (router/experts_choose/predicted_choice.hpp)
///
/// Of these papers the abstracts were at hand: learning rates and lengths of stages are not in them. The model has to
/// stay where it is; throws std::invalid_argument if it has lost or got parameters, or a stage takes none. Bao et al.
/// 2021 (VLMo), arXiv:2111.02358; Li et al. 2024 (Uni-MoE), arXiv:2405.11273; Huang et al. 2024 (MedPLIB),
/// arXiv:2412.09278; Lin et al. 2024 (MoMa), arXiv:2407.21770.
#pragma once

#include <sluice/train/model_part.hpp>

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// Takes the parameters whose name has one of these words between its dots.
inline auto named_any(std::vector<std::string> words) {
  return [words = std::move(words)](std::string_view name) {
    return std::any_of(words.begin(), words.end(), [&](const std::string& word) { return named(word)(name); });
  };
}

template <typename Model>
class training_stages {
public:
  explicit training_stages(Model& model)
      : learned_(model, [](const std::string&, const auto& p) { return p.is_learned(); }) {}

  /// From now on only these learn. Nothing has changed if it throws.
  template <typename F>
  void begin(F&& takes) {
    index_t taken = 0;
    for_each_parameter(learned_, [&](const std::string& name, const auto&) { taken += takes(name) ? 1 : 0; });
    if (taken == 0) throw_invalid("none of the ", learned_.arrays(), " parameters that may learn does in this stage");
    for_each_parameter(learned_, [&](const std::string& name, auto& p) { p.set_frozen(!takes(name)); });
  }
  /// From now on all learn that may.
  void begin_all() {
    begin([](std::string_view) { return true; });
  }

private:
  model_part<Model> learned_;
};

}  // namespace sluice::inline SLUICE_ISA
