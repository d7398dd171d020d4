#include <sluice/checkpoint/layer_tensors.hpp>
#include <sluice/io/checkpoint_writer.hpp>
#include <sluice/train/initialize.hpp>

#include <filesystem>
#include <iostream>
#include <list>

#include "commands.hpp"
#include "interrupt.hpp"
#include "output.hpp"
#include "words.hpp"

namespace checkpoint {
namespace {

/// The conventions of the family's published models at the sizes asked for.
sluice::model_config config_of(const make_options& o) {
  using enum sluice::model_family;
  sluice::model_config c;
  c.family = family_of(o.family);
  c.inputs = o.inputs;
  c.hidden = o.hidden;
  c.experts = o.experts;
  c.top_k = c.family == switch_transformers ? 1 : o.top_k;
  c.layers = o.layers;
  for (std::int64_t l = 0; l < o.layers; ++l) c.moe_layers.push_back(l);
  c.renormalize = c.family == mixtral || c.family == qwen3_moe || c.family == deepseek_v3 || c.family == jetmoe ||
                  c.family == gpt_oss || c.family == megatron;
  if (c.family == qwen2_moe) c.shared_hidden = 2 * o.hidden;
  if (c.family == deepseek_v2 || c.family == deepseek_v3 || c.family == llama4) c.shared_hidden = o.hidden;
  if (c.family == deepseek_v3) {
    c.scaling = 2.5;
    c.groups = {.score = sluice::group_limit::group_score::sum_of_two, .masked_is_zero = true};
  }
  if (c.family == phimoe) c.jitter = 0.01;
  if (c.family == gpt_oss) c.clamp = 7, c.router_bias = true;
  if (c.family == megatron) c.softmax_first = false;
  if (c.family == switch_transformers) {
    c.capacity = 64;
    c.decoder_layers = c.layers;
    c.decoder_moe_layers = c.moe_layers;
  }
  return c;
}

}  // namespace

void make(const make_options& o) {
  const sluice::model_config config = config_of(o);
  const sluice::data_type type = data_type_of(o.dtype);
  const std::string json = sluice::to_json(config);
  sluice::with_published_type<float>(config, [&]<typename Layer>(std::type_identity<Layer>) {
    std::list<Layer> layers;  // the tensors refer to them, the file to the tensors
    std::list<sluice::layer_tensors> tensors;
    sluice::checkpoint_writer file;
    file.metadata("format", "pt");
    for (const bool decoder : {false, true})
      for (const sluice::index_t l : decoder ? config.decoder_moe_layers : config.moe_layers) {
        check_interrupt();
        layers.push_back(sluice::make_published_layer<Layer>(config));
        sluice::initialize(layers.back(), o.seed + 2 * static_cast<std::uint64_t>(l) + (decoder ? 1 : 0));
        const sluice::tensor_names usual(config, {l, decoder});
        tensors.emplace_back(layers.back(), o.layout.empty() ? usual : usual.in_layout(o.layout));
        tensors.back().set_type(type);
        tensors.back().add_to(file);
      }
    file.save(o.folder);
  });
  write_text(std::filesystem::path(o.folder) / "config.json", json + '\n');
  std::cout << o.folder << ": " << config.moe_layers.size() + config.decoder_moe_layers.size() << " random layers of "
            << name_of(config.family) << ", " << config.experts << " experts, width " << config.inputs << ", hidden "
            << config.hidden << '\n';
}

}  // namespace checkpoint
