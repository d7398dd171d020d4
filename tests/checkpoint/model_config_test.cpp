#include <sluice/checkpoint/model_config.hpp>

#include "io/messages.hpp"
#include "io/temporary_folder.hpp"
#include "published_configs.hpp"
#include "support.hpp"

#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using namespace sluice;
using nlohmann::json;
using test::every;

namespace {

const std::filesystem::path folder = std::filesystem::path(SLUICE_TEST_DATA) / "malformed" / "config";

std::string text_of(const std::string& release) { return test::read_bytes(folder / ("valid_" + release + ".json")); }
json values_of(const std::string& release) { return json::parse(text_of(release)); }

model_config parse(const std::string& text) { return parse_model_config(text, "dir/config.json"); }
model_config parse(const json& values) { return parse(values.dump()); }

void require_sane(const model_config& c) {
  REQUIRE((c.inputs >= 1 && c.inputs <= 1 << 24 && c.hidden >= 1 && c.hidden <= 1 << 24));
  REQUIRE((c.top_k >= 1 && c.top_k <= c.experts && c.experts <= 1 << 20));
  REQUIRE((c.shared_hidden >= 0 && c.shared_hidden <= 1 << 24));
  REQUIRE((c.layers >= 1 && c.layers <= 1 << 16 && c.decoder_layers >= 0 && c.decoder_layers <= 1 << 16));
  REQUIRE_NOTHROW(c.groups.validate(c.experts, c.top_k));
  REQUIRE((std::isfinite(c.scaling) && c.scaling > 0 && std::isfinite(c.jitter) && std::isfinite(c.clamp) &&
           std::isfinite(c.capacity_factor)));
  const auto blocks = [](const std::vector<index_t>& list, index_t layers) {
    for (std::size_t i = 0; i < list.size(); ++i)
      REQUIRE((list[i] >= 0 && list[i] < layers && (i == 0 || list[i - 1] < list[i])));
  };
  blocks(c.moe_layers, c.layers);
  blocks(c.decoder_moe_layers, c.decoder_layers);
  REQUIRE(c.moe_layers.size() + c.decoder_moe_layers.size() > 0);
}

/// The message that the text is refused with, or "" if it is read; then it says something sane that can be written and
/// read again. An exception of any other type fails the test.
std::string complaint_about(const std::string& text) {
  try {
    const model_config config = parse(text);
    require_sane(config);
    REQUIRE(parse(to_json(config)) == config);
    return {};
  } catch (const file_error& error) {
    return error.what();
  }
}

/// A release with some of its keys changed; a null takes the key away.
std::string complaint_about(const std::string& release, const json& changes) {
  json values = values_of(release);
  json& target = values.contains("text_config") ? values["text_config"] : values;
  target.merge_patch(changes);
  return complaint_about(values.dump());
}

void check_message(const std::string& message, const std::vector<std::string>& parts) {
  CHECK_THAT(message, Catch::Matchers::StartsWith("sluice: file \"dir/config.json\": "));
  for (const std::string& part : parts) CHECK_THAT(message, test::contains(part));
  CHECK(message.size() < 700);
}

}  // namespace

TEST_CASE("model_config: published releases are read as their papers say", "[checkpoint]") {
  for (const auto& [name, expected] : test::published_configs()) {
    CAPTURE(name);
    const model_config config = read_model_config(folder / ("valid_" + name + ".json"));
    CHECK(config == expected);
    CHECK(to_json(config) == to_json(expected));
    require_sane(config);
  }
}

TEST_CASE("model_config: what is written is read as the same", "[checkpoint]") {
  for (const auto& [name, expected] : test::published_configs()) {
    CAPTURE(name);
    CHECK(parse(to_json(expected)) == expected);
  }
}

TEST_CASE("model_config: a folder is asked for its config.json", "[checkpoint]") {
  const test::temporary_folder here;
  test::write_bytes(here / "config.json", text_of("olmoe_1b_7b"));
  CHECK(read_model_config(here.path()) == read_model_config(here / "config.json"));
  CHECK_THROWS_AS(read_model_config(here / "missing.json"), file_error);
  CHECK_THROWS_AS(read_model_config(here / "missing"), file_error);
  test::write_bytes(here / "config.json", "");
  CHECK_THROWS_AS(read_model_config(here.path()), file_error);
}

