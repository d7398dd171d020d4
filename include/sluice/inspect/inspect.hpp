/// All of the room: what a mixture of experts has become, measured from its weights and from what it does with tokens.
///
///   for (const auto& weights : expert_weights(layer.bank())) {            // gate, up, down
///     const matrix<double> alike = mean_unit_similarity(weights.of);     // [E,E]; or matrix_similarity, match_experts
///     const double agreement = router_agreement(router_rows, alike).squared_correlation;
///   }
///   const auto outputs = expert_outputs(layer.bank(), x);                 // every expert, every token
///   const matrix<double> angles = output_similarity(outputs);
///   const matrix<double> table = norm_ranks(output_norms(outputs), scores);
#pragma once

#include <sluice/inspect/chosen_experts.hpp>
#include <sluice/inspect/cosine.hpp>
#include <sluice/inspect/expert_diversity.hpp>
#include <sluice/inspect/expert_outputs.hpp>
#include <sluice/inspect/expert_weights.hpp>
#include <sluice/inspect/hidden_states.hpp>
#include <sluice/inspect/norm_ranks.hpp>
#include <sluice/inspect/output_similarity.hpp>
#include <sluice/inspect/projection.hpp>
#include <sluice/inspect/router_agreement.hpp>
#include <sluice/inspect/unit_matching.hpp>
#include <sluice/inspect/weight_similarity.hpp>
