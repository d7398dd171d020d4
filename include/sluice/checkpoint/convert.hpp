/// convert_checkpoint: another type or another layout for the weights of a published model, file to file.
///
///   sluice::convert_checkpoint(model, "OLMoE-bf16", {.type = sluice::data_type::bf16, .layout = "stacked"});
///
/// Tensors of floating-point numbers are rounded to the type asked for (to nearest, ties to even) or keep their bits;
/// others are copied, and so is state: selection biases, tables of experts, running means, counters
/// (training_state.hpp). With a layout the experts of every mixture are put together in it; everything else keeps its
/// name. What rounding has cost is counted in the report.
///
/// Refused, with all that is wrong in one file_error: finite numbers that would become infinite; weights in types that
/// need scales to be read (FP8, 4-bit), and models whose config says that they are quantised; mixtures of which tensors
/// are not there or are no weights; tensors that the index lists and its shards do not hold; a selection bias that
/// holds NaN.
///
/// Nothing is held in memory: elements go from the mapped files through a buffer of a few kilobytes. The target is
/// replaced as a whole or not at all (io/checkpoint_writer.hpp); numbers out of range are found while it is written,
/// before it takes its place. A folder also gets the config.json that lies beside the model's files, in which
/// torch_dtype follows the type.
#pragma once

#include <sluice/checkpoint/converted_config.hpp>
#include <sluice/checkpoint/load_layer.hpp>
#include <sluice/checkpoint/moved_tensor.hpp>
#include <sluice/checkpoint/training_state.hpp>
#include <sluice/io/checkpoint_writer.hpp>
#include <sluice/io/conversion_loss.hpp>

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct convert_options {
  std::optional<data_type> type = {};  ///< F64, F32, BF16 or F16; nothing: as they are
  std::string layout = {};             ///< a name of expert_layout; empty: as they are
  std::uint64_t shard_bytes = 5'000'000'000;
  /// Called while tensors are written, with bytes written and in all; may throw to give up, and then nothing has
  /// changed.
  void (*progress)(void* user, std::uint64_t done, std::uint64_t total) = nullptr;
  void* user = nullptr;
};

/// What became of a model.
struct convert_report {
  conversion_report values = {};       ///< of the numbers that were rounded to the type asked for
  std::vector<std::string> kept = {};  ///< tensors of numbers that are state and have kept their type
};

namespace detail {

/// Everything that a converted checkpoint will hold.
class conversion {
public:
  conversion(const checkpoint_model& model, const convert_options& options)
      : model_(model), options_(options), changes_(options.type || !options.layout.empty()) {
    if (options.type && !holds_weights(*options.type))
      throw_invalid("weights cannot be converted to ", name_of(*options.type));
    if (changes_ && !model.config().quantization.empty())
      problems_.add("quantised by", model.config().quantization, "such weights cannot be converted");
    if (!changes_ && !model.files().gguf().empty())
      problems_.add("a GGUF file", model.name(), "has types that safetensors files have no names for");
    throw_problems();  // all else would only be missing
    for (const block_id& block : model.blocks()) {
      const tensor_names names = model.names(block);
      for (const char* const state : {"router.rule.bias", "router.rule.table"})
        if (const auto place = names.place_of(state, 1, names.extent().experts)) state_.insert(place->tensor);
      if (!options.layout.empty())
        rearrange(names, names.in_layout(options.layout));
      else if (changes_ && names.exists())
        find_experts(names);
    }
    for (const missing_tensor& tensor : model.files().missing())
      problems_.add("missing", tensor.name, model.files().absence(tensor.name));
    for (const located_tensor& tensor : model.files().tensors())
      if (!taken_.contains(tensor.info.name)) keep(tensor.info);
    throw_problems();
  }

  /// Of what has been written.
  convert_report report() const {
    convert_report report{{}, kept_};
    for (const auto& [name, tensor] : tensors_) report.values.add(name, tensor.moved.loss);
    return report;
  }

  /// The writer refers to this object until it has saved.
  void add_to(checkpoint_writer& file) {
    for (const tensor_info* const tensor : copied_) file.add(*tensor);
    total_ = 0;
    for (auto& [name, tensor] : tensors_) {
      const std::vector<std::int64_t>& shape = tensor.moved.parts.front().target.shape;
      total_ += checked_byte_count(shape, size_of(tensor.moved.type)).value_or(0);
      tensor.owner = this;
      file.add(
          name, shape, tensor.moved.type,
          checkpoint_writer::source{&tensor, [](const void* object, std::size_t first, std::span<std::byte> bytes) {
                                      const auto& [moved, owner] = *static_cast<const written_tensor*>(object);
                                      moved.read(first, bytes);
                                      owner->count(bytes.size());
                                    }});
    }
  }

  void count(std::uint64_t bytes) {
    done_ += bytes;
    if (options_.progress != nullptr) options_.progress(options_.user, done_, total_);
    if (done_ < total_) return;
    for (const auto& [name, tensor] : tensors_)
      if (tensor.moved.loss.beyond > 0)
        problems_.add("unfit", name, beyond_text(tensor.moved.loss, tensor.moved.type));
    throw_problems();
  }

private:
  struct written_tensor {
    moved_tensor moved = {};
    conversion* owner = nullptr;  ///< who wants to know of progress
  };