TEST_CASE("model_config: more than 16 MB are refused, whatever they are", "[checkpoint]") {
  const std::string large((16U << 20U) + 1, ' ');
  check_message(complaint_about(large), {"16777217", "16777216"});
  CHECK(complaint_about(text_of("mixtral_8x7b") + large.substr(0, 1U << 20U)).empty());
}

TEST_CASE("model_config: every malformed file is refused with what is wrong", "[checkpoint]") {
  const std::map<std::string, std::vector<std::string>> complaints = {
      {"empty", {"not valid JSON"}},
      {"only_space", {"not valid JSON"}},
      {"not_an_object", {"must be a JSON object", "an array"}},
      {"cut_in_the_middle", {"not valid JSON"}},
      {"something_after_the_end", {"not valid JSON"}},
      {"nul_hides_the_rest", {"NUL at its byte"}},
      {"not_utf8", {"not valid JSON", "UTF-8"}},
      {"comment", {"not valid JSON"}},
      {"key_twice", {"\"hidden_size\"", "twice"}},
      {"key_twice_escaped", {"\"hidden_size\"", "twice"}},
      {"nested_too_deep", {"nested deeper than 32"}},
      {"nested_too_deep_never_closed", {"nested deeper than 32"}},
      {"number_overflows", {"\"hidden_size\"", "must be an integer", "is a number beyond 1.8e308"}},
      {"nan", {"\"hidden_size\"", "must be an integer", "is NaN"}},
      {"unknown_family", {"\"mistral\"", "\"MistralForCausalLM\"", "known model types", "mixtral", "gpt_oss"}},
      {"no_family", {"model_type", "architectures", "known model types"}},
      {"terminal_escape_in_family", {"\\x1B[31mred"}},
      {"more_chosen_than_there_are", {"\"num_experts_per_tok\"", "9 of 8"}},
      {"no_experts", {"\"num_local_experts\"", "from 1 to 1048576", "is 0"}},
      {"negative_width", {"\"hidden_size\"", "from 1 to 16777216", "is -4096"}},
      {"fractional_width", {"\"hidden_size\"", "integer", "is 4096.5"}},
      {"width_of_64_bits", {"\"hidden_size\"", "is 18446744073709551615"}},
      {"width_beyond_64_bits", {"\"hidden_size\"", "integer"}},
      {"million_layers", {"\"num_hidden_layers\"", "from 1 to 65536", "is 1000000"}},
      {"spellings_disagree", {"\"num_local_experts\"", "is 8", "\"num_experts\" is 16"}},
      {"groups_do_not_divide", {"\"n_group\"", "E = 256", "groups = 7"}},
      {"group_without_keys", {"\"topk_group\"", "missing"}},
      {"groups_of_one", {"\"n_group\"", "groups of 1 expert"}},
      {"kept_groups_too_small", {"\"topk_group\"", "k = 8", "1 groups of 4"}},
      {"llama4_without_text_config", {"\"text_config\"", "missing"}},
  };
  std::set<std::string> seen;
  std::size_t releases = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().stem().string();
    CAPTURE(name);
    if (name.starts_with("valid_")) {
      ++releases;
      continue;
    }
    REQUIRE(complaints.contains(name));
    seen.insert(name);
    check_message(complaint_about(test::read_bytes(entry.path())), complaints.at(name));
  }
  CHECK(seen.size() == complaints.size());
  CHECK(releases == test::published_configs().size());
}

