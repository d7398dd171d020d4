// Fine-tuning: low-rank adapters with a router of their own learn beside a frozen mixture, and only they are saved.
#include <sluice/adapter/adapter.hpp>
#include <sluice/io/model_file.hpp>
#include <sluice/sluice.hpp>

#include <filesystem>
#include <iostream>

using namespace sluice;

int main() {
  constexpr index_t T = 128, D = 16, E = 8, steps = 150;
  moe_layer pretrained{top_k_router<float>{D, E, {.top_k = 2}}, expert_bank<swiglu<float>>{E, D, 32}};
  initialize(pretrained, /*seed=*/7);

  // The base in bfloat16, frozen for good. Beside it four adapters of rank 4, of which every token gets two.
  auto layer = published::perft_routed(pretrained.stored_as<bfloat16_storage>(), low_rank_expert<float>{D, 4, {.scale = 2}},
                                       {.adapters = 4, .top_k = 2});
  initialize(layer.adapters(), /*seed=*/8);
  model_part adapters{layer, of_adapters};

  const matrix<float> x = matrix<float>::Random(T, D), target = x.rowwise().reverse();
  matrix<float> y(T, D), dx(T, D);
  decltype(layer)::tape tape;
  adamw<float> optimizer({.learning_rate = 1e-2});
  float first = 0, error = 0;
  for (index_t step = 0; step < steps; ++step) {
    layer.forward(x, y, tape);
    layer.backward(2 * (y - target) / float(T), dx, tape);
    optimizer.step(adapters);
    zero_gradients(adapters);
    layer.after_step(tape);
    error = (y - target).squaredNorm() / float(T);
    if (step == 0) first = error;
  }

  const auto file = std::filesystem::temp_directory_path() / "sluice_adapters.safetensors";
  save(adapters, file);
  std::cout << "squared error " << first << " -> " << error << ", " << std::filesystem::file_size(file)
            << " bytes of adapters\n";
  std::filesystem::remove(file);
  return error < first / 2 ? 0 : 1;
}
