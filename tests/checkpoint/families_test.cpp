// Small folders in the shape of real releases: config.json in full with toy sizes, tensors under their published
// names. What a layer computes is compared with a plain loop that is written out here.
#include <sluice/checkpoint/convert.hpp>
#include <sluice/checkpoint/layer_tensors.hpp>
#include <sluice/checkpoint/load_layer.hpp>

#include "../io/messages.hpp"
#include "../io/temporary_folder.hpp"
#include "../support.hpp"
#include "published_files.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <numeric>
#include <string>
#include <vector>

using namespace sluice;
using nlohmann::json;
using test::block_weights;
using test::published_file;

namespace {

using numbers = std::vector<double>;

double sigmoid_of(double z) { return 1 / (1 + std::exp(-z)); }
double silu_of(double z) { return z * sigmoid_of(z); }

numbers softmax_of(const numbers& logits) {
  numbers p;
  double sum = 0;
  for (const double l : logits) sum += std::exp(l);
  for (const double l : logits) p.push_back(std::exp(l) / sum);
  return p;
}

numbers each(const numbers& in, double (*f)(double)) {
  numbers out(in.size());
  std::transform(in.begin(), in.end(), out.begin(), f);
  return out;
}

/// m [rows, cols] from `at` on, times x
numbers times(const numbers& m, std::size_t at, std::size_t rows, const numbers& x) {
  numbers y(rows, 0.0);
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < x.size(); ++c) y[r] += m[at + r * x.size() + c] * x[c];
  return y;
}

/// What the experts of a token with this id are, in the table of a block that looks them up.
index_t looked_up(index_t id, index_t rank) { return (3 * id + 5 * rank + 1) % 8; }
constexpr index_t vocabulary = 11;

/// What a family does with the numbers of a block.
struct recipe {
  std::function<numbers(const numbers&)> scores = softmax_of;
  bool biased = false;       // the bias takes part in the choice
  bool renormalize = true;
  double smallest_sum = 0;
  double added_to_sum = 0;
  double scaling = 1;
  index_t top_k = 2;
  std::function<double(double, double)> unit = [](double a, double b) { return silu_of(a) * b; };
  std::function<double(double, double)> shared_unit = [](double a, double b) { return silu_of(a) * b; };
  enum class shared { none, plain, gated } shared_form = shared::none;
  index_t copies = 0;  // experts behind the last that return their input
  bool by_id = false;  // experts are looked up
  std::size_t latent = 0;  // experts read so many numbers, projections are in place of gates
};

numbers feed_forward(const numbers& gate, const numbers& up, const numbers& down, std::size_t expert,
                     std::size_t hidden, const numbers& x, const std::function<double(double, double)>& unit) {
  const numbers a = times(gate, expert * hidden * x.size(), hidden, x);
  const numbers b = times(up, expert * hidden * x.size(), hidden, x);
  numbers h(hidden);
  for (std::size_t j = 0; j < hidden; ++j) h[j] = unit(a[j], b[j]);
  return times(down, expert * hidden * x.size(), x.size(), h);
}

numbers expected_of(const block_weights& w, const recipe& r, const numbers& x, index_t id) {
  const auto E = static_cast<std::size_t>(w.E), H = static_cast<std::size_t>(w.H), S = static_cast<std::size_t>(w.S);
  const std::size_t all = E + static_cast<std::size_t>(r.copies);
  const numbers scores = r.scores(times(w.router, 0, all, x));
  std::vector<std::size_t> order(all);
  std::iota(order.begin(), order.end(), std::size_t(0));
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return scores[a] + (r.biased ? w.selection_bias[a] : 0) > scores[b] + (r.biased ? w.selection_bias[b] : 0);
  });
  order.resize(static_cast<std::size_t>(r.top_k));
  if (r.by_id)
    for (index_t j = 0; j < r.top_k; ++j)
      order[static_cast<std::size_t>(j)] = static_cast<std::size_t>(looked_up(id, j));
  double sum = 0;
  for (const std::size_t e : order) sum += scores[e];
  const numbers read = r.latent > 0 ? times(w.gate, 0, r.latent, x) : x;
  numbers y(read.size(), 0.0);
  const auto add = [&](double weight, const numbers& more) {
    for (std::size_t d = 0; d < y.size(); ++d) y[d] += weight * more[d];
  };
  for (const std::size_t e : order) {
    const double divisor = r.renormalize ? std::max(sum, r.smallest_sum) + r.added_to_sum : 1;
    add(scores[e] / divisor * r.scaling, e < E ? feed_forward(w.gate, w.up, w.down, e, H, read, r.unit) : x);
  }
  if (r.latent > 0) y = times(w.gate, r.latent * x.size(), x.size(), y);
  if (r.shared_form != recipe::shared::none)
    add(r.shared_form == recipe::shared::gated ? sigmoid_of(times(w.shared_router, 0, 1, x)[0]) : 1,
        feed_forward(w.shared_gate, w.shared_up, w.shared_down, 0, S, x, r.shared_unit));
  return y;
}

double gelu_of(double z) {
  return 0.5 * z * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (z + 0.044715 * z * z * z)));
}

/// x / sqrt(mean x^2 + epsilon), times the gains of norm number `which`, which are in place of biases
numbers normed(const numbers& x, const block_weights& w, std::size_t which) {
  double squares = 0;
  for (const double v : x) squares += v * v;
  numbers y(x.size());
  for (std::size_t d = 0; d < x.size(); ++d)
    y[d] = x[d] / std::sqrt(squares / static_cast<double>(x.size()) + 1e-6) * w.down_bias[which * x.size() + d];
  return y;
}

numbers expected_of_gemma(const block_weights& w, const recipe& r, const numbers& x, index_t) {
  numbers seen = normed(x, w, 0);
  for (double& v : seen) v /= std::sqrt(static_cast<double>(x.size()));
  const numbers scores = softmax_of(times(w.router, 0, static_cast<std::size_t>(w.E), seen));
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t(0));
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  order.resize(static_cast<std::size_t>(r.top_k));
  double sum = 0;
  for (const std::size_t e : order) sum += scores[e];
  numbers mixed(x.size(), 0.0);
  for (const std::size_t e : order) {
    const numbers out =
        feed_forward(w.gate, w.up, w.down, e, static_cast<std::size_t>(w.H), normed(x, w, 1), r.unit);
    for (std::size_t d = 0; d < x.size(); ++d) mixed[d] += scores[e] / sum * w.router_bias[e] * out[d];
  }
  numbers y = normed(mixed, w, 2);
  const numbers dense = normed(feed_forward(w.shared_gate, w.shared_up, w.shared_down, 0,
                                            static_cast<std::size_t>(w.S), normed(x, w, 3), r.unit),
                               w, 4);
  for (std::size_t d = 0; d < x.size(); ++d) y[d] += dense[d];
  return y;
}

