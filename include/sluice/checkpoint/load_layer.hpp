/// load_layer: fills a layer from the tensors of a published model, strictly, in parallel and without a second copy.
///
///   const sluice::checkpoint_model model("OLMoE-1B-7B-0924");          // a folder, an index, a file; GGUF too
///   auto layer = sluice::load_layer<sluice::olmoe_layer<float>>(model, {.layer = 3});
///   auto small = sluice::load_layer<sluice::olmoe_layer<float, sluice::bfloat16_storage>>(model, {.layer = 3});
///
/// Strict: every parameter's tensor is there with its shape and a type that can be converted, and no tensor of the
/// block is left over, unless it is a counter of the training (training_state.hpp) or named as ignored; otherwise one
/// file_error lists them all. What other blocks lack or hold does not matter. Numbers that the layer keeps in a
/// narrower type are rounded; those that would become infinite, and NaN in biases, are refused with their count.
/// Elements go from the mapped file straight into packed storage, quantised ones decoded on the way
/// (model_tensors.hpp): besides the layer nothing of its size is held. A router is never quantised: one that is, is
/// refused. What tensors are called: tensor_names.hpp.
#pragma once

#include <sluice/checkpoint/file_storages.hpp>
#include <sluice/checkpoint/gguf_config.hpp>
#include <sluice/checkpoint/load_report.hpp>
#include <sluice/checkpoint/model_config.hpp>
#include <sluice/checkpoint/model_tensors.hpp>
#include <sluice/checkpoint/published_types.hpp>
#include <sluice/checkpoint/tensor_copy.hpp>
#include <sluice/checkpoint/tensor_names.hpp>
#include <sluice/checkpoint/training_state.hpp>
#include <sluice/core/executor.hpp>
#include <sluice/io/checkpoint_files.hpp>
#include <sluice/io/name_pattern.hpp>

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// A published model on disk: its config and its tensors.
class checkpoint_model {
public:
  /// A folder with config.json, or that file, an index or a safetensors file in one; or a GGUF file, or the folder of
  /// one. A prefix is what the names of tensors have in front of "layers." where that is none of those that are known.
  /// Throws file_error.
  explicit checkpoint_model(const std::filesystem::path& path, std::string prefix = {})
      : checkpoint_model(path, is_gguf(path) ? std::nullopt : std::optional(read_model_config(folder_of(path))),
                         std::move(prefix)) {}
  /// With a config from elsewhere.
  checkpoint_model(const std::filesystem::path& path, model_config config, std::string prefix = {})
      : checkpoint_model(path, std::optional(std::move(config)), std::move(prefix)) {}

  const std::string& name() const noexcept { return name_; }
  const model_config& config() const noexcept { return config_; }
  const checkpoint_files& files() const noexcept { return files_; }
  /// The same as layers need them: those that are quantised decoded.
  const model_tensors& tensors() const noexcept { return tensors_; }

  /// The mixtures of the model, encoder before decoder. Blocks that predict further tokens are among them where they
  /// are in the files: many releases leave them out.
  std::vector<block_id> blocks() const {
    std::vector<block_id> blocks;
    for (const index_t layer : config_.moe_layers) blocks.push_back({layer, false});
    for (index_t i = 0; i < config_.next_token_layers; ++i)
      if (const block_id block{config_.layers + i}; names(block).exists()) blocks.push_back(block);
    for (const index_t layer : config_.decoder_moe_layers) blocks.push_back({layer, true});
    return blocks;
  }

  /// What the tensors of a block are called in this model.
  tensor_names names(const block_id& block) const {
    return tensor_names(
        config_, block,
        [this](const std::string& tensor) {
          const decoded_tensor* const found = tensors_.find(tensor);
          return found == nullptr ? nullptr : &found->info.shape;
        },
        prefix_);
  }

private:
  checkpoint_model(const std::filesystem::path& path, std::optional<model_config> config, std::string prefix)
      : files_(path.filename() == "config.json" ? folder_of(path) : path),
        config_(config ? *std::move(config) : read_gguf_config(files_.gguf())),
        tensors_(files_, config_),
        name_(path.string()),
        prefix_(std::move(prefix)) {}

