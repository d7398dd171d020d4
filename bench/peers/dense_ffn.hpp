/// Twin: one dense SwiGLU of hidden width K H, which costs a token as many operations as its K experts do. What routing costs
/// beyond it is the price of sparsity.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/core/types.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/train/initialize.hpp>

#include <array>

#include "../shapes.hpp"
#include "../workload.hpp"

namespace bench::peers {

template <typename Expert>
class dense_ffn {
public:
  dense_ffn(const shape& s, const sluice::executor_ref& executor)
      : bank_(1, s.inputs, s.top_k * s.hidden), executor_(executor) {
    sluice::initialize(bank_, /*seed=*/3);
  }

  void run(const token_rows& x, token_rows& y) {
    const std::array<index_t, 2> offsets{0, x.rows()};
    bank_.forward(x, offsets, y, tape_, executor_);
  }

private:
  sluice::expert_bank<Expert> bank_;
  sluice::executor_ref executor_;
  typename sluice::expert_bank<Expert>::tape tape_;
};

}  // namespace bench::peers
