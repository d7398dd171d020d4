// A half, a quarter, an eighth of the memory: the experts of a layer with their weights rounded, for inference.
#include <sluice/sluice.hpp>

#include <iomanip>
#include <iostream>

namespace {

/// Bytes of all weights as they lie in memory.
template <typename Bank>
std::size_t weight_bytes(const Bank& bank) {
  std::size_t bytes = 0;
  sluice::for_each_parameter(bank, [&](std::string_view, const auto& p) { bytes += p.value().size_bytes(); });
  return bytes;
}

template <typename Layer>
sluice::matrix<float> outputs(const Layer& layer, const sluice::matrix<float>& x) {
  sluice::matrix<float> y(x.rows(), layer.outputs());
  typename Layer::workspace workspace;
  layer.forward(x, y, workspace);
  return y;
}

}  // namespace

int main() {
  sluice::moe_layer layer{sluice::top_k_router<float>{64, 8, {.top_k = 2}},
                          sluice::expert_bank<sluice::swiglu<float>>{8, 64, 128}};
  sluice::initialize(layer, /*seed=*/7);  // or trained, or loaded

  const auto small = layer.stored_as<sluice::bfloat16_storage>();
  const auto smaller = layer.stored_as<sluice::int8_blocks>();
  const auto smallest = layer.stored_as<sluice::int4_blocks>();

  const sluice::matrix<float> x = sluice::matrix<float>::Random(5, 64);
  const sluice::matrix<float> y = outputs(layer, x);
  bool all_close = true;
  const auto compare = [&](const char* name, const auto& rounded, float most) {
    const float difference = (outputs(rounded, x) - y).norm() / y.norm();
    all_close = all_close && difference < most;
    std::cout << std::left << std::setw(10) << name << std::right << std::setw(8) << weight_bytes(rounded.bank()) / 1024
              << " KB   outputs differ by " << std::setprecision(2) << 100 * difference << " %\n";
  };
  compare("float32", layer, 1e-6F);
  compare("bfloat16", small, 0.01F);
  compare("int8", smaller, 0.02F);
  compare("int4", smallest, 0.25F);
  return all_close ? 0 : 1;
}
