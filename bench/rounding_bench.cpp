// Making codes of weights: round to nearest against the stream of memory, and GPTQ of one expert of OLMoE's size.
#include <sluice/exec/thread_pool.hpp>
#include <sluice/quant/compensated_rounding.hpp>
#include <sluice/quant/input_moments.hpp>

#include <string>
#include <vector>

#include "session.hpp"
#include "workload.hpp"

namespace bench {

namespace {

/// The three matrices of an expert, as many times as no cache holds, and second moments of their inputs.
class rounding_case {
public:
  rounding_case(index_t inputs, index_t hidden, index_t experts, index_t rows, const sluice::executor_ref& executor)
      : executor_(executor),
        x_(random_tokens(rows, inputs, 61)),
        h_(random_tokens(rows, hidden, 62)),
        of_inputs_(inputs),
        of_hidden_(hidden) {
    for (index_t e = 0; e < experts; ++e) {
      const auto seed = static_cast<std::uint64_t>(100 + 3 * e);
      weights_.push_back(random_tokens(hidden, inputs, seed));
      weights_.push_back(random_tokens(hidden, inputs, seed + 1));
      weights_.push_back(random_tokens(inputs, hidden, seed + 2));
    }
    of_inputs_.add<float>(x_, executor);
    of_hidden_.add<float>(h_, executor);
  }

  std::int64_t weights() const { return static_cast<std::int64_t>(weights_.size()) * weights_.front().size(); }

  void nearest() {
    for (const auto& w : weights_) codes_ = sluice::round_to_nearest(w, {.bits = 4, .group = 128}, executor_);
  }
  void moments() {
    sluice::input_moments of_inputs(x_.cols()), of_hidden(h_.cols());
    of_inputs.add<float>(x_, executor_);
    of_hidden.add<float>(h_, executor_);
  }
  void compensated() {
    const sluice::inverse_factor first(of_inputs_.to_matrix(), {}, executor_),
        last(of_hidden_.to_matrix(), {}, executor_);
    for (int m = 0; m < 3; ++m)
      codes_ = sluice::compensated_rounding(weights_[static_cast<std::size_t>(m)], m < 2 ? first : last,
                                            {.bits = 4, .group = 128}, executor_);
  }

private:
  sluice::executor_ref executor_;
  token_rows x_, h_;
  std::vector<token_rows> weights_;
  sluice::input_moments of_inputs_, of_hidden_;
  sluice::grouped_codes codes_;
};

void time_rounding(session& s, index_t inputs, index_t hidden, index_t experts, index_t rows, int threads) {
  const std::string title = "rounding D=" + std::to_string(inputs) + " H=" + std::to_string(hidden);
  if (!s.wants(title)) return;
  sluice::thread_pool pool(threads);
  rounding_case c(inputs, hidden, experts, rows, threads == 1 ? sluice::executor_ref() : sluice::executor_ref(pool));
  const auto nothing = [](std::int64_t) {};
  const std::vector<timing> times = s.run.race(title, {{"nearest", nothing, [&](std::int64_t) { c.nearest(); }},
                                                       {"moments", nothing, [&](std::int64_t) { c.moments(); }},
                                                       {"GPTQ", nothing, [&](std::int64_t) { c.compensated(); }}});
  s.found.roundings.push_back(
      {inputs, hidden, rows, c.weights(), threads, times[0].fastest, times[1].fastest, times[2].fastest});
}

}  // namespace

void rounding_cases(session& s) {
  std::vector<int> threads{1};
  if (s.asked.threads > 1) threads.push_back(s.asked.threads);
  for (const int count : threads)
    s.asked.smoke ? time_rounding(s, 32, 16, 1, 40, count) : time_rounding(s, 2048, 1024, 6, 512, count);
}

}  // namespace bench
