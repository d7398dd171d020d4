/// Codes of weights as compressed-tensors lays them down under "pack-quantized", and the config that says so.
///
///   weight_packed I32   consecutive inputs in a word, the lowest bits first
///   weight_scale  BF16  a scale an output and group of inputs; the zero is 2^(bits - 1)
///   weight_shape  I64   outputs, inputs
///
/// The layout holds whole numbers of 4 or 8 bits. Which experts have which, a group of the config says by names.
#pragma once

#include <sluice/io/checkpoint_writer.hpp>
#include <sluice/quant/round_to_nearest.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace checkpoint {

struct weight_format {
  std::string_view name;
  int bits;
};

inline constexpr auto weight_formats = std::to_array<weight_format>({{"int4", 4}, {"int8", 8}});

inline sluice::rounding_options rounding_to(const weight_format& format, sluice::index_t group) {
  return {
      .bits = format.bits, .group = group, .range = sluice::code_range::full, .scales = sluice::scale_type::bfloat16};
}

/// Words of a row of weight_packed.
inline sluice::index_t words_of_row(sluice::index_t inputs, int bits) { return (inputs * bits + 31) / 32; }

/// One matrix as the file will have it. The writer refers to it.
struct packed_matrix {
  std::string stem;  ///< the tensor's name without ".weight"
  std::vector<std::int32_t> words;
  std::vector<std::uint16_t> scales;
  std::vector<std::int64_t> shape;
  std::int64_t words_a_row = 0, groups = 0;

  std::uint64_t bytes() const { return 4 * words.size() + 2 * scales.size(); }
  void add_to(sluice::checkpoint_writer& file) const {
    file.add(stem + ".weight_packed", {shape[0], words_a_row}, words);
    file.add(stem + ".weight_scale", {shape[0], groups}, sluice::data_type::bf16,
             std::as_bytes(std::span<const std::uint16_t>(scales)));
    file.add(stem + ".weight_shape", {2}, shape);
  }
};

/// Scales are bfloat16 already.
inline packed_matrix packed(const std::string& stem, const sluice::grouped_codes& codes) {
  packed_matrix out{.stem = stem, .words = {}, .scales = {}, .shape = {codes.outputs(), codes.inputs()}};
  const sluice::index_t in_word = 32 / codes.bits;
  out.words_a_row = words_of_row(codes.inputs(), codes.bits);
  out.groups = codes.groups();
  for (sluice::index_t o = 0; o < codes.outputs(); ++o) {
    for (sluice::index_t k = 0; k < out.words_a_row; ++k) {
      std::uint32_t word = 0;
      for (sluice::index_t i = k * in_word; i < std::min((k + 1) * in_word, codes.inputs()); ++i)
        word |= std::uint32_t{codes.codes(o, i)} << (i % in_word * codes.bits);
      out.words.push_back(static_cast<std::int32_t>(word));
    }
    for (sluice::index_t g = 0; g < codes.groups(); ++g)
      out.scales.push_back(sluice::round_to<sluice::bfloat16>(codes.scales(o, g)).bits);
  }
  return out;
}

/// Which experts have which bits, as quantization_config says it.
class packed_groups {
public:
  /// The matrix `stem` of expert `e` has so many bits.
  void add(const std::string& stem, sluice::index_t e, int bits) {
    const std::string number = '.' + std::to_string(e) + '.';
    const std::size_t at = stem.rfind(number);
    auto& list = experts_[bits][stem.substr(0, at + 1)];
    if (list.empty() || list.back() != e) list.push_back(e);
  }

  nlohmann::ordered_json config(sluice::index_t group) const {
    nlohmann::ordered_json groups = nlohmann::ordered_json::object();
    for (const auto& [bits, prefixes] : experts_) {
      nlohmann::ordered_json targets = nlohmann::ordered_json::array();
      for (const auto& [prefix, list] : prefixes) targets.push_back(pattern_of(prefix, list));
      groups["group_" + std::to_string(groups.size())] = {
          {"targets", std::move(targets)},
          {"weights",
           {{"num_bits", bits}, {"type", "int"}, {"symmetric", true}, {"strategy", "group"}, {"group_size", group}}}};
    }
    return {{"quant_method", "compressed-tensors"},
            {"format", "pack-quantized"},
            {"quantization_status", "compressed"},
            {"config_groups", std::move(groups)}};
  }

private:
  /// re:model\.layers\.0\.mlp\.experts\.(0|3)\..*
  static std::string pattern_of(const std::string& prefix, const std::vector<sluice::index_t>& experts) {
    std::string pattern = "re:";
    for (const char c : prefix) (pattern += c == '.' ? "\\" : "") += c;
    for (std::size_t i = 0; i < experts.size(); ++i) pattern += (i == 0 ? "(" : "|") + std::to_string(experts[i]);
    return pattern + ")\\..*";
  }

  std::map<int, std::map<std::string, std::vector<sluice::index_t>>> experts_;
};

}  // namespace checkpoint