// ---- how files have the matrices ------------------------------------------------------------------------------------

struct three_names {
  const char* gate;
  const char* up;
  const char* down;
};
constexpr three_names projections{"gate_proj.weight", "up_proj.weight", "down_proj.weight"};
constexpr three_names by_number{"w1.weight", "w3.weight", "w2.weight"};

void add_apart(published_file& file, const std::string& before, const block_weights& w, const three_names& names) {
  for (index_t e = 0; e < w.E; ++e) {
    const std::string name = before + std::to_string(e) + '.';
    if (names.gate != nullptr) file.add(name + names.gate, {w.H, w.D}, test::published::slice(w.gate, e, w.H * w.D));
    file.add(name + names.up, {w.H, w.D}, test::published::slice(w.up, e, w.H * w.D));
    file.add(name + names.down, {w.D, w.H}, test::published::slice(w.down, e, w.D * w.H));
  }
}

void add_stacked(published_file& file, const std::string& gate_up, const std::string& down, const block_weights& w) {
  file.add(gate_up, {w.E, 2 * w.H, w.D}, test::published::concatenated(w, w.gate, w.up));
  file.add(down, {w.E, w.D, w.H}, w.down);
}

void add_shared(published_file& file, const std::string& before, const block_weights& w, const three_names& names) {
  if (names.gate != nullptr) file.add(before + names.gate, {w.S, w.D}, w.shared_gate);
  file.add(before + names.up, {w.S, w.D}, w.shared_up);
  file.add(before + names.down, {w.D, w.S}, w.shared_down);
}

// ---- the releases ---------------------------------------------------------------------------------------------------

struct release {
  std::string name;
  json config;
  std::vector<block_id> blocks;  // all mixtures; the last is tried
  recipe how;
  index_t shared = 0;  // width of the shared expert
  std::function<void(published_file&, const block_weights&)> write;  // the last block
  std::function<numbers(const block_weights&, const recipe&, const numbers&, index_t id)> expected = expected_of;
};

constexpr index_t D = 6, H = 5, E = 8;

/// Keys of a release with more of them, or others in their place.
json with(json keys, const json& more) {
  keys.update(more);
  return keys;
}

recipe deepseek(double scaling = 2.5) {
  recipe r;
  r.scores = [](const numbers& l) { return each(l, sigmoid_of); };
  r.biased = true;
  r.added_to_sum = 1e-20;
  r.scaling = scaling;
  r.shared_form = recipe::shared::plain;
  return r;
}

