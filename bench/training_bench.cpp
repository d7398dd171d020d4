// A training step on OLMoE's shape: forward and backward for 512 tokens, without the optimiser.
#include <sluice/exec/thread_pool.hpp>

#include <string>
#include <utility>
#include <vector>

#include "model.hpp"
#include "session.hpp"
#include "workload.hpp"

namespace bench {

namespace {

template <typename Expert>
void training_step(session& s, const shape& on, std::int64_t rows, int threads) {
  const std::string name = on.name + "_training";
  const std::string title = name + " T=" + std::to_string(rows) + " uniform, " + std::to_string(threads) +
                            (threads == 1 ? " thread" : " threads");
  if (!s.wants(title)) return;
  auto layer = make_layer<Expert>(on);
  sluice::thread_pool pool(threads);
  sluice::routing_context<float> context;
  context.training = true;
  context.executor = pool;
  const std::vector<token_rows> x = random_batches(rows, on.inputs, 11);
  const token_rows dy = random_tokens(rows, on.inputs, 12);
  token_rows y(rows, on.inputs), dx(rows, on.inputs);
  typename layer_of<Expert>::tape tape;
  const auto batch = [&](std::int64_t r) -> const token_rows& { return x[static_cast<std::size_t>(r) % x.size()]; };
  const contestant sluice_step{"sluice", [&](std::int64_t r) { s.flush(batch(r)); },
                               [&](std::int64_t r) {
                                 layer.forward(batch(r), y, tape, context);
                                 layer.backward(dy, dx, tape);
                               }};
  std::vector<plan> plans(1);
  router::tape scratch;
  layer.router().route(x.front(), context, plans.front(), scratch);
  record r;
  r.name = name;
  r.tokens = rows;
  r.routing = "uniform";
  r.dtype = storage<Expert>::name;
  r.implementation = "sluice";
  r.threads = threads;
  r.touched = summarize(plans).touched;
  r.largest_load = summarize(plans).largest;
  r.done = training_work(layer_work(on, rows * on.top_k, r.touched, storage<Expert>::bytes));
  s.race(title, {sluice_step}, {r});
}

}  // namespace

void training_cases(session& s) {
  const shape on = s.asked.smoke ? tiny() : olmoe();
  const std::int64_t rows = s.asked.smoke ? 16 : 512;
  training_step<sluice::swiglu<float>>(s, on, rows, s.asked.threads);
  if (s.asked.threads > 1 && !s.asked.quick) training_step<sluice::swiglu<float>>(s, on, rows, 1);
}

}  // namespace bench
