/// decode_parts: finds the layouts of quantised weights among the tensors of a checkpoint.
///
///   experts.3.up_proj.qweight, .qzeros, .scales, .g_idx   are the tensor experts.3.up_proj.weight, GPTQ or AWQ
///   experts.3.up_proj.weight, .weight_scale_inv           FP8 in tiles                          (fp8_tiles.hpp)
///   experts.3.up_proj.weight, .weight_scale               FP8, a scale a row or one
///   experts.3.up_proj.weight_packed, _scale, _shape ..    whole numbers of compressed-tensors   (packed_inputs.hpp)
///   experts.3.up_proj.weight_packed, _scale, _global_scale   NVFP4, which divides               (nvfp4_rows.hpp)
///   experts.3.up_proj.weight, _scale, _scale_2            NVFP4 of ModelOpt, which multiplies
///   experts.gate_up_proj_blocks, _scales                  MXFP4 of GPT-OSS: keeps its name, [E, out, in]  (mxfp4_rows.hpp)
///   experts.3.w1.weight, .scale                           MXFP4, or FP8 in tiles, of DeepSeek-V4
///   blk.3.ffn_up_exps.weight, .scale                      any type of a GGUF file                (scaled_tensor.hpp)
///
/// A layout is known by the names and types of its tensors; the config tells bits, groups, tiles, and GPTQ from AWQ.
/// One that is there in part, or does not fit together, is a tensor with a `problem` that says what was seen and what
/// was wanted: an error for whoever needs it, and for nobody else. Scales of activations are found and not used.
#pragma once

#include <sluice/checkpoint/encoding/fp8_tiles.hpp>
#include <sluice/checkpoint/encoding/mxfp4_rows.hpp>
#include <sluice/checkpoint/encoding/nvfp4_rows.hpp>
#include <sluice/checkpoint/encoding/packed_inputs.hpp>
#include <sluice/checkpoint/encoding/packed_words.hpp>
#include <sluice/checkpoint/encoding/scaled_tensor.hpp>
#include <sluice/checkpoint/gguf_names.hpp>
#include <sluice/checkpoint/model_family.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/tensor_info.hpp>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// A tensor as layers need it, plain or put together of others.
struct decoded_tensor {
  tensor_info info;                      ///< its numbers are those of the decoder, if there is one
  std::string problem = {};              ///< why they cannot be had
  std::vector<std::string> parts = {};   ///< the tensors that it is made of
  std::vector<std::string> unused = {};  ///< of the same layout, and not needed: scales of activations
  std::uint64_t bytes = 0;               ///< in the file, of all parts that are needed
};

namespace detail {

/// Looks the parts of one layout up and keeps their names. Find(name) -> const tensor_info*, or nullptr.
template <typename Find>
class part_finder {
public:
  part_finder(const tensor_info& anchor, std::string_view suffix, const Find& find)
      : find_(find), stem_(anchor.name.substr(0, anchor.name.size() - suffix.size())) {
    found.push_back(anchor.name);
  }

  const std::string& stem() const { return stem_; }
  const tensor_info* if_there(std::string_view suffix) {
    const tensor_info* const part = find_(stem_ + std::string(suffix));
    if (part != nullptr) found.push_back(part->name);
    return part;
  }
  const tensor_info& needed(std::string_view suffix) {
    const tensor_info* const part = if_there(suffix);
    if (part == nullptr)
      throw unfit_parts("needs \"" + printable(stem_) + std::string(suffix) + "\", which is not there");
    return *part;
  }

  /// Everything that any layout has beside such an anchor: of one that does not fit together, too.
  void claim_all() {
    for (const char* const suffix :
         {".qzeros", ".scales", ".g_idx", ".weight_scale", ".weight_global_scale", ".weight_shape",
          ".weight_zero_point", ".weight_g_idx", "_scales", "_scale", "_scale_inv", "_scale_2"})
      if_there(suffix);
  }