  void throw_problems() const {
    if (problems_.count() > 0)
      throw file_error(model_.name(), "cannot be converted, " + std::to_string(problems_.count()) +
                                          (problems_.count() == 1 ? " problem:" : " problems:") + problems_.text());
  }

  /// A tensor that is none of an expert's, or one that stays where it is.
  void keep(const tensor_info& tensor) {
    const bool is_number = holds_weights(tensor.dtype);
    const bool is_state = state_.contains(tensor.name) || is_training_state(tensor.name) ||
                          is_training_counter(tensor, model_.config().experts);
    if (changes_ && is_number && state_.contains(tensor.name))
      if (const std::uint64_t count = count_nan(tensor); count > 0)
        problems_.add("unfit", tensor.name, nan_text(count, tensor.elements()));
    if (options_.type && !is_number && is_coded_number(tensor.type_name()))
      problems_.add("different", tensor.name,
                    "is " + printable(tensor.type_name(), 40) + ", cannot be converted to " +
                        std::string(name_of(*options_.type)));
    if (options_.type && is_number && is_state && tensor.dtype != *options_.type) kept_.push_back(tensor.name);
    if (tensor.dtype == data_type::other) {
      copied_.push_back(&tensor);
      return;
    }
    const auto count = static_cast<index_t>(tensor.elements());
    const tensor_place whole{tensor.name, tensor.shape, 0, count, 1};
    const bool converts = options_.type && is_number && !is_state;
    tensors_[tensor.name].moved = {converts ? *options_.type : tensor.dtype, {{&tensor, whole, whole, 1, count}}};
  }

  /// Numbers of few bits, which mean something only with scales: F8_E4M3, F6_E2M3, F4 ...
  static bool is_coded_number(std::string_view type) {
    return type.starts_with("F8") || type.starts_with("F6") || type.starts_with("F4");
  }

  /// The tensor of a part of an expert; nullptr, and a problem, where there is none that holds its weights.
  const tensor_info* find_part(const tensor_place& place) {
    const located_tensor* const found = model_.files().find(place.tensor);
    if (found == nullptr) {
      problems_.add("missing", place.tensor,
                    "an expert needs shape " + shape_text(place.shape) + "; it " +
                        model_.files().absence(place.tensor));
      return nullptr;
    }
    const tensor_info& info = found->info;
    if (info.shape != place.shape)
      problems_.add("different", place.tensor,
                    "an expert needs shape " + shape_text(place.shape) + ", not " + shape_text(info.shape));
    else if (!holds_weights(info.dtype))
      problems_.add("different", place.tensor, "is " + printable(info.type_name(), 40) + ", holds no weights");
    else
      return &info;
    return nullptr;
  }

  /// Reports what is wrong with the experts of a block; their tensors stay as they are.
  void find_experts(const tensor_names& names) {
    std::set<std::string> seen;
    for (index_t e = 0; e < names.extent().experts; ++e)
      for (const std::string_view part : names.layout().parts())
        if (const tensor_place place = names.layout().place(names.prefix(), e, part, names.extent());
            seen.insert(place.tensor).second)
          if (find_part(place) == nullptr) taken_.insert(place.tensor);  // reported once
  }

  void rearrange(const tensor_names& from, const tensor_names& to) {
    const expert_extent size = from.extent();
    std::map<std::string, const tensor_info*> seen;
    for (index_t e = 0; e < size.experts; ++e)
      for (const std::string_view part : from.layout().parts()) {
        const tensor_place source = from.layout().place(from.prefix(), e, part, size);
        const auto [found, is_first] = seen.try_emplace(source.tensor);
        if (is_first) found->second = find_part(source);
        taken_.insert(source.tensor);
        if (found->second == nullptr) continue;
        tensor_place target = to.layout().place(to.prefix(), e, part, size);
        auto [entry, is_new] = tensors_.try_emplace(target.tensor);
        moved_tensor& moved = entry->second.moved;
        if (is_new) moved.type = options_.type.value_or(found->second->dtype);
        const auto [rows, cols] = expert_layout::extent_of(part, size);
        moved.parts.push_back({found->second, source, std::move(target), rows, cols});
      }
  }

  const checkpoint_model& model_;
  const convert_options& options_;
  bool changes_;  // or else everything is copied
  problem_list problems_;
  std::set<std::string, std::less<>> taken_;   // by experts that are put together anew
  std::set<std::string, std::less<>> state_;   // by the families' names
  std::vector<std::string> kept_;              // state whose type is not the one asked for
  std::vector<const tensor_info*> copied_;     // of types that are not known
  std::map<std::string, written_tensor> tensors_;  // nodes stay where they are: the writer refers to them
  std::uint64_t done_ = 0;
  std::uint64_t total_ = 0;
};

}  // namespace detail

/// Throws file_error, or std::invalid_argument for a type or layout that the family does not know.
inline convert_report convert_checkpoint(const checkpoint_model& model, const std::filesystem::path& target,
                               const convert_options& options = {}) {
  detail::conversion conversion(model, options);
  checkpoint_writer file;
  file.metadata("format", "pt");  // readers of published models ask for it
  conversion.add_to(file);
  if (target.extension() == detail::file_suffix)
    file.save(target);
  else
    save_with_config(file, target, detail::converted_config(model.files().folder(), options.type),
                     {.shard_bytes = options.shard_bytes});
  return conversion.report();
}

}  // namespace sluice::inline SLUICE_ISA
