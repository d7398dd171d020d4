#include "../io/messages.hpp"
#include "small_models.hpp"

#include <sluice/checkpoint/layer_tensors.hpp>
#include <sluice/io/checkpoint_writer.hpp>
#include <sluice/train/adamw.hpp>

#include <fstream>

using namespace sluice;
using test::published_file;

namespace {

/// Loads block 0 and writes it as the files have it.
template <typename Layer>
void write_back(const checkpoint_model& model, const Layer& layer, const std::filesystem::path& to) {
  layer_tensors tensors(layer, model.names({.layer = 0}));
  tensors.set_types_of(model.files());
  safetensors_writer file;
  tensors.add_to(file);
  file.save(to);
}

struct trained_names {
  std::vector<std::string> changed, kept;
};

/// Trains a layer for two steps and tells which parameters moved.
template <typename Layer>
trained_names train(Layer& layer) {
  test::held_parameters before, after;
  for_each_parameter(layer, before);
  adamw<double> optimizer{{.learning_rate = 1e-2}};
  typename Layer::tape tape;
  const auto x = test::random_matrix<double>(20, layer.inputs(), 5);
  const auto dy = test::random_matrix<double>(20, layer.outputs(), 6);
  matrix<double> y(20, layer.outputs()), dx(20, layer.inputs());
  for (int step = 0; step < 2; ++step) {
    layer.forward(x, y, tape);
    layer.backward(dy, dx, tape);
    optimizer.step(layer);
    zero_gradients(layer);
  }
  for_each_parameter(layer, after);
  trained_names names;
  for (std::size_t i = 0; i < before.all.size(); ++i) {
    const auto& [name, values] = after.all[i];
    (values == before.all[i].second ? names.kept : names.changed).push_back(name);
  }
  return names;
}

/// What is trained below: every other type would be compiled for nothing.
template <typename Layer>
inline constexpr bool is_trained_here =
    std::same_as<Layer, olmoe_layer<double>> || std::same_as<Layer, qwen2_moe_layer<double>> ||
    std::same_as<Layer, deepseek_v3_layer<double>> || std::same_as<Layer, gpt_oss_layer<double>> ||
    std::same_as<Layer, jetmoe_layer<double>> || std::same_as<Layer, phimoe_layer<double>>;

template <typename Layer>
auto& router_of(Layer& layer) {
  if constexpr (requires { layer.layer(); })
    return router_of(layer.layer());
  else
    return layer.router();
}

}  // namespace

TEST_CASE("layer_tensors: what was loaded is written back byte for byte, in every layout and type", "[checkpoint]") {
  const test::temporary_folder folder;
  for (const auto& [family, layouts] : test::small_models())
    for (const std::string& layout : layouts)
      for (const data_type type : {data_type::f32, data_type::bf16, data_type::f16, data_type::f64}) {
        CAPTURE(name_of(family), layout, name_of(type));
        published_file file;
        test::add_block(file, family, layout, test::small_weights(21), 0, type);
        file.save(folder / "in.safetensors");
        const checkpoint_model model(folder / "in.safetensors", test::small_config(family));
        // The numbers are bfloat16's, so float and bfloat16 hold them exactly.
        with_published_type<float>(model.config(), {.layer = 0}, [&]<typename Layer>(std::type_identity<Layer>) {
          write_back(model, load_layer<Layer>(model, {.layer = 0}), folder / "out.safetensors");
        });
        CHECK(test::read_bytes(folder / "in.safetensors") == test::read_bytes(folder / "out.safetensors"));
        if (type != data_type::bf16) continue;
        with_published_type<float, bfloat16_storage>(
            model.config(), {.layer = 0}, [&]<typename Layer>(std::type_identity<Layer>) {
              write_back(model, load_layer<Layer>(model, {.layer = 0}), folder / "out.safetensors");
            });
        CHECK(test::read_bytes(folder / "in.safetensors") == test::read_bytes(folder / "out.safetensors"));
      }
}

