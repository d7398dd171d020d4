/// convert_checkpoint: another type or another layout for the weights of a published model, file to file.
///
///   sluice::convert_checkpoint(model, "OLMoE-bf16", {.type = sluice::data_type::bf16, .layout = "stacked"});
///
/// Tensors of floating-point numbers are rounded to the type asked for (to nearest, ties to even) or keep their bits; others
/// are copied. With a layout the experts of every mixture are put together in it; everything else keeps its name. Nothing
/// is held in memory: elements go from the mapped files through a buffer of a few kilobytes. The target is replaced as a
/// whole or not at all (io/checkpoint_writer.hpp). A folder also gets the config.json that lies beside the model's files, in
/// which torch_dtype follows the type.
#pragma once

#include <sluice/checkpoint/json_object.hpp>
#include <sluice/checkpoint/load_layer.hpp>
#include <sluice/io/atomic_file.hpp>
#include <sluice/io/checkpoint_writer.hpp>
#include <sluice/io/mapped_file.hpp>

#include <nlohmann/json.hpp>

#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct convert_options {
  std::optional<data_type> type = {};  ///< F64, F32, BF16 or F16; nothing: as they are
  std::string layout = {};             ///< a name of expert_layout; empty: as they are
  std::uint64_t shard_bytes = 5'000'000'000;
  /// Called while tensors are written, with bytes written and in all; may throw to give up, and then nothing has changed.
  void (*progress)(void* user, std::uint64_t done, std::uint64_t total) = nullptr;
  void* user = nullptr;
};

namespace detail {

/// A matrix in the tensor of one file and its place in the tensor of another.
struct moved_matrix {
  const tensor_info* from;
  tensor_place source;
  tensor_place target;
  index_t rows;
  index_t cols;
};

class conversion;

/// A tensor to be written and the matrices that it is put together of.
struct moved_tensor {
  data_type type;
  std::vector<moved_matrix> parts;
  conversion* owner = nullptr;  ///< who wants to know of progress

  void read(std::size_t first, std::span<std::byte> out) const {
    const std::size_t size = size_of(type);
    const auto begin = static_cast<index_t>(first);
    for (const moved_matrix& part : parts)
      part.target.for_each_run(
          part.rows, part.cols, begin, begin + static_cast<index_t>(out.size() / size),
          [&](const tensor_place::run& run) {
            const tensor_place& source = part.source;
            index_t at = source.offset + run.row * source.row_stride + run.col * source.col_stride;
            const index_t stride = run.along_row ? source.col_stride : source.row_stride;
            if (part.from->dtype == type && stride == 1 && run.step == 1) {
              std::memcpy(out.data() + static_cast<std::size_t>(run.at) * size,
                          part.from->bytes.data() + static_cast<std::size_t>(at) * size,
                          static_cast<std::size_t>(run.count) * size);
              return;
            }
            for (index_t i = 0; i < run.count; ++i, at += stride) {
              std::byte* const to = out.data() + static_cast<std::size_t>(run.at + i * run.step) * size;
              if (part.from->dtype == type)
                std::memcpy(to, part.from->bytes.data() + static_cast<std::size_t>(at) * size, size);
              else
                convert(*part.from, static_cast<std::size_t>(at), to);
            }
          });
  }

private:
  void convert(const tensor_info& from, std::size_t i, std::byte* to) const noexcept {
    double value = 0;
    safetensors_reader::copy(from, i, std::span(&value, 1));
    const auto put = [to](auto element) { std::memcpy(to, &element, sizeof element); };
    switch (type) {
      case data_type::f64:
        return put(value);
      case data_type::f32:
        return put(static_cast<float>(value));
      case data_type::bf16:
        return put(to_element<bfloat16>(static_cast<float>(value)));
      default:
        return put(to_element<float16>(static_cast<float>(value)));
    }
  }
};

/// Everything that a converted checkpoint will hold.
class conversion {
public:
  conversion(const checkpoint_model& model, const convert_options& options) : model_(model), options_(options) {
    if (options.type && !holds_weights(*options.type))
      throw_invalid("weights cannot be converted to ", name_of(*options.type));
    if (!options.layout.empty())
      for (const block_id& block : model.blocks()) rearrange(block);
    for (const located_tensor& tensor : model.files().tensors())
      if (!taken_.contains(tensor.info.name)) keep(tensor.info);
    if (problems_.count() > 0)
      throw file_error(model.name(), "cannot be converted, " + std::to_string(problems_.count()) +
                                         (problems_.count() == 1 ? " problem:" : " problems:") + problems_.text());
  }

