/// The tutorial's model: six letters go in, the odds of the next one come out.
#pragma once

#include <sluice/layer/embedding.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/layer/sequence.hpp>

#include <span>
#include <utility>

#include "text.hpp"

namespace tutorial {

// begin model
template <typename Block>
class letter_model {
  static constexpr index_t E = 16;  // numbers a letter
  using embedding = sluice::embedding_layer<float>;
  using layers = sluice::sequence<sluice::linear_layer<float>, Block, Block, sluice::linear_layer<float>>;

public:
  using context_type = sluice::routing_context<float>;
  struct workspace {
    embedding::workspace embedding_memory;
    typename layers::workspace layers_memory;
    sluice::matrix_buffer<float> embedded;
  };
  struct tape {
    embedding::tape embedding_memory;
    typename layers::tape layers_memory;
    sluice::matrix_buffer<float> embedded, dembedded;
  };

  explicit letter_model(Block block)
      : embedding_(letters, E),
        layers_(sluice::linear_layer<float>{window * E, block.inputs()}, block, block,
                sluice::linear_layer<float>{block.outputs(), letters}) {}

  /// windows: T * window ids; logits [T, letters]. Memory: a workspace, or a tape to train.
  template <typename Memory>
  void forward(std::span<const index_t> windows, sluice::tokens_out<float> logits, Memory& m,
               const context_type& context = {}) const {
    m.embedded.resize(logits.rows() * window, E);
    embedding_.forward(windows, m.embedded.map(), m.embedding_memory);
    layers_.forward(by_window(m.embedded), logits, m.layers_memory, context);
  }

  void backward(sluice::tokens_in<float> dlogits, tape& t) {
    t.dembedded.resize(t.embedded.rows(), E);
    layers_.backward(dlogits, by_window(t.dembedded), t.layers_memory);
    embedding_.backward(t.dembedded.map(), t.embedding_memory);
  }

  void after_step(tape& t) { layers_.after_step(t.layers_memory); }

  static void visit_parameters(auto& self, auto&& visit) {
    visit("embedding", self.embedding_);
    visit("layers", self.layers_);
  }

private:
  /// Six rows of E numbers each lie as one row of 6 E.
  static sluice::matrix_map<float> by_window(sluice::matrix_buffer<float>& letters_in_rows) {
    return {letters_in_rows.data(), letters_in_rows.rows() / window, window * E};
  }

  embedding embedding_;
  layers layers_;
};
// end model

}  // namespace tutorial
