// A program that only runs a trained layer: what embedded users build without exceptions and run-time type information.
#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

int main() {
  sluice::moe_layer layer{sluice::top_k_router<float>{16, 4, {.top_k = 2}},
                          sluice::expert_bank<sluice::swiglu<float>>{4, 16, 32}};
  sluice::for_each_parameter(layer, [](const std::string&, auto& p) { p.fill([](auto) { return 0.0f; }); });
  const sluice::matrix<float> x = sluice::matrix<float>::Ones(5, 16);
  sluice::matrix<float> y(5, 16);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  return y(0, 0) == 0 ? 0 : 1;  // all weights are zero
}
