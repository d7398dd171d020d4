// Experts' weights as whole numbers with a scale a group in the layout of compressed-tensors: what other programs read,
// and run and compare here. Every weight is rounded on its own, or by what calibration tokens say of it.
#include <sluice/checkpoint/converted_config.hpp>
#include <sluice/checkpoint/load_layer.hpp>
#include <sluice/exec/thread_pool.hpp>
#include <sluice/io/checkpoint_writer.hpp>
#include <sluice/quant/bit_allocation.hpp>
#include <sluice/quant/round_to_nearest.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <iostream>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "calibrated_layer.hpp"
#include "commands.hpp"
#include "output.hpp"
#include "packed_codes.hpp"
#include "quantize_report.hpp"
#include "quantize_svg.hpp"
#include "session.hpp"
#include "text_table.hpp"

namespace checkpoint {
namespace {

const weight_format& format_of(const std::string& word) {
  for (const weight_format& format : weight_formats)
    if (format.name == word) return format;
  throw shared::input_error("--format needs int4 or int8, not " + shared::in_quotes(word));
}

/// The tensor that is this matrix and nothing else; null if the layer has none of that name.
const sluice::tensor_info* matrix_of(const sluice::checkpoint_model& model, const sluice::tensor_names& names,
                                     const std::string& parameter, index_t rows, index_t cols) {
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

/// A matrix of an expert as it is in the file.
struct expert_matrix {
  const sluice::tensor_info* tensor;
  sluice::matrix<float> weights;

  std::string stem() const { return tensor->name.substr(0, tensor->name.size() - std::string_view(".weight").size()); }
  double bits(const weight_format& format, index_t group) const {
    const index_t inputs = weights.cols(), groups = (inputs + group - 1) / group;
    return static_cast<double>(weights.rows() * (32 * words_of_row(inputs, format.bits) + 16 * groups));
  }
};

/// Those of an expert in the order of a calibrated layer; none of an expert that is not there.
std::vector<expert_matrix> matrices_of(const sluice::checkpoint_model& model, const sluice::tensor_names& names,
                                       index_t expert) {
  const sluice::model_config& c = model.config();
  const index_t inputs = c.latent > 0 ? c.latent : c.inputs;
  std::vector<expert_matrix> matrices;
  for (const std::string part : {"gate", "up", "down"}) {
    const bool is_last = part == "down";
    const auto* const tensor = matrix_of(model, names, "experts." + std::to_string(expert) + '.' + part,
                                         is_last ? inputs : c.hidden, is_last ? c.hidden : inputs);
    if (tensor == nullptr) continue;
    sluice::matrix<float> w(tensor->shape[0], tensor->shape[1]);
    const std::span<float> numbers(w.data(), static_cast<std::size_t>(w.size()));
    if (const auto why = sluice::safetensors_reader::obstacle<float>(*tensor, numbers.size()); !why.empty())
      throw sluice::file_error(model.name(), tensor->name, why);
    sluice::safetensors_reader::copy<float>(*tensor, numbers);
    matrices.push_back({tensor, std::move(w)});
  }
  return matrices;
}

/// Bits of a weight in each of the formats, scales included, of experts with these matrices.
std::array<double, weight_formats.size()> bits_a_weight(const std::vector<expert_matrix>& matrices, index_t group) {
  std::array<double, weight_formats.size()> bits{};
  double numbers = 0;
  for (const expert_matrix& m : matrices) {
    numbers += static_cast<double>(m.weights.size());
    for (std::size_t f = 0; f < bits.size(); ++f) bits[f] += m.bits(weight_formats[f], group);
  }
  for (double& each : bits) each /= std::max(numbers, 1.0);
  return bits;
}

/// How many of `experts` experts can have the second format in a mean of `budget` bits a weight, the others the first.
index_t in_second_format(index_t experts, double budget, const std::array<double, weight_formats.size()>& bits) {
  static_assert(weight_formats.size() == 2);
  if (!(budget >= bits[0]))
    throw shared::input_error("--budget needs " + shared::fixed(bits[0], 3) +
                              " bits a weight or more, which is int4 with its scales, not " + shared::fixed(budget, 3));
  const auto all = static_cast<double>(experts);
  return static_cast<index_t>(std::min(all, std::floor(all * (budget - bits[0]) / (bits[1] - bits[0]) + 1e-9)));
}

relative_error error_of(const sluice::matrix<float>& w, const sluice::matrix<float>& q) {
  return {(w.cast<double>() - q.cast<double>()).squaredNorm(), w.cast<double>().squaredNorm()};
}

/// The model's config.json, to which is added what the weights are now.
nlohmann::ordered_json config_of(const sluice::checkpoint_model& model) {
  const std::filesystem::path path = model.files().folder() / "config.json";
  const sluice::mapped_file file(path);
  const auto* const text = reinterpret_cast<const char*>(file.bytes().data());
  auto config = nlohmann::ordered_json::parse(text, text + file.bytes().size(), nullptr, false);
  if (!config.is_object()) throw sluice::file_error(path.string(), "is no strict JSON");
  return config;
}

class quantizer {
public:
  quantizer(const sluice::checkpoint_model& model, const quantize_options& o)
      : model_(model), o_(o), format_(format_of(o.format)), threads_(o.threads), bar_(o.progress) {
    for (const sluice::located_tensor& tensor : model.files().tensors()) left_[tensor.info.name] = &tensor.info;
  }

  void run() {
    const auto blocks = model_.blocks();
    for (std::size_t b = 0; b < blocks.size(); ++b) add_layer(blocks[b], b, blocks.size());
    if (matrices_.empty()) throw sluice::file_error(model_.name(), "has no experts whose weights could be rounded");
  }

  void save(const std::filesystem::path& target, nlohmann::ordered_json config) {
    sluice::checkpoint_writer file;
    for (const auto& [key, value] : model_.files().metadata()) file.metadata(key, value);
    for (const auto& [name, tensor] : left_) file.add(*tensor);
    for (const packed_matrix& matrix : matrices_) matrix.add_to(file);
    bar_.draw("writing", 1, 1);
    config["quantization_config"] = groups_.config(o_.group);
    sluice::save_with_config(file, target, config.dump(2) + '\n');
  }

  const std::vector<rounded_expert>& experts() const { return experts_; }
  std::size_t matrices() const { return matrices_.size(); }
  index_t tokens() const { return tokens_; }

private:
  void add_layer(const sluice::block_id& block, std::size_t number, std::size_t count) {
    const std::string name = to_string(block);
    const auto experts = model_.config().experts;
    // Of the work on a layer, guessed: where calibration, the search for bits and rounding begin.
    const double searching = o_.calibrate.empty() ? 0 : 0.02, rounding = o_.budget ? 0.1 : searching;
    const auto draw = [&](const std::string& what, double done) { bar_.draw(what, done, 1, number, count); };
    const sluice::tensor_names names = model_.names(block);

    // What cannot be done is said before the work on a layer.
    const auto bits = bits_a_weight(matrices_of(model_, names, 0), o_.group);
    const index_t second = o_.budget ? in_second_format(experts, *o_.budget, bits) : 0;
    std::unique_ptr<calibrated_layer> calibrated;
    if (!o_.calibrate.empty()) {
      layer_options as;
      as.ignored = o_.ignored;
      sluice::matrix<float> x = read_tokens_of(o_.calibrate, name, model_.config().inputs);
      tokens_ = x.rows();
      calibrated = calibrate_layer(model_, block, std::move(x), as, threads_,
                                   [&](const std::string& what, double part) { draw(what, part * searching); });
    }
    std::vector<const weight_format*> formats(static_cast<std::size_t>(experts), &format_);
    if (o_.budget) {
      const sluice::matrix<double> costs = calibrated->costs(
          o_.group, [&](double part) { draw("weighing " + name, searching + part * (rounding - searching)); });
      // An expert at int4 is a unit of the budget, one at int8 is two.
      const auto units = sluice::allocate_bits(costs, experts + second, false).bits;
      for (std::size_t e = 0; e < formats.size(); ++e)
        formats[e] = &weight_formats[static_cast<std::size_t>(units[e] - 1)];
    }
    for (index_t e = 0; e < experts; ++e) {
      draw("rounding " + name, rounding + (1 - rounding) * static_cast<double>(e) / static_cast<double>(experts));
      add_expert(name, names, e, *formats[static_cast<std::size_t>(e)], calibrated.get());
    }
  }

  void add_expert(const std::string& layer, const sluice::tensor_names& names, index_t e, const weight_format& format,
                  const calibrated_layer* calibrated) {
    std::vector<sluice::grouped_codes> codes;
    std::vector<sluice::matrix<float>> nearest, done;
    rounded_expert report{.layer = layer, .expert = e, .format = std::string(format.name)};
    const std::vector<expert_matrix> matrices = matrices_of(model_, names, e);
    if (matrices.empty()) return;
    for (const expert_matrix& m : matrices) {
      codes.push_back(sluice::round_to_nearest(m.weights, rounding_to(format, o_.group), threads_));
      nearest.push_back(codes.back().to_matrix());
      report.nearest_weights.add(error_of(m.weights, nearest.back()));
    }
    if (calibrated != nullptr) {
      report.tokens = calibrated->tokens(e);
      report.nearest_outputs = calibrated->change(e, nearest);
      compensated_codes compensated = calibrated->compensated(e, format, o_.group);
      codes = std::move(compensated.of);
      report.has_few_tokens = compensated.has_few_tokens;
    }
    for (std::size_t m = 0; m < matrices.size(); ++m) {
      left_.erase(matrices[m].tensor->name);
      done.push_back(codes[m].to_matrix());
      report.weights.add(error_of(matrices[m].weights, done.back()));
      matrices_.push_back(packed(matrices[m].stem(), codes[m]));
      groups_.add(matrices_.back().stem, e, format.bits);
      report.numbers += static_cast<double>(done.back().size());
      report.bytes += static_cast<double>(matrices_.back().bytes());
    }
    if (calibrated != nullptr) report.outputs = calibrated->change(e, done);
    experts_.push_back(std::move(report));
  }

  const sluice::checkpoint_model& model_;
  const quantize_options& o_;
  const weight_format& format_;
  sluice::thread_pool threads_;
  work_bar bar_;
  std::map<std::string, const sluice::tensor_info*> left_;  // what stays as it is
  std::list<packed_matrix> matrices_;                       // the file refers to them
  packed_groups groups_;
  std::vector<rounded_expert> experts_;
  index_t tokens_ = 0;
};

}  // namespace

void quantize(const quantize_options& o) {
  const sluice::checkpoint_model model(o.model, o.prefix);
  if (!model.config().quantization.empty() || !model.files().gguf().empty())
    throw sluice::file_error(model.name(), "is quantised already, or a GGUF file: quantize takes plain numbers");
  if (!o.svg.empty()) require_writable(o.svg);
  const nlohmann::ordered_json config = config_of(model);
  const bool is_calibrated = !o.calibrate.empty();
  std::vector<rounded_expert> experts;
  std::string how;
  {
    quantizer work(model, o);
    work.run();
    work.save(o.target, config);
    experts = work.experts();
    how =
        std::to_string(work.matrices()) + " matrices in groups of " + std::to_string(o.group) +
        (is_calibrated ? ", rounded by GPTQ on " + shared::grouped(work.tokens()) + " tokens" : ", rounded to nearest");
  }
  if (!o.svg.empty())
    write_text(o.svg,
               quantize_picture(experts, is_calibrated, "What rounding costs " + model.config().model_type,
                                how + "; " + shared::fixed(sum_of(experts, "").bits(), 2) +
                                    " bits a weight with scales. An error is the size of the change as a part of "
                                    "what is changed, both as root mean squares."));
  print_aligned(std::cout, table_of(experts, is_calibrated));
  if (const std::string few = few_tokens(experts, calibrated_layer::least_tokens); !few.empty())
    std::cout << '\n' << few;
  std::cout << '\n' << o.target << ": " << how << "; everything else as it was\n";
  if (is_calibrated) std::cout << "Errors of outputs are those on the calibration tokens.\n";
  if (!o.svg.empty()) std::cout << "written: " << o.svg << '\n';
}

}  // namespace checkpoint
