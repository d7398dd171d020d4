// Resident memory of a layer against what it has to hold. This runs first, while the process's peak is still this layer's.
#include <sluice/exec/thread_pool.hpp>

#include <optional>
#include <string>

#include "model.hpp"
#include "resident_memory.hpp"
#include "session.hpp"
#include "workload.hpp"

namespace bench {

void memory_cases(session& s) {
  const shape on = s.asked.smoke ? tiny() : olmoe();
  const std::int64_t rows = s.asked.smoke ? 4 : 512;
  if (!s.wants("memory " + on.name)) return;
  const token_rows x = random_tokens(rows, on.inputs, 41);
  token_rows y = token_rows::Zero(rows, on.inputs);
  sluice::thread_pool pool(s.asked.threads);
  sluice::routing_context<float> context;
  context.executor = pool;
  pool.parallel_for(s.asked.threads, [](index_t) {});  // the threads' own memory belongs to nobody's layer

  const resident_memory before = read_resident_memory();
  const auto layer = make_layer<sluice::swiglu<float>>(on);
  const resident_memory made = read_resident_memory();
  const auto reported = static_cast<double>(layer.workspace_bytes(rows * on.top_k));  // before it is taken
  layer_of<sluice::swiglu<float>>::workspace workspace;
  layer.forward(x, y, workspace, context);
  const resident_memory ran = read_resident_memory();
  s.found.memory.push_back({on, rows, static_cast<double>(on.size()) * storage<sluice::swiglu<float>>::bytes,
                            made.now - before.now, reported, ran.peak - before.now});
}

}  // namespace bench
