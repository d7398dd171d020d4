/// Twin: one dense SwiGLU of hidden width K H, which costs a token as many operations as its K experts do. What the sparse layer
/// takes beyond it, where arithmetic is the limit, is the price of sparsity. It is sluice's layer with a single expert and
/// a plan that sends every token there.
#pragma once

#include <sluice/core/executor.hpp>
#include <sluice/core/types.hpp>

#include "../model.hpp"
#include "../shapes.hpp"
#include "../workload.hpp"

namespace bench::peers {

template <typename Expert>
class dense_ffn {
public:
  explicit dense_ffn(const shape& s) : layer_(make_layer<Expert>({"", "", s.inputs, s.top_k * s.hidden, 1, 1})) {}

  /// For calls with this many tokens.
  void prepare(index_t rows, const sluice::executor_ref& executor) {
    context_.executor = executor;
    workspace_.plan = skewed_plan(rows, 1, 1, 0, 1);
  }

  void run(const token_rows& x, token_rows& y) { layer_.forward_planned(x, y, workspace_, context_); }

private:
  layer_of<Expert> layer_;
  typename layer_of<Expert>::workspace workspace_;
  sluice::routing_context<float> context_;
};

}  // namespace bench::peers