TEST_CASE("model_config: each key that a family needs is missed by name", "[checkpoint]") {
  const std::map<std::string, std::vector<std::string>> needed = {
      {"mixtral_8x7b", {"hidden_size", "intermediate_size", "num_hidden_layers"}},
      {"olmoe_1b_7b", {"hidden_size", "intermediate_size", "num_hidden_layers"}},
      {"qwen1.5_moe_a2.7b",
       {"hidden_size", "moe_intermediate_size", "num_hidden_layers", "num_experts", "num_experts_per_tok",
        "shared_expert_intermediate_size"}},
      {"qwen3_30b_a3b",
       {"hidden_size", "moe_intermediate_size", "num_hidden_layers", "num_experts", "num_experts_per_tok"}},
      {"deepseek_v2",
       {"hidden_size", "moe_intermediate_size", "num_hidden_layers", "n_routed_experts", "num_experts_per_tok",
        "n_group", "topk_group"}},
      {"deepseek_v3",
       {"hidden_size", "moe_intermediate_size", "num_hidden_layers", "n_routed_experts", "num_experts_per_tok"}},
      {"phi_3.5_moe", {"hidden_size", "intermediate_size", "num_hidden_layers"}},
      {"jetmoe_8b", {"hidden_size", "ffn_hidden_size", "num_hidden_layers"}},
      {"switch_base_8", {"d_model", "d_ff", "num_layers"}},
      {"gpt_oss_20b", {"hidden_size", "intermediate_size", "num_hidden_layers", "num_local_experts"}},
      {"llama4_scout", {"hidden_size", "intermediate_size", "num_hidden_layers", "num_local_experts"}},
      {"megatron", {"hidden_size", "num_layers", "num_moe_experts"}},
  };
  for (const auto& [release, keys] : needed) {
    const std::string path = release == "llama4_scout" ? "\"text_config." : "\"";
    for (const std::string& key : keys) {
      CAPTURE(release, key);
      check_message(complaint_about(release, {{key, nullptr}}), {path + key + "\"", "missing"});
      for (const json& wrong : {json("1"), json(true), json(1.5), json(0), json(-1), json::array({1}), json::object()})
        if (wrong != 0 || key != "shared_expert_intermediate_size")  // 0: there is none
          check_message(complaint_about(release, {{key, wrong}}), {path + key + "\"", "integer"});
    }
  }
  check_message(complaint_about("megatron", {{"moe_ffn_hidden_size", nullptr}, {"ffn_hidden_size", nullptr}}),
                {"\"ffn_hidden_size\"", "missing"});
  check_message(
      complaint_about("switch_base_8", {{"encoder_sparse_step", nullptr}, {"num_sparse_encoder_layers", nullptr}}),
      {"\"encoder_sparse_step\"", "\"num_sparse_encoder_layers\"", "missing"});
}