std::vector<release> releases() {
  std::vector<release> all;

  const json qwen{{"attention_bias", false},
                  {"decoder_sparse_step", 1},
                  {"full_attention_interval", 4},
                  {"head_dim", 256},
                  {"hidden_act", "silu"},
                  {"hidden_size", D},
                  {"intermediate_size", 5120},
                  {"mlp_only_layers", json::array()},
                  {"moe_intermediate_size", H},
                  {"norm_topk_prob", true},
                  {"num_experts", E},
                  {"num_experts_per_tok", 2},
                  {"num_hidden_layers", 2},
                  {"rms_norm_eps", 1e-06},
                  {"router_aux_loss_coef", 0.001},
                  {"shared_expert_intermediate_size", 7},
                  {"tie_word_embeddings", false}};
  recipe gated;
  gated.shared_form = recipe::shared::gated;
  const auto write_qwen = [](const std::string& p, bool is_stacked) {
    return [p, is_stacked](published_file& file, const block_weights& w) {
      file.add(p + "gate.weight", {E, D}, w.router);
      if (is_stacked)
        add_stacked(file, p + "experts.gate_up_proj", p + "experts.down_proj", w);
      else
        add_apart(file, p + "experts.", w, projections);
      add_shared(file, p + "shared_expert.", w, projections);
      file.add(p + "shared_expert_gate.weight", {1, D}, w.shared_router);
    };
  };
  all.push_back({"Qwen3-Next",
                 with(qwen, {{"model_type", "qwen3_next"}, {"architectures", {"Qwen3NextForCausalLM"}}}),
                 {{0}, {1}},
                 gated,
                 7,
                 write_qwen("model.layers.1.mlp.", false)});
  json qwen35 = with(qwen, {{"model_type", "qwen3_5_moe_text"}, {"mtp_num_hidden_layers", 1}});
  for (const char* gone : {"norm_topk_prob", "decoder_sparse_step", "mlp_only_layers", "intermediate_size"})
    qwen35.erase(gone);
  const json qwen35_whole{{"architectures", {"Qwen3_5MoeForConditionalGeneration"}},
                          {"image_token_id", 248056},
                          {"model_type", "qwen3_5_moe"},
                          {"text_config", qwen35},
                          {"vision_config", {{"depth", 27}, {"hidden_size", 1152}, {"model_type", "qwen3_5_moe"}}}};
  all.push_back({"Qwen3.5", qwen35_whole, {{0}, {1}}, gated, 7,
                 write_qwen("model.language_model.layers.1.mlp.", true)});
  all.push_back({"Qwen3.5, its next-token block", qwen35_whole, {{0}, {1}, {2}}, gated, 7,
                 write_qwen("mtp.layers.0.mlp.", true)});

  json qwen3 = with(qwen, {{"model_type", "qwen3_vl_moe_text"}});
  qwen3.erase("shared_expert_intermediate_size");
  all.push_back({"Qwen3-VL",
                 {{"architectures", {"Qwen3VLMoeForConditionalGeneration"}},
                  {"model_type", "qwen3_vl_moe"},
                  {"text_config", qwen3},
                  {"vision_config", {{"depth", 27}, {"model_type", "qwen3_vl_moe"}}}},
                 {{0}, {1}},
                 {},
                 0,
                 [](published_file& file, const block_weights& w) {
                   const std::string p = "model.language_model.layers.1.mlp.";
                   file.add(p + "gate.weight", {E, D}, w.router);
                   file.add(p + "experts.gate_up_proj", {E, D, 2 * H},
                            test::published::transposed(test::published::concatenated(w, w.gate, w.up), E, 2 * H, D));
                   file.add(p + "experts.down_proj", {E, H, D}, test::published::transposed(w.down, E, D, H));
                 }});
  qwen3["model_type"] = "qwen3_omni_moe_text";
  all.push_back({"Qwen3-Omni",
                 {{"architectures", {"Qwen3OmniMoeForConditionalGeneration"}},
                  {"model_type", "qwen3_omni_moe"},
                  {"talker_config", {{"text_config", with(qwen3, {{"hidden_size", 4}})}}},
                  {"thinker_config",
                   {{"audio_config", {{"d_model", 1280}}},
                    {"model_type", "qwen3_omni_moe_thinker"},
                    {"text_config", qwen3}}}},
                 {{0}, {1}},
                 {},
                 0,
                 [](published_file& file, const block_weights& w) {
                   file.add("talker.model.layers.1.mlp.gate.weight", {E, 4}, numbers(4 * E));
                   file.add("thinker.model.layers.1.mlp.gate.weight", {E, D}, w.router);
                   add_apart(file, "thinker.model.layers.1.mlp.experts.", w, projections);
                 }});

  const json v3{{"architectures", {"DeepseekV32ForCausalLM"}},
                {"first_k_dense_replace", 1},
                {"hidden_act", "silu"},
                {"hidden_size", D},
                {"index_head_dim", 128},
                {"index_n_heads", 64},
                {"index_topk", 2048},
                {"intermediate_size", 18432},
                {"model_type", "deepseek_v32"},
                {"moe_intermediate_size", H},
                {"moe_layer_freq", 1},
                {"n_group", 1},
                {"n_routed_experts", E},
                {"n_shared_experts", 1},
                {"norm_topk_prob", true},
                {"num_experts_per_tok", 2},
                {"num_hidden_layers", 3},
                {"num_nextn_predict_layers", 1},
                {"routed_scaling_factor", 2.5},
                {"scoring_func", "sigmoid"},
                {"topk_group", 1},
                {"topk_method", "noaux_tc"}};
  const auto write_v3 = [](const std::string& p) {
    return [p](published_file& file, const block_weights& w) {
      file.add(p + "gate.weight", {E, D}, w.router);
      file.add(p + "gate.e_score_correction_bias", {E}, w.selection_bias);
      add_apart(file, p + "experts.", w, projections);
      add_shared(file, p + "shared_experts.", w, projections);
    };
  };
  all.push_back({"DeepSeek-V3.2", v3, {{1}, {2}}, deepseek(), H, write_v3("model.layers.2.mlp.")});
  all.push_back({"DeepSeek-V3.2, its next-token block", v3, {{1}, {2}, {3}}, deepseek(), H,
                 write_v3("model.layers.3.mlp.")});
  for (const char* type : {"kimi_k2", "deepseek_v3"})
    all.push_back({std::string("Kimi-K2.5 and Kimi-VL around ") + type,
                   {{"architectures", {"KimiK25ForConditionalGeneration"}},
                    {"media_placeholder_token_id", 163605},
                    {"model_type", type == std::string("kimi_k2") ? "kimi_k25" : "kimi_vl"},
                    {"text_config", with(v3, {{"architectures", {"DeepseekV3ForCausalLM"}},
                                              {"model_type", type},
                                              {"num_nextn_predict_layers", 0},
                                              {"routed_scaling_factor", 2.827}})},
                    {"vision_config", {{"hidden_size", 1152}}}},
                   {{1}, {2}},
                   deepseek(2.827),
                   H,
                   write_v3("language_model.model.layers.2.mlp.")});
  json vl2 = with(v3, {{"architectures", {"DeepseekV2ForCausalLM"}}, {"model_type", "deepseek_v2"}});
  vl2["use_mla"] = false;
  for (const char* gone : {"num_nextn_predict_layers", "index_topk"}) vl2.erase(gone);
  const auto inside_vl2 = [](const json& language) {
    return json{{"architectures", {"DeepseekVLV2ForCausalLM"}},
                {"language_config", language},
                {"model_type", "deepseek_vl_v2"},
                {"projector_config", {{"n_embed", 2560}}}};
  };
  all.push_back({"DeepSeek-VL2", inside_vl2(vl2), {{1}, {2}}, deepseek(), H, write_v3("language.model.layers.2.mlp.")});
  vl2.update({{"topk_method", "greedy"}, {"scoring_func", "softmax"}, {"norm_topk_prob", false},
              {"routed_scaling_factor", 1.0}});
  recipe v2;
  v2.renormalize = false;
  v2.shared_form = recipe::shared::plain;
  const auto write_v2 = [](const std::string& p) {
    return [p](published_file& file, const block_weights& w) {
      file.add(p + "gate.weight", {E, D}, w.router);
      add_apart(file, p + "experts.", w, projections);
      add_shared(file, p + "shared_experts.", w, projections);
    };
  };
  all.push_back({"DeepSeek-VL2-Small", inside_vl2(vl2), {{1}, {2}}, v2, H, write_v2("language.model.layers.2.mlp.")});
  vl2.erase("model_type");  // DeepSeek-OCR leaves the name to the architecture, and its keys stand outside as well
  json ocr = with(vl2, inside_vl2(vl2));
  ocr["architectures"] = {"DeepseekOCRForCausalLM"};
  all.push_back({"DeepSeek-OCR", ocr, {{1}, {2}}, v2, H, write_v2("model.layers.2.mlp.")});

  json glm = with(v3, {{"architectures", {"Glm4MoeForCausalLM"}}, {"model_type", "glm4_moe"}, {"use_qk_norm", true}});
  for (const char* gone : {"scoring_func", "topk_method", "moe_layer_freq", "index_topk"}) glm.erase(gone);
  all.push_back({"GLM-4.5", glm, {{1}, {2}}, deepseek(), H, write_v3("model.layers.2.mlp.")});
  all.push_back({"GLM-4.5V",
                 {{"architectures", {"Glm4vMoeForConditionalGeneration"}},
                  {"model_type", "glm4v_moe"},
                  {"text_config", with(glm, {{"model_type", "glm4v_moe_text"}})},
                  {"vision_config", {{"depth", 24}}}},
                 {{1}, {2}},
                 deepseek(),
                 H,
                 write_v3("model.language_model.layers.2.mlp.")});
  all.push_back({"GLM-5",
                 with(glm, {{"architectures", {"GlmMoeDsaForCausalLM"}},
                            {"first_k_dense_replace", 0},
                            {"mlp_layer_types", {"dense", "sparse", "sparse"}},
                            {"model_type", "glm_moe_dsa"}}),
                 {{1}, {2}},
                 deepseek(),
                 H,
                 write_v3("model.layers.2.mlp.")});
  json dots = with(glm, {{"architectures", {"Dots1ForCausalLM"}}, {"model_type", "dots1"}});
  dots["scoring_func"] = "noaux_tc";
  dots.erase("num_nextn_predict_layers");
  all.push_back({"dots.llm1", dots, {{1}, {2}}, deepseek(), H, write_v3("model.layers.2.mlp.")});

  recipe minimax = deepseek(1);
  minimax.added_to_sum = 0;
  minimax.shared_form = recipe::shared::none;
  const json minimax_m2{{"architectures", {"MiniMaxM2ForCausalLM"}},
                        {"hidden_act", "silu"},
                        {"hidden_size", D},
                        {"intermediate_size", H},
                        {"model_type", "minimax_m2"},
                        {"mtp_transformer_layers", 1},
                        {"num_experts_per_tok", 2},
                        {"num_hidden_layers", 2},
                        {"num_local_experts", E},
                        {"num_mtp_modules", 3},
                        {"router_jitter_noise", 0.0},
                        {"scoring_func", "sigmoid"},
                        {"shared_intermediate_size", 0},
                        {"use_mtp", true},
                        {"use_routing_bias", true}};
  const auto write_minimax = [](const std::string& p) {
    return [p](published_file& file, const block_weights& w) {
      file.add(p + "gate.weight", {E, D}, w.router);
      file.add(p + "e_score_correction_bias", {E}, w.selection_bias);
      add_apart(file, p + "experts.", w, by_number);
    };
  };
  all.push_back({"MiniMax-M2", minimax_m2, {{0}, {1}}, minimax, 0, write_minimax("model.layers.1.block_sparse_moe.")});
  all.push_back({"MiniMax-M2, its second next-token block", minimax_m2, {{0}, {1}, {3}}, minimax, 0,
                 write_minimax("model.layers.3.block_sparse_moe.")});

  recipe lfm = minimax;
  lfm.added_to_sum = 1e-6;
  const json lfm2{{"architectures", {"Lfm2MoeForCausalLM"}},
                  {"conv_L_cache", 3},
                  {"hidden_size", D},
                  {"intermediate_size", 7168},
                  {"layer_types", {"conv", "conv", "full_attention"}},
                  {"model_type", "lfm2_moe"},
                  {"moe_intermediate_size", H},
                  {"norm_topk_prob", true},
                  {"num_dense_layers", 2},
                  {"num_experts", E},
                  {"num_experts_per_tok", 2},
                  {"num_hidden_layers", 3},
                  {"routed_scaling_factor", 1.0},
                  {"use_expert_bias", true}};
  const auto write_lfm = [](bool biased) {
    return [biased](published_file& file, const block_weights& w) {
      const std::string p = "model.layers.2.feed_forward.";
      file.add(p + "gate.weight", {E, D}, w.router);
      if (biased) file.add(p + "expert_bias", {E}, w.selection_bias);
      add_apart(file, p + "experts.", w, by_number);
    };
  };
  all.push_back({"LFM2", lfm2, {{2}}, lfm, 0, write_lfm(true)});
  lfm.biased = false;
  all.push_back({"LFM2 without a bias", with(lfm2, {{"use_expert_bias", false}}), {{2}}, lfm, 0, write_lfm(false)});

  recipe granite;  // a softmax over the chosen logits is one over all, renormalised
  const json granite_moe{{"architectures", {"GraniteMoeForCausalLM"}},
                         {"attention_multiplier", 0.015625},
                         {"hidden_act", "silu"},
                         {"hidden_size", D},
                         {"intermediate_size", H},
                         {"model_type", "granitemoe"},
                         {"num_experts_per_tok", 2},
                         {"num_hidden_layers", 1},
                         {"num_local_experts", E},
                         {"residual_multiplier", 0.22}};
  const auto write_granite = [](bool has_shared) {
    return [has_shared](published_file& file, const block_weights& w) {
      const std::string p = "model.layers.0.";
      file.add(p + "self_attn.q_proj.weight", {1, D}, numbers(D));
      file.add(p + "block_sparse_moe.router.layer.weight", {E, D}, w.router);
      add_stacked(file, p + "block_sparse_moe.input_linear.weight", p + "block_sparse_moe.output_linear.weight", w);
      if (!has_shared) return;
      numbers both = w.shared_gate;
      both.insert(both.end(), w.shared_up.begin(), w.shared_up.end());
      file.add(p + "shared_mlp.input_linear.weight", {2 * w.S, D}, both);
      file.add(p + "shared_mlp.output_linear.weight", {D, w.S}, w.shared_down);
    };
  };
  all.push_back({"Granite-3.1", granite_moe, {{0}}, granite, 0, write_granite(false)});
  granite.shared_form = recipe::shared::plain;
  all.push_back({"Granite-4.0",
                 with(granite_moe, {{"architectures", {"GraniteMoeHybridForCausalLM"}},
                                    {"layer_types", {"mamba"}},
                                    {"model_type", "granitemoehybrid"},
                                    {"shared_intermediate_size", 7}}),
                 {{0}},
                 granite,
                 7,
                 write_granite(true)});

  recipe hunyuan;
  hunyuan.smallest_sum = 1.1920928955078125e-7;
  hunyuan.shared_form = recipe::shared::plain;
  all.push_back({"Hunyuan-A13B",
                 {{"architectures", {"HunYuanMoEV1ForCausalLM"}},
                  {"hidden_act", "silu"},
                  {"hidden_size", D},
                  {"intermediate_size", H},
                  {"model_type", "hunyuan"},
                  {"moe_drop_tokens", false},
                  {"moe_intermediate_size", {H, H}},
                  {"moe_layer_num_skipped", 0},
                  {"moe_topk", {2, 2}},
                  {"norm_topk_prob", true},
                  {"num_experts", E},
                  {"num_hidden_layers", 2},
                  {"num_shared_expert", {1, 1}},
                  {"use_mixed_mlp_moe", true}},
                 {{0}, {1}},
                 hunyuan,
                 H,
                 [](published_file& file, const block_weights& w) {
                   const std::string p = "model.layers.1.mlp.";
                   file.add(p + "gate.wg.weight", {E, D}, w.router);
                   add_apart(file, p + "experts.", w, projections);
                   add_shared(file, p + "shared_mlp.", w, projections);
                 }});

  recipe raw;
  raw.renormalize = false;
  all.push_back({"FlexOlmo",
                 {{"architectures", {"FlexOlmoForCausalLM"}},
                  {"hidden_act", "silu"},
                  {"hidden_size", D},
                  {"intermediate_size", H},
                  {"model_type", "flex_olmo"},
                  {"norm_topk_prob", false},
                  {"num_experts", E},
                  {"num_experts_per_tok", 2},
                  {"num_hidden_layers", 1}},
                 {{0}},
                 raw,
                 0,
                 [](published_file& file, const block_weights& w) {
                   file.add("model.layers.0.mlp.gate.weight", {E, D}, w.router);
                   add_apart(file, "model.layers.0.mlp.experts.", w, projections);
                 }});
  all.push_back({"Jamba",
                 {{"architectures", {"JambaForCausalLM"}},
                  {"attn_layer_offset", 4},
                  {"attn_layer_period", 8},
                  {"expert_layer_offset", 1},
                  {"expert_layer_period", 2},
                  {"hidden_act", "silu"},
                  {"hidden_size", D},
                  {"intermediate_size", H},
                  {"mamba_d_conv", 4},
                  {"model_type", "jamba"},
                  {"num_experts", E},
                  {"num_experts_per_tok", 2},
                  {"num_hidden_layers", 4}},
                 {{1}, {3}},
                 raw,
                 0,
                 [](published_file& file, const block_weights& w) {
                   file.add("model.layers.3.feed_forward.router.weight", {E, D}, w.router);
                   add_apart(file, "model.layers.3.feed_forward.experts.", w, projections);
                 }});
  all.push_back({"DBRX",
                 {{"architectures", {"DbrxForCausalLM"}},
                  {"attn_config", {{"clip_qkv", 8}, {"kv_n_heads", 8}}},
                  {"d_model", D},
                  {"ffn_config",
                   {{"ffn_hidden_size", H}, {"moe_jitter_eps", 0.01}, {"moe_num_experts", E}, {"moe_top_k", 2}}},
                  {"max_seq_len", 32768},
                  {"model_type", "dbrx"},
                  {"n_heads", 48},
                  {"n_layers", 2}},
                 {{0}, {1}},
                 {},
                 0,
                 [](published_file& file, const block_weights& w) {
                   const std::string p = "transformer.blocks.1.ffn.";
                   file.add(p + "router.layer.weight", {E, D}, w.router);
                   file.add(p + "experts.mlp.w1", {E * H, D}, w.gate);
                   file.add(p + "experts.mlp.v1", {E * H, D}, w.up);
                   file.add(p + "experts.mlp.w2", {E * H, D}, test::published::transposed(w.down, E, D, H));
                 }});
  all.push_back({"Arctic",
                 {{"architectures", {"ArcticForCausalLM"}},
                  {"hidden_act", "silu"},
                  {"hidden_size", D},
                  {"intermediate_size", H},
                  {"model_type", "arctic"},
                  {"moe_layer_frequency", 1},
                  {"num_experts_per_tok", 2},
                  {"num_hidden_layers", 2},
                  {"num_local_experts", E},
                  {"parallel_attn_mlp_res", true}},
                 {{0}, {1}},
                 {},
                 0,
                 [](published_file& file, const block_weights& w) {
                   const std::string p = "model.layers.1.block_sparse_moe.";
                   file.add("model.layers.1.residual_mlp.w1.weight", {1, D}, numbers(D));
                   file.add(p + "gate.weight", {E, D}, w.router);
                   add_apart(file, p + "experts.", w, by_number);
                 }});

  recipe nemotron = deepseek();
  nemotron.unit = nemotron.shared_unit = [](double, double b) { return b > 0 ? b * b : 0; };
  const json nemotron_h{{"architectures", {"NemotronHForCausalLM"}},
                        {"expand", 2},
                        {"hidden_size", D},
                        {"hybrid_override_pattern", "MEM*E"},
                        {"intermediate_size", 1856},
                        {"mamba_hidden_act", "silu"},
                        {"mlp_bias", false},
                        {"mlp_hidden_act", "relu2"},
                        {"model_type", "nemotron_h"},
                        {"moe_intermediate_size", H},
                        {"moe_shared_expert_intermediate_size", 7},
                        {"n_group", 1},
                        {"n_routed_experts", E},
                        {"n_shared_experts", 1},
                        {"norm_topk_prob", true},
                        {"num_experts_per_tok", 2},
                        {"num_hidden_layers", 5},
                        {"routed_scaling_factor", 2.5},
                        {"topk_group", 1}};
  const auto write_nemotron = [](const std::string& p, bool is_stacked) {
    return [p, is_stacked](published_file& file, const block_weights& w) {
      const three_names ungated{nullptr, "up_proj.weight", "down_proj.weight"};
      file.add(p + "gate.weight", {E, D}, w.router);
      file.add(p + "gate.e_score_correction_bias", {E}, w.selection_bias);
      if (is_stacked) {
        file.add(p + "experts.up_proj", {E, H, D}, w.up);
        file.add(p + "experts.down_proj", {E, D, H}, w.down);
      } else {
        add_apart(file, p + "experts.", w, ungated);
      }
      add_shared(file, p + "shared_experts.", w, ungated);
    };
  };
  all.push_back({"Nemotron-3", nemotron_h, {{1}, {4}}, nemotron, 7, write_nemotron("backbone.layers.4.mixer.", false)});
  json nemotron_later = with(nemotron_h, {{"layers_block_type", {"mamba", "moe", "mamba", "attention", "moe"}}});
  nemotron_later.erase("hybrid_override_pattern");
  all.push_back({"Nemotron-3 of newer library versions", nemotron_later, {{1}, {4}}, nemotron, 7,
                 write_nemotron("model.layers.4.mixer.", true)});

  constexpr index_t latent = 4;
  recipe projected = nemotron;
  projected.latent = latent;
  const auto write_latent = [](const std::string& p) {
    return [p](published_file& file, const block_weights& w) {
      const three_names ungated{nullptr, "up_proj.weight", "down_proj.weight"};
      block_weights experts = w;
      experts.D = latent;
      file.add(p + "gate.weight", {E, D}, w.router);
      file.add(p + "gate.e_score_correction_bias", {E}, w.selection_bias);
      file.add(p + "fc1_latent_proj.weight", {latent, D}, test::published::slice(w.gate, 0, latent * D));
      file.add(p + "fc2_latent_proj.weight", {D, latent}, test::published::slice(w.gate, 1, latent * D));
      add_apart(file, p + "experts.", experts, ungated);
      add_shared(file, p + "shared_experts.", w, ungated);
    };
  };
  json super = with(nemotron_later, {{"moe_latent_size", latent}});
  super.erase("num_hidden_layers");
  all.push_back({"Nemotron-3 Super", super, {{1}, {4}}, projected, 7, write_latent("backbone.layers.4.mixer.")});
  super = with(super, {{"mtp_layers_block_type", {"attention", "moe"}}, {"num_nextn_predict_layers", 1}});
  super["num_hidden_layers"] = nullptr;
  all.push_back({"Nemotron-3 Super, its next-token block", super, {{1}, {4}, {6}}, projected, 7,
                 write_latent("mtp.layers.1.mixer.")});

  json predicting = with(nemotron_h, {{"mtp_hybrid_override_pattern", "*E"}, {"num_nextn_predict_layers", 1}});
  all.push_back({"Nemotron-3, its next-token block", predicting, {{1}, {4}, {6}}, nemotron, 7,
                 write_nemotron("mtp.layers.1.mixer.", false)});
  predicting = with(nemotron_later, {{"mtp_layers_block_type", {"attention", "moe"}}, {"num_nextn_predict_layers", 2}});
  all.push_back({"Nemotron-3, its second next-token block", predicting, {{1}, {4}, {8}}, nemotron, 7,
                 write_nemotron("mtp.layers.3.mixer.", true)});

  recipe ernie;
  ernie.biased = true;
  ernie.smallest_sum = 0.2;  // large enough to matter
  ernie.shared_form = recipe::shared::plain;
  all.push_back({"Ernie-4.5",
                 {{"architectures", {"Ernie4_5_MoeForCausalLM"}},
                  {"hidden_act", "silu"},
                  {"hidden_size", D},
                  {"intermediate_size", 12288},
                  {"model_type", "ernie4_5_moe"},
                  {"moe_capacity", {64, 64, 64}},
                  {"moe_gate", "topk"},
                  {"moe_intermediate_size", H},
                  {"moe_k", 2},
                  {"moe_layer_end_index", 1},
                  {"moe_layer_interval", 1},
                  {"moe_layer_start_index", 1},
                  {"moe_norm_min", 0.2},
                  {"moe_num_experts", E},
                  {"moe_num_shared_experts", 2},
                  {"moe_use_aux_free", true},
                  {"num_hidden_layers", 3},
                  {"use_bias", false}},
                 {{1}},
                 ernie,
                 2 * H,
                 [](published_file& file, const block_weights& w) {
                   const std::string p = "model.layers.1.mlp.";
                   file.add(p + "gate.weight", {E, D}, w.router);
                   file.add(p + "moe_statics.e_score_correction_bias", {1, E}, w.selection_bias);
                   add_apart(file, p + "experts.", w, projections);
                   add_shared(file, p + "shared_experts.", w, projections);
                 }});

  recipe longcat;
  longcat.biased = true;
  longcat.renormalize = false;
  longcat.scaling = 6;
  longcat.top_k = 4;
  longcat.copies = 3;
  all.push_back({"LongCat-Flash",
                 {{"architectures", {"LongcatFlashForCausalLM"}},
                  {"expert_ffn_hidden_size", H},
                  {"ffn_hidden_size", 12288},
                  {"hidden_size", D},
                  {"model_type", "longcat_flash"},
                  {"moe_topk", 4},
                  {"n_routed_experts", E},
                  {"num_layers", 2},
                  {"num_nextn_predict_layers", 1},
                  {"routed_scaling_factor", 6.0},
                  {"router_bias", false},
                  {"zero_expert_num", 3},
                  {"zero_expert_type", "identity"}},
                 {{0}, {1}},
                 longcat,
                 0,
                 [](published_file& file, const block_weights& w) {
                   const std::string p = "model.layers.1.mlp.";
                   file.add("model.layers.1.mlps.0.gate_proj.weight", {1, D}, numbers(D));
                   file.add("model.mtp.layers.0.transformer_layer.mlp.gate_proj.weight", {1, D}, numbers(D));  // dense
                   file.add(p + "router.classifier.weight", {E + 3, D}, w.router);
                   file.add(p + "router.e_score_correction_bias", {E + 3}, w.selection_bias);
                   add_apart(file, p + "experts.", w, projections);
                 }});

  recipe v4 = deepseek(1.5);
  v4.scores = [](const numbers& l) { return each(l, [](double z) { return std::sqrt(std::log(1 + std::exp(z))); }); };
  v4.unit = [](double a, double b) { return silu_of(std::min(a, 1.5)) * std::clamp(b, -1.5, 1.5); };
  v4.shared_unit = v4.unit;
  const json deepseek_v4{{"architectures", {"DeepseekV4ForCausalLM"}},
                         {"compress_ratios", {0, 0, 4}},
                         {"hc_mult", 4},
                         {"hidden_act", "silu"},
                         {"hidden_size", D},
                         {"model_type", "deepseek_v4"},
                         {"moe_intermediate_size", H},
                         {"n_routed_experts", E},
                         {"n_shared_experts", 1},
                         {"norm_topk_prob", true},
                         {"num_experts_per_tok", 2},
                         {"num_hash_layers", 2},
                         {"num_hidden_layers", 3},
                         {"num_nextn_predict_layers", 1},
                         {"routed_scaling_factor", 1.5},
                         {"scoring_func", "sqrtsoftplus"},
                         {"swiglu_limit", 1.5},
                         {"topk_method", "noaux_tc"},
                         {"vocab_size", vocabulary}};
  const auto write_v4 = [](const std::string& p) {
    return [p](published_file& file, const block_weights& w) {
      file.add(p + "gate.weight", {E, D}, w.router);
      file.add(p + "gate.bias", {E}, w.selection_bias);
      add_apart(file, p + "experts.", w, by_number);
      add_shared(file, p + "shared_experts.", w, by_number);
    };
  };
  const auto write_v4_later = [](const std::string& p) {
    return [p](published_file& file, const block_weights& w) {
      file.add(p + "gate.weight", {E, D}, w.router);
      file.add(p + "gate.e_score_correction_bias", {E}, w.selection_bias);
      add_stacked(file, p + "experts.gate_up_proj", p + "experts.down_proj", w);
      add_shared(file, p + "shared_experts.", w, projections);
    };
  };
  const std::vector<block_id> v4_blocks{{0}, {1}, {2}};
  all.push_back({"DeepSeek-V4", deepseek_v4, v4_blocks, v4, H, write_v4("layers.2.ffn.")});
  all.push_back({"DeepSeek-V4 of newer library versions", deepseek_v4, v4_blocks, v4, H,
                 write_v4_later("model.layers.2.mlp.")});
  recipe no_limit = v4;
  no_limit.unit = no_limit.shared_unit = [](double a, double b) { return silu_of(a) * b; };
  json without_limit = deepseek_v4;
  without_limit["swiglu_limit"] = 0;
  all.push_back({"DeepSeek-V4, unlimited", without_limit, v4_blocks, no_limit, H, write_v4("layers.2.ffn.")});
  const std::vector<block_id> and_next_token{{0}, {1}, {2}, {3}};
  all.push_back({"DeepSeek-V4, its next-token block", deepseek_v4, and_next_token, v4, H, write_v4("mtp.0.ffn.")});
  all.push_back({"DeepSeek-V4 of newer library versions, its next-token block", deepseek_v4, and_next_token, v4, H,
                 write_v4_later("mtp.0.mlp.")});

  recipe by_id = v4;
  by_id.by_id = true;
  json hashed = deepseek_v4;
  hashed["num_hash_layers"] = 3;
  numbers table;
  for (index_t id = 0; id < vocabulary; ++id)
    for (index_t j = 0; j < 2; ++j) table.push_back(static_cast<double>(looked_up(id, j)));
  const auto write_hashed = [table](const std::string& p, data_type type) {
    return [table, p, type](published_file& file, const block_weights& w) {
      file.add(p + "gate.weight", {E, D}, w.router);
      file.add(p + "gate.tid2eid", {vocabulary, 2}, table, type);
      add_apart(file, p + "experts.", w, by_number);
      add_shared(file, p + "shared_experts.", w, by_number);
    };
  };
  all.push_back({"DeepSeek-V4, a block of experts by id", hashed, v4_blocks, by_id, H,
                 write_hashed("layers.2.ffn.", data_type::i64)});
  hashed.erase("num_hash_layers");
  hashed["mlp_layer_types"] = {"moe", "dense", "hash_moe"};
  all.push_back({"DeepSeek-V4, a block of experts by id, listed", hashed, {{0}, {2}}, by_id, H,
                 write_hashed("layers.2.ffn.", data_type::i32)});

  recipe gemma;
  gemma.unit = [](double a, double b) { return gelu_of(a) * b; };
  all.push_back({"Gemma 4",
                 {{"architectures", {"Gemma4ForConditionalGeneration"}},
                  {"image_token_id", 258880},
                  {"model_type", "gemma4"},
                  {"text_config",
                   {{"attention_k_eq_v", true},
                    {"enable_moe_block", true},
                    {"hidden_activation", "gelu_pytorch_tanh"},
                    {"hidden_size", D},
                    {"intermediate_size", 7},
                    {"layer_types", {"sliding_attention", "full_attention"}},
                    {"model_type", "gemma4_text"},
                    {"moe_intermediate_size", H},
                    {"num_experts", E},
                    {"num_hidden_layers", 2},
                    {"rms_norm_eps", 1e-06},
                    {"top_k_experts", 2},
                    {"use_double_wide_mlp", false}}},
                  {"vision_config", {{"hidden_size", 1152}}}},
                 {{0}, {1}},
                 gemma,
                 7,
                 [](published_file& file, const block_weights& w) {
                   const std::string p = "model.language_model.layers.1.";
                   const auto gains = [&](const char* name, index_t which) {
                     file.add(p + name, {D}, test::published::slice(w.down_bias, which, D));
                   };
                   file.add(p + "self_attn.q_norm.weight", {1}, {1});
                   gains("post_feedforward_layernorm.weight", 5);
                   gains("router.scale", 0);
                   gains("pre_feedforward_layernorm_2.weight", 1);
                   gains("post_feedforward_layernorm_2.weight", 2);
                   gains("pre_feedforward_layernorm.weight", 3);
                   gains("post_feedforward_layernorm_1.weight", 4);
                   file.add(p + "router.proj.weight", {E, D}, w.router);
                   file.add(p + "router.per_expert_scale", {E}, w.router_bias);
                   add_stacked(file, p + "experts.gate_up_proj", p + "experts.down_proj", w);
                   add_shared(file, p + "mlp.", w, projections);
                 },
                 expected_of_gemma});
  return all;
}

