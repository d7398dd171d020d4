/// checkpoint_files: the tensors of a checkpoint, whether one safetensors file, many with an index, or GGUF.
///
///   const sluice::checkpoint_files files("OLMoE-1B-7B");         // a folder, an index (*.json) or a safetensors file
///   const sluice::tensor_info& q = files.at("model.layers.0.self_attn.q_proj.weight").info;
///
/// In a folder, model.safetensors.index.json is taken if it is there; else model.safetensors; else the only
/// *.safetensors file, where one of several numbered shards does not count: without an index it is no checkpoint; else
/// the only *.gguf file or split (gguf_files.hpp). The
/// index selects: a tensor comes from the shard that it names; what shards hold besides is not looked at. Every shard
/// is mapped and its whole header is checked (safetensors_contents.hpp); one that is absent or does not pass turns away
/// only who asks for its tensors (missing, at). Names in an index stay inside its folder (checkpoint_index.hpp), but a
/// shard may be a symbolic link to anywhere, since the caches that models are downloaded to are made of links: whoever
/// may make links in the folder decides what is read. Errors are file_error. The object may be moved, references into
/// it stay valid. Const calls may run in parallel. One that is opened while a checkpoint_writer replaces the checkpoint
/// may miss a shard; opening again helps. Once open, it keeps what it has opened.
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/io/checkpoint_index.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/folder.hpp>
#include <sluice/io/gguf_files.hpp>
#include <sluice/io/mapped_file.hpp>
#include <sluice/io/safetensors_reader.hpp>
#include <sluice/io/tensor_info.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct located_tensor {
  const tensor_info& info;
  const std::string& file;  // without its folder
};

/// A tensor that an index lists and its shard does not give.
struct missing_tensor {
  std::string name;
  std::string file;
};

class checkpoint_files {
public:
  explicit checkpoint_files(const std::filesystem::path& path);
  checkpoint_files(checkpoint_files&&) noexcept = default;
  checkpoint_files& operator=(checkpoint_files&&) noexcept = default;

  /// The tensor of that name, or nullptr.
  const located_tensor* find(std::string_view name) const noexcept {
    const auto found = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                        [](const located_tensor& t, std::string_view n) { return t.info.name < n; });
    return found != tensors_.end() && found->info.name == name ? &*found : nullptr;
  }

  bool contains(std::string_view name) const noexcept { return find(name) != nullptr; }

  const located_tensor& at(std::string_view name) const {
    const located_tensor* const tensor = find(name);
    if (tensor == nullptr) throw file_error(name_, name, absence(name));
    return *tensor;
  }

  /// Why there is no tensor of that name.
  std::string absence(std::string_view name) const;

  /// All tensors, sorted by name.
  const std::vector<located_tensor>& tensors() const noexcept { return tensors_; }
  /// What the index lists and its shards do not give, sorted by name.
  const std::vector<missing_tensor>& missing() const noexcept { return missing_; }
  /// Where the checkpoint is GGUF, its files, the one with the keys first; else empty.
  const std::vector<gguf_reader>& gguf() const noexcept { return gguf_; }
  /// The names of the files that were opened, sorted.
  const std::vector<std::string>& files() const noexcept { return files_; }
  const std::filesystem::path& folder() const noexcept { return folder_; }
  /// What the index says, and what its shards say of keys that it does not have; of two shards the first.
  const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }
  /// Of all these tensors together.
  std::uint64_t bytes() const noexcept { return bytes_; }
  /// What messages call the checkpoint: the file or the index that was opened.
  const std::string& name() const noexcept { return name_; }

private:
  std::map<std::string, std::string> open_index(const std::filesystem::path& path);

  std::string name_;
  std::filesystem::path folder_;
  std::vector<std::string> files_;
  std::vector<safetensors_reader> readers_;  // one for each of files_
  std::vector<gguf_reader> gguf_;            // or these
  std::vector<located_tensor> tensors_;
  std::vector<missing_tensor> missing_;
  std::map<std::string, std::string, std::less<>> unread_;  // shards that could not be opened, and why
  std::map<std::string, std::string> metadata_;
  std::uint64_t bytes_ = 0;
};