TEST_CASE("model_config: what a family does not do is refused by key and value", "[checkpoint]") {
  struct refusal {
    const char* release;
    json changes;
    std::vector<std::string> parts;
  };
  const std::vector<refusal> refusals = {
      {"mixtral_8x7b", {{"hidden_act", "gelu"}}, {"\"hidden_act\"", "only \"silu\"", "\"gelu\""}},
      {"mixtral_8x7b", {{"hidden_act", 3}}, {"\"hidden_act\"", "not 3"}},
      {"olmoe_1b_7b", {{"norm_topk_prob", 1}}, {"\"norm_topk_prob\"", "true or false", "is 1"}},
      {"qwen3_30b_a3b", {{"mlp_only_layers", {48}}}, {"\"mlp_only_layers\"", "from 0 to 47", "is 48"}},
      {"qwen3_30b_a3b", {{"mlp_only_layers", 3}}, {"\"mlp_only_layers\"", "array"}},
      {"qwen3_30b_a3b", {{"mlp_only_layers", {1, "2"}}}, {"\"mlp_only_layers\"", "is \"2\""}},
      {"qwen3_30b_a3b", {{"decoder_sparse_step", 0}}, {"\"decoder_sparse_step\"", "is 0"}},
      {"qwen3_30b_a3b", {{"decoder_sparse_step", 49}}, {"none of its 48 blocks is a mixture"}},
      {"deepseek_v2", {{"topk_method", "noaux_tc"}}, {"\"topk_method\"", "\"noaux_tc\""}},
      {"deepseek_v2", {{"scoring_func", "sigmoid"}}, {"\"scoring_func\"", "\"softmax\"", "\"sigmoid\""}},
      {"deepseek_v2", {{"routed_scaling_factor", 0}}, {"\"routed_scaling_factor\"", "above 0", "is 0"}},
      {"deepseek_v2", {{"routed_scaling_factor", 1e300}}, {"\"routed_scaling_factor\"", "1e+300"}},
      {"deepseek_v2", {{"routed_scaling_factor", "16"}}, {"\"routed_scaling_factor\"", "number"}},
      {"deepseek_v2", {{"n_shared_experts", 1 << 20}}, {"\"n_shared_experts\"", "1048576 of width 1536"}},
      {"deepseek_v2", {{"first_k_dense_replace", 60}}, {"none of its 60 blocks"}},
      {"deepseek_v3", {{"topk_method", "greedy"}}, {"\"topk_method\"", "\"noaux_tc\"", "\"greedy\""}},
      {"deepseek_v3", {{"scoring_func", "softmax"}}, {"\"scoring_func\"", "\"sigmoid\""}},
      {"deepseek_v3", {{"topk_group", 9}}, {"\"topk_group\"", "kept"}},
      {"phi_3.5_moe", {{"num_experts_per_tok", 3}}, {"\"num_experts_per_tok\"", "must be 2", "is 3"}},
      {"phi_3.5_moe", {{"router_jitter_noise", 1.5}}, {"\"router_jitter_noise\"", "at most 1", "is 1.5"}},
      {"jetmoe_8b", {{"glu", false}}, {"\"glu\"", "only true"}},
      {"jetmoe_8b", {{"activation_function", "gelu"}}, {"\"activation_function\"", "\"gelu\""}},
      {"jetmoe_8b", {{"intermediate_size", 64}}, {"\"intermediate_size\"", "64", "\"ffn_hidden_size\" is 5632"}},
      {"switch_base_8", {{"feed_forward_proj", "gated-gelu"}}, {"\"feed_forward_proj\"", "\"gated-gelu\""}},
      {"switch_base_8", {{"dense_act_fn", "gelu"}}, {"\"dense_act_fn\"", "\"gelu\""}},
      {"switch_base_8", {{"is_gated_act", true}}, {"\"is_gated_act\"", "only false"}},
      {"switch_base_8", {{"num_selected_experts", 2}}, {"\"num_selected_experts\"", "must be 1", "is 2"}},
      {"switch_base_8", {{"expert_capacity", 0}}, {"\"expert_capacity\"", "is 0"}},
      {"gpt_oss_20b", {{"swiglu_alpha", 1.5}}, {"\"swiglu_alpha\"", "1.702", "1.5"}},
      {"gpt_oss_20b", {{"swiglu_limit", -7}}, {"\"swiglu_limit\"", "is -7"}},
      {"gpt_oss_20b", {{"experts_per_token", 8}}, {"\"num_experts_per_tok\"", "is 4", "\"experts_per_token\" is 8"}},
      {"gpt_oss_20b", {{"quantization_config", "mxfp4"}}, {"\"quantization_config\"", "object", "\"mxfp4\""}},
      {"llama4_scout", {{"moe_layers", {0, 48}}}, {"\"text_config.moe_layers\"", "from 0 to 47", "is 48"}},
      {"llama4_scout", {{"moe_layers", json::array()}}, {"none of its 48 blocks"}},
      {"megatron", {{"moe_token_drop_policy", "position"}}, {"\"moe_token_drop_policy\"", "\"position\""}},
      {"megatron", {{"moe_router_topk", 1}}, {"\"moe_router_pre_softmax\"", "moe_router_topk is 1"}},
      {"megatron", {{"moe_layer_freq", {0, 1, 1}}}, {"\"moe_layer_freq\"", "3 of 4"}},
      {"megatron", {{"moe_layer_freq", {0, 1, 1, 2}}}, {"\"moe_layer_freq\"", "is 2"}},
      {"megatron", {{"moe_layer_freq", "[0]+[1]*3"}}, {"\"moe_layer_freq\"", "\"[0]+[1]*3\""}},
      {"megatron", {{"moe_router_load_balancing_type", "sinkhorn"}}, {"sinkhorn"}},
      {"megatron", {{"moe_router_score_function", "sigmoid"}}, {"\"moe_router_score_function\"", "\"sigmoid\""}},
      {"megatron", {{"moe_router_num_groups", 2}}, {"\"moe_router_num_groups\""}},
      {"megatron", {{"moe_router_enable_expert_bias", true}}, {"\"moe_router_enable_expert_bias\""}},
      {"megatron", {{"swiglu", false}}, {"\"swiglu\""}},
  };
  for (const refusal& r : refusals) {
    CAPTURE(r.release, r.changes.dump());
    check_message(complaint_about(r.release, r.changes), r.parts);
  }
  json null_groups = values_of("deepseek_v3");
  null_groups["n_group"] = nullptr;
  check_message(complaint_about(null_groups.dump()), {"\"n_group\"", "is null"});
}

