/// A token that an expert could take: the order in which experts choose, best first and of equals the lower token.
#pragma once

#include <sluice/core/numeric.hpp>

namespace sluice::inline SLUICE_ISA {

template <typename Scalar>
struct token_candidate {
  ordered_bits<Scalar> key;  ///< order_key of the score
  index_t token;

  bool operator<(const token_candidate& other) const noexcept {
    return key != other.key ? key > other.key : token < other.token;
  }
};

}  // namespace sluice::inline SLUICE_ISA
