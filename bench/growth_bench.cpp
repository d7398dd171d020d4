// How time grows with tokens, with experts and with experts a token, on a moderate shape; and with single neurons, up to
// a million of them.
#include <sluice/exec/thread_pool.hpp>
#include <sluice/expert/neuron_bank.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/product_key.hpp>
#include <sluice/train/initialize.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "model.hpp"
#include "session.hpp"
#include "workload.hpp"

namespace bench {

namespace {

using expert = sluice::swiglu<float>;

void measure(session& s, const layer_of<expert>& layer, const shape& on, const std::string& name, std::int64_t rows,
             const std::string& title) {
  sluice::thread_pool pool(s.asked.threads);
  sluice::routing_context<float> context;
  context.executor = pool;
  const std::vector<token_rows> x = random_batches(rows, on.inputs, 21);
  std::vector<plan> plans(x.size());
  router::tape scratch;
  for (std::size_t b = 0; b < x.size(); ++b) layer.router().route(x[b], context, plans[b], scratch);
  token_rows y(rows, on.inputs);
  layer_of<expert>::workspace workspace;
  const auto batch = [&](std::int64_t r) -> const token_rows& { return x[static_cast<std::size_t>(r) % x.size()]; };
  const contestant forward{"sluice", [&](std::int64_t r) { s.flush(batch(r)); },
                           [&](std::int64_t r) { layer.forward(batch(r), y, workspace, context); }};
  record r;
  r.name = name;
  r.tokens = rows;
  r.routing = "uniform";
  r.dtype = storage<expert>::name;
  r.implementation = "sluice";
  r.threads = s.asked.threads;
  r.touched = summarize(plans).touched;
  r.largest_load = summarize(plans).largest;
  r.done = layer_work(on, rows * on.top_k, r.touched, storage<expert>::bytes);
  s.race(title, {forward}, {r});
}

/// The name carries what varies, for the CSV has no columns for it: growth_T, growth_E=64, growth_K=4.
void grow(session& s, const shape& on, const std::string& name, const std::vector<std::int64_t>& counts) {
  std::vector<std::int64_t> wanted;
  const auto title = [&](std::int64_t rows) { return name + " T=" + std::to_string(rows) + " uniform"; };
  for (const std::int64_t rows : counts)
    if (s.wants(title(rows))) wanted.push_back(rows);
  if (wanted.empty()) return;
  const auto layer = make_layer<expert>(on);
  for (const std::int64_t rows : wanted) measure(s, layer, on, name, rows, title(rows));
}

/// One token among n² single neurons behind product keys: the search grows with n, nothing else should grow.
void grow_neurons(session& s, index_t keys) {
  constexpr index_t width = 64, heads = 8, top_k = 16;
  const std::string name = "growth_N=" + std::to_string(keys * keys), title = name + " T=1 uniform";
  if (!s.wants(title)) return;
  using router_type = sluice::product_key_router<float>;
  sluice::moe_layer layer{
      router_type{width, keys, {.heads = heads, .top_k = (std::min)(top_k, keys * keys), .key_width = width / 2}},
      sluice::neuron_bank<float>{keys * keys, width}};
  sluice::initialize(layer, /*seed=*/6);
  sluice::thread_pool pool(s.asked.threads);
  sluice::routing_context<float> context;
  context.executor = pool;
  const std::vector<token_rows> x = random_batches(1, width, 22);
  const auto batch = [&](std::int64_t r) -> const token_rows& { return x[static_cast<std::size_t>(r) % x.size()]; };
  std::vector<plan> plans(x.size());
  router_type::tape scratch;
  for (std::size_t b = 0; b < x.size(); ++b) layer.router().route(x[b], context, plans[b], scratch);
  token_rows y(1, width);
  decltype(layer)::workspace workspace;
  const contestant forward{"sluice", [&](std::int64_t r) { s.flush(batch(r)); },
                           [&](std::int64_t r) { layer.forward(batch(r), y, workspace, context); }};
  record r;
  r.name = name;
  r.tokens = 1;
  r.routing = "uniform";
  r.dtype = "float32";
  r.implementation = "sluice";
  r.threads = s.asked.threads;
  r.touched = summarize(plans).touched;
  r.largest_load = summarize(plans).largest;
  const double searched = static_cast<double>(heads * keys * width), used = r.touched * 2 * width;
  r.done = {2 * (searched + used), sizeof(float) * (searched + used)};
  s.race(title, {forward}, {r});
}

}  // namespace

void growth_cases(session& s) {
  const bool brief = s.asked.smoke;
  const index_t step = s.asked.quick ? 8 : 2;
  std::vector<std::int64_t> counts;
  for (std::int64_t rows = 1; rows <= (brief ? 4 : 8192); rows *= step) counts.push_back(rows);
  grow(s, moderate(brief ? 4 : 64, 2), "growth_T", counts);
  for (index_t experts = 1; experts <= (brief ? 2 : 512); experts *= step)
    grow(s, moderate(experts, 1), "growth_E=" + std::to_string(experts), {brief ? 4 : 512});
  for (index_t top_k = 1; top_k <= (brief ? 2 : 64); top_k *= step)
    grow(s, moderate(brief ? 4 : 64, top_k), "growth_K=" + std::to_string(top_k), {brief ? 4 : 256});
  for (index_t keys = brief ? 2 : 32; keys <= (brief ? 4 : 1024); keys *= brief ? 2 : s.asked.quick ? 32 : 2)
    grow_neurons(s, keys);
}

}  // namespace bench
