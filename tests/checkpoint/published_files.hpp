// Small files in the layouts of published models, put together tensor by tensor: names and orders are written out here a second
// time, in plain loops, so that a mistake in checkpoint/ cannot hide.
#pragma once

#include <sluice/checkpoint/model_config.hpp>
#include <sluice/core/half.hpp>
#include <sluice/core/random.hpp>
#include <sluice/io/safetensors_writer.hpp>

#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace sluice::test {

/// Tensors of doubles that are stored as any floating-point type.
class published_file {
public:
  struct tensor {
    std::vector<std::int64_t> shape;
    std::vector<double> values;
    data_type type;
  };

  void add(const std::string& name, std::vector<std::int64_t> shape, std::vector<double> values,
           data_type type = data_type::f32) {
    tensors[name] = {std::move(shape), std::move(values), type};
  }

  void save(const std::filesystem::path& path) const {
    std::map<std::string, std::vector<std::byte>> bytes;
    safetensors_writer file;
    for (const auto& [name, t] : tensors) {
      auto& stored = bytes[name];
      for (const double v : t.values) append(stored, v, t.type);
      file.add(name, t.shape, t.type, std::span<const std::byte>(stored));
    }
    file.save(path);
  }

  std::map<std::string, tensor> tensors;

private:
  template <typename T>
  static void append_bits(std::vector<std::byte>& to, T value) {
    const auto* const first = reinterpret_cast<const std::byte*>(&value);
    to.insert(to.end(), first, first + sizeof value);
  }
  static void append(std::vector<std::byte>& to, double v, data_type type) {
    if (type == data_type::f64) append_bits(to, v);
    if (type == data_type::f32) append_bits(to, static_cast<float>(v));
    if (type == data_type::bf16) append_bits(to, to_element<bfloat16>(static_cast<float>(v)));
    if (type == data_type::f16) append_bits(to, to_element<float16>(static_cast<float>(v)));
    if (type == data_type::i64) append_bits(to, static_cast<std::int64_t>(v));
    if (type == data_type::i32) append_bits(to, static_cast<std::int32_t>(v));
  }
};

/// The numbers of one block, every matrix [out,in], experts one after another.
struct block_weights {
  index_t E = 0, D = 0, H = 0, S = 0;  // S: width of the shared expert
  std::vector<double> router, router_bias, selection_bias;
  std::vector<double> gate, up, down, gate_bias, up_bias, down_bias;
  std::vector<double> shared_gate, shared_up, shared_down, shared_router, output_bias;

  /// Draws everything: numbers that bfloat16 holds exactly, so that every storage loads them without rounding.
  static block_weights random(index_t E, index_t D, index_t H, index_t S, std::uint64_t seed) {
    block_weights w;
    w.E = E, w.D = D, w.H = H, w.S = S;
    const random_source source(seed);
    index_t next = 0;
    const auto fill = [&](std::vector<double>& v, index_t count) {
      for (index_t i = 0; i < count; ++i)
        v.push_back(to_float(to_element<bfloat16>(static_cast<float>(source.normal(random_site::user_site, next++)))));
    };
    fill(w.router, E * D);
    for (auto* v : {&w.router_bias, &w.selection_bias}) fill(*v, E);
    for (auto* v : {&w.gate, &w.up, &w.down}) fill(*v, E * H * D);
    for (auto* v : {&w.gate_bias, &w.up_bias}) fill(*v, E * H);
    fill(w.down_bias, E * D);
    for (auto* v : {&w.shared_gate, &w.shared_up, &w.shared_down}) fill(*v, S * D);
    fill(w.shared_router, D);
    fill(w.output_bias, D);
    return w;
  }
};

namespace published {

inline std::vector<double> slice(const std::vector<double>& all, index_t part, index_t size) {
  return {all.begin() + part * size, all.begin() + (part + 1) * size};
}

/// [E,H,D] and [E,H,D] -> [E,2H,D]
inline std::vector<double> concatenated(const block_weights& w, const std::vector<double>& a,
                                        const std::vector<double>& b) {
  std::vector<double> out;
  const index_t each = static_cast<index_t>(a.size()) / w.E;
  for (index_t e = 0; e < w.E; ++e)
    for (const auto* v : {&a, &b}) out.insert(out.end(), v->begin() + e * each, v->begin() + (e + 1) * each);
  return out;
}

/// [E,rows,cols] -> [E,cols,rows]
inline std::vector<double> transposed(const std::vector<double>& m, index_t count, index_t rows, index_t cols) {
  std::vector<double> out(m.size());
  for (index_t e = 0; e < count; ++e)
    for (index_t r = 0; r < rows; ++r)
      for (index_t c = 0; c < cols; ++c)
        out[static_cast<std::size_t>((e * cols + c) * rows + r)] =
            m[static_cast<std::size_t>((e * rows + r) * cols + c)];
  return out;
}

/// [E,H,D] and [E,H,D] -> [E,2H,D], rows taken in turns
inline std::vector<double> interleaved(const block_weights& w, const std::vector<double>& a,
                                       const std::vector<double>& b, index_t cols) {
  std::vector<double> out;
  for (index_t r = 0; r < w.E * w.H; ++r)
    for (const auto* v : {&a, &b}) out.insert(out.end(), v->begin() + r * cols, v->begin() + (r + 1) * cols);
  return out;
}

}  // namespace published