  /// The writer refers to this object until it has saved.
  void add_to(checkpoint_writer& file) {
    total_ = 0;
    for (auto& [name, tensor] : tensors_) {
      const std::vector<std::int64_t>& shape = tensor.parts.front().target.shape;
      total_ += checked_byte_count(shape, size_of(tensor.type)).value_or(0);
      tensor.owner = this;
      file.add(
          name, shape, tensor.type,
          checkpoint_writer::source{&tensor, [](const void* object, std::size_t first, std::span<std::byte> bytes) {
                                      const auto& moved = *static_cast<const moved_tensor*>(object);
                                      moved.read(first, bytes);
                                      moved.owner->report(bytes.size());
                                    }});
    }
  }

  void report(std::uint64_t bytes) {
    done_ += bytes;
    if (options_.progress != nullptr) options_.progress(options_.user, done_, total_);
  }

private:
  data_type target_type(const tensor_info& from) const {
    return options_.type && holds_weights(from.dtype) ? *options_.type : from.dtype;
  }

  /// Reports what moved_tensor could not convert.
  void validate(const tensor_info& from, data_type type) {
    if (from.dtype == type) return;
    if (!holds_weights(from.dtype) || !holds_weights(type)) {
      problems_.add("different", from.name,
                    "is " + std::string(name_of(from.dtype)) + ", cannot be put beside " + std::string(name_of(type)));
    } else if (from.dtype == data_type::f64) {
      if (const std::string obstacle = safetensors_reader::obstacle<float>(from, from.elements()); !obstacle.empty())
        problems_.add("unfit", from.name, obstacle);
    }
  }

  void keep(const tensor_info& tensor) {
    const auto count = static_cast<index_t>(tensor.elements());
    const tensor_place whole{tensor.name, tensor.shape, 0, count, 1};
    const data_type type = target_type(tensor);
    validate(tensor, type);
    tensors_[tensor.name] = {type, {{&tensor, whole, whole, 1, count}}};
  }

  void rearrange(const block_id& block) {
    const tensor_names from = model_.names(block);
    const tensor_names to = from.in_layout(options_.layout);
    const expert_extent size = from.extent();
    for (index_t e = 0; e < size.experts; ++e)
      for (const std::string_view part : from.layout().parts()) {
        const tensor_place source = from.layout().place(from.prefix(), e, part, size);
        const located_tensor* const found = model_.files().find(source.tensor);
        if (found == nullptr || found->info.shape != source.shape) {
          problems_.add(found == nullptr ? "missing" : "different", source.tensor,
                        "an expert needs shape " + shape_text(source.shape) +
                            (found == nullptr ? "" : ", not " + shape_text(found->info.shape)));
          continue;
        }
        tensor_place target = to.layout().place(to.prefix(), e, part, size);
        auto [entry, is_new] = tensors_.try_emplace(target.tensor);
        if (is_new) entry->second.type = target_type(found->info);
        if (taken_.insert(source.tensor).second) validate(found->info, entry->second.type);
        const auto [rows, cols] = expert_layout::extent_of(part, size);
        entry->second.parts.push_back({&found->info, source, std::move(target), rows, cols});
      }
  }

  const checkpoint_model& model_;
  const convert_options& options_;
  problem_list problems_;
  std::set<std::string, std::less<>> taken_;
  std::map<std::string, moved_tensor> tensors_;  // nodes stay where they are: the writer refers to them
  std::uint64_t done_ = 0;
  std::uint64_t total_ = 0;
};

/// The model's config.json, saying the new type; nothing if it has none.
inline std::optional<std::string> converted_config(const checkpoint_model& model, std::optional<data_type> type) {
  const std::filesystem::path path = model.files().folder() / "config.json";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return std::nullopt;
  const mapped_file file(path);
  const std::string text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  if (!type) return text;
  parse_json(text, path.string());  // refuses what should not be parsed
  auto json = nlohmann::ordered_json::parse(text);
  const char* const name = *type == data_type::f64    ? "float64"
                           : *type == data_type::f32  ? "float32"
                           : *type == data_type::bf16 ? "bfloat16"
                                                      : "float16";
  for (const char* const key : {"torch_dtype", "dtype"})
    if (json.contains(key)) json[key] = name;
  return json.dump(2) + '\n';
}

}  // namespace detail

/// Throws file_error, or std::invalid_argument for a type or layout that the family does not know.
inline void convert_checkpoint(const checkpoint_model& model, const std::filesystem::path& target,
                               const convert_options& options = {}) {
  detail::conversion conversion(model, options);
  checkpoint_writer file;
  file.metadata("format", "pt");  // readers of published models ask for it
  conversion.add_to(file);
  const bool is_folder = target.extension() != ".safetensors";
  const auto config = is_folder ? detail::converted_config(model, options.type) : std::nullopt;
  file.save(target, {.shard_bytes = options.shard_bytes});
  if (!config) return;
  atomic_file config_file(target / "config.json");
  config_file.write(std::as_bytes(std::span<const char>(*config)));
  config_file.commit();
}

}  // namespace sluice::inline SLUICE_ISA
