/// The experts of one layer beside the tokens that its router gave them: rounding that knows of them, and what rounding
/// does to outputs.
///
/// The tokens are kept, [T,D]; second moments are those of one expert at a time. Results do not depend on the threads.
#pragma once

#include <sluice/checkpoint/load_layer.hpp>
#include <sluice/kernel/format/grouped_codes.hpp>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "commands.hpp"
#include "packed_codes.hpp"
#include "relative_error.hpp"

namespace checkpoint {

using sluice::index_t;

/// Codes of an expert's matrices. Those of an expert with few tokens are those of rounding to nearest.
struct compensated_codes {
  std::vector<sluice::grouped_codes> of;
  bool has_few_tokens;
};

/// Matrices come as experts count them: gate, up, down, or up, down where there is no gate.
class calibrated_layer {
public:
  static constexpr index_t least_tokens = 16;

  virtual ~calibrated_layer() = default;
  /// How many tokens an expert got.
  virtual index_t tokens(index_t expert) const = 0;
  /// What it costs the layer to round an expert to each of the formats, [E, formats] (MC-MoE; weights of tokens are
  /// those that the layer multiplies with, normalised where its router does that).
  virtual sluice::matrix<double> costs(index_t group, const std::function<void(double part)>& progress) const = 0;
  /// By GPTQ. An expert has few tokens if fewer than least_tokens gave finite numbers to each of its matrices.
  virtual compensated_codes compensated(index_t expert, const weight_format& format, index_t group) const = 0;
  /// What becomes of the outputs of its tokens if an expert has these matrices. Of tokens whose output is not finite
  /// nothing is said.
  virtual relative_error change(index_t expert, const std::vector<sluice::matrix<float>>& weights) const = 0;
};

/// Runs the layer on tokens x and keeps what its experts were given. Throws file_error where experts read something
/// else than the layer's tokens (a norm or a projection of them).
std::unique_ptr<calibrated_layer> calibrate_layer(const sluice::checkpoint_model& model, const sluice::block_id& block,
                                                  sluice::matrix<float> x, const layer_options& o,
                                                  const sluice::executor_ref& executor,
                                                  const std::function<void(const std::string&, double)>& progress);

}  // namespace checkpoint
