/// Shapes of published mixture-of-experts layers, with SwiGLU experts: what the benchmarks are run on.
///
///   mixtral_quarter  Mixtral 8x7B (Jiang et al. 2024, arXiv:2401.04088), D and H divided by four
///   olmoe            OLMoE-1B-7B (Muennighoff et al. 2024, arXiv:2409.02060)
///   fine_grained     256 small experts, as in DeepSeek-V3 (2024, arXiv:2412.19437), narrower
///   tiny             fits into the caches of most machines: for audio, games and controllers
///
///   D model width, H hidden width of an expert, E experts, K experts a token
#pragma once

#include <sluice/core/types.hpp>

#include <string>
#include <vector>

namespace bench {

using sluice::index_t;

struct shape {
  std::string name;   ///< as it stands in the CSV
  std::string title;  ///< as a reader would say it
  index_t inputs;     ///< D
  index_t hidden;     ///< H
  index_t experts;    ///< E
  index_t top_k;      ///< K

  /// Weights of one expert: gate, up and down projection.
  index_t expert_size() const { return 3 * inputs * hidden; }
  index_t size() const { return experts * expert_size(); }
};

inline shape mixtral_quarter() { return {"mixtral_quarter", "Mixtral 8x2, quarter size", 1024, 3584, 8, 2}; }
inline shape olmoe() { return {"olmoe", "OLMoE 1B-7B", 2048, 1024, 64, 8}; }
inline shape fine_grained() { return {"fine_grained", "Fine-grained, 256 experts", 1024, 512, 256, 8}; }
inline shape tiny() { return {"tiny", "Tiny", 128, 256, 16, 2}; }

inline std::vector<shape> published_shapes() { return {mixtral_quarter(), olmoe(), fine_grained(), tiny()}; }

/// Not published: small enough for any E and T of the growth curves.
inline shape moderate(index_t experts, index_t top_k) { return {"moderate", "Moderate", 256, 512, experts, top_k}; }

}  // namespace bench
