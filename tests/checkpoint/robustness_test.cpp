// A damaged or exhausted world: nothing crashes, leaks or half-changes.
#include "small_models.hpp"

#include "../io/failing_allocation.hpp"
#include "published_layers.hpp"

#include <fstream>
#include <memory>
#include <random>
#include <thread>
#include <vector>

using namespace sluice;

namespace {

/// Loads block 0, or says in which way it was refused. Anything but file_error gets through.
bool loads(const std::filesystem::path& path, const model_config& config) {
  try {
    const checkpoint_model model(path, config);
    const auto layer = load_published_layer<float>(model, {.layer = 0});
    const matrix<float> x = matrix<float>::Ones(2, config.inputs);
    matrix<float> y(2, config.inputs);
    layer->forward(x, y);
    return true;
  } catch (const file_error&) {
    return false;
  }
}

}  // namespace

TEST_CASE("published layer: the n-th allocation fails while loading, for every n", "[checkpoint][memory]") {
  const test::temporary_folder folder;
  const auto family = GENERATE(model_family::qwen2_moe, model_family::gpt_oss);
  test::published_file file;
  const auto weights = test::small_weights(31);
  test::add_block(file, family, family == model_family::gpt_oss ? "stacked" : "per-expert", weights, 0, data_type::f32);
  file.save(folder / "m.safetensors");
  const model_config config = test::small_config(family);
  const std::filesystem::path path = folder / "m.safetensors";

  const long failures = test::fail_each_allocation(
      [&] {
        const checkpoint_model model(path, config);
        load_published_layer<float>(model, {.layer = 0});
      },
      [] {});
  CHECK(failures > 100);

  // A layer that exists keeps what it has.
  with_published_type<double>(config, {.layer = 0}, [&]<typename Layer>(std::type_identity<Layer>) {
    const checkpoint_model model(path, config);
    Layer layer = load_layer<Layer>(model, {.layer = 0});
    test::published_file other;
    test::add_block(other, family, family == model_family::gpt_oss ? "stacked" : "per-expert", test::small_weights(32),
                    0, data_type::f32);
    other.save(folder / "other.safetensors");
    const checkpoint_model second(folder / "other.safetensors", config);
    test::fail_each_allocation([&] { load_layer_into(layer, second, {.layer = 0}); },
                               [&] { test::check_holds(layer, weights); });
    test::check_holds(layer, test::small_weights(32));
  });
}

TEST_CASE("published layer: the n-th allocation fails while a whole model is opened and loaded",
          "[checkpoint][memory]") {
  const test::temporary_folder folder;
  test::published_file file;
  test::add_block(file, model_family::qwen3_moe, "per-expert", test::small_weights(37), 0, data_type::f32);
  test::add_block(file, model_family::qwen3_moe, "per-expert", test::small_weights(38), 2, data_type::f32);
  file.save(folder / "model.safetensors");
  std::ofstream(folder / "config.json") << to_json(test::small_config(model_family::qwen3_moe));
  const std::filesystem::path path = folder.path();
  const long failures = test::fail_each_allocation(
      [&] {
        const checkpoint_model model(path);
        load_published_layer<float>(model, {.layer = 2}, weight_type::bfloat16);
      },
      [] {});
  CHECK(failures > 200);
}

TEST_CASE("published layer: a file cut or altered anywhere is refused or loaded, never worse", "[checkpoint]") {
  const test::temporary_folder folder;
  test::published_file file;
  test::add_block(file, model_family::olmoe, "per-expert", test::small_weights(33), 0, data_type::f32);
  file.save(folder / "m.safetensors");
  const std::string whole = test::read_bytes(folder / "m.safetensors");
  const model_config config = test::small_config(model_family::olmoe);
  const std::filesystem::path damaged = folder / "damaged.safetensors";
  std::uint64_t header = 0;
  std::memcpy(&header, whole.data(), sizeof header);
  const std::size_t data = 8 + static_cast<std::size_t>(header);

  std::size_t accepted = 0;
  for (std::size_t length = 0; length < data; ++length) {
    test::write_bytes(damaged, whole.substr(0, length));
    accepted += loads(damaged, config);
  }
  CHECK(accepted == 0);
  std::mt19937 random(5);
  for (int i = 0; i < 1000; ++i) {
    test::write_bytes(damaged, whole.substr(0, data + random() % (whole.size() - data)));
    accepted += loads(damaged, config);
  }
  CHECK(accepted == 0);
  for (std::size_t i = 0; i < data; ++i) {
    std::string altered = whole;
    altered[i] = static_cast<char>(~altered[i]);
    test::write_bytes(damaged, altered);
    accepted += loads(damaged, config);
  }
  CHECK(accepted == 0);  // no byte of a header can be turned over without the file being another or none
}

