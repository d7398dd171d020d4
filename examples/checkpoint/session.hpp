/// Runs layers of a model one after another on the same tokens: the common part of run and trace.
#pragma once

#include <sluice/checkpoint/published_layer.hpp>

#include <algorithm>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../shared/error.hpp"
#include "../shared/progress_line.hpp"
#include "commands.hpp"
#include "interrupt.hpp"
#include "tokens.hpp"
#include "words.hpp"

namespace checkpoint {

/// A bar on stderr, where there is a terminal or it is asked for. What it is told also looks for Ctrl-C.
class work_bar {
public:
  explicit work_bar(bool asked)
      : line_(asked || shared::stderr_is_terminal()
                  ? std::make_unique<shared::progress_line>(std::cerr, shared::stderr_width())
                  : nullptr) {}

  /// `done` of `total` of step `step` of `steps`.
  void draw(const std::string& what, double done, double total, std::size_t step = 0, std::size_t steps = 1) {
    check_interrupt();
    const double part = total > 0 ? done / total : 1;
    if (line_) line_->draw((static_cast<double>(step) + part) / static_cast<double>(steps), what);
  }

private:
  std::unique_ptr<shared::progress_line> line_;
};

struct layer_result {
  sluice::block_id block;
  sluice::index_t experts = 0;
  double load_seconds = 0;
  double run_seconds = 0;
  std::uint64_t bytes_touched = 0;  // weights of the experts that got tokens, and of what all tokens use
  bool drawn_ids = false;           // the layer looks experts up by them
  sluice::layer_load_report loaded = {};
};

/// The mixtures that were asked for. Throws file_error if the model has none of that number.
inline std::vector<sluice::block_id> chosen_blocks(const sluice::checkpoint_model& model, const layer_options& o) {
  const std::vector<sluice::block_id> all = model.blocks();
  if (o.layer < 0) return all;
  const sluice::block_id asked{o.layer, o.decoder};
  if (std::find(all.begin(), all.end(), asked) == all.end()) {
    std::string known;
    for (const auto& block : all) known += (known.empty() ? "" : ", ") + to_string(block);
    throw sluice::file_error(model.name(), to_string(asked) + " is no mixture of experts; these are: " + known);
  }
  return {asked};
}

inline sluice::matrix<float> tokens_for(const sluice::checkpoint_model& model, const layer_options& o) {
  return o.input.empty() ? draw_tokens(o.tokens, model.config().inputs, o.seed)
                         : read_tokens(o.input, model.config().inputs);
}

/// What loading did besides copying, and what else a reader of the numbers should know, a line each.
inline std::string loading_notes(const layer_result& r) {
  std::string notes;
  if (r.drawn_ids) notes += to_string(r.block) + ": looks experts up by token ids, which are drawn\n";
  const sluice::conversion_loss& loss = r.loaded.values.total;
  if (loss.rounded > 0 || loss.not_a_number > 0) notes += to_string(r.block) + ": " + to_string(r.loaded.values) + '\n';
  if (!r.loaded.ignored.empty()) {
    notes += to_string(r.block) + ": not taken: ";
    constexpr std::size_t most = 5;
    for (std::size_t i = 0; i < r.loaded.ignored.size() && i < most; ++i)
      notes += (i == 0 ? "" : ", ") + sluice::detail::printable(r.loaded.ignored[i]);
    if (r.loaded.ignored.size() > most) notes += " and " + std::to_string(r.loaded.ignored.size() - most) + " more";
    notes += '\n';
  }
  return notes;
}

struct ran_layer {
  layer_result result;
  std::unique_ptr<sluice::published_layer<float>> layer;
  sluice::matrix<float> y;
};

/// Loads a layer and sends x through it. progress(what, part) is told how much of that is done.
ran_layer run_layer(const sluice::checkpoint_model& model, const sluice::block_id& block, const layer_options& o,
                    const sluice::matrix<float>& x, const sluice::executor_ref& executor,
                    const std::function<void(const std::string&, double)>& progress);

/// Loads every chosen layer, sends x through it and calls see(result, layer, y). One layer is in memory at a time.
void run_layers(const sluice::checkpoint_model& model, const layer_options& o, const sluice::matrix<float>& x,
                const std::function<void(const layer_result&, const sluice::published_layer<float>&,
                                         const sluice::matrix<float>&)>& see);

}  // namespace checkpoint
