// A sweep over the sizes of an expert, round and odd ones: no shape may fall off a cliff between its neighbours.
#include <sluice/exec/thread_pool.hpp>

#include <string>
#include <vector>

#include "model.hpp"
#include "session.hpp"
#include "workload.hpp"

namespace bench {

namespace {

using expert = sluice::swiglu<float>;

std::vector<index_t> sizes(const options& asked) {
  if (asked.smoke) return {8, 17};
  if (asked.quick) return {64, 129, 512, 1000, 2048};
  return {64, 96, 129, 256, 500, 512, 1000, 1024, 2048, 3000, 4096, 8192};
}

}  // namespace

void sweep_cases(session& s) {
  const index_t rows = s.asked.smoke ? 4 : 512;
  sluice::thread_pool pool(s.asked.threads);
  sluice::routing_context<float> context;
  context.executor = pool;
  for (const index_t hidden : sizes(s.asked))
    for (const index_t inputs : sizes(s.asked)) {
      const std::string title = "sweep D=" + std::to_string(inputs) + " H=" + std::to_string(hidden);
      if (!s.wants(title)) continue;
      const shape on{"sweep", "Sweep", inputs, hidden, 2, 1};
      const auto layer = make_layer<expert>(on);
      const token_rows x = random_batches(rows, inputs, 31).front();
      token_rows y(rows, inputs);
      layer_of<expert>::workspace workspace;
      const contestant forward{"sluice", [](std::int64_t) {},
                               [&](std::int64_t) { layer.forward(x, y, workspace, context); }};
      const timing t = s.run.race(title, {forward}).front();
      s.found.sweep.push_back({inputs, hidden, layer_work(on, rows, 2, 4).flops / t.fastest * 1e-9});
    }
}

}  // namespace bench
