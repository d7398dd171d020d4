/// Not a layer: reads the weights of the experts that got tokens once, and computes nothing with them. What memory gives in the
/// very race, on machines whose memory is shared and gives twice as much at one moment as at another.
#pragma once

#include <sluice/exec/thread_pool.hpp>

#include <algorithm>
#include <vector>

#include "../machine.hpp"
#include "routing.hpp"
#include "weights.hpp"

namespace bench::peers {

class weight_stream {
public:
  weight_stream(const layer_weights& weights, int threads) : weights_(weights), executor_(threads) {}

  void run(const expert_lists& lists) {
    pieces_.clear();
    for (std::size_t e = 0; e < weights_.experts.size(); ++e)
      if (!lists[e].empty())
        for (const matrix* m : {&weights_.experts[e].gate, &weights_.experts[e].up, &weights_.experts[e].down})
          for (index_t begin = 0; begin + piece <= m->size(); begin += piece) pieces_.push_back(m->data() + begin);
    executor_.parallel_for(static_cast<index_t>(pieces_.size()),
                           [&](index_t i) { bench::detail::read<1>(pieces_[static_cast<std::size_t>(i)], piece); });
  }

private:
  static constexpr index_t piece = 1 << 15;  // numbers a task: the smallest matrix of the published shapes has as many

  const layer_weights& weights_;
  sluice::thread_pool executor_;
  std::vector<const float*> pieces_;
};

}  // namespace bench::peers
