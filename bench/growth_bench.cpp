// How time grows with tokens, with experts and with experts a token, on a moderate shape; and with single neurons, up to
// a million of them.
#include <sluice/expert/neuron_bank.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/product_key.hpp>
#include <sluice/train/initialize.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "forward_case.hpp"
#include "model.hpp"

namespace bench {

namespace {

using expert = sluice::swiglu<float>;

void measure(session& s, const layer_of<expert>& layer, const shape& on, const std::string& name, std::int64_t rows,
             const std::string& title) {
  const std::vector<token_rows> x = random_batches(rows, on.inputs, 21);
  const load_summary loads = loads_of(layer.router(), x);
  const work done = layer_work(on, rows * on.top_k, loads.touched, storage<expert>::bytes);
  race_layer(s, title, forward_record(name, s.asked.threads, done, loads), x, layer);
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
  const std::vector<token_rows> x = random_batches(1, width, 22);
  const load_summary loads = loads_of(layer.router(), x);
  const double searched = static_cast<double>(heads * keys * width), used = loads.touched * 2 * width;
  const work done{2 * (searched + used), sizeof(float) * (searched + used)};
  race_layer(s, title, forward_record(name, s.asked.threads, done, loads), x, layer);
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
