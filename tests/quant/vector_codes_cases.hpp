// Vector codes from literal seeds, for tests of what learns them.
#pragma once

#include <sluice/kernel/format/vector_codes.hpp>

#include "support.hpp"

namespace sluice::test {

struct code_case {
  index_t outputs = 6;
  index_t inputs = 10;
  index_t tile_outputs = 1;
  index_t tile_inputs = 4;
  index_t stages = 1;
  index_t entries = 5;
  index_t region_outputs = 0;
  index_t region_inputs = 0;
  index_t scale_inputs = -1;  ///< -1: no scales
};

inline vector_codes random_codes(const code_case& c, std::uint64_t seed) {
  vector_codes codes{.outputs = c.outputs,
                     .inputs = c.inputs,
                     .tile_outputs = c.tile_outputs,
                     .tile_inputs = c.tile_inputs,
                     .region_outputs = c.region_outputs,
                     .region_inputs = c.region_inputs};
  codes.indices.resize(as_size(c.stages));
  const random_source random(seed);
  for (index_t i = 0; i < codes.regions() * c.stages; ++i)
    codes.codebooks.push_back(
        random_matrix<float>(c.entries, c.tile_outputs * c.tile_inputs, seed + static_cast<std::uint64_t>(i) + 1));
  for (index_t m = 0; m < c.stages; ++m) {
    matrix<std::uint16_t>& of = codes.indices[as_size(m)];
    of.resize(codes.tile_rows(), codes.tile_cols());
    for (index_t t = 0; t < of.size(); ++t)
      of.data()[t] = static_cast<std::uint16_t>(random.uniform(random_site::user_site, t + 1000 * m) *
                                                static_cast<double>(c.entries));
  }
  if (c.scale_inputs >= 0) {
    codes.scale_inputs = c.scale_inputs;
    codes.scales = random_matrix<float>(c.outputs, codes.scale_groups(), seed + 99).array().abs() + 0.5F;
  }
  return codes;
}

}  // namespace sluice::test
