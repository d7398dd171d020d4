// Quantised weights as published files hold them: fp8_block, gptq_int4, awq_int4, compressed_tensors_int4, nvfp4, mxfp4, and whole
// models in folders and GGUF files.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/checkpoint/encoding/fp8_tiles.hpp>
#include <sluice/checkpoint/encoding/mxfp4_rows.hpp>
#include <sluice/checkpoint/encoding/nvfp4_rows.hpp>
#include <sluice/checkpoint/encoding/packed_inputs.hpp>
#include <sluice/checkpoint/encoding/packed_words.hpp>
#include <sluice/checkpoint/load_layer.hpp>
#include <sluice/expert/clamped_glu.hpp>
#include <sluice/quant/fp8_rounding.hpp>

#include <filesystem>

namespace oracle {
namespace {

using namespace sluice;

/// A tensor of bytes as the type that real files have; types of several bytes have them in a last axis of their own.
template <typename Scalar>
tensor_info typed(const oracle_case<Scalar>& c, const std::string& name, data_type type) {
  tensor_info tensor = c.file().at(name);
  if (size_of(type) > 1 && tensor.dtype == data_type::u8) tensor.shape.pop_back();
  tensor.dtype = type;
  return tensor;
}

matrix<float> decoded(const coded_matrix& coded) {
  matrix<float> w(coded.rows(), coded.inputs());
  coded.read(0, std::span(w.data(), static_cast<std::size_t>(w.size())));
  return w;
}

bool same_bits(const matrix<float>& a, const matrix<float>& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols()) return false;
  for (index_t i = 0; i < a.size(); ++i)
    if (!(a.data()[i] == b.data()[i]) && !(is_nan(a.data()[i]) && is_nan(b.data()[i]))) return false;
  return true;
}

/// The numbers, whole and by any part of a row, the same ones by codes, and the product. Weights are compared exactly, or
/// within so many units in the last place. Where they are not the numbers of the file, but were rounded to float so many
/// times, that is what the product may differ by.
template <typename Scalar>
void check_coded(oracle_case<Scalar>& c, const coded_matrix& coded, const char* name = "weight", std::uint32_t ulps = 0,
                 int roundings = 0) {
  const matrix<float> w = decoded(coded);
  c.check_exact(name, w, ulps);
  const grouped_codes codes = coded.codes(0, 1, coded.rows());
  codes.validate();
  if (!same_bits(codes.to_matrix(), w)) c.fail("codes decode to other numbers");
  matrix<float> by_parts(coded.rows(), coded.inputs());
  const auto size = static_cast<std::size_t>(w.size());
  for (std::size_t first = 0, count = 1; first < size; first += count, count = count % 41 + 1)
    coded.read(first, std::span(by_parts.data() + first, std::min(count, size - first)));
  if (!same_bits(by_parts, w)) c.fail("parts of rows decode to other numbers");
  if (coded.rows() > 2 &&
      !same_bits(coded.codes(1, 2, coded.rows() / 2).to_matrix(),
                 w(Eigen::seqN(1, coded.rows() / 2, 2), Eigen::all)))
    c.fail("every second row decodes to other numbers");
  if (!c.has("expected.y") || c.rank("expected.y") != 2) return;
  const matrix<Scalar> x = c.rows("x"), weights = w.template cast<Scalar>();
  const matrix<Scalar> most = x.cwiseAbs() * weights.cwiseAbs().transpose();
  c.check("y", matrix<Scalar>(x * weights.transpose()), 0, roundings * 0x1p-24 * static_cast<double>(most.maxCoeff()));
}

template <typename Scalar>
void check_codes_and_zeros(oracle_case<Scalar>& c, const grouped_codes& codes, bool inputs_first, index_t offset) {
  const index_t O = codes.outputs(), I = codes.inputs(), G = codes.groups();
  std::vector<index_t> q, zeros;
  for (index_t a = 0; a < (inputs_first ? I : O); ++a)
    for (index_t b = 0; b < (inputs_first ? O : I); ++b)
      q.push_back(codes.codes(inputs_first ? b : a, inputs_first ? a : b) - offset);
  for (index_t a = 0; a < (inputs_first ? G : O); ++a)
    for (index_t b = 0; b < (inputs_first ? O : G); ++b)
      zeros.push_back(static_cast<index_t>(codes.zeros(inputs_first ? b : a, inputs_first ? a : b)) - offset);
  c.check_integers("q", q);
  c.check_integers("zeros", zeros);
}

template <typename Scalar>
void replay_fp8(oracle_case<Scalar>& c) {
  const auto tile = c.config().at("block").template get<std::vector<index_t>>();
  if (c.template setting<std::string>("kind") == "quantise") {
    const grouped_codes codes = round_to_fp8(c.rows("w").template cast<float>(), {tile[0], tile[1]});
    c.check_bytes("weight", std::as_bytes(std::span(codes.codes.data(), static_cast<std::size_t>(codes.codes.size()))));
    const index_t down = (codes.outputs() + tile[0] - 1) / tile[0];
    c.check_exact("weight_scale_inv", matrix<float>(codes.scales(Eigen::seqN(0, down, tile[0]), Eigen::all)));
    c.check_exact("dequantised", codes.to_matrix());
    return;
  }
  const tensor_info weight = typed(c, "weight", data_type::f8_e4m3);
  check_coded(c, fp8_tiles(weight, c.file().at("weight_scale_inv"), tile[0], tile[1]), "weight", 0, 1);
  if (c.has("scale_e8m0"))  // the same scales as exponents
    check_coded(c, fp8_tiles(weight, typed(c, "scale_e8m0", data_type::f8_e8m0), tile[0], tile[1]), "weight", 0, 1);
  if (c.has("e4m3_table")) {
    const auto table = c.file().template read_vector<float>("e4m3_table");
    for (std::size_t code = 0; code < 256; ++code) {
      const float ours = e4m3_to_float(static_cast<std::uint8_t>(code));
      if (!(ours == table[code]) && !(is_nan(ours) && is_nan(table[code]))) c.fail("e4m3 code " + std::to_string(code));
    }
  }
}

template <typename Scalar>
void replay_gptq(oracle_case<Scalar>& c) {
  const tensor_info weight = typed(c, "qweight", data_type::i32), zeros = typed(c, "qzeros", data_type::i32);
  const tensor_info scales = typed(c, "scales", data_type::f16);
  const auto group_of = c.file().template read_vector<std::int64_t>("g_idx");
  const std::vector<std::int32_t> narrow(group_of.begin(), group_of.end());
  const tensor_info groups{"g_idx", data_type::i32, {static_cast<index_t>(narrow.size())}, std::as_bytes(std::span(narrow))};
  const auto form = c.template setting<std::string>("checkpoint_format") == "gptq_v2" ? packed_words::form::gptq_v2
                                                                                      : packed_words::form::gptq;
  const index_t bits = c.template setting<index_t>("bits"), group = c.template setting<index_t>("group_size");
  const packed_words coded({weight, zeros, scales, &groups}, form, bits, group);
  check_coded(c, coded);
  check_codes_and_zeros(c, coded.codes(0, 1, coded.rows()), true, 0);
  if (!c.template setting<bool>("desc_act")) check_coded(c, packed_words({weight, zeros, scales}, form, bits, group));
}

template <typename Scalar>
void replay_awq(oracle_case<Scalar>& c) {
  if (c.template setting<std::string>("version") != "gemm") throw unsupported("only the version gemm");
  const packed_words coded({typed(c, "qweight", data_type::i32), typed(c, "qzeros", data_type::i32),
                            typed(c, "scales", data_type::f16)},
                           packed_words::form::awq, c.template setting<index_t>("bits"),
                           c.template setting<index_t>("group_size"));
  check_coded(c, coded);
  check_codes_and_zeros(c, coded.codes(0, 1, coded.rows()), true, 0);
}

template <typename Scalar>
void replay_packed_inputs(oracle_case<Scalar>& c) {
  const index_t bits = c.template setting<index_t>("bits");
  const tensor_info packed = typed(c, "weight_packed", data_type::i32), scale = typed(c, "weight_scale", data_type::bf16);
  const bool symmetric = c.template setting<bool>("symmetric");
  if (c.template setting<bool>("actorder")) throw unsupported("activation order");
  const tensor_info zeros = symmetric ? tensor_info{} : typed(c, "weight_zero_point", data_type::i32);
  const packed_inputs coded({packed, scale, c.file().at("weight_shape"), symmetric ? nullptr : &zeros}, bits,
                            c.template setting<index_t>("group_size"));
  check_coded(c, coded);
  check_codes_and_zeros(c, coded.codes(0, 1, coded.rows()), false, index_t{1} << (bits - 1));
}

template <typename Scalar>
void replay_nvfp4(oracle_case<Scalar>& c) {
  using enum nvfp4_rows::global_scale;
  const tensor_info scale = typed(c, "weight_scale", data_type::f8_e4m3);
  if (c.template setting<std::string>("layout", "") == "modelopt")
    check_coded(c, nvfp4_rows(c.file().at("weight"), scale, c.file().at("weight_scale_2"), multiplies), "weight", 2, 2);
  else
    check_coded(c, nvfp4_rows(c.file().at("weight_packed"), scale, c.file().at("weight_global_scale"), divides), "weight", 2, 3);
}

/// Blocks as ggml has them: an exponent, then inputs j and j + 16 of 32 in byte j.
std::vector<std::byte> as_ggml(const grouped_codes& codes) {
  std::vector<std::byte> out;
  for (index_t o = 0; o < codes.outputs(); ++o)
    for (index_t g = 0; g < codes.groups(); ++g) {
      std::uint8_t exponent = 0;
      while (!(e8m0_to_float(exponent) == codes.scales(o, g))) ++exponent;
      out.push_back(static_cast<std::byte>(exponent));
      for (index_t j = 0; j < 16; ++j)
        out.push_back(static_cast<std::byte>(codes.codes(o, 32 * g + j) | codes.codes(o, 32 * g + 16 + j) << 4));
    }
  return out;
}

/// y [E,T,rows]: every expert alone.
template <typename Scalar, typename RunExpert>
void check_each(oracle_case<Scalar>& c, index_t experts, RunExpert run) {
  const matrix<Scalar> x = c.rows("x");
  std::vector<Scalar> all;
  for (index_t e = 0; e < experts; ++e) {
    const matrix<Scalar> y = run(e, x);
    all.insert(all.end(), y.data(), y.data() + y.size());
  }
  c.check("y", std::span<const Scalar>(all));
}

template <typename Scalar, typename Expert>
matrix<Scalar> run_expert(Expert& expert, const matrix<Scalar>& x) {
  matrix<Scalar> y(x.rows(), expert.outputs());
  matrix<Scalar> saved(x.rows(), expert.saved_columns());
  expert.forward(x, y, saved);
  return y;
}

template <typename Scalar>
void replay_mxfp4(oracle_case<Scalar>& c) {
  const std::string kind = c.template setting<std::string>("kind");
  const index_t E = c.template setting<index_t>("E");
  const auto cast = [](const matrix<float>& m) { return matrix<Scalar>(m.template cast<Scalar>()); };
  if (kind == "decode") {
    const mxfp4_rows coded(c.file().at("blocks"), c.file().at("scales"));
    const index_t rows = coded.rows() / E;
    const matrix<float> w = decoded(coded);
    check_coded(c, coded, "weight_rows");
    if (c.template setting<index_t>("T") > 0)
      check_each(c, E, [&](index_t e, const matrix<Scalar>& x) {
        return matrix<Scalar>(x * cast(w.middleRows(e * rows, rows)).transpose());
      });
    return;
  }
  const index_t D = c.template setting<index_t>("D"), H = c.template setting<index_t>("H");
  if (kind == "deepseek_v4 experts") {
    std::vector<matrix<Scalar>> w;
    for (const std::string name : {"w1", "w2", "w3"}) {
      const mxfp4_rows coded(typed(c, name + ".weight", data_type::i8), typed(c, name + ".scale", data_type::f8_e8m0));
      check_coded(c, coded, name.c_str());
      w.push_back(cast(decoded(coded)));
    }
    check_each(c, E, [&](index_t e, const matrix<Scalar>& x) {
      swiglu<Scalar> expert(D, H);
      expert.gate().assign(matrix<Scalar>(w[0].middleRows(e * H, H)));
      expert.down().assign(matrix<Scalar>(w[1].middleRows(e * D, D)));
      expert.up().assign(matrix<Scalar>(w[2].middleRows(e * H, H)));
      return run_expert(expert, x);
    });
    return;
  }
  const mxfp4_rows gate_up(c.file().at("gate_up_proj_blocks"), c.file().at("gate_up_proj_scales"));
  const mxfp4_rows down(c.file().at("down_proj_blocks"), c.file().at("down_proj_scales"));
  check_coded(c, gate_up, "gate_up_rows");
  check_coded(c, down, "down_rows");
  c.check_bytes("ggml.ffn_gate_exps", as_ggml(gate_up.codes(0, 2, E * H)));
  c.check_bytes("ggml.ffn_up_exps", as_ggml(gate_up.codes(1, 2, E * H)));
  c.check_bytes("ggml.ffn_down_exps", as_ggml(down.codes(0, 1, E * D)));
  const auto gate_up_bias = c.numbers("gate_up_proj_bias"), down_bias = c.numbers("down_proj_bias");
  check_each(c, E, [&](index_t e, const matrix<Scalar>& x) {
    clamped_glu<Scalar> expert(D, H, {.bias = true,
                                      .gating = {.alpha = c.template setting<Scalar>("alpha"),
                                                 .limit = c.template setting<Scalar>("limit")}});
    expert.gate().assign(cast(gate_up.codes(2 * e * H, 2, H).to_matrix()));
    expert.up().assign(cast(gate_up.codes(2 * e * H + 1, 2, H).to_matrix()));
    expert.down().assign(cast(down.codes(e * D, 1, D).to_matrix()));
    for (index_t h = 0; h < H; ++h) {
      expert.gate_bias().value()[as_size(h)] = gate_up_bias[as_size(2 * (e * H + h))];
      expert.up_bias().value()[as_size(h)] = gate_up_bias[as_size(2 * (e * H + h) + 1)];
    }
    for (index_t d = 0; d < D; ++d) expert.down_bias().value()[as_size(d)] = down_bias[as_size(e * D + d)];
    return run_expert(expert, x);
  });
}

// ---- Whole models -----------------------------------------------------------------------

std::filesystem::path beside(const safetensors_reader& file, const std::string& name) {
  return std::filesystem::path(file.file_name()).parent_path() / name;
}

/// One matrix of each expert, one below the other, exactly as the layer has it.
template <typename Bank, typename Part>
matrix<float> of_all_experts(Bank& bank, Part part) {
  const auto first = part(bank.expert(0)).to_matrix();
  matrix<float> all(bank.experts() * first.rows(), first.cols());
  for (index_t e = 0; e < bank.experts(); ++e)
    all.middleRows(e * first.rows(), first.rows()) = part(bank.expert(e)).to_matrix().template cast<float>();
  return all;
}

template <typename Scalar, typename Mixture>
void check_weights(oracle_case<Scalar>& c, Mixture& mixture, const std::string& prefix) {
  c.check_exact(prefix + "gate_proj", of_all_experts(mixture.bank(), [](auto& e) -> auto& { return e.gate(); }));
  c.check_exact(prefix + "up_proj", of_all_experts(mixture.bank(), [](auto& e) -> auto& { return e.up(); }));
  c.check_exact(prefix + "down_proj", of_all_experts(mixture.bank(), [](auto& e) -> auto& { return e.down(); }));
}

/// Loads a block and checks its choices, its output and, by check_rest(layer, mixture), what else the case has.
template <typename Layer, typename Scalar, typename CheckRest>
void check_block(oracle_case<Scalar>& c, const checkpoint_model& model, CheckRest check_rest) {
  auto layer = load_layer<Layer>(model, {.layer = c.template setting<index_t>("layer", 0)});
  const matrix<Scalar> x = c.rows("x");
  matrix<Scalar> y(x.rows(), layer.outputs());
  typename Layer::tape tape;
  layer.forward(x, y, tape);
  // The file's y is that of weights before they were rounded to float, where that rounds them. Each of three matrices then
  // brings 2^-24 of its terms, whose magnitudes add up to about the root of their number times what they add up to.
  const double terms = static_cast<double>(c.template setting<index_t>("D") + c.template setting<index_t>("H"));
  const bool rounds = c.template setting<std::string>("format", "") == "fp8";
  c.check("y", y, 0, rounds ? 3 * std::sqrt(terms) * 0x1p-24 * static_cast<double>(y.cwiseAbs().maxCoeff()) : 0);
  const auto check_choice = [&](auto& mixture, const auto& its_tape) {
    c.check("logits", copy(its_tape.router.seen.clean));
    check_choices(c, its_tape.router, its_tape.plan);
    check_rest(layer, mixture);
  };
  if constexpr (requires { layer.shared(); })
    check_choice(layer.layer(), tape.layer);
  else
    check_choice(layer, tape);
}

template <typename Scalar>
void replay_folder(oracle_case<Scalar>& c) {
  const checkpoint_model model(beside(c.file(), c.template setting<std::string>("folder")));
  const auto type = c.template setting<std::string>("model_type");
  const auto rest = [&](auto& layer, auto& mixture) {
    check_weights(c, mixture, type == "gpt_oss" ? "" : "experts.");
    if constexpr (requires { layer.shared(); }) {
      c.check_exact("shared.gate_proj", matrix<float>(layer.shared().gate().to_matrix().template cast<float>()));
      c.check_exact("shared.up_proj", matrix<float>(layer.shared().up().to_matrix().template cast<float>()));
      c.check_exact("shared.down_proj", matrix<float>(layer.shared().down().to_matrix().template cast<float>()));
    }
  };
  if (type == "gpt_oss")
    check_block<gpt_oss_layer<Scalar>>(c, model, rest);
  else if (type == "deepseek_v3" || type == "kimi_k2")
    check_block<deepseek_v3_layer<Scalar>>(c, model, rest);
  else if (type == "qwen3_moe")
    check_block<qwen3_moe_layer<Scalar>>(c, model, rest);
  else
    throw unsupported("model type " + type);
}

/// The block in float or double, and with every matrix as the file has it: the same numbers.
template <typename Scalar>
void check_kept(oracle_case<Scalar>& c, const checkpoint_model& model) {
  check_block<qwen3_moe_layer<Scalar>>(c, model, [](auto&, auto&) {});
  if constexpr (std::same_as<Scalar, float>) {
    using q4 = coded_storage<q4_k_format>;
    using q6 = coded_storage<q6_k_format>;
    using q8 = coded_storage<q8_0_format>;
    check_block<qwen3_moe_layer<float, mixed_storage<bfloat16_storage, q4, q6, q8>>>(c, model, [&](auto&, auto& mixture) {
      auto& expert = mixture.bank().expert(1);
      if (expert.gate().template get_if<q4>() == nullptr || expert.up().template get_if<q6>() == nullptr ||
          expert.down().template get_if<q8>() == nullptr)
        c.fail("matrices are not kept as the file has them");
    });
  }
}

template <typename Scalar>
void replay_gguf(oracle_case<Scalar>& c) {
  const auto path = beside(c.file(), c.template setting<std::string>("file"));
  const checkpoint_model model(path);
  const gguf_reader& file = model.files().gguf().front();
  if (static_cast<index_t>(file.contents().data_start) != c.template setting<index_t>("data_start") ||
      static_cast<index_t>(file.contents().alignment) != c.template setting<index_t>("alignment"))
    c.fail("data begins elsewhere");
  for (const tensor_info& tensor : file.tensors()) c.check_exact(tensor.name, file.read_vector(tensor.name));
  const auto nothing = [](auto&, auto&) {};
  const auto architecture = c.template setting<std::string>("architecture");
  if (architecture == "gpt-oss")
    check_block<gpt_oss_layer<Scalar>>(c, model, nothing);
  else if (architecture == "qwen3moe")
    check_kept(c, model);
  else
    throw unsupported("architecture " + architecture);
}

}  // namespace

std::vector<replayer> quantized_files() {
  return {{"fp8_block", replay_fp8<float>, replay_fp8<double>},
          {"gptq_int4", replay_gptq<float>, replay_gptq<double>},
          {"awq_int4", replay_awq<float>, replay_awq<double>},
          {"compressed_tensors_int4", replay_packed_inputs<float>, replay_packed_inputs<double>},
          {"nvfp4", replay_nvfp4<float>, replay_nvfp4<double>},
          {"mxfp4", replay_mxfp4<float>, replay_mxfp4<double>},
          {"checkpoint_folder", replay_folder<float>, replay_folder<double>},
          {"gguf_file", replay_gguf<float>, replay_gguf<double>}};
}

}  // namespace oracle
