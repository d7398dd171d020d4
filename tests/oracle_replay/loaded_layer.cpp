#include "loaded_layer.hpp"

#include "../checkpoint/published_files.hpp"
#include "../io/temporary_folder.hpp"

namespace oracle {
namespace {

template <typename Scalar>
sluice::model_family family_of(const oracle_case<Scalar>& c) {
  using enum sluice::model_family;
  const std::string system = c.file().metadata().at("system");
  for (const auto& [name, family] : {std::pair{"mixtral", mixtral},
                                     {"olmoe", olmoe},
                                     {"qwen2_moe", qwen2_moe},
                                     {"qwen3_moe", qwen3_moe},
                                     {"deepseek_v2", deepseek_v2},
                                     {"deepseek_v3", deepseek_v3},
                                     {"phimoe", phimoe},
                                     {"jetmoe", jetmoe},
                                     {"gpt_oss", gpt_oss},
                                     {"llama4", llama4},
                                     {"switch", switch_transformers},
                                     {"megatron", megatron}})
    if (system == name) return family;
  throw unsupported("no published layout of " + system);
}

/// What the config.json of a model of this one block would say.
template <typename Scalar>
sluice::model_config config_of(const oracle_case<Scalar>& c) {
  sluice::model_config config;
  config.family = family_of(c);
  config.inputs = c.template setting<index_t>("D");
  config.hidden = c.template setting<index_t>("H", c.has("experts.gate_up") ? c.axis("experts.gate_up", 2) / 2 : 0);
  config.experts = c.template setting<index_t>("E");
  config.top_k = c.template setting<index_t>("k");
  config.shared_hidden = c.has("shared.gate_proj") ? c.axis("shared.gate_proj", 0) : 0;
  config.renormalize = c.template setting<bool>("renormalise", false);
  config.scaling = c.template setting<double>("routed_scaling", 1);
  config.groups.groups = c.template setting<index_t>("n_group", 1);
  config.groups.kept = c.template setting<index_t>("topk_group", 1);
  if (config.family == sluice::model_family::deepseek_v3)
    config.groups.score = sluice::group_limit::group_score::sum_of_two;
  config.jitter = c.template setting<double>("jitter_eps", 0);
  config.clamp = c.template setting<double>("limit", 0);
  config.capacity = c.template setting<index_t>("capacity", 0);
  config.capacity_factor = c.template setting<double>("capacity_factor", 0);
  config.softmax_first = c.template setting<bool>("pre_softmax", true);
  config.router_bias = c.has("router.bias") && config.family != sluice::model_family::deepseek_v3;
  config.layers = 1;
  config.moe_layers = {0};
  return config;
}

/// The published file that holds the case's parameters. Numbers of a case are exact in float32.
template <typename Scalar>
sluice::test::published_file file_of(const oracle_case<Scalar>& c, const sluice::model_config& config,
                                     const char* layout) {
  const auto numbers = [&](const char* name) {
    std::vector<double> values;
    if (c.has(name))
      for (const Scalar v : c.numbers(name)) values.push_back(static_cast<double>(v));
    return values;
  };
  sluice::test::published_file file;
  using enum sluice::model_family;
  if (config.family == gpt_oss || config.family == jetmoe || config.family == llama4) {
    // Here the case has the matrices of all experts in one tensor, as the published files do.
    const auto [E, D, H, S] = std::tuple(config.experts, config.inputs, config.hidden, config.shared_hidden);
    const std::string p =
        config.family == llama4 ? "language_model.model.layers.0.feed_forward." : "model.layers.0.mlp.";
    if (config.family == jetmoe) {
      file.add(p + "router.layer.weight", {E, D}, numbers("router.weight"));
      file.add(p + "input_linear.weight", {E, 2 * H, D}, numbers("experts.input"));
      file.add(p + "output_linear.weight", {E, D, H}, numbers("experts.output"));
      file.add(p + "bias", {D}, numbers("bias"));
      return file;
    }
    file.add(p + "router.weight", {E, D}, numbers("router.weight"));
    file.add(p + "experts.gate_up_proj", {E, D, 2 * H}, numbers("experts.gate_up"));
    file.add(p + "experts.down_proj", {E, H, D}, numbers("experts.down"));
    if (config.family == gpt_oss) {
      file.add(p + "router.bias", {E}, numbers("router.bias"));
      file.add(p + "experts.gate_up_proj_bias", {E, 2 * H}, numbers("experts.gate_up_bias"));
      file.add(p + "experts.down_proj_bias", {E, D}, numbers("experts.down_bias"));
    } else {
      file.add(p + "shared_expert.gate_proj.weight", {S, D}, numbers("shared.gate_proj"));
      file.add(p + "shared_expert.up_proj.weight", {S, D}, numbers("shared.up_proj"));
      file.add(p + "shared_expert.down_proj.weight", {D, S}, numbers("shared.down_proj"));
    }
    return file;
  }
  sluice::test::block_weights w;
  w.E = config.experts, w.D = config.inputs, w.H = config.hidden, w.S = config.shared_hidden;
  const bool is_switch = config.family == switch_transformers;
  w.router = numbers("router.weight");
  w.selection_bias = numbers("router.bias");
  w.gate = numbers("experts.gate_proj");
  w.up = numbers(is_switch ? "experts.weight1" : "experts.up_proj");
  w.down = numbers(is_switch ? "experts.weight2" : "experts.down_proj");
  w.shared_gate = numbers("shared.gate_proj");
  w.shared_up = numbers("shared.up_proj");
  w.shared_down = numbers("shared.down_proj");
  w.shared_router = numbers("shared.router_weight");
  sluice::test::add_block(file, config.family, layout, w, 0, sluice::data_type::f32);
  if (is_switch && config.router_bias)
    file.add("encoder.block.0.layer.1.mlp.router.classifier.bias", {w.E}, numbers("router.bias"));
  return file;
}

}  // namespace

struct published_case::opened {
  sluice::test::temporary_folder folder;
  std::unique_ptr<sluice::checkpoint_model> model;
};

template <typename Scalar>
published_case::published_case(const oracle_case<Scalar>& c, const char* layout) : opened_(std::make_unique<opened>()) {
  const sluice::model_config config = config_of(c);
  const auto path = opened_->folder / "model.safetensors";
  file_of(c, config, layout).save(path);
  opened_->model = std::make_unique<sluice::checkpoint_model>(path, config);
}
template published_case::published_case(const oracle_case<float>&, const char*);
template published_case::published_case(const oracle_case<double>&, const char*);

published_case::~published_case() = default;
const sluice::checkpoint_model& published_case::model() const { return *opened_->model; }

}  // namespace oracle
