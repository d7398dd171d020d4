// A mixture-of-experts layer in a few lines: 8 SwiGLU experts, each token goes to its best two.
#include <sluice/sluice.hpp>

#include <iostream>

int main() {
  sluice::moe_layer layer{sluice::top_k_router<float>{64, 8, {.top_k = 2}}, sluice::expert_bank<sluice::swiglu<float>>{8, 64, 128}};
  sluice::initialize(layer, /*seed=*/7);

  const sluice::matrix<float> x = sluice::matrix<float>::Ones(5, 64);  // 5 tokens of width 64
  sluice::matrix<float> y(5, 64);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);

  std::cout << "token 0 went to expert " << workspace.plan.expert(workspace.plan.of_token(0)[0]) << ", y[0] = " << y(0, 0) << '\n';
}
