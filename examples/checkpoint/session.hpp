/// Runs layers of a model one after another on the same tokens: the common part of run and trace.
#pragma once

#include <sluice/checkpoint/published_layer.hpp>
#include <sluice/exec/thread_pool.hpp>

#include <algorithm>
#include <chrono>
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

/// Loads every chosen layer, sends x through it and calls see(result, layer, y). One layer is in memory at a time.
inline void run_layers(const sluice::checkpoint_model& model, const layer_options& o, const sluice::matrix<float>& x,
                       const std::function<void(const layer_result&, const sluice::published_layer<float>&,
                                                const sluice::matrix<float>&)>& see) {
  using clock = std::chrono::steady_clock;
  const auto seconds_since = [](clock::time_point begin) {
    return std::chrono::duration<double>(clock::now() - begin).count();
  };
  sluice::thread_pool threads(o.threads);
  const auto blocks = chosen_blocks(model, o);
  work_bar bar(o.progress);
  struct step {
    work_bar& bar;
    std::string name;
    std::size_t number, count;
  };
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    layer_result result{.block = blocks[i]};
    step now{bar, to_string(blocks[i]), 2 * i, 2 * blocks.size()};
    sluice::layer_load_options load;
    load.executor = threads;
    load.progress = [](void* user, std::uint64_t done, std::uint64_t total) {
      const step& s = *static_cast<const step*>(user);
      s.bar.draw("loading " + s.name, static_cast<double>(done), static_cast<double>(total), s.number, s.count);
    };
    load.user = &now;
    auto begin = clock::now();
    const auto layer = sluice::load_published_layer<float>(model, blocks[i], weight_type_of(o.dtype), load);
    result.load_seconds = seconds_since(begin);
    result.experts = layer->experts();

    bar.draw("running " + now.name, 0, 1, now.number + 1, now.count);
    sluice::matrix<float> y(x.rows(), x.cols());
    sluice::routing_context<float> context;
    context.executor = threads;
    begin = clock::now();
    layer->forward(x, y, context);
    result.run_seconds = seconds_since(begin);
    result.bytes_touched = layer->weight_bytes();
    for (sluice::index_t e = 0; e < layer->experts(); ++e)
      if (layer->plan().load(e) == 0) result.bytes_touched -= layer->expert_bytes(e);
    see(result, *layer, y);
  }
}

}  // namespace checkpoint