TEST_CASE("model_config: keys mean what the family's own code makes of them", "[checkpoint]") {
  const auto with = [](const char* release, const json& changes) {
    json values = values_of(release);
    (values.contains("text_config") ? values["text_config"] : values).merge_patch(changes);
    const model_config config = parse(values);
    CHECK(parse(to_json(config)) == config);
    return config;
  };

  SECTION("defaults") {
    const auto mixtral = with("mixtral_8x7b", {{"num_local_experts", nullptr}, {"num_experts_per_tok", nullptr}});
    CHECK((mixtral.experts == 8 && mixtral.top_k == 2));
    const auto v3 = with("deepseek_v3", {{"n_group", nullptr},
                                         {"topk_group", nullptr},
                                         {"routed_scaling_factor", nullptr},
                                         {"norm_topk_prob", nullptr},
                                         {"first_k_dense_replace", nullptr},
                                         {"moe_layer_freq", nullptr},
                                         {"n_shared_experts", nullptr},
                                         {"scoring_func", nullptr},
                                         {"topk_method", nullptr}});
    CHECK(v3 == parse(values_of("deepseek_v3")));
    CHECK(with("deepseek_v2_lite", {{"n_shared_experts", nullptr}}).shared_hidden == 0);
    CHECK(with("deepseek_v3", {{"num_nextn_predict_layers", nullptr}}).next_token_layers == 0);
    CHECK(with("phi_3.5_moe", {{"router_jitter_noise", nullptr}}).jitter == 0.01);
    CHECK(with("gpt_oss_20b", {{"swiglu_limit", nullptr}, {"num_experts_per_tok", nullptr}}).clamp == 7);
    CHECK(with("llama4_scout", {{"num_experts_per_tok", nullptr}}).top_k == 1);
    CHECK(with("megatron", {{"moe_layer_freq", nullptr}, {"moe_expert_capacity_factor", nullptr}}).capacity_factor ==
          0);
  }

  SECTION("weights of DeepSeek") {
    const auto v2 = with("deepseek_v2", {{"norm_topk_prob", true}});
    CHECK((v2.renormalize && v2.scaling == 1));
    const auto v2_top_1 = with("deepseek_v2", {{"norm_topk_prob", true}, {"num_experts_per_tok", 1}});
    CHECK((!v2_top_1.renormalize && v2_top_1.scaling == 16));
    const auto v3 = with("deepseek_v3", {{"norm_topk_prob", false}});
    CHECK((!v3.renormalize && v3.scaling == 2.5));
    const auto v3_top_1 = with("deepseek_v3", {{"num_experts_per_tok", 1}});
    CHECK((!v3_top_1.renormalize && v3_top_1.scaling == 2.5));
    CHECK(!with("deepseek_v2", {{"topk_method", "greedy"}}).groups.limits());
  }

  SECTION("which blocks are mixtures") {
    using blocks = std::vector<index_t>;
    CHECK(with("qwen3_30b_a3b", {{"decoder_sparse_step", 2}}).moe_layers == every(48, 1, 2));
    CHECK(with("qwen3_30b_a3b", {{"num_hidden_layers", 6}, {"mlp_only_layers", {3, 0, 3}}}).moe_layers ==
          blocks{1, 2, 4, 5});
    CHECK(with("deepseek_v2", {{"first_k_dense_replace", 3}, {"moe_layer_freq", 2}}).moe_layers == every(60, 4, 2));
    CHECK(with("deepseek_v2", {{"first_k_dense_replace", 3}, {"moe_layer_freq", 40}}).moe_layers == blocks{40});
    CHECK(with("deepseek_v2", {{"first_k_dense_replace", 0}, {"moe_layer_freq", 100}}).moe_layers == blocks{0});
    CHECK(with("llama4_scout", {{"interleave_moe_layer_step", 2}}).moe_layers == every(48, 1, 2));
    CHECK(with("llama4_scout", {{"moe_layers", {5, 1}}}).moe_layers == blocks{1, 5});
    CHECK(with("megatron", {{"moe_layer_freq", 2}}).moe_layers == blocks{0, 2});

    CHECK(with("switch_base_8", {{"encoder_sparse_step", 1}}).moe_layers == every(12));
    CHECK(with("switch_base_8", {{"encoder_sparse_step", 3}}).moe_layers == every(12, 1, 3));
    CHECK(with("switch_base_8", {{"encoder_sparse_step", 11}}).moe_layers == blocks{1});
    CHECK(with("switch_base_8", {{"encoder_sparse_step", 0}}).moe_layers.empty());
    CHECK(with("switch_base_8", {{"num_layers", 1}, {"encoder_sparse_step", 1}}).moe_layers == blocks{0});
    CHECK(with("switch_base_8", {{"encoder_sparse_step", nullptr}, {"num_sparse_encoder_layers", 3}}).moe_layers ==
          every(12, 1, 4));
    CHECK(with("switch_base_8", {{"decoder_sparse_step", nullptr}, {"num_sparse_decoder_layers", 0}})
              .decoder_moe_layers.empty());
    const auto symmetric = with("switch_base_8", {{"num_decoder_layers", nullptr}, {"num_layers", 4}});
    CHECK((symmetric.decoder_layers == 4 && symmetric.decoder_moe_layers == blocks{1, 3}));
  }

  SECTION("Megatron's softmax before and after the choice") {
    const auto before = with("megatron", {{"moe_router_pre_softmax", true}, {"moe_router_topk", 1}});
    CHECK((before.softmax_first && !before.renormalize && before.top_k == 1));
    const auto after = with("megatron", {{"moe_router_pre_softmax", nullptr}});
    CHECK((!after.softmax_first && after.renormalize));
    CHECK(with("megatron", {{"moe_router_topk_scaling_factor", 2.5}}).scaling == 2.5);
    CHECK(with("megatron", {{"moe_ffn_hidden_size", nullptr}}).hidden == 2048);
    CHECK(with("megatron", {{"moe_shared_expert_intermediate_size", 96}}).shared_hidden == 96);
  }

  SECTION("later spellings") {
    const auto jet = with("jetmoe_8b", {{"ffn_hidden_size", nullptr},
                                        {"moe_num_experts", nullptr},
                                        {"moe_top_k", nullptr},
                                        {"intermediate_size", 5632},
                                        {"num_local_experts", 8},
                                        {"num_experts_per_tok", 2}});
    CHECK(jet == parse(values_of("jetmoe_8b")));
    const auto oss = with("gpt_oss_20b", {{"num_experts_per_tok", nullptr}, {"num_experts", 32}});
    CHECK(oss.top_k == 4);
  }
}

