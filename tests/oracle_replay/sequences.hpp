// Batches of sequences of equal length, as files of attention layers have them.
#pragma once

#include "oracle_case.hpp"

#include <sluice/core/context.hpp>

namespace oracle {

/// The sequences of x [B,N,D], and who of their tokens is no padding.
template <typename Scalar>
struct sequences_of_case {
  std::vector<index_t> borders;
  std::vector<std::uint8_t> mask;

  explicit sequences_of_case(const oracle_case<Scalar>& c, const char* tokens = "x") {
    for (index_t b = 0; b <= c.axis(tokens, 0); ++b) borders.push_back(b * c.axis(tokens, 1));
    if (!c.has("padding")) return;
    for (const index_t is_padding : c.integers("padding")) mask.push_back(is_padding == 0);
  }
  sluice::routing_context<Scalar> context() const {
    sluice::routing_context<Scalar> own;
    own.training = true;
    own.sequences = borders;
    own.token_mask = mask;
    return own;
  }
};

}  // namespace oracle
