// What replays of weight formats share: weights bit by bit, and products with them.
#pragma once

#include "kernel/packed_product.hpp"
#include "oracle_case.hpp"

#include <cstring>

namespace oracle {

using namespace sluice;

/// x W^T by the storage's own kernels in float, by a plain product in double.
template <typename Scalar, typename Map>
matrix<Scalar> product(const matrix<Scalar>& x, const Map& map) {
  if constexpr (sizeof(Scalar) == 4)
    return test::packed_product(x, map);
  else
    return x * map.weight().to_matrix().template cast<double>().transpose();
}

/// Weights bit by bit; a negative zero equals zero.
template <typename Scalar>
void check_exactly(oracle_case<Scalar>& c, const char* name, const matrix<float>& ours) {
  c.check(name, matrix<Scalar>(ours.template cast<Scalar>()));
  const auto theirs = c.file().template read_vector<float>(std::string("expected.") + name);
  for (index_t i = 0; i < ours.size(); ++i)
    if (const float a = ours.data()[i], b = theirs[as_size(i)];
        std::memcmp(&a, &b, sizeof a) != 0 && !(a == 0 && b == 0)) {
      c.fail(std::string(name) + "[" + std::to_string(i) + "] has other bits");
      return;
    }
}

}  // namespace oracle
