// Experts' weights as whole numbers with a scale a group, each weight rounded on its own, in the layout of
// compressed-tensors: what other programs read, and run and compare here.
#include <sluice/checkpoint/load_layer.hpp>
#include <sluice/exec/thread_pool.hpp>
#include <sluice/io/checkpoint_writer.hpp>
#include <sluice/quant/round_to_nearest.hpp>

#include <nlohmann/json.hpp>

#include <cmath>
#include <iostream>
#include <list>
#include <map>
#include <string>
#include <vector>

#include "../shared/progress_line.hpp"
#include "../shared/text.hpp"
#include "commands.hpp"
#include "output.hpp"
#include "session.hpp"
#include "text_table.hpp"

namespace checkpoint {
namespace {

int bits_of_format(const std::string& word) {
  if (word == "int4") return 4;
  if (word == "int8") return 8;
  throw shared::input_error("--format needs int4 or int8, not " + shared::in_quotes(word));
}

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

/// Consecutive inputs in a word, the lowest bits first; scales are bfloat16 already.
packed_matrix packed(const std::string& stem, const sluice::grouped_codes& codes) {
  packed_matrix out{.stem = stem, .words = {}, .scales = {}, .shape = {codes.outputs(), codes.inputs()}};
  const sluice::index_t in_word = 32 / codes.bits;
  out.words_a_row = (codes.inputs() + in_word - 1) / in_word;
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

/// What an expert's matrices come to together.
struct expert_sums {
  std::string name;
  double error = 0, weight = 0, numbers = 0, bytes = 0;

  void add(const sluice::matrix<float>& w, const sluice::grouped_codes& codes, const packed_matrix& as) {
    for (sluice::index_t o = 0; o < w.rows(); ++o)
      for (sluice::index_t i = 0; i < w.cols(); ++i) {
        const double d = double(w(o, i)) - double(codes.value(o, i));
        error += d * d;
        weight += double(w(o, i)) * double(w(o, i));
      }
    numbers += double(w.size());
    bytes += double(as.bytes());
  }
  std::vector<std::string> row(const std::string& format) const {
    return {name, format, shared::fixed(8 * bytes / numbers, 2),
            shared::fixed(weight > 0 ? std::sqrt(error / weight) : 0, 5)};
  }
};

/// The tensor that is this matrix and nothing else; null if the layer has none of that name.
const sluice::tensor_info* matrix_of(const sluice::checkpoint_model& model, const sluice::tensor_names& names,
                                     const std::string& parameter, sluice::index_t rows, sluice::index_t cols) {
  const auto place = names.place_of(parameter, rows, cols);
  const sluice::located_tensor* const found = place ? model.files().find(place->tensor) : nullptr;
  if (found == nullptr) return nullptr;
  const sluice::tensor_info& tensor = found->info;
  if (tensor.shape != std::vector<std::int64_t>{rows, cols} || place->offset != 0 || place->col_stride != 1 ||
      !tensor.name.ends_with(".weight"))
    throw sluice::file_error(model.name(), tensor.name,
                             "is no matrix of one expert, a row an output: convert --layout per-expert first");
  return &tensor;
}

/// The model's config.json with what the weights are now.
std::string config_of(const sluice::checkpoint_model& model, int bits, std::int64_t group) {
  const std::filesystem::path path = model.files().folder() / "config.json";
  const sluice::mapped_file file(path);
  const auto* const text = reinterpret_cast<const char*>(file.bytes().data());
  auto config = nlohmann::ordered_json::parse(text, text + file.bytes().size(), nullptr, false);
  if (!config.is_object()) throw sluice::file_error(path.string(), "is no strict JSON");
  config["quantization_config"] = {{"quant_method", "compressed-tensors"},
                                   {"format", "pack-quantized"},
                                   {"quantization_status", "compressed"},
                                   {"config_groups",
                                    {{"group_0",
                                      {{"targets", {"re:.*\\.experts\\.[0-9]+\\..*"}},
                                       {"weights",
                                        {{"num_bits", bits},
                                         {"type", "int"},
                                         {"symmetric", true},
                                         {"strategy", "group"},
                                         {"group_size", group}}}}}}}};
  return config.dump(2) + '\n';
}

}  // namespace

void quantize(const quantize_options& o) {
  const int bits = bits_of_format(o.format);
  const sluice::checkpoint_model model(o.model, o.prefix);
  if (!model.config().quantization.empty() || !model.files().gguf().empty())
    throw sluice::file_error(model.name(), "is quantised already, or a GGUF file: quantize takes plain numbers");
  const std::string config = config_of(model, bits, o.group);
  sluice::thread_pool threads(o.threads);
  work_bar bar(o.progress);

  std::list<packed_matrix> matrices;
  std::vector<std::vector<std::string>> rows{{"expert", "format", "bits a weight", "error of weights"}};
  std::map<std::string, const sluice::tensor_info*> left;
  for (const sluice::located_tensor& tensor : model.files().tensors()) left[tensor.info.name] = &tensor.info;
  expert_sums all{"all"};
  const auto blocks = model.blocks();
  const sluice::index_t experts = model.config().experts, inputs = model.config().inputs,
                        hidden = model.config().hidden;
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    const sluice::tensor_names names = model.names(blocks[b]);
    for (sluice::index_t e = 0; e < experts; ++e) {
      bar.draw("rounding " + to_string(blocks[b]), double(e), double(experts), b, blocks.size());
      expert_sums sums{to_string(blocks[b]) + " expert " + std::to_string(e)};
      for (const char* const part : {"gate", "up", "down"}) {
        const bool is_last = std::string_view(part) == "down";
        const auto* const tensor = matrix_of(model, names, "experts." + std::to_string(e) + '.' + part,
                                             is_last ? inputs : hidden, is_last ? hidden : inputs);
        if (tensor == nullptr || left.erase(tensor->name) == 0) continue;
        sluice::matrix<float> w(tensor->shape[0], tensor->shape[1]);
        const std::span<float> numbers(w.data(), static_cast<std::size_t>(w.size()));
        if (const auto why = sluice::safetensors_reader::obstacle<float>(*tensor, numbers.size()); !why.empty())
          throw sluice::file_error(model.name(), tensor->name, why);
        sluice::safetensors_reader::copy<float>(*tensor, numbers);
        const auto codes = sluice::round_to_nearest(
            w,
            {.bits = bits, .group = o.group, .range = sluice::code_range::full, .scales = sluice::scale_type::bfloat16},
            threads);
        matrices.push_back(
            packed(tensor->name.substr(0, tensor->name.size() - std::string_view(".weight").size()), codes));
        sums.add(w, codes, matrices.back());
        all.add(w, codes, matrices.back());
      }
      if (sums.numbers > 0) rows.push_back(sums.row(o.format));
    }
  }
  if (matrices.empty()) throw sluice::file_error(model.name(), "has no experts whose weights could be rounded");
  rows.push_back(all.row(o.format));

  sluice::checkpoint_writer file;
  for (const auto& [key, value] : model.files().metadata()) file.metadata(key, value);
  for (const auto& [name, tensor] : left) file.add(*tensor);
  for (const packed_matrix& matrix : matrices) matrix.add_to(file);
  bar.draw("writing", 0, 1);
  file.save(o.target);
  write_text(std::filesystem::path(o.target) / "config.json", config);

  print_aligned(std::cout, rows);
  std::cout << '\n'
            << o.target << ": " << matrices.size() << " matrices in groups of " << o.group
            << ", rounded to nearest; everything else as it was\n";
}

}  // namespace checkpoint
