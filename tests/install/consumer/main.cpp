// The least that a user's program does: include everything, run a layer, and be of the version that was installed.
#include <sluice/sluice.hpp>

#include <cstdio>

int main() {
  sluice::moe_layer layer{sluice::top_k_router<float>{8, 4, {.top_k = 2}},
                          sluice::expert_bank<sluice::swiglu<float>>{4, 8, 16}};
  sluice::initialize(layer, /*seed=*/1);
  const sluice::matrix<float> x = sluice::matrix<float>::Ones(3, 8);
  sluice::matrix<float> y(3, 8);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);

  std::printf("sluice %s: y[0] = %g\n", sluice::version, static_cast<double>(y(0, 0)));
  const bool ran = y(0, 0) != 0 && y.row(0) == y.row(2);  // equal tokens, equal outputs
  return ran && sluice::version[0] == '0' + SLUICE_VERSION_MAJOR ? 0 : 1;
}
