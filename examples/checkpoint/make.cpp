#include <sluice/checkpoint/converted_config.hpp>
#include <sluice/checkpoint/layer_tensors.hpp>
#include <sluice/io/checkpoint_writer.hpp>
#include <sluice/train/initialize.hpp>

#include <filesystem>
#include <iostream>
#include <list>
#include <memory>

#include "commands.hpp"
#include "interrupt.hpp"
#include "output.hpp"
#include "words.hpp"

namespace checkpoint {
namespace {

/// The habits of the family's published models at the sizes asked for.
sluice::model_config config_of(const make_options& o) {
  using enum sluice::model_family;
  const family_habits& habits = habits_of(o.family);
  sluice::model_config c;
  c.family = habits.family;
  c.inputs = o.inputs;
  c.hidden = o.hidden;
  c.experts = o.experts;
  c.top_k = c.family == switch_transformers ? 1 : o.top_k;
  c.layers = o.layers;
  for (std::int64_t l = 0; l < o.layers; ++l) c.moe_layers.push_back(l);
  c.renormalize = habits.renormalize && (c.top_k > 1 || (c.family != arctic && c.family != deepseek_v3));
  c.scaling = habits.scaling;
  c.shared_hidden = habits.shared * o.hidden;
  // What single families have besides.
  switch (c.family) {
    case deepseek_v3:
    case glm4_moe:
    case dots1:
    case nemotron_h:
      c.groups = {.score = sluice::group_limit::group_score::sum_of_two};
      break;
    case deepseek_v4:
      c.clamp = 10;
      c.hash_layers = {0};
      c.vocabulary = 1000;
      break;
    case phimoe:
      c.jitter = 0.01;
      break;
    case gpt_oss:
      c.clamp = 7, c.router_bias = true;
      break;
    case megatron:
      c.softmax_first = c.top_k == 1;  // a softmax over one logit is always 1: Megatron refuses it
      c.renormalize = !c.softmax_first;
      break;
    case switch_transformers:
      c.capacity = 64;
      c.decoder_layers = c.layers;
      c.decoder_moe_layers = c.moe_layers;
      break;
    case ernie4_5_moe:
      c.smallest_sum = 1e-12;
      break;
    case longcat_flash:
      c.zero_experts = c.experts / 2;
      break;
    case gemma4:
      c.norm_epsilon = 1e-6;
      break;
    default:
      break;
  }
  return c;
}

}  // namespace

void make(const make_options& o) {
  const sluice::model_config config = config_of(o);
  const sluice::data_type type = data_type_of(o.dtype);
  const std::string json = sluice::to_json(config);
  std::list<std::shared_ptr<void>> layers;  // the tensors refer to them, the file to the tensors
  std::list<sluice::layer_tensors> tensors;
  sluice::checkpoint_writer file;
  file.metadata("format", "pt");
  for (const bool decoder : {false, true})
    for (const sluice::index_t l : decoder ? config.decoder_moe_layers : config.moe_layers) {
      check_interrupt();
      const sluice::block_id block{l, decoder};
      const std::uint64_t seed = o.seed + 2 * static_cast<std::uint64_t>(l) + (decoder ? 1 : 0);
      sluice::with_published_type<float>(config, block, [&]<typename Layer>(std::type_identity<Layer>) {
        const auto layer = std::make_shared<Layer>(sluice::make_published_layer<Layer>(config, block));
        sluice::initialize(*layer, seed);
        if constexpr (std::same_as<Layer, sluice::deepseek_v4_hash_layer<float>>) {
          auto& rule = layer->layer().router().rule();
          rule = {sluice::random_hash(config.vocabulary, config.experts, config.top_k, sluice::random_source(seed)),
                  rule.weights()};
        }
        const sluice::tensor_names usual(config, block);
        tensors.emplace_back(*layer, o.layout.empty() ? usual : usual.in_layout(o.layout));
        layers.push_back(layer);
      });
      tensors.back().set_type(type);
      tensors.back().add_to(file);
    }
  sluice::save_with_config(file, o.folder, json + '\n');
  std::cout << o.folder << ": " << config.moe_layers.size() + config.decoder_moe_layers.size() << " random layers of "
            << name_of(config.family) << ", " << config.experts << " experts, width " << config.inputs << ", hidden "
            << config.hidden << '\n';
}

}  // namespace checkpoint