TEST_CASE("published layer: whoever watches a load can stop it", "[checkpoint]") {
  const test::temporary_folder folder;
  test::published_file file;
  test::add_block(file, model_family::mixtral, "per-expert", test::small_weights(34), 0, data_type::f32);
  file.save(folder / "m.safetensors");
  const checkpoint_model model(folder / "m.safetensors", test::small_config(model_family::mixtral));
  struct enough {};
  layer_load_options options;
  options.progress = [](void*, std::uint64_t, std::uint64_t) { throw enough{}; };
  CHECK_THROWS_AS(load_published_layer<float>(model, {.layer = 0}, weight_type::bfloat16, options), enough);
}

TEST_CASE("published layer: equals the layer of the known type, in every storage", "[checkpoint]") {
  const test::temporary_folder folder;
  for (const auto& [family, layouts] : test::small_models()) {
    CAPTURE(name_of(family));
    test::published_file file;
    test::add_block(file, family, layouts.front(), test::small_weights(35), 2, data_type::bf16);
    file.save(folder / "m.safetensors");
    const checkpoint_model model(folder / "m.safetensors", test::small_config(family));
    const auto x = test::random_matrix<float>(11, 6, 36);
    matrix<float> y(11, 6), z(11, 6);
    with_published_type<float>(model.config(), {.layer = 2}, [&]<typename Layer>(std::type_identity<Layer>) {
      typename Layer::workspace workspace;
      load_layer<Layer>(model, {.layer = 2}).forward(x, y, workspace);
    });
    for (const weight_type weights : {weight_type::as_scalar, weight_type::bfloat16, weight_type::float16}) {
      const auto layer = load_published_layer<float>(model, {.layer = 2}, weights);
      layer->forward(x, z);
      CHECK(test::same_bits(y, z));  // the numbers are exact in all three
      CHECK(layer->experts() == 4);
      CHECK(layer->plan().tokens() == 11);
      CHECK(layer->expert_bytes(1) > 0);
      CHECK(layer->weight_bytes() >= 4 * layer->expert_bytes(1));
    }
    CHECK_THROWS_AS(load_published_layer<double>(model, {.layer = 2}, weight_type::bfloat16), std::invalid_argument);
  }
}

TEST_CASE("published layer: threads share its weights, each with an object of its own", "[checkpoint][threads]") {
  const test::temporary_folder folder;
  test::published_file file;
  test::add_block(file, model_family::mixtral, "per-expert", test::small_weights(35), 0, data_type::f32);
  file.save(folder / "m.safetensors");
  const checkpoint_model model(folder / "m.safetensors", test::small_config(model_family::mixtral));
  auto layer = load_published_layer<float>(model, {.layer = 0});
  std::vector<matrix<float>> inputs, expected;
  std::vector<std::unique_ptr<published_layer<float>>> shared;
  for (const index_t tokens : {1, 5, 17}) {
    inputs.push_back(test::random_matrix<float>(tokens, 6, 36));
    expected.emplace_back(tokens, 6);
    layer->forward(inputs.back(), expected.back());
    shared.push_back(layer->share());
  }
  CHECK(shared[0]->weight_bytes() == layer->weight_bytes());
  layer.reset();  // the weights stay
  std::vector<int> right(3, 0);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < 3; ++i)
    threads.emplace_back([&, i] {
      matrix<float> y(inputs[i].rows(), 6);
      for (int repeat = 0; repeat < 20; ++repeat) {
        shared[i]->forward(inputs[i], y);
        right[i] += test::same_bits(y, expected[i]);
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(right == std::vector<int>{20, 20, 20});
}
