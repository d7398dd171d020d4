#include "inputs.hpp"

#include <sluice/core/random.hpp>

namespace border {

std::vector<float> inputs(std::ptrdiff_t count, std::uint64_t seed) {
  const sluice::random_source random(seed);
  std::vector<float> numbers;
  for (std::ptrdiff_t i = 0; i < count; ++i)
    numbers.push_back(static_cast<float>(random.normal(sluice::random_site::user_site, i)));
  return numbers;
}

}  // namespace border