  std::vector<std::string> found;

private:
  const Find& find_;
  std::string stem_;
};

inline std::string bits_text(std::string_view layout, index_t bits) {
  return std::string(layout) + " int" + std::to_string(bits);
}

/// The decoder that begins with `anchor`, and what the layout is called; nothing if it begins none.
template <typename Find>
std::pair<std::shared_ptr<const coded_matrix>, std::string> decoder_of(const tensor_info& anchor,
                                                                       const model_config& config,
                                                                       part_finder<Find>& parts) {
  const weight_encoding& how = config.encoding;
  if (anchor.name.ends_with(".qweight")) {
    const bool is_awq = config.quantization == "awq";
    if (!is_awq && config.quantization != "gptq")
      throw unfit_parts("is a layout of GPTQ or AWQ, but the config's quant_method is \"" +
                        printable(config.quantization) + '"');
    const bool known = how.format.empty() || (is_awq ? how.format == "gemm" : how.format.starts_with("gptq"));
    if (!known)
      throw unfit_parts("is in the format \"" + printable(how.format) + "\"; only " +
                        (is_awq ? "\"gemm\" is" : "\"gptq\" and \"gptq_v2\" are") + " read");
    const packed_words::parts given{anchor, parts.needed(".qzeros"), parts.needed(".scales"),
                                    is_awq ? nullptr : parts.if_there(".g_idx")};
    using enum packed_words::form;
    return {std::make_shared<packed_words>(given,
                                           is_awq                    ? awq
                                           : how.format == "gptq_v2" ? gptq_v2
                                                                     : gptq,
                                           how.bits, how.group),
            bits_text(is_awq ? "AWQ" : "GPTQ", how.bits)};
  }
  if (anchor.name.ends_with(".weight_packed")) {
    if (anchor.dtype == data_type::u8)
      return {std::make_shared<nvfp4_rows>(anchor, parts.needed(".weight_scale"), parts.needed(".weight_global_scale"),
                                           nvfp4_rows::global_scale::divides),
              "NVFP4"};
    if (!how.format.empty() && how.format != "pack-quantized" && how.format != "mixed-precision")
      throw unfit_parts("is in the format \"" + printable(how.format) + "\"; only \"pack-quantized\" is read");
    const packed_inputs::parts given{anchor, parts.needed(".weight_scale"), parts.needed(".weight_shape"),
                                     parts.if_there(".weight_zero_point"), parts.if_there(".weight_g_idx")};
    const auto made = std::make_shared<packed_inputs>(given, how.bits, how.group);
    return {made, bits_text("packed", made->bits())};
  }
  if (anchor.name.ends_with("_blocks")) return {std::make_shared<mxfp4_rows>(anchor, parts.needed("_scales")), "MXFP4"};
  if (anchor.dtype == data_type::f8_e4m3) {
    const tensor_info* scale = parts.if_there("_scale_inv");
    if (scale == nullptr) scale = parts.if_there("_scale");
    if (scale == nullptr) scale = &parts.needed("_scale_inv");
    return {std::make_shared<fp8_tiles>(anchor, *scale, how.tile_rows, how.tile_inputs), "FP8"};
  }
  return {std::make_shared<nvfp4_rows>(anchor, parts.needed("_scale"), parts.needed("_scale_2"),
                                       nvfp4_rows::global_scale::multiplies),
          "NVFP4"};
}

/// By its name and type alone: whether a layout may begin here, and what of the name its parts do not share.
template <typename Find>
std::optional<std::string_view> anchor_suffix(const tensor_info& tensor, const Find& find) {
  const auto has = [&](std::string_view suffix) { return find(tensor.name + std::string(suffix)) != nullptr; };
  for (const std::string_view suffix : {".qweight", ".weight_packed"})
    if (tensor.name.ends_with(suffix)) return suffix;
  const bool is_bytes = tensor.dtype == data_type::u8 || tensor.dtype == data_type::i8;
  if (is_bytes && tensor.name.ends_with("_blocks")) return "_blocks";
  if (tensor.dtype == data_type::f8_e4m3 || (tensor.dtype == data_type::u8 && has("_scale_2"))) return "";
  return std::nullopt;
}

/// DeepSeek-V4: "w1.scale" beside "w1.weight", of FP8 in tiles or of MXFP4.
template <typename Find>
const tensor_info* bare_scale(const tensor_info& tensor, const Find& find) {
  const bool is_code =
      tensor.dtype == data_type::f8_e4m3 || tensor.dtype == data_type::u8 || tensor.dtype == data_type::i8;
  if (!is_code || !tensor.name.ends_with(".weight")) return nullptr;
  return find(tensor.name.substr(0, tensor.name.size() - 6) + "scale");
}

/// What stands beside tensors of a GGUF file: scales of the weights, and of activations.
template <typename Find>
std::optional<decoded_tensor> scaled_parts(const tensor_info& weight, const model_config& config, const Find& find) {
  const std::string name = gguf_scale_of(weight.name, config.family);
  if (name.empty()) return std::nullopt;
  const tensor_info* const scale = find(name);
  const tensor_info* const of_inputs = find(name.substr(0, name.size() - 5) + "input_scale");
  if (scale == nullptr && of_inputs == nullptr) return std::nullopt;
  decoded_tensor out{.info = weight, .parts = {weight.name}, .bytes = weight.bytes.size()};
  if (of_inputs != nullptr) out.unused.push_back(of_inputs->name);
  if (scale == nullptr) return out;
  out.parts.push_back(scale->name);
  out.bytes += scale->bytes.size();
  try {
    out.info.decoder = std::make_shared<scaled_tensor>(weight, *scale);
    out.info.other_type = std::string(weight.type_name()) + ", scaled";
    out.info.dtype = data_type::other;
  } catch (const unfit_parts& error) {
    out.problem = error.what();
  }
  return out;
}

}  // namespace detail

