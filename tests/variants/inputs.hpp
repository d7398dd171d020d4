// Between the two sources of a variant.
#pragma once

#include <cstdint>
#include <vector>

namespace border {

/// Standard normal numbers.
std::vector<float> inputs(std::ptrdiff_t count, std::uint64_t seed);

}  // namespace border
