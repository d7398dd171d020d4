// Codebooks: the search for the nearest code, few tokens and many, what learning adds to it, and the scan of items by codes.
#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/kmeans.hpp>
#include <sluice/codebook/search/product_scan.hpp>
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

/// Queries that look through all items by their codes, 256 a part.
class scan_case {
public:
  scan_case(index_t items, index_t parts, index_t queries, const sluice::executor_ref& executor)
      : executor_(executor), codes_(8 * parts, {.parts = parts}), items_(parts), queries_(random_tokens(queries, 8 * parts, 53)),
        ids_(queries, 10), scores_(queries, 10) {
    codes_.table().assign(random_tokens(parts, codes_.codes() * 8, 54));
    tables_.prepare(codes_);
    const sluice::random_source random(55);
    std::vector<index_t> item(static_cast<std::size_t>(parts));
    items_.reserve(items);
    for (index_t i = 0; i < items; ++i) {
      for (index_t m = 0; m < parts; ++m)
        item[static_cast<std::size_t>(m)] =
            static_cast<index_t>(256 * random.uniform(sluice::random_site::user_site, i * parts + m));
      items_.add(item.data());
    }
  }

  void scan() {
    sluice::scan_codes<float>(queries_, tables_, sluice::closeness::distance, items_, ids_, scores_, scratch_, executor_);
  }

  /// What a scan cannot do without: a load from a table for every item and part.
  void load() {
    const std::vector<float> table(static_cast<std::size_t>(tables_.size()));
    constexpr index_t together = 16;
    const index_t count = queries_.rows() * items_.size() * items_.parts() / together / executor_.concurrency();
    executor_.parallel_for(executor_.concurrency(), [&](index_t) {
      const volatile float* const entries = table.data();
      for (index_t i = 0; i < count; ++i) {
        const volatile float* const at = entries + (i & 15) * together;
        SLUICE_UNROLL for (index_t j = 0; j < together; ++j) static_cast<void>(at[j]);
      }
    });
  }

private:
  sluice::executor_ref executor_;
  sluice::product_codes<float> codes_;
  sluice::cost_tables<float> tables_;
  sluice::code_blocks items_;
  token_rows queries_;
  sluice::matrix<index_t> ids_;
  token_rows scores_;
  sluice::scan_scratch<float> scratch_;
};

void time_scan(session& s, index_t items, index_t parts, index_t queries, int threads) {
  const std::string title = "scan N=" + std::to_string(items) + " M=" + std::to_string(parts) + " Q=" + std::to_string(queries);
  if (!s.wants(title)) return;
  sluice::thread_pool pool(threads);
  scan_case c(items, parts, queries, threads == 1 ? sluice::executor_ref() : sluice::executor_ref(pool));
  const auto nothing = [](std::int64_t) {};
  const std::vector<timing> times = s.run.race(
      title, {{"scan", nothing, [&](std::int64_t) { c.scan(); }}, {"loads", nothing, [&](std::int64_t) { c.load(); }}});
  s.found.scans.push_back({items, parts, queries, threads, times[0].median, times[0].fastest, times[1].fastest});
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
  const index_t items = s.asked.smoke ? 200 : 1000000;
  for (const int count : threads)
    for (const index_t queries : {1, 32}) time_scan(s, items, 8, queries, count);
}

}  // namespace bench