TEST_CASE("model_config: the architecture decides where the model type is unknown or absent", "[checkpoint]") {
  for (const auto& spelling : detail::family_spellings) {
    if (spelling.architecture.empty()) continue;
    CAPTURE(spelling.architecture);
    for (const auto& [name, expected] : test::published_configs()) {
      if (expected.family != spelling.family) continue;
      const json release = values_of(name);
      json values = release.contains("text_config") ? release["text_config"] : release;
      for (std::string nest(spelling.nest); !nest.empty();) {  // "thinker_config.text_config": the inner one first
        const auto dot = nest.rfind('.');
        values = json{{nest.substr(dot + 1), values}};
        nest.resize(dot == std::string::npos ? 0 : dot);
      }
      values["architectures"] = {spelling.architecture};
      for (const char* type : {"", "a_derivative"}) {
        values["model_type"] = type;
        const model_config config = parse(values);
        CHECK(config.family == spelling.family);
        CHECK(config.model_type == (spelling.model_type.empty() ? name_of(spelling.family) : spelling.model_type));
        CHECK(parse(to_json(config)) == config);
      }
      values.erase("model_type");
      CHECK(parse(values).family == spelling.family);
    }
  }
  json both = values_of("mixtral_8x7b");
  both["architectures"] = {"OlmoeForCausalLM"};
  CHECK(parse(both).family == model_family::mixtral);
  both.erase("model_type");
  for (const json& wrong : {json("MixtralForCausalLM"), json::array(), json::array({1})}) {
    both["architectures"] = wrong;
    check_message(complaint_about(both.dump()), {"\"architectures\""});
  }
}

