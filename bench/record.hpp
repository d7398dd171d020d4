/// One measured case: a line of the CSV and a cell of the report's tables.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "roofline.hpp"

namespace bench {

struct record {
  std::string name;            ///< of the case: a shape, or what is done with it
  std::int64_t tokens = 0;     ///< T
  std::string routing;         ///< uniform, uniform_planned or zipf_planned
  std::string dtype;           ///< of the weights
  std::string implementation;  ///< sluice or a twin
  int threads = 1;
  work done;
  bound least;
  memory_level level = memory_level::memory;
  double median = 0;  ///< seconds
  double fastest = 0;
  int repetitions = 0;
  double touched = 0;       ///< experts that got tokens, mean over the batches
  double largest_load = 0;  ///< of one expert, mean over the batches
  std::string note;         ///< how a twin was run

  double gflops() const { return done.flops / median * 1e-9; }
  double gbytes_per_s() const { return done.bytes / median * 1e-9; }
  double roofline_fraction() const { return least.seconds / median; }
  double spread() const { return median / fastest; }
};

using records = std::vector<record>;

/// The first record with these properties, or none.
inline const record* find(const records& all, std::string_view name, std::int64_t tokens, std::string_view routing,
                          std::string_view implementation, int threads, std::string_view dtype = "float32") {
  for (const record& r : all)
    if (r.name == name && r.tokens == tokens && r.routing == routing && r.implementation == implementation &&
        r.threads == threads && r.dtype == dtype)
      return &r;
  return nullptr;
}

}  // namespace bench