/// The tensor that `anchor` and others encode; nothing if it is the beginning of no layout.
template <typename Find>
std::optional<decoded_tensor> decode_parts(const tensor_info& anchor, const model_config& config, const Find& find) {
  if (config.quantization == "gguf") return detail::scaled_parts(anchor, config, find);
  const tensor_info* const bare = detail::bare_scale(anchor, find);
  const std::optional<std::string_view> suffix =
      bare != nullptr ? std::optional<std::string_view>("") : detail::anchor_suffix(anchor, find);
  if (!suffix) return std::nullopt;
  detail::part_finder<Find> parts(anchor, *suffix, find);
  const bool is_renamed = *suffix == ".qweight" || *suffix == ".weight_packed";
  decoded_tensor out{{is_renamed ? parts.stem() + ".weight" : anchor.name, data_type::other, {}, anchor.bytes}};
  out.info.other_type = std::string(anchor.type_name());
  out.info.shape = anchor.shape;
  out.bytes = anchor.bytes.size();
  try {
    std::pair<std::shared_ptr<const coded_matrix>, std::string> made;
    if (bare != nullptr) {
      parts.found.push_back(bare->name);
      if (anchor.dtype == data_type::f8_e4m3)
        made = {std::make_shared<fp8_tiles>(anchor, *bare, config.encoding.tile_rows, config.encoding.tile_inputs),
                "FP8"};
      else
        made = {std::make_shared<mxfp4_rows>(anchor, *bare), "MXFP4"};
    } else {
      made = detail::decoder_of(anchor, config, parts);
    }
    out.info.shape = made.first->shape();
    out.info.other_type = std::move(made.second);
    out.bytes = made.first->bytes();
    out.info.decoder = std::move(made.first);
  } catch (const unfit_parts& error) {
    out.problem = error.what();
    parts.claim_all();
  }
  out.parts = std::move(parts.found);
  const std::string stem =
      out.info.name.ends_with(".weight") ? out.info.name.substr(0, out.info.name.size() - 6) : out.info.name + '_';
  for (const char* const scale : {"input_scale", "input_global_scale", "activation_scale"})
    if (const tensor_info* const other = find(stem + scale); other != nullptr) out.unused.push_back(other->name);
  return out;
}

}  // namespace sluice::inline SLUICE_ISA