TEST_CASE("layer_tensors: bits of NaN survive where nothing is converted", "[checkpoint]") {
  const test::temporary_folder folder;
  published_file file;
  test::add_block(file, model_family::olmoe, "stacked", test::small_weights(22), 0, data_type::bf16);
  file.save(folder / "in.safetensors");
  {  // a signalling NaN as the last number of the file
    std::fstream raw(folder / "in.safetensors", std::ios::binary | std::ios::in | std::ios::out);
    raw.seekp(-2, std::ios::end);
    raw.write("\x81\x7f", 2);
  }
  const checkpoint_model model(folder / "in.safetensors", test::small_config(model_family::olmoe));
  SECTION("in experts, which are kept as bfloat16") {
    auto layer = load_layer<olmoe_layer<float, bfloat16_storage>>(model, {.layer = 0});
    layer_tensors tensors(layer, model.names({.layer = 0}));
    tensors.set_types_of(model.files());
    safetensors_writer out;
    tensors.add_to(out);
    out.save(folder / "out.safetensors");
    const safetensors_reader a(folder / "in.safetensors"), b(folder / "out.safetensors");
    for (const char* const name : {"model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"})
      CHECK(std::ranges::equal(a.at(name).bytes, b.at(name).bytes));
  }
}

TEST_CASE("layer_tensors: a layer takes its place among the other tensors of a model", "[checkpoint]") {
  const test::temporary_folder folder;
  published_file file;
  test::add_block(file, model_family::olmoe, "per-expert", test::small_weights(25), 0, data_type::f32);
  test::add_block(file, model_family::olmoe, "per-expert", test::small_weights(26), 2, data_type::f32);
  file.add("model.embed_tokens.weight", {2, 2}, {1, 2, 3, 4});
  file.save(folder / "in.safetensors");
  const checkpoint_model model(folder / "in.safetensors", test::small_config(model_family::olmoe));
  const auto layer = load_layer<olmoe_layer<float>>(model, {.layer = 2});
  const layer_tensors tensors(layer, model.names({.layer = 0}));  // block 2 goes where block 0 was
  checkpoint_writer out;
  tensors.add_to(out);
  add_unchanged(out, model.files(), {&tensors});
  out.save(folder / "out", {.shard_bytes = 400});
  const checkpoint_model changed(folder / "out", model.config());
  CHECK(changed.files().tensors().size() == model.files().tensors().size());
  CHECK(changed.files().files().size() > 2);
  test::check_holds(load_layer<olmoe_layer<float>>(changed, {.layer = 0}), test::small_weights(26));
  test::check_holds(load_layer<olmoe_layer<float>>(changed, {.layer = 2}), test::small_weights(26));
  CHECK(changed.files().at("model.embed_tokens.weight").info.elements() == 4);
}

TEST_CASE("layer_tensors: types that hold no weights are refused, and layers of another family", "[checkpoint]") {
  const auto config = test::small_config(model_family::qwen2_moe);
  const auto layer = make_published_layer<qwen2_moe_layer<float>>(config, {.layer = 0});
  layer_tensors tensors(layer, tensor_names(config, {.layer = 0}));
  CHECK_THROWS_WITH(tensors.set_type(data_type::i64), test::contains("I64"));
  CHECK_THROWS_WITH(layer_tensors(layer, tensor_names(test::small_config(model_family::olmoe), {.layer = 0})),
                    test::contains("shared.gate"));
}