namespace detail {

/// Whether a file is one that PyTorch writes itself.
inline bool is_pickled(std::string_view name) {
  return name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth");
}
inline constexpr const char* why_no_pickles =
    "PyTorch's own files can hold programs and are not read; save the model as safetensors";

/// The file or the index that a folder is opened by.
inline std::filesystem::path entry_of_folder(const std::filesystem::path& folder) {
  // A link that leads nowhere is there too: passing over it could open something older.
  for (const char* const name : {index_file_name, single_file_name})
    if (std::error_code error; std::filesystem::exists(std::filesystem::symlink_status(folder / name, error)))
      return folder / name;

  const std::set<std::string> names = folder_names(folder);
  std::set<std::string> found = names;
  std::string pickled;  // a file that PyTorch wrote, to name it where there is nothing else
  for (const std::string& name : found)
    if (pickled.empty() && is_pickled(name)) pickled = name;
  std::erase_if(found, [](const std::string& name) { return !name.ends_with(file_suffix); });
  if (found.empty()) {
    // Of a split one stands for all. Projectors of images have their own files, and no blocks.
    std::map<std::string, std::string> models;
    for (const std::string& name : names)
      if (name.ends_with(gguf_suffix) && !name.starts_with("mmproj")) {
        const std::optional<gguf_split> split = parse_gguf_split(name);
        models.try_emplace(split ? split->stem : name, name);
      }
    if (models.size() == 1) return folder / models.begin()->second;
    if (models.size() > 1)
      throw file_error(folder.string(), "the folder has " + std::to_string(models.size()) +
                                            " models in .gguf files: \"" + printable(models.begin()->second) +
                                            "\", \"" + printable(std::next(models.begin())->second) +
                                            (models.size() > 2 ? "\", ..." : "\"") + "; name one");
  }
  if (found.empty() && !pickled.empty())
    throw file_error(folder.string(), "the folder has no .safetensors file, but \"" + printable(pickled) +
                                          "\": " + why_no_pickles);
  std::set<std::string> whole = found;
  std::erase_if(whole, [](const std::string& name) {
    const std::optional<shard_name> parts = parse_shard_name(name);
    return parts && parts->one_of_several;
  });
  if (whole.size() == 1) return folder / *whole.begin();

  std::string list;
  std::size_t listed = 0;
  for (const std::string& name : found) {
    list += listed == 0 ? ": " : ", ";
    list += listed == 20 ? "..." : '"' + printable(name) + '"';
    if (++listed > 20) break;
  }
  throw file_error(folder.string(), std::string("the folder has no ") + index_file_name + ", no " + single_file_name +
                                        " and not exactly one other whole checkpoint, but " +
                                        std::to_string(found.size()) + " .safetensors files" + list);
}

}  // namespace detail

inline checkpoint_files::checkpoint_files(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::path entry = std::filesystem::is_directory(path, error) ? detail::entry_of_folder(path) : path;
  name_ = entry.string();
  folder_ = entry.parent_path();
  const bool has_index = entry.extension() == ".json";
  std::map<std::string, std::string> places;  // of the tensors, by the index
  if (has_index) {
    places = open_index(entry);
  } else if (entry.extension() == detail::gguf_suffix) {
    gguf_ = detail::open_gguf(entry);
    for (const gguf_reader& reader : gguf_)
      files_.push_back(std::filesystem::path(reader.file_name()).filename().string());
  } else {
    files_.push_back(entry.filename().string());
    readers_.emplace_back(entry);
  }

  std::vector<std::pair<const tensor_info*, const std::string*>> all;
  for (std::size_t i = 0; i < readers_.size(); ++i) {
    metadata_.insert(readers_[i].metadata().begin(), readers_[i].metadata().end());
    for (const tensor_info& tensor : readers_[i].tensors()) {
      if (has_index) {
        const auto place = places.find(tensor.name);
        if (place == places.end() || place->second != files_[i]) continue;
        places.erase(place);
      }
      all.emplace_back(&tensor, &files_[i]);
      bytes_ += tensor.bytes.size();
    }
  }
  for (std::size_t i = 0; i < gguf_.size(); ++i)
    for (const tensor_info& tensor : gguf_[i].tensors()) {
      all.emplace_back(&tensor, &files_[i]);
      bytes_ += tensor.bytes.size();
    }
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first->name < b.first->name; });
  for (std::size_t i = 1; i < all.size(); ++i)  // an index or a single file has every name once
    if (all[i].first->name == all[i - 1].first->name)
      throw file_error(name_, all[i].first->name,
                       "is in \"" + *all[i - 1].second + "\" and in \"" + *all[i].second + '"');
  tensors_.reserve(all.size());
  for (const auto& [info, file] : all) tensors_.push_back({*info, *file});
  missing_.reserve(places.size());
  for (auto& [name, file] : places) missing_.push_back({name, std::move(file)});
}

inline std::map<std::string, std::string> checkpoint_files::open_index(const std::filesystem::path& path) {
  const mapped_file text(path);
  checkpoint_index index = parse_checkpoint_index(text.bytes(), name_);
  metadata_ = std::move(index.metadata);

  std::set<std::string> names;
  for (const auto& [tensor, file] : index.weight_map) names.insert(file);
  files_.reserve(names.size());  // tensors refer to its elements
  readers_.reserve(names.size());
  for (const std::string& file : names) {
    if (detail::is_pickled(file)) {
      unread_[file] = std::string("is not opened: ") + detail::why_no_pickles;
      continue;
    }
    try {
      std::error_code error;
      if (std::filesystem::exists(folder_ / file, error)) {
        readers_.emplace_back(folder_ / file);
        files_.push_back(file);
      } else {
        unread_[file] = "does not exist";
      }
    } catch (const file_error& failure) {
      unread_[file] = std::string("cannot be read: ") + failure.what();
    }
  }
  return std::move(index.weight_map);
}

inline std::string checkpoint_files::absence(std::string_view name) const {
  const auto listed = std::lower_bound(missing_.begin(), missing_.end(), name,
                                       [](const missing_tensor& t, std::string_view n) { return t.name < n; });
  if (listed == missing_.end() || listed->name != name) return "is not in the checkpoint";
  const std::string shard = '"' + detail::printable(listed->file) + '"';
  const auto unread = unread_.find(listed->file);
  return unread == unread_.end() ? "is not in " + shard + ", where the index has it"
                                 : "is by the index in " + shard + ", which " + unread->second;
}

}  // namespace sluice::inline SLUICE_ISA