/// Numbers of a block, with biases small enough that scores take part in the choice.
block_weights weights_of(const release& r) {
  block_weights w = block_weights::random(E + r.how.copies, D, H, r.shared, 51);
  w.E = E;
  for (double& b : w.selection_bias) b = 0.25 * b;
  return w;
}

}  // namespace

TEST_CASE("families: every release is read, loaded, run and written back", "[checkpoint][families]") {
  const matrix<double> x = test::random_matrix<double>(24, D, 52);
  std::vector<index_t> ids;
  for (index_t t = 0; t < x.rows(); ++t) ids.push_back(7 * t % vocabulary);
  routing_context<double> context;
  context.token_ids = ids;
  for (const release& r : releases()) {
    CAPTURE(r.name);
    const test::temporary_folder folder(test::memory_folder());
    const block_weights w = weights_of(r);
    published_file file;
    r.write(file, w);
    file.save(folder / "model.safetensors");
    test::write_bytes(folder / "config.json", r.config.dump(2));
    const checkpoint_model model(folder.path());
    const model_config& config = model.config();
    CHECK(model.blocks() == r.blocks);
    CHECK((config.inputs == D && config.hidden == H && config.experts == E && config.top_k == r.how.top_k));
    CHECK(config.shared_hidden == r.shared);
    CHECK(parse_model_config(to_json(config), "written") == config);

    const block_id block = r.blocks.back();
    with_published_type<double>(config, block, [&]<typename Layer>(std::type_identity<Layer>) {
      const Layer layer = load_layer<Layer>(model, block);
      typename Layer::workspace workspace;
      matrix<double> y(x.rows(), D);
      layer.forward(x, y, workspace, context);
      for (index_t t = 0; t < x.rows(); ++t) {
        const numbers token(x.data() + t * D, x.data() + (t + 1) * D);
        const numbers expected = r.expected(w, r.how, token, ids[static_cast<std::size_t>(t)]);
        double size = 0;
        for (const double v : expected) size = std::max(size, std::abs(v));
        for (index_t d = 0; d < D; ++d)
          CHECK(std::abs(y(t, d) - expected[static_cast<std::size_t>(d)]) <=
                test::bound<double>(D + H + r.shared + E, 64 * (1 + size)));
      }

      layer_tensors tensors(layer, model.names(block));
      tensors.set_types_of(model.files());
      safetensors_writer out;
      tensors.add_to(out);
      out.save(folder / "out.safetensors");
    });
    const safetensors_reader back(folder / "out.safetensors");
    const tensor_names names = model.names(block);
    std::size_t of_block = 0;
    for (const located_tensor& t : model.files().tensors()) {
      if (!names.owns(t.info.name)) continue;
      ++of_block;
      CAPTURE(t.info.name);
      CHECK(std::ranges::equal(back.at(t.info.name).bytes, t.info.bytes));
    }
    CHECK(back.tensors().size() == of_block);
  }
}