  /// A GGUF file, or a folder with such files and no others: a config.json may lie beside them.
  static bool is_gguf(const std::filesystem::path& path) {
    std::error_code error;
    if (!std::filesystem::is_directory(path, error)) return path.extension() == detail::gguf_suffix;
    bool found = false;
    for (const std::string& name : detail::folder_names(path)) {
      if (name.ends_with(detail::file_suffix)) return false;
      found = found || name.ends_with(detail::gguf_suffix);
    }
    return found;
  }

  static std::filesystem::path folder_of(const std::filesystem::path& path) {
    std::error_code error;
    const auto status = std::filesystem::status(path, error);
    if (!std::filesystem::exists(status)) throw file_error(path.string(), "does not exist or cannot be reached");
    if (std::filesystem::is_directory(status)) return path;
    return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  }

  checkpoint_files files_;
  model_config config_;
  model_tensors tensors_;
  std::string name_;
  std::string prefix_;
};

struct layer_load_options {
  executor_ref executor = {};
  std::vector<std::string> ignored = {};  ///< patterns of full names of tensors of the block that may be left over
  layer_load_report* report = nullptr;    ///< is told, if given; a load that throws leaves it as it was
  /// Called from the loading thread with bytes of the layer done and in all; may throw to give up.
  void (*progress)(void* user, std::uint64_t done, std::uint64_t total) = nullptr;
  void* user = nullptr;
};

namespace detail {

/// Where each parameter of a layer goes to or comes from, by the names of a model.
template <typename Layer, typename Names>
std::vector<tensor_copy> copies_of(Layer& layer, const Names& names, problem_list& problems) {
  std::vector<tensor_copy> copies;
  for_each_parameter(layer, [&](const std::string& name, auto& p) {
    if (auto place = names.place_of(name, p.rows(), p.cols()))
      copies.emplace_back(p, std::move(*place));
    else
      problems.add("unknown", name, "models of this family have no tensor for this parameter");
  });
  return copies;
}

/// Finds the tensors of all copies, or says what is wrong.
template <typename Names>
void find_tensors(const checkpoint_model& model, const Names& names, std::vector<tensor_copy>& copies,
                         const std::vector<std::string>& ignored, problem_list& problems, layer_load_report& report) {
  std::map<std::string, const tensor_info*, std::less<>> seen;  // nullptr: reported
  for (tensor_copy& copy : copies) {
    const auto [entry, is_new] = seen.try_emplace(copy.place.tensor, nullptr);
    if (is_new) {
      const decoded_tensor* const found = model.tensors().find(copy.place.tensor);
      const std::string wanted = shape_text(copy.place.shape);
      if (found == nullptr) {
        problems.add("missing", copy.place.tensor,
                     "the layer needs shape " + wanted + "; it " + model.files().absence(copy.place.tensor));
        continue;
      }
      const tensor_info& info = found->info;
      if (!found->problem.empty()) {
        problems.add("different", copy.place.tensor, found->problem);
        continue;
      }
      if (!copy.place.is_of(info.shape)) {
        problems.add("different", copy.place.tensor,
                     "shape is " + shape_text(info.shape) + ", the layer needs " + wanted);
        continue;
      }
      if (const std::string obstacle = copy.obstacle(info); !obstacle.empty()) {
        problems.add("different", copy.place.tensor, obstacle);
        continue;
      }
      if (info.decoder != nullptr && (copy.place.tensor == names.router() || copy.role() != parameter_role::weight)) {
        problems.add("different", copy.place.tensor,
                     "is quantised, " + printable(info.type_name(), 40) + "; what chooses experts must not be");
        continue;
      }
      entry->second = &info;
      report.ignored.insert(report.ignored.end(), found->unused.begin(), found->unused.end());
    }
    copy.from = entry->second;
  }
  for (const decoded_tensor& tensor : model.tensors().all()) {
    const tensor_info& info = tensor.info;
    if (!names.owns(info.name) || seen.contains(info.name)) continue;
    if (is_training_counter(info, names.extent().experts) || matches_any(ignored, info.name))
      report.ignored.push_back(info.name);
    else
      problems.add("left over", info.name,
                   printable(info.type_name(), 40) + ' ' + shape_text(info.shape) + ", nothing in the layer takes it");
  }
  for (const missing_tensor& tensor : model.files().missing())
    if (names.owns(tensor.name) && !seen.contains(tensor.name) && !matches_any(ignored, tensor.name))
      problems.add("left over", tensor.name, "is in the index, nothing in the layer takes it");
}

/// Where else the router of a block is, which is not where it is looked for; empty if it is nowhere.
inline std::string found_elsewhere(const checkpoint_model& model, const tensor_names& names, const block_id& block) {
  for (const located_tensor& tensor : model.files().tensors())
    if (const std::string prefix = names.prefix_in(tensor.info.name); !prefix.empty())
      return to_string(block) + " is looked for as \"" + names.router() + "\"; there is \"" +
             printable(tensor.info.name) + "\": give \"" + printable(prefix) + "\" as the prefix";
  return {};
}

/// Runs all copies, a few hundred tiles of rows between two reports of progress. Reports what codes have cost.
inline void read_all(const std::vector<tensor_copy>& copies, const layer_load_options& options,
                     layer_load_report& report) {
  struct task {
    const tensor_copy* copy;
    index_t block;
    conversion_loss loss = {};
  };
  std::vector<task> tasks;
  std::uint64_t total = 0;
  for (const tensor_copy& copy : copies) {
    total += copy.bytes();
    for (index_t block = 0; block < copy.blocks(); ++block) tasks.push_back({&copy, block});
  }
  constexpr std::size_t between_reports = 512;
  std::uint64_t done = 0;
  for (std::size_t begin = 0; begin < tasks.size(); begin += between_reports) {
    const std::size_t count = (std::min)(between_reports, tasks.size() - begin);
    options.executor.parallel_for(static_cast<index_t>(count), [&](index_t i) {
      task& t = tasks[begin + static_cast<std::size_t>(i)];
      t.copy->read(t.block, t.loss);
    });
    if (options.progress == nullptr) continue;
    for (std::size_t i = begin; i < begin + count; ++i)
      done += tasks[i].copy->bytes() / static_cast<std::uint64_t>(tasks[i].copy->blocks());
    options.progress(options.user, begin + count == tasks.size() ? total : done, total);
  }
  for (const task& t : tasks) report.values.add(t.copy->from->name, t.loss);
}

/// Fills a layer from the tensors of these names, which are those of `part` of the model.
template <typename Layer, typename Names>
void load_named(Layer& layer, const checkpoint_model& model, const std::string& part, const Names& names,
                const layer_load_options& options) {
  problem_list problems;
  layer_load_report report;
  std::vector<tensor_copy> copies = copies_of(layer, names, problems);
  find_tensors(model, names, copies, options.ignored, problems, report);
  if (problems.count() == 0) count_losses(copies, options.executor, problems, report);
  if (problems.count() > 0) {
    const model_config& config = model.config();
    throw file_error(
        model.name(),
        part + " does not fit a layer of " + std::string(name_of(config.family)) + ", " +
            std::to_string(problems.count()) + (problems.count() == 1 ? " problem" : " problems") +
            (config.quantization.empty() ? "" : " (the model is quantised by " + printable(config.quantization) + ")") +
            ':' + problems.text());
  }
  read_all(copies, options, report);
  if (options.report != nullptr) *options.report = std::move(report);
}

}  // namespace detail