/// Adds block `layer` of a family in one of its layouts: "per-expert", "stacked", "stacked-apart",
/// "stacked-transposed", "grouped".
inline void add_block(published_file& file, model_family family, const std::string& layout, const block_weights& w,
                      index_t layer, data_type type, bool decoder = false) {
  using namespace published;
  const index_t E = w.E, D = w.D, H = w.H, S = w.S;
  const std::string l = std::to_string(layer);
  std::string p = "model.layers." + l + ".mlp.";
  const auto add = [&](const std::string& name, std::vector<std::int64_t> shape, const std::vector<double>& v) {
    file.add(p + name, std::move(shape), v, type);
  };
  const auto per_expert = [&](const char* before, const char* gate, const char* up, const char* down) {
    for (index_t e = 0; e < E; ++e) {
      const std::string name = before + std::to_string(e) + '.';
      add(name + gate, {H, D}, slice(w.gate, e, H * D));
      add(name + up, {H, D}, slice(w.up, e, H * D));
      add(name + down, {D, H}, slice(w.down, e, D * H));
    }
  };
  const auto stacked = [&] {
    add("experts.gate_up_proj", {E, 2 * H, D}, concatenated(w, w.gate, w.up));
    add("experts.down_proj", {E, D, H}, w.down);
  };
  const auto stacked_apart = [&] {
    add("experts.gate_proj", {E, H, D}, w.gate);
    add("experts.up_proj", {E, H, D}, w.up);
    add("experts.down_proj", {E, D, H}, w.down);
  };
  const auto shared = [&](const std::string& name) {
    add(name + ".gate_proj.weight", {S, D}, w.shared_gate);
    add(name + ".up_proj.weight", {S, D}, w.shared_up);
    add(name + ".down_proj.weight", {D, S}, w.shared_down);
  };
  const auto stacked_transposed = [&] {
    add("experts.gate_up_proj", {E, D, 2 * H}, transposed(concatenated(w, w.gate, w.up), E, 2 * H, D));
    add("experts.down_proj", {E, H, D}, transposed(w.down, E, D, H));
  };
  const auto usual = [&] {
    if (layout == "stacked-transposed") stacked_transposed();
    if (layout == "stacked") stacked();
    if (layout == "stacked-apart") stacked_apart();
    if (layout == "per-expert") per_expert("experts.", "gate_proj.weight", "up_proj.weight", "down_proj.weight");
  };
  switch (family) {
    case model_family::mixtral:
    case model_family::phimoe:
      p = "model.layers." + l + ".block_sparse_moe.";
      add("gate.weight", {E, D}, w.router);
      if (layout == "per-expert") per_expert("experts.", "w1.weight", "w3.weight", "w2.weight");
      if (layout != "per-expert") usual();
      break;
    case model_family::olmoe:
    case model_family::qwen3_moe:
      add("gate.weight", {E, D}, w.router);
      usual();
      break;
    case model_family::qwen2_moe:
      add("gate.weight", {E, D}, w.router);
      usual();
      shared("shared_expert");
      add("shared_expert_gate.weight", {1, D}, w.shared_router);
      break;
    case model_family::deepseek_v3:
      add("gate.e_score_correction_bias", {E}, w.selection_bias);
      [[fallthrough]];
    case model_family::deepseek_v2:
      add("gate.weight", {E, D}, w.router);
      usual();
      shared("shared_experts");
      break;
    case model_family::jetmoe:
      add("router.layer.weight", {E, D}, w.router);
      add("bias", {D}, w.output_bias);
      add("input_linear.weight", {E, 2 * H, D}, concatenated(w, w.gate, w.up));
      add("output_linear.weight", {E, D, H}, w.down);
      break;
    case model_family::gpt_oss:
      add("router.weight", {E, D}, w.router);
      add("router.bias", {E}, w.router_bias);
      add("experts.gate_up_proj", {E, D, 2 * H}, transposed(interleaved(w, w.gate, w.up, D), E, 2 * H, D));
      add("experts.gate_up_proj_bias", {E, 2 * H}, interleaved(w, w.gate_bias, w.up_bias, 1));
      add("experts.down_proj", {E, H, D}, transposed(w.down, E, D, H));
      add("experts.down_proj_bias", {E, D}, w.down_bias);
      break;
    case model_family::llama4:
      p = "language_model.model.layers." + l + ".feed_forward.";
      add("router.weight", {E, D}, w.router);
      if (layout == "stacked")
        stacked_transposed();
      else
        usual();
      shared("shared_expert");
      break;
    case model_family::switch_transformers:
      p = decoder ? "decoder.block." + l + ".layer.2.mlp." : "encoder.block." + l + ".layer.1.mlp.";
      add("router.classifier.weight", {E, D}, w.router);
      for (index_t e = 0; e < E; ++e) {
        add("experts.expert_" + std::to_string(e) + ".wi.weight", {H, D}, slice(w.up, e, H * D));
        add("experts.expert_" + std::to_string(e) + ".wo.weight", {D, H}, slice(w.down, e, D * H));
      }
      break;
    case model_family::megatron:
      p = "decoder.layers." + l + ".mlp.";
      add("router.weight", {E, D}, w.router);
      for (index_t e = 0; e < E; ++e) {
        const std::string n = std::to_string(e);
        const auto fc1 = slice(concatenated(w, w.gate, w.up), e, 2 * H * D);
        const bool local = layout == "per-expert";
        add(local ? "experts.local_experts." + n + ".linear_fc1.weight" : "experts.linear_fc1.weight" + n, {2 * H, D},
            fc1);
        add(local ? "experts.local_experts." + n + ".linear_fc2.weight" : "experts.linear_fc2.weight" + n, {D, H},
            slice(w.down, e, D * H));
      }
      break;
    default:  // families_test.cpp writes the others
      break;
  }
}

}  // namespace sluice::test
