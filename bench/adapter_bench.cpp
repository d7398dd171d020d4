// Low-rank adapters beside a frozen layer, without that layer: few numbers an expert, so that tokens are what is moved.
#include <sluice/adapter/low_rank.hpp>
#include <sluice/exec/thread_pool.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/train/initialize.hpp>

#include <string>
#include <vector>

#include "forward_case.hpp"

namespace bench {

namespace {

/// A bank of E adapters of rank R on tokens of width D; K of them a token, drawn evenly.
struct low_rank_shape {
  index_t inputs, rank, experts, tokens;

  /// Weights are read once, tokens too; outputs are read and written.
  work of(index_t top_k, double touched) const {
    const auto numbers = static_cast<double>(2 * inputs * rank), rows = static_cast<double>(tokens);
    return {2 * numbers * rows * static_cast<double>(top_k),
            sizeof(float) * (numbers * touched + 3 * rows * static_cast<double>(inputs))};
  }
};

void time_low_rank(session& s, const low_rank_shape& on, index_t top_k, int threads) {
  const std::string name = "low_rank_K=" + std::to_string(top_k);
  const std::string title = forward_title(name, on.tokens, threads);
  if (!s.wants(title)) return;
  using bank_type = sluice::expert_bank<sluice::low_rank_expert<float>>;
  bank_type bank(on.experts, sluice::low_rank_expert<float>(on.inputs, on.rank, {.scale = 2}));
  sluice::initialize(bank, /*seed=*/61);
  for (index_t e = 0; e < on.experts; ++e)
    bank.expert(e).b().assign(random_tokens(on.inputs, on.rank, 62 + static_cast<std::uint64_t>(e)));
  sluice::thread_pool pool(threads);
  const sluice::executor_ref executor = threads == 1 ? sluice::executor_ref() : sluice::executor_ref(pool);
  const std::vector<token_rows> x = random_batches(on.tokens, on.inputs, 63);
  std::vector<plan> plans;
  for (std::size_t b = 0; b < x.size(); ++b) plans.push_back(skewed_plan(on.tokens, on.experts, top_k, 0, 64 + b));
  token_rows y = token_rows::Zero(on.tokens, on.inputs);
  bank_type::tape tape;
  bank.prepare(tape, on.tokens * top_k, false);
  const load_summary loads = summarize(plans);
  record r = forward_record(name, threads, on.of(top_k, loads.touched), loads);
  r.routing = "uniform_planned";
  race_forward(s, title, r, x,
               [&](std::size_t b) { bank.forward_routed(x[b], plans[b].routed(), y, tape, executor); });
}

}  // namespace

void adapter_cases(session& s) {
  const low_rank_shape on = s.asked.smoke ? low_rank_shape{32, 4, 4, 8} : low_rank_shape{2048, 16, 64, 512};
  for (const index_t top_k : {1, 2, 8}) {
    if (top_k > on.experts) continue;
    time_low_rank(s, on, top_k, 1);
    if (s.asked.threads > 1) time_low_rank(s, on, top_k, s.asked.threads);
  }
}

}  // namespace bench
