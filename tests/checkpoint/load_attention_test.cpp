#include <sluice/checkpoint/load_attention.hpp>

#include "../io/file_cases.hpp"
#include "../io/messages.hpp"
#include "small_models.hpp"

using namespace sluice;
using test::published_file;

namespace {

constexpr index_t head_experts = 4, model_width = 6, key_heads_in_file = 2, width_in_file = 4;
const std::string attention_prefix = "model.layers.1.self_attention.";

const std::string small_jetmoe_config =
    R"({"architectures": ["JetMoEForCausalLM"], "model_type": "jetmoe", "hidden_size": 6,
  "intermediate_size": 5, "num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 3, "glu": true,
  "activation_function": "silu", "num_key_value_heads": 2, "kv_channels": 4, "rope_theta": 500, "num_attention_heads": 4})";

/// The tensors of a block's attention, each counting up from a number of its own.
published_file attention_file(data_type type = data_type::f32) {
  published_file file;
  double first = 0;
  const auto add = [&](const std::string& name, std::vector<std::int64_t> shape) {
    std::int64_t count = 1;
    for (const std::int64_t axis : shape) count *= axis;
    std::vector<double> values;
    for (std::int64_t i = 0; i < count; ++i) values.push_back((first + static_cast<double>(i)) / 1024);
    first += 200;
    file.add(attention_prefix + name, std::move(shape), std::move(values), type);
  };
  const index_t heads = key_heads_in_file * width_in_file;
  add("experts.router.layer.weight", {head_experts, model_width});
  add("experts.input_linear.weight", {head_experts, heads, model_width});
  add("experts.output_linear.weight", {head_experts, model_width, heads});
  add("experts.bias", {model_width});
  add("kv_proj.weight", {2 * heads, model_width});
  return file;
}

/// A folder as it is published: a config, an attention, and tensors of other parts.
void save_small_jetmoe(const test::temporary_folder& folder, published_file file) {
  file.add("model.layers.1.input_layernorm.weight", {model_width}, std::vector<double>(as_size(model_width), 1.0));
  file.add("model.layers.2.self_attention.kv_proj.weight", {1}, {1});
  file.save(folder / "model.safetensors");
  test::write_bytes(folder / "config.json", small_jetmoe_config);
}

std::string complaint_of_attention(const published_file& file) {
  const test::temporary_folder folder;
  save_small_jetmoe(folder, file);
  try {
    load_attention<jetmoe_attention<float>>(checkpoint_model(folder / "config.json"), {.layer = 1});
  } catch (const file_error& error) {
    return error.what();
  }
  return {};
}

}  // namespace

TEST_CASE("load_attention: every number of JetMoE's attention is where it belongs", "[checkpoint][attention]") {
  const test::temporary_folder folder;
  save_small_jetmoe(folder, attention_file());
  const checkpoint_model model(folder / "config.json");
  auto attention = load_attention<jetmoe_attention<double>>(model, {.layer = 1});
  const auto& o = attention.options();
  CHECK((o.key_heads == 2 && o.head_width == 4 && o.output_bias && o.rotary.width == 4 && o.rotary.base == 500));
  CHECK((attention.inputs() == 6 && attention.experts() == 4 && attention.router().top_k() == 2));
  const auto number = [](index_t tensor, index_t element) {
    return static_cast<double>(200 * tensor + element) / 1024;
  };
  for (index_t e = 0; e < 4; ++e) {
    const matrix<double> query = attention.query().expert(e).weight().to_matrix();
    const matrix<double> output = attention.output().expert(e).weight().to_matrix();
    for (index_t w = 0; w < 8; ++w)
      for (index_t d = 0; d < 6; ++d) {
        CHECK(query(w, d) == number(1, (e * 8 + w) * 6 + d));
        CHECK(output(d, w) == number(2, (e * 6 + d) * 8 + w));
      }
  }
  for (index_t w = 0; w < 8; ++w)
    for (index_t d = 0; d < 6; ++d) {
      CHECK(attention.key().to_matrix()(w, d) == number(4, w * 6 + d));
      CHECK(attention.value().to_matrix()(w, d) == number(4, (8 + w) * 6 + d));
    }
  CHECK(attention.router().gate().weight().to_matrix()(3, 5) == number(0, 23));
  CHECK(attention.output_bias().to_matrix()(5, 0) == number(3, 5));

  // In two bytes and half its memory it is the same attention, rounded.
  const auto small = load_attention<jetmoe_attention<float, bfloat16_storage>>(model, {.layer = 1});
  const matrix<double> x = test::random_matrix<double>(5, 6, 1);
  const matrix<float> x_float = x.cast<float>();
  matrix<double> y(5, 6);
  matrix<float> y_float(5, 6);
  decltype(attention)::workspace ws;
  std::remove_const_t<decltype(small)>::workspace small_ws;
  attention.forward(x, y, ws);
  small.forward(x_float, y_float, small_ws);
  CHECK(test::largest_difference(y_float, matrix<float>(y.cast<float>())) <
        0.02F * static_cast<float>(y.cwiseAbs().maxCoeff()));
}

TEST_CASE("load_attention: strict about the block and blind to everything else", "[checkpoint][attention]") {
  CHECK(complaint_of_attention(attention_file()).empty());
  auto missing = attention_file();
  missing.tensors.erase(attention_prefix + "experts.bias");
  missing.add(attention_prefix + "experts.extra", {1}, {1});
  const std::string complaint = complaint_of_attention(missing);
  CHECK_THAT(complaint, test::contains("attention of layers.1"));
  CHECK_THAT(complaint, test::contains("missing \"" + attention_prefix + "experts.bias\""));
  CHECK_THAT(complaint, test::contains("left over \"" + attention_prefix + "experts.extra\""));
  auto narrow = attention_file();
  narrow.add(attention_prefix + "kv_proj.weight", {12, 6}, std::vector<double>(72, 0.5));
  CHECK_THAT(complaint_of_attention(narrow), test::contains("shape is [12, 6], the layer needs [16, 6]"));
}

TEST_CASE("load_attention: other families and other layers are refused", "[checkpoint][attention]") {
  const test::temporary_folder folder;
  save_small_jetmoe(folder, attention_file());
  const checkpoint_model model(folder / "config.json");
  CHECK_THROWS_WITH(load_attention<jetmoe_attention<float>>(model, {.layer = 3}), test::contains("0 to 2"));
  const checkpoint_model mixtral(folder / "model.safetensors", test::small_config(model_family::mixtral));
  CHECK_THROWS_WITH(load_attention<jetmoe_attention<float>>(mixtral, {.layer = 1}), test::contains("mixtral"));
  test::write_bytes(folder / "odd.json", R"({"kv_channels": 5})");
  CHECK_THROWS_WITH(read_jetmoe_attention(folder / "odd.json"), test::contains("must be even, is 5"));
  test::write_bytes(folder / "usual.json", "{}");
  CHECK(read_jetmoe_attention(folder / "usual.json").head_width == 128);
}