TEST_CASE("model_config: a shared expert of no width is none", "[checkpoint]") {
  const auto shared = [](const char* release, const char* key, const json& value) {
    json values = values_of(release);
    values[key] = value;
    const model_config config = parse(values);
    CHECK(parse(to_json(config)) == config);
    return config.shared_hidden;
  };
  for (const json& none : {json(0), json(nullptr)}) {
    CAPTURE(none);
    CHECK(shared("deepseek_v3", "n_shared_experts", none) == 0);
    CHECK(shared("deepseek_v2", "n_shared_experts", none) == 0);
    CHECK(shared("qwen1.5_moe_a2.7b", "shared_expert_intermediate_size", none) == 0);
    CHECK(shared("megatron", "moe_shared_expert_intermediate_size", none) == 0);
  }
}

TEST_CASE("model_config: the language model inside a model of several parts is read", "[checkpoint]") {
  const json inner = values_of("qwen3_30b_a3b");
  const model_config expected = parse(inner);
  for (const char* key : {"text_config", "language_config", "llm_config", "language_model_config"})
    for (const char* type : {"internvl_chat", "qwen3_moe"}) {
      CAPTURE(key, type);
      const json outer{{"model_type", type}, {"vision_config", {{"hidden_size", 8}}}, {key, inner}};
      CHECK(parse(outer) == expected);
    }
  CHECK(parse(json{{"thinker_config", {{"text_config", inner}}}, {"model_type", "a_chat"}}) == expected);
  // Names inside that are unknown or absent leave it to those around.
  json nameless = inner;
  nameless.erase("model_type");
  nameless.erase("architectures");
  CHECK(parse(json{{"model_type", "qwen3_moe"}, {"text_config", nameless}}) == expected);
  nameless["model_type"] = "a_text_part";
  CHECK(parse(json{{"architectures", {"Qwen3MoeForCausalLM"}}, {"text_config", nameless}}) == expected);
  json narrow = inner;
  narrow.erase("hidden_size");
  check_message(complaint_about(json{{"llm_config", narrow}}.dump()), {"\"llm_config.hidden_size\"", "missing"});
  json dense = inner;
  dense["text_config"] = nullptr;
  CHECK(parse(dense) == expected);
}

TEST_CASE("model_config: quantised weights are named, wherever the file says so", "[checkpoint]") {
  json scout = values_of("llama4_scout");
  scout["text_config"]["quantization_config"] = {{"quant_method", "compressed-tensors"}};
  CHECK(parse(scout).quantization == "compressed-tensors");
  scout["quantization_config"] = {{"quant_method", "fp8"}};
  CHECK(parse(scout).quantization == "fp8");
  scout["quantization_config"] = json::object();
  CHECK(parse(scout).quantization == "unnamed");
  scout["text_config"].erase("quantization_config");
  scout["quantization_config"] = nullptr;
  CHECK(parse(scout).quantization.empty());
}

