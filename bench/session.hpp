/// What every group of cases works with: the machine and its limits, the runner, and the results so far.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "caches.hpp"
#include "flush.hpp"
#include "machine.hpp"
#include "options.hpp"
#include "record.hpp"
#include "runner.hpp"

namespace bench {

/// How long a router alone, or a stage of a layer, takes.
struct stage_times {
  shape on;
  std::int64_t tokens = 0;
  double route = 0, gather = 0, combine = 0, whole = 0;  ///< seconds
};

struct router_time {
  std::string name;
  std::int64_t experts = 0;
  std::int64_t tokens = 0;
  double median = 0, fastest = 0;  ///< seconds
};

/// Seconds of a codebook's calls; those of learning are 0 where they were not measured.
struct codebook_time {
  std::int64_t codes = 0, width = 0, tokens = 0;
  int threads = 1;
  double median = 0, fastest = 0;  ///< of the search
  double cluster = 0;              ///< a round of k-means, search included, the fastest
  double average = 0;              ///< a step of moving averages, search included, the fastest
};

/// Seconds of a scan of product-quantised items.
struct scan_time {
  std::int64_t items = 0, parts = 0, queries = 0;
  int threads = 1;
  double median = 0, fastest = 0;
  double loads = 0;  ///< as many loads from tables of that size and nothing else, the fastest
};

/// Seconds, the fastest, of making codes of weights.
struct rounding_time {
  std::int64_t inputs = 0, hidden = 0, rows = 0, weights = 0;
  int threads = 1;
  double nearest = 0;  ///< of all weights
  double moments = 0;  ///< of `rows` rows of an expert's inputs and hidden units
  double gptq = 0;     ///< of the three matrices of one expert, from moments to codes
};

/// Seconds, the fastest, of attention alone, eight heads over one sequence.
struct attention_time {
  std::int64_t width = 0, tokens = 0;
  bool causal = false;
  int threads = 1;
  double flops = 0;  ///< forward, of the pairs that see each other; backward takes 2.5 times as many
  double forward = 0, backward = 0;
};

/// A layer of single neurons behind product keys, and reading once the weights that its tokens touch: seconds.
struct neurons_time {
  std::int64_t experts = 0, tokens = 0;
  double layer = 0, reading = 0;  ///< in the median
  double arithmetic = 0;          ///< FLOP a token
};

/// Seconds of a call of parallel_for.
struct executor_time {
  std::string name;
  double empty = 0;  ///< a task a thread that does nothing, the fastest
  double free = 0;   ///< 32 tasks of some five microseconds, the fastest
  double busy = 0;   ///< the same in the median, while other threads keep all cores busy
};

/// A forward pass of 512 tokens through experts of this size.
struct sweep_point {
  index_t inputs = 0, hidden = 0;
  double gflops = 0;  ///< at the fastest
};

/// Bytes.
struct memory_use {
  shape on;
  std::int64_t tokens = 0;
  double weights = 0;    ///< counted
  double layer = 0;      ///< growth of resident memory when the layer was made
  double workspace = 0;  ///< growth by the first call
  double peak = 0;       ///< largest growth at any time
};

struct waiting {
  double seconds = 0;  ///< ready to run, but others had the processor
  double of = 0;       ///< of these seconds
};

struct results {
  records cases;
  std::vector<stage_times> stages;
  std::vector<router_time> routers;
  std::vector<neurons_time> neurons;
  std::vector<codebook_time> codebooks;
  std::vector<scan_time> scans;
  std::vector<rounding_time> roundings;
  std::vector<attention_time> attentions;
  std::vector<executor_time> executors;
  std::vector<sweep_point> sweep;
  std::vector<memory_use> memory;
  std::optional<waiting> waited;         ///< of the main thread in the whole run, where the system says
  std::map<std::string, double> checks;  ///< a twin's largest difference from sluice, as a part of the largest output
};

struct session {
  options asked;
  cache_sizes caches;
  limits one;  ///< of one thread
  limits all;  ///< of all threads
  runner run;
  cache_flush flush;
  results found;

  const limits& limits_of(int threads) const { return threads == 1 ? one : all; }
  /// Measures the machine again and keeps the better numbers: on a shared machine the first time may have been a bad one.
  void refresh_limits();
  /// Whether the case was asked for; `name` is for example "olmoe T=16 uniform".
  bool wants(const std::string& name) const;
  /// Races the contestants and adds a record each. The records come with everything but times and bounds.
  void race(const std::string& title, const std::vector<contestant>& contestants, records rows);
};

/// Fills in every record's bound, from the limits as they are in the end.
void apply_limits(session& s);

// The groups, in the order of the report. memory_cases comes first: later ones would hide its peak.
void memory_cases(session& s);
void layer_cases(session& s);
void training_cases(session& s);
void factorized_cases(session& s);
void other_layer_cases(session& s);
void adapter_cases(session& s);
void growth_cases(session& s);
void routing_cases(session& s);
void codebook_cases(session& s);
void rounding_cases(session& s);
void attention_cases(session& s);
void executor_cases(session& s);
void sweep_cases(session& s);

}  // namespace bench
