// Codebooks: the search for the nearest code, few tokens and many, and what learning adds to it.
#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/kmeans.hpp>
#include <sluice/exec/thread_pool.hpp>

#include <algorithm>
#include <string>
#include <vector>

#include "session.hpp"
#include "workload.hpp"

namespace bench {

namespace {

struct codebook_shape {
  index_t codes, width;
};

/// A search, a round of k-means and a step of moving averages, over the same tokens.
class codebook_case {
public:
  codebook_case(const codebook_shape& on, index_t tokens, const sluice::executor_ref& executor)
      : executor_(executor),
        x_(random_tokens(tokens, on.width, 51)),
        codes_(random_tokens(on.codes, on.width, 52)),
        ids_(tokens, 1),
        clusters_(on.codes, on.width, {.rounds = 1, .until_settled = false}),
        averages_(on.codes, on.width) {
    sluice::squared_distance{}.prepare<float>({codes_.data(), on.codes, on.width}, search_, executor);
    clusters_.begin_at(codes_);
  }

  void search() { sluice::nearest_codes<float>(x_, search_, ids_, nullptr, scratch_, executor_); }
  void cluster() { clusters_.fit(x_, executor_); }
  void average() {
    search();
    sluice::sum_by_code<float>(x_, ids_.data(), averages_.codes(), sums_, executor_);
    averages_.update(sums_, executor_);
  }

private:
  sluice::executor_ref executor_;
  token_rows x_, codes_;
  sluice::matrix<index_t> ids_;
  sluice::code_search<float> search_;
  sluice::nearest_scratch<float> scratch_;
  sluice::code_sums<float> sums_;
  sluice::kmeans<float, sluice::keep_codes> clusters_;
  sluice::moving_average_codes<float> averages_;
};

void time_codebook(session& s, const codebook_shape& on, index_t tokens, int threads, bool learns) {
  const std::string title =
      "codebook C=" + std::to_string(on.codes) + " D=" + std::to_string(on.width) + " T=" + std::to_string(tokens);
  if (!s.wants(title)) return;
  sluice::thread_pool pool(threads);
  codebook_case c(on, tokens, threads == 1 ? sluice::executor_ref() : sluice::executor_ref(pool));
  const auto nothing = [](std::int64_t) {};
  std::vector<contestant> calls{{"search", nothing, [&](std::int64_t) { c.search(); }}};
  if (learns) {
    calls.push_back({"k-means", nothing, [&](std::int64_t) { c.cluster(); }});
    calls.push_back({"moving average", nothing, [&](std::int64_t) { c.average(); }});
  }
  const std::vector<timing> times = s.run.race(title, calls);
  codebook_time t{on.codes, on.width, tokens, threads, times[0].median, times[0].fastest};
  if (learns) {
    t.cluster = times[1].fastest;
    t.average = times[2].fastest;
  }
  s.found.codebooks.push_back(t);
}

}  // namespace

void codebook_cases(session& s) {
  std::vector<codebook_shape> shapes{{1024, 64}, {8192, 256}, {65536, 32}};
  index_t many = 16384;
  std::vector<index_t> few{1, 4, 16, 64};
  if (s.asked.quick) few = {1, 16};
  if (s.asked.smoke) {
    shapes = {{64, 8}};
    many = 32;
    few = {1};
  }
  std::vector<int> threads{1};
  if (s.asked.threads > 1) threads.push_back(s.asked.threads);
  for (const codebook_shape& on : shapes)
    for (const int count : threads) {
      for (const index_t tokens : few) time_codebook(s, on, tokens, count, false);
      time_codebook(s, on, many, count, true);
    }
}

}  // namespace bench
