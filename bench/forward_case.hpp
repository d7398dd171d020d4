/// What cases share that have no twin: sluice alone, forward, on batches of random tokens.
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/exec/thread_pool.hpp>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "session.hpp"
#include "workload.hpp"

namespace bench {

inline std::string forward_title(const std::string& name, index_t tokens, int threads) {
  return name + " T=" + std::to_string(tokens) + ", " + std::to_string(threads) +
         (threads == 1 ? " thread" : " threads");
}

/// All of a record but its tokens and its times.
inline record forward_record(const std::string& name, int threads, const work& done, const load_summary& loads = {}) {
  record r;
  r.name = name;
  r.routing = "uniform";
  r.dtype = "float32";
  r.implementation = "sluice";
  r.threads = threads;
  r.done = done;
  r.touched = loads.touched;
  r.largest_load = loads.largest;
  return r;
}

/// What a router of sparse plans chooses for these batches.
template <typename Router>
load_summary loads_of(const Router& router, const std::vector<token_rows>& x) {
  std::vector<plan> plans(x.size());
  typename Router::tape scratch;
  for (std::size_t b = 0; b < x.size(); ++b) router.route(x[b], sluice::routing_context<float>{}, plans[b], scratch);
  return summarize(plans);
}

/// forward(b) runs batch b of x.
template <typename Forward>
void race_forward(session& s, const std::string& title, record r, const std::vector<token_rows>& x, Forward&& forward) {
  const auto batch = [&](std::int64_t repetition) { return static_cast<std::size_t>(repetition) % x.size(); };
  r.tokens = x.front().rows();
  s.race(title, {{"sluice", [&](std::int64_t i) { s.flush(x[batch(i)]); }, [&](std::int64_t i) { forward(batch(i)); }}},
         {std::move(r)});
}

/// A layer's inference, by as many threads as the record says.
template <typename Layer>
void race_layer(session& s, const std::string& title, const record& r, const std::vector<token_rows>& x,
                const Layer& layer, sluice::routing_context<float> context = {}) {
  sluice::thread_pool pool(r.threads);
  context.executor = pool;
  token_rows y(x.front().rows(), layer.outputs());
  typename Layer::workspace workspace;
  race_forward(s, title, r, x, [&](std::size_t b) { layer.forward(x[b], y, workspace, context); });
}

}  // namespace bench