TEST_CASE("families: a table of experts by id is kept exactly, and what it does not say is refused",
          "[checkpoint][families]") {
  std::vector<release> all = releases();
  const release& r = *std::ranges::find(all, "DeepSeek-V4, a block of experts by id", &release::name);
  const test::temporary_folder folder(test::memory_folder());
  published_file file;
  r.write(file, weights_of(r));
  published_file::tensor& table = file.tensors.at("layers.2.ffn.gate.tid2eid");
  const auto open = [&] {
    file.save(folder / "model.safetensors");
    test::write_bytes(folder / "config.json", r.config.dump());
    return checkpoint_model(folder.path());
  };
  using layer_type = deepseek_v4_hash_layer<float, bfloat16_storage>;
  const matrix<float> x = test::random_matrix<float>(3, D, 53);
  matrix<float> y(3, D);
  const std::vector<index_t> ids{4, vocabulary - 1, 0};
  routing_context<float> context;
  context.token_ids = ids;
  {
    const checkpoint_model model = open();
    const auto layer = load_layer<layer_type>(model, {.layer = 2});
    layer_type::workspace workspace;
    layer.forward(x, y, workspace, context);
    const auto& plan = workspace.layer.plan;
    for (index_t t = 0; t < 3; ++t)
      for (const index_t i : plan.of_token(t))
        CHECK(plan.expert(i) == looked_up(ids[static_cast<std::size_t>(t)], plan.rank(i)));
    CHECK_THROWS_WITH(layer.forward(x, y, workspace), test::contains("token_ids"));
    CHECK_THROWS_WITH(load_layer<deepseek_v4_layer<float>>(model, {.layer = 2}), test::contains("of another type"));

    auto altered = layer;
    const auto save_with = [&](float first) {
      for_each_parameter(altered, [&](const std::string& parameter, auto& p) {
        if (parameter.ends_with("rule.table")) p.fill([&](index_t i) { return i == 0 ? first : 1.0F; });
      });
      layer_tensors tensors(altered, model.names({.layer = 2}));
      tensors.set_types_of(model.files());
      safetensors_writer out;
      tensors.add_to(out);
      out.save(folder / "altered.safetensors");
      return tensors.report();
    };
    CHECK(save_with(3).total.rounded == 0);
    const auto half = save_with(3.5F);
    CHECK((half.total.rounded == 1 && half.total.largest_error == 0.5 && half.worst == "layers.2.ffn.gate.tid2eid"));
    for (const float none : {1e30F, quiet_nan<float>()}) CHECK_THROWS_AS(save_with(none), std::range_error);

    const auto converted = convert_checkpoint(model, folder / "bf16", {.type = data_type::bf16});
    CHECK(converted.values.total.rounded == 0);
    const checkpoint_files changed(folder / "bf16");
    const std::string name = "layers.2.ffn.gate.tid2eid";
    CHECK(changed.at("layers.2.ffn.gate.weight").info.dtype == data_type::bf16);
    CHECK(changed.at(name).info.dtype == data_type::i64);
    CHECK(std::ranges::equal(changed.at(name).info.bytes, model.files().at(name).info.bytes));
  }

  table.values[8] = E;  // of id 4
  {
    const auto layer = load_layer<layer_type>(open(), {.layer = 2});
    layer_type::workspace workspace;
    CHECK_THROWS_WITH(layer.forward(x, y, workspace, context), test::contains("the table gives id 4 the expert 8"));
  }
  table.values[8] = 0x1p24 + 1;
  CHECK_THROWS_WITH(load_layer<layer_type>(open(), {.layer = 2}),
                    test::contains("tid2eid\": element 8 is 16777217, which no F32 is"));
  table.values[8] = 0;
  table.shape = {2 * vocabulary};
  CHECK_THROWS_WITH(load_layer<layer_type>(open(), {.layer = 2}), test::contains("the layer needs [11, 2]"));
}

