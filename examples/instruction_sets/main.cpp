// One program for old and new processors: the same layer for several instruction sets, and the best that runs here is chosen.
// CMakeLists.txt beside this file builds the variants.
#include <sluice/core/variant.hpp>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <make_model_variants.hpp>
#include <vector>

int main() {
  constexpr std::ptrdiff_t tokens = 100;
  std::vector<float> x(tokens * model::width);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(0.37f * static_cast<float>(i));

  const auto& best = sluice::best_variant(make_model_variants);
  std::vector<float> y(x.size());
  best.entry(/*seed=*/7)->forward(x.data(), y.data(), tokens);
  std::cout << "chosen: " << best.isa << '\n';

  // A program needs nothing below: every other variant that runs here gives the same numbers, up to rounding.
  float largest = 0;
  for (const float value : y) largest = std::max(largest, std::abs(value));
  bool agree = largest > 0;
  for (const auto& variant : make_model_variants) {
    if (!variant.available()) {
      std::cout << variant.isa << ": not on this machine\n";
      continue;
    }
    const auto other = variant.entry(7);
    std::vector<float> z(x.size());
    other->forward(x.data(), z.data(), tokens);
    float difference = 0;
    for (std::size_t i = 0; i < y.size(); ++i) difference = std::max(difference, std::abs(y[i] - z[i]));
    std::cout << variant.isa << ": " << other->configuration() << "; differs by " << difference << '\n';
    agree = agree && difference <= 8 * 128 * 6e-8f * largest;  // 8 x the longest sum x rounding of float
  }
  return agree ? 0 : 1;
}
