// The number of experts and of experts per token as compile-time constants: the same class, the same numbers.
#include <sluice/sluice.hpp>

#include <iostream>

using namespace sluice;

int main() {
  moe_layer fixed{top_k_router<float, 8, 2>{16}, expert_bank<swiglu<float>>{8, 16, 32}};
  moe_layer at_run_time{top_k_router<float>{16, 8, {.top_k = 2}}, expert_bank<swiglu<float>>{8, 16, 32}};
  initialize(fixed, 7);
  initialize(at_run_time, 7);

  const matrix<float> x = matrix<float>::Random(5, 16);
  matrix<float> y(5, 16), z(5, 16);
  decltype(fixed)::workspace fixed_workspace;
  decltype(at_run_time)::workspace workspace;
  fixed.forward(x, y, fixed_workspace);
  at_run_time.forward(x, z, workspace);

  // A type that asks for more experts per token than there are does not compile; a run-time 9 of 8 throws.
  bool refused = false;
  try {
    top_k_router<float>{16, 8, {.top_k = 9}};
  } catch (const std::invalid_argument& error) {
    refused = true;
    std::cout << error.what() << '\n';
  }
  std::cout << "fixed and run-time sizes give " << (y == z ? "the same numbers" : "different numbers") << '\n';
  return y == z && refused ? 0 : 1;
}