TEST_CASE("model_config: what groups of compressed-tensors do not share is not told", "[checkpoint]") {
  json scout = values_of("llama4_scout");
  const auto encoding_with = [&](std::vector<std::pair<int, int>> bits_and_groups) {
    json groups = json::object();
    for (const auto& [bits, group] : bits_and_groups)
      groups["group_" + std::to_string(groups.size())] = {{"weights", {{"num_bits", bits}, {"group_size", group}}}};
    scout["quantization_config"] = {{"quant_method", "compressed-tensors"}, {"config_groups", groups}};
    const weight_encoding encoding = parse(scout).encoding;
    return std::pair(encoding.bits, encoding.group);
  };
  CHECK(encoding_with({{4, 32}, {4, 32}}) == std::pair<index_t, index_t>(4, 32));
  CHECK(encoding_with({{4, 32}, {8, 32}, {4, 32}}) == std::pair<index_t, index_t>(0, 32));
  CHECK(encoding_with({{8, 32}, {8, 128}}) == std::pair<index_t, index_t>(8, 0));
}

TEST_CASE("to_json: a config that its family cannot say is refused", "[checkpoint]") {
  const auto changed = [](const char* release, const auto& change) {
    model_config config = parse(values_of(release));
    change(config);
    return config;
  };
  CHECK_NOTHROW(to_json(changed("mixtral_8x7b", [](model_config& c) { c.model_type.clear(); })));
  const std::vector<model_config> unsayable = {
      changed("mixtral_8x7b", [](model_config& c) { c.renormalize = false; }),
      changed("mixtral_8x7b", [](model_config& c) { c.moe_layers.pop_back(); }),
      changed("mixtral_8x7b", [](model_config& c) { c.top_k = 9; }),
      changed("mixtral_8x7b", [](model_config& c) { c.layers = std::numeric_limits<index_t>::max(); }),
      changed("mixtral_8x7b", [](model_config& c) { c.layers = 0; }),
      changed("mixtral_8x7b", [](model_config& c) { c.model_type = "olmoe"; }),
      changed("mixtral_8x7b", [](model_config& c) { c.quantization = "\xFF"; }),
      changed("deepseek_v2",
              [](model_config& c) {
                c.moe_layers = {1, 2, 4};
              }),
      changed("deepseek_v2", [](model_config& c) { c.shared_hidden = 100; }),
      changed("deepseek_v2", [](model_config& c) { c.hidden = 0; }),
      changed("deepseek_v3", [](model_config& c) { c.scaling = std::numeric_limits<double>::quiet_NaN(); }),
      changed("deepseek_v3", [](model_config& c) { c.groups.score = group_limit::group_score::best; }),
      changed("switch_base_8",
              [](model_config& c) {
                c.moe_layers = {0, 2};
              }),
      changed("llama4_scout",
              [](model_config& c) {
                c.moe_layers = {2, 1};
              }),
      changed("qwen3_30b_a3b", [](model_config& c) { c.moe_layers.clear(); }),
      changed("megatron", [](model_config& c) { c.renormalize = false; }),
      changed("megatron", [](model_config& c) { c.capacity_factor = std::numeric_limits<double>::infinity(); }),
  };
  for (const model_config& config : unsayable) {
    CAPTURE(config.model_type);
    CHECK_THROWS_AS(to_json(config), std::invalid_argument);
  }
}

TEST_CASE("model_config: a file cut off after any byte is refused", "[checkpoint]") {
  for (const auto& [name, expected] : test::published_configs()) {
    const std::string text = text_of(name);
    const std::size_t end = text.rfind('}');  // only white space follows
    for (std::size_t length = 0; length <= end; ++length) {
      CAPTURE(name, length);
      REQUIRE(complaint_about(text.substr(0, length)) != "");
    }
  }
}

TEST_CASE("model_config: any bit of a file may be flipped without harm", "[checkpoint]") {
  int accepted = 0;
  int refused = 0;
  for (const auto& [name, expected] : test::published_configs()) {
    std::string text = values_of(name).dump();
    for (std::size_t i = 0; i < text.size(); ++i)
      for (int bit = 0; bit < 8; ++bit) {
        const char before = std::exchange(text[i], static_cast<char>(text[i] ^ (1 << bit)));
        (complaint_about(text).empty() ? accepted : refused) += 1;
        text[i] = before;
      }
  }
  CHECK(accepted > 1000);  // other keys and names, other numbers
  CHECK(refused > 10'000);
}