TEST_CASE("families: what their models may have and sluice does not do is refused by key", "[checkpoint][families]") {
  const auto complaint = [](const std::string& name, const json& changes) -> std::string {
    for (release r : releases()) {
      if (r.name != name) continue;
      json& target = r.config.contains("ffn_config") ? r.config["ffn_config"] : r.config;
      target.merge_patch(changes);
      try {
        parse_model_config(r.config.dump(), "config.json");
      } catch (const file_error& error) {
        return error.what();
      }
    }
    return "";
  };
  const auto refused = [&](const std::string& name, const json& changes, const std::string& key) {
    CAPTURE(name, changes.dump());
    CHECK(complaint(name, changes).find('"' + key + '"') != std::string::npos);
  };
  refused("Nemotron-3", {{"moe_latent_size", 0}}, "moe_latent_size");
  refused("Nemotron-3", {{"num_hidden_layers", nullptr}}, "num_hidden_layers");
  refused("Nemotron-3", {{"hybrid_override_pattern", "ME"}}, "hybrid_override_pattern");
  refused("Nemotron-3", {{"mlp_hidden_act", "silu"}}, "mlp_hidden_act");
  refused("Nemotron-3", {{"num_nextn_predict_layers", 40000}}, "num_nextn_predict_layers");
  refused("MiniMax-M2", {{"num_mtp_modules", 40000}, {"mtp_transformer_layers", 2}}, "num_mtp_modules");
  refused("LongCat-Flash", {{"zero_expert_type", "drop"}}, "zero_expert_type");
  refused("LongCat-Flash", {{"router_bias", true}}, "router_bias");
  refused("Ernie-4.5", {{"use_bias", true}}, "use_bias");
  refused("Ernie-4.5", {{"moe_num_experts", {64, 64}}}, "moe_num_experts");
  refused("DeepSeek-V4", {{"scoring_func", "softmax"}}, "scoring_func");
  refused("DeepSeek-V4", {{"vocab_size", nullptr}}, "vocab_size");
  refused("DeepSeek-V4", {{"mlp_layer_types", {"hash_moe", "moe"}}}, "mlp_layer_types");
  refused("GLM-5", {{"mlp_layer_types", {"sparse"}}}, "mlp_layer_types");
  refused("GLM-5", {{"mlp_layer_types", {1, 2, 3}}}, "mlp_layer_types");
  refused("Hunyuan-A13B", {{"moe_topk", {2, 3}}}, "moe_topk");
  refused("Hunyuan-A13B", {{"moe_drop_tokens", true}}, "moe_drop_tokens");
  refused("MiniMax-M2", {{"shared_intermediate_size", 8}}, "shared_intermediate_size");
  refused("MiniMax-M2", {{"num_local_experts", {8}}}, "num_local_experts");
  refused("DBRX", {{"moe_normalize_expert_weights", 2}}, "ffn_config.moe_normalize_expert_weights");
  refused("Jamba", {{"expert_layer_offset", 2}}, "expert_layer_offset");
  refused("Gemma 4", {{"text_config", {{"enable_moe_block", false}}}}, "text_config.enable_moe_block");
  CHECK(complaint("Jamba", {{"num_experts", 1}, {"num_experts_per_tok", 1}}).find("none of its 4 blocks") !=
        std::string::npos);
  CHECK(complaint("dots.llm1", {{"scoring_func", "softmax"}}).find("scoring_func") != std::string::npos);
  CHECK(complaint("DBRX", json::object()).empty());
}