TEST_CASE("layer_tensors: a loaded layer is fine-tuned, the router alone or all, and saved as it came",
          "[checkpoint][train]") {
  const test::temporary_folder folder;
  const bool router_only = GENERATE(false, true);
  const auto family = GENERATE(model_family::olmoe, model_family::qwen2_moe, model_family::deepseek_v3,
                               model_family::gpt_oss, model_family::jetmoe, model_family::phimoe, model_family::llama4);
  CAPTURE(name_of(family), router_only);
  published_file file;
  const bool stacked =
      family != model_family::olmoe && family != model_family::qwen2_moe && family != model_family::deepseek_v3;
  test::add_block(file, family, stacked && family != model_family::phimoe ? "stacked" : "per-expert",
                  test::small_weights(23), 0, data_type::f64);
  file.save(folder / "in.safetensors");
  const checkpoint_model model(folder / "in.safetensors", test::small_config(family));
  with_published_type<double>(model.config(), {.layer = 0}, [&]<typename Layer>(std::type_identity<Layer>) {
    if constexpr (is_trained_here<Layer>) {
      Layer layer = load_layer<Layer>(model, {.layer = 0});
      if (router_only) {
        for_each_parameter(layer, [](const std::string&, auto& p) { p.set_frozen(true); });
        for_each_parameter(router_of(layer), [](const std::string&, auto& p) { p.set_frozen(false); });
      }
      const trained_names names = train(layer);
      for (const std::string& name : names.changed) {
        CAPTURE(name);
        if (router_only) CHECK(name.find("router.") != std::string::npos);
      }
      CHECK(!names.changed.empty());
      for (const std::string& name : names.kept) {
        CAPTURE(name);
        if (!router_only)
          CHECK(name.find("router.rule.bias") != std::string::npos);  // changes with the load, not by gradients
      }
      write_back(model, layer, folder / "out.safetensors");
      const checkpoint_model again(folder / "out.safetensors", model.config());
      Layer loaded = load_layer<Layer>(again, {.layer = 0});
      test::held_parameters written, read;
      for_each_parameter(layer, written);
      for_each_parameter(loaded, read);
      REQUIRE(read.all.size() == written.all.size());
      for (std::size_t i = 0; i < read.all.size(); ++i) {
        CAPTURE(read.all[i].first);
        CHECK(test::same_bits(read.all[i].second, written.all[i].second));
      }
      const safetensors_reader a(folder / "in.safetensors"), b(folder / "out.safetensors");
      REQUIRE(a.tensors().size() == b.tensors().size());
      for (const tensor_info& t : a.tensors()) {
        CHECK(b.at(t.name).shape == t.shape);
        CHECK(b.at(t.name).dtype == t.dtype);
      }
    } else {
      FAIL("the type of this family is not among those that are trained here");
    }
  });
}

TEST_CASE("layer_tensors: fine-tuning that stops and goes on from its files gives the same bits",
          "[checkpoint][train]") {
  const test::temporary_folder folder;
  published_file file;
  test::add_block(file, model_family::deepseek_v3, "stacked", test::small_weights(24), 0, data_type::f64);
  file.save(folder / "in.safetensors");
  const auto config = test::small_config(model_family::deepseek_v3);
  using layer_type = deepseek_v3_layer<double>;

  const auto train_steps = [](layer_type& layer, adamw<double>& optimizer, int first, int last) {
    layer_type::tape tape;
    for (int step = first; step < last; ++step) {
      const auto x = test::random_matrix<double>(20, 6, static_cast<std::uint64_t>(100 + step));
      const auto dy = test::random_matrix<double>(20, 6, static_cast<std::uint64_t>(200 + step));
      matrix<double> y(20, 6), dx(20, 6);
      layer.forward(x, y, tape);
      layer.backward(dy, dx, tape);
      optimizer.step(layer);
      layer.after_step(tape);  // moves the selection bias, which the published layout has a tensor for
      zero_gradients(layer);
    }
  };
  const auto load = [&](const char* name) {
    const checkpoint_model model(folder / name, config);
    return load_layer<layer_type>(model, {.layer = 0});
  };
  layer_type whole = load("in.safetensors");
  adamw<double> whole_optimizer{{.learning_rate = 1e-2}};
  train_steps(whole, whole_optimizer, 0, 6);

  {
    layer_type stopped = load("in.safetensors");
    adamw<double> optimizer{{.learning_rate = 1e-2}};
    train_steps(stopped, optimizer, 0, 3);
    write_back(checkpoint_model(folder / "in.safetensors", config), stopped, folder / "stopped.safetensors");
    save(optimizer, folder / "optimizer.safetensors");
  }
  layer_type resumed = load("stopped.safetensors");
  adamw<double> optimizer{{.learning_rate = 1e-2}};
  optimizer.prepare(resumed);
  sluice::load(optimizer, folder / "optimizer.safetensors");
  train_steps(resumed, optimizer, 3, 6);

  std::vector<matrix<double>> values;
  for_each_parameter(whole, [&](const std::string&, const auto& p) { values.push_back(p.to_matrix()); });
  std::size_t i = 0;
  for_each_parameter(resumed, [&](const std::string& name, const auto& p) {
    CAPTURE(name);
    CHECK(test::same_bits(p.to_matrix(), values[i++]));
  });
}
