// Half the memory: the experts of a layer with their weights rounded to sixteen bits, for inference.
#include <sluice/sluice.hpp>

#include <iostream>

int main() {
  sluice::moe_layer layer{sluice::top_k_router<float>{64, 8, {.top_k = 2}},
                          sluice::expert_bank<sluice::swiglu<float>>{8, 64, 128}};
  sluice::initialize(layer, /*seed=*/7);  // or trained, or loaded

  const auto small = layer.stored_as<sluice::bfloat16_storage>();

  const sluice::matrix<float> x = sluice::matrix<float>::Random(5, 64);
  sluice::matrix<float> y(5, 64), z(5, 64);
  decltype(layer)::workspace workspace;
  std::remove_const_t<decltype(small)>::workspace small_workspace;
  layer.forward(x, y, workspace);
  small.forward(x, z, small_workspace);
  std::cout << "float32 and bfloat16 differ by " << (y - z).norm() / y.norm() << " of the output\n";
  return (y - z).norm() < 0.01f * y.norm() ? 0 : 1;
}
