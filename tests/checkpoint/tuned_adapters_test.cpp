// Adapters that are trained on a layer loaded from a published model's files, saved alone, and put on it again.
#include "small_models.hpp"

#include <sluice/adapter/fine_tuning.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/io/model_file.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/initialize.hpp>
#include <sluice/train/model_part.hpp>

using namespace sluice;

namespace {

using tuned_base_layer = olmoe_layer<float, bfloat16_storage>;

auto tuned_layer(const checkpoint_model& model, std::uint64_t seed) {
  auto layer = published::perft_routed(load_layer<tuned_base_layer>(model, {.layer = 2}),
                                       ffn<float>{6, 3, {.zero_output = true}}, {.adapters = 3, .top_k = 2});
  initialize(layer.adapters(), seed);
  return layer;
}

template <typename Layer>
matrix<float> tuned_output(const Layer& layer, const matrix<float>& x) {
  matrix<float> y(x.rows(), 6);
  typename Layer::workspace workspace;
  layer.forward(x, y, workspace);
  return y;
}

}  // namespace

TEST_CASE("adapters on a published layer: the base stays bit for bit, and only adapters are saved",
          "[checkpoint][adapter]") {
  const test::temporary_folder folder;
  const auto weights = test::small_weights(17);
  test::published_file file;
  test::add_block(file, model_family::olmoe, "per-expert", test::small_weights(16), 0, data_type::bf16);
  test::add_block(file, model_family::olmoe, "per-expert", weights, 2, data_type::bf16);
  file.save(folder / "model.safetensors");
  const checkpoint_model model(folder / "model.safetensors", test::small_config(model_family::olmoe));

  auto layer = tuned_layer(model, 1);
  const matrix<float> x = test::random_matrix<float>(24, 6, 2);
  const matrix<float> before = tuned_output(layer.base(), x);
  CHECK(test::same_bits(tuned_output(layer, x), before));
  const matrix<float> target = before + test::random_matrix<float>(24, 6, 3);

  model_part adapters{layer, of_adapters};
  adamw<float> steps{{.learning_rate = 0.02}};
  matrix<float> y(24, 6), dx(24, 6);
  decltype(layer)::tape tape;
  std::vector<float> losses;
  for (int step = 0; step < 60; ++step) {
    layer.forward(x, y, tape);
    losses.push_back((y - target).squaredNorm());
    layer.backward(2 * (y - target), dx, tape);
    steps.step(adapters);
    zero_gradients(layer);
  }
  CHECK(losses.back() < 0.7F * losses.front());
  test::check_holds(layer.base(), weights);
  CHECK(test::same_bits(tuned_output(layer.base(), x), before));

  save(adapters, folder / "adapters.safetensors");
  const safetensors_reader saved(folder / "adapters.safetensors");
  CHECK(saved.tensors().size() == 1 + 3 * 2);
  for (const auto& tensor : saved.tensors()) CHECK(tensor.name.starts_with("adapters."));
  auto other = tuned_layer(model, 99);
  model_part other_adapters{other, of_adapters};
  load(other_adapters, folder / "adapters.safetensors");
  CHECK(test::same_bits(tuned_output(other, x), tuned_output(layer, x)));
}
