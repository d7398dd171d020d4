// Runs one layer of a published model: of the folder given, or of a small model that is written first. That one is also
// trained for a step, and the trained layer saved as the model's own files have it.
//
//   use_checkpoint [FOLDER [LAYER]]
#include <sluice/checkpoint/published_layer.hpp>
#include <sluice/io/checkpoint_writer.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/initialize.hpp>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>

namespace {

/// A model of two small OLMoE layers, as the published one lies on disk.
std::filesystem::path write_small_model() {
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / "sluice_small_olmoe";
  std::filesystem::create_directories(folder);
  sluice::model_config config;
  config.family = sluice::model_family::olmoe;
  config.inputs = 32, config.hidden = 16, config.experts = 8, config.top_k = 2;
  config.layers = 2;
  config.moe_layers = {0, 1};
  std::ofstream(folder / "config.json") << sluice::to_json(config);

  auto first = sluice::make_published_layer<sluice::olmoe_layer<float>>(config, {.layer = 0});
  auto second = first;
  sluice::initialize(first, /*seed=*/1);
  sluice::initialize(second, /*seed=*/2);
  const sluice::layer_tensors tensors[] = {{first, sluice::tensor_names(config, {.layer = 0})},
                                           {second, sluice::tensor_names(config, {.layer = 1})}};
  sluice::safetensors_writer file;
  for (const sluice::layer_tensors& layer : tensors) layer.add_to(file);
  file.save(folder / "model.safetensors");
  return folder;
}

/// One step towards outputs of zero, and the whole model into another folder.
void fine_tune(const sluice::checkpoint_model& model, const std::filesystem::path& to) {
  auto layer = sluice::load_layer<sluice::olmoe_layer<float>>(model, {.layer = 0});
  sluice::adamw<float> optimizer{{.learning_rate = 1e-3f}};
  const sluice::matrix<float> x = sluice::matrix<float>::Random(16, layer.inputs());
  sluice::matrix<float> y(x.rows(), x.cols()), dx(x.rows(), x.cols());
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  layer.backward(y, dx, tape);  // the gradient of half the sum of squares
  optimizer.step(layer);

  sluice::layer_tensors tensors(layer, model.names({.layer = 0}));
  tensors.set_types_of(model.files());
  sluice::checkpoint_writer checkpoint;
  tensors.add_to(checkpoint);
  add_unchanged(checkpoint, model.files(), {&tensors});
  checkpoint.save(to, {.shard_bytes = 2'000'000'000});
  std::cout << "one step made, saved to " << to.string() << '\n';
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 3 || (argc > 1 && *argv[1] == '-')) {
    std::cerr << "usage: use_checkpoint [FOLDER [LAYER]]\n";
    return 2;
  }
  try {
    const std::filesystem::path folder = argc > 1 ? argv[1] : write_small_model();
    const sluice::index_t number = argc > 2 ? std::atoi(argv[2]) : 1;

    const sluice::checkpoint_model model(folder);  // its config.json, and one safetensors file or many with an index
    const auto layer = sluice::load_published_layer<float>(model, {.layer = number}, sluice::weight_type::bfloat16);
    const sluice::matrix<float> x = sluice::matrix<float>::Random(4, layer->inputs());
    sluice::matrix<float> y(x.rows(), x.cols());
    layer->forward(x, y);

    std::cout << sluice::name_of(model.config().family) << ", layer " << number << ": " << layer->experts()
              << " experts, " << layer->weight_bytes() / 1000 << " kB\n";
    const auto& plan = layer->plan();
    for (sluice::index_t token = 0; token < x.rows(); ++token) {
      std::cout << "token " << token << " went to";
      for (const sluice::index_t i : plan.of_token(token))
        std::cout << ' ' << plan.expert(i) << " (" << plan.weight(i) << ')';
      std::cout << '\n';
    }
    if (argc == 1) fine_tune(model, folder.string() + "_trained");
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