/// Fills a layer that exists. A call that throws has changed nothing, unless progress threw.
template <typename Layer>
void load_layer_into(Layer& layer, const checkpoint_model& model, const block_id& block,
                     const layer_load_options& options = {}) {
  const tensor_names names = model.names(block);
  if (!names.exists())
    if (const std::string elsewhere = detail::found_elsewhere(model, names, block); !elsewhere.empty())
      throw file_error(model.name(), elsewhere);
  detail::load_named(layer, model, to_string(block), names, options);
}

/// Makes a layer of the type by the model's config and fills it. The type must be the family's (published_types.hpp).
/// If its storage is chosen at run time, matrices are kept as the file has them (file_storages.hpp).
template <typename Layer>
Layer load_layer(const checkpoint_model& model, const block_id& block, const layer_load_options& options = {}) {
  const std::vector<block_id> blocks = model.blocks();
  if (std::find(blocks.begin(), blocks.end(), block) == blocks.end()) {
    std::string known;
    for (const block_id& each : blocks) known += ' ' + to_string(each);
    throw file_error(model.name(), to_string(block) + " is no mixture of experts; these are:" + known);
  }
  Layer layer = make_published_layer<Layer>(model.config(), block);
  keep_file_formats(layer, model.names(block), model.tensors());
  load_layer_into(layer, model, block, options);
  return layer;
}

}  // namespace sluice::inline SLUICE_ISA
