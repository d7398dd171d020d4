/// checkpoint_writer: a safetensors_writer that also saves folders of several files, replaced as a whole or not at all.
///
///   sluice::checkpoint_writer checkpoint;
///   checkpoint.metadata("format", "pt");                     // in every file; Python's transformers asks for this one
///   checkpoint.add("router.weight", {8, 64}, weights);       // and the other add functions of safetensors_writer
///   checkpoint.save("my-model", {.shard_bytes = 2'000'000'000});
///
/// A path that ends in .safetensors is one file. Any other is a folder, created if need be, with model.safetensors if
/// all fits one shard, else model-00001-of-0000N.safetensors and model.safetensors.index.json as Hugging Face writes
/// them. Tensors are filled into shards in the order of the add calls; equal calls give equal bytes.
///
/// What a checkpoint_files of the folder sees is the old checkpoint until one step, the commit, and the new one after
/// it, whenever the process is killed:
///   before       after    steps, the commit in capitals
///   anything     shards   write shards under names that are not in the folder; RENAME THE INDEX; remove what it replaces
///   shards       single   write model.safetensors, which nobody reads yet; REMOVE THE INDEX; remove the old shards
///   the rest     single   RENAME model.safetensors; remove leftovers
/// Shards of an older checkpoint take the plain names, so a save may use model-2-00001-of-0000N.safetensors, the next
/// the plain ones again: readers go by the index. If the old index itself has model.safetensors for a shard, a single
/// file is saved as one shard with an index, because writing model.safetensors would destroy the old checkpoint too
/// early. Replaced, and so removed, are: the shards of the old index whose names end in .safetensors (an index may name
/// any file), model.safetensors below an index, and files with names that this writer gives to shards, such as a killed
/// save leaves behind. Other files stay. Until the commit a save needs the room of both checkpoints.
/// A save that throws has changed nothing that is read and has removed what it wrote, a folder that it made, too; if
/// the folder only could not be flushed to the disk after the commit, the message says that the new content is in
/// place. Old files that cannot be removed stay until the next save. Tensors may come from a checkpoint_files of the
/// same folder. One save of a folder at a time: two would take the same names.
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/io/atomic_file.hpp>
#include <sluice/io/checkpoint_index.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/folder.hpp>
#include <sluice/io/mapped_file.hpp>
#include <sluice/io/safetensors_writer.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct checkpoint_options {
  std::uint64_t shard_bytes = 5'000'000'000;  // of tensors in one file; larger tensors are in a file of their own
};

class checkpoint_writer : public safetensors_writer {
public:
  /// Throws file_error, or std::length_error for a header or an index beyond the format's 100 MB.
  void save(const std::filesystem::path& path, const checkpoint_options& options = {}) const;
};

namespace detail {

/// Those that cannot be removed stay.
inline void remove_files(const std::vector<std::filesystem::path>& files) noexcept {
  std::error_code ignored;
  for (const std::filesystem::path& file : files)
    if (!std::filesystem::is_directory(std::filesystem::symlink_status(file, ignored)))
      std::filesystem::remove(file, ignored);
}

/// As Python's json.dumps(index, indent=2, sort_keys=True) writes it.
inline std::string index_text(const std::vector<safetensors_writer>& shards, const std::vector<std::string>& names) {
  std::map<std::string, const std::string*> weight_map;
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    total += shards[i].data_bytes();
    for (const std::string& tensor : shards[i].names()) weight_map[tensor] = &names[i];
  }
  // Not as one nlohmann::json object: its destructor allocates, and ends the program where there is no memory.
  const auto quoted = [](const std::string& s) { return nlohmann::json(s).dump(-1, ' ', /*ensure_ascii=*/true); };
  std::string text =
      "{\n  \"metadata\": {\n    \"total_size\": " + std::to_string(total) + "\n  },\n  \"weight_map\": {";
  for (const auto& [tensor, shard] : weight_map)
    text += (text.back() == '{' ? "\n    " : ",\n    ") + quoted(tensor) + ": " + quoted(*shard);
  text += weight_map.empty() ? "}\n}\n" : "\n  }\n}\n";
  if (text.size() > longest_header)
    throw std::length_error("sluice::checkpoint_writer: index of " + std::to_string(text.size()) +
                            " bytes exceeds the limit of " + std::to_string(longest_header));
  return text;
}

/// A folder as it is before a checkpoint is saved into it, and the two ways to do so.
class checkpoint_folder {
public:
  explicit checkpoint_folder(const std::filesystem::path& folder);

  /// Whether the old checkpoint survives that model.safetensors is written.
  bool can_take_single_file() const;
  void save_single_file(const safetensors_writer& file) const;
  void save_shards(const std::vector<safetensors_writer>& shards) const;

private:
  std::vector<std::string> free_names(std::size_t count) const;
  void remove_index() const;

  std::filesystem::path folder_;
  folder_to_fill filling_;
  std::filesystem::path index_ = folder_ / index_file_name;
  std::filesystem::path single_ = folder_ / single_file_name;
  bool has_index_ = false;
  std::set<std::string> indexed_;                // shards of the index, if it can be read
  std::vector<std::filesystem::path> obsolete_;  // once there is a new checkpoint
};

inline checkpoint_folder::checkpoint_folder(const std::filesystem::path& folder) : folder_(folder), filling_(folder) {
  std::error_code error;
  has_index_ = std::filesystem::exists(std::filesystem::symlink_status(index_, error));
  if (has_index_) {
    try {
      const mapped_file text(index_);
      for (const auto& [tensor, shard] : parse_checkpoint_index(text.bytes(), index_.string()).weight_map)
        indexed_.insert(shard);
    } catch (const file_error&) {
      // An index that cannot be read is no checkpoint that would have to survive until the commit.
    }
  }

  for (const std::string& name : folder_names(folder))
    if (is_own_shard(name) || (indexed_.contains(name) && name.ends_with(file_suffix)))
      obsolete_.push_back(folder / name);
}

inline bool checkpoint_folder::can_take_single_file() const {
  for (const std::string& shard : indexed_) {
    std::error_code error;  // one of the two may be a link to the other
    if (shard == single_file_name || std::filesystem::equivalent(folder_ / shard, single_, error)) return false;
  }
  return true;
}

/// Names of shards that are not in the folder: the old checkpoint may be made of those that are.
inline std::vector<std::string> checkpoint_folder::free_names(std::size_t count) const {
  for (std::size_t generation = 1; generation <= 1000; ++generation) {
    std::vector<std::string> names;
    for (std::size_t i = 1; i <= count; ++i) names.push_back(make_shard_name(generation, i, count));
    const auto is_free = [this](const std::string& name) {
      std::error_code error;
      return std::filesystem::symlink_status(folder_ / name, error).type() == std::filesystem::file_type::not_found;
    };
    if (std::all_of(names.begin(), names.end(), is_free)) return names;
  }
  throw file_error(folder_.string(), "no names for shards are free in the folder");
}

inline void checkpoint_folder::save_shards(const std::vector<safetensors_writer>& shards) const {
  struct temporary_files {
    std::vector<std::filesystem::path> paths;
    ~temporary_files() { remove_files(paths); }
  } written;
  std::vector<std::filesystem::path> obsolete = obsolete_;
  obsolete.push_back(single_);
  const std::vector<std::string> names = free_names(shards.size());
  const std::string text = index_text(shards, names);
  for (std::size_t i = 0; i < shards.size(); ++i) {
    written.paths.push_back(folder_ / names[i]);
    shards[i].save(written.paths.back());
  }

  atomic_file index(index_);
  index.write(std::as_bytes(std::span<const char>(text)));
  try {
    index.commit();
  } catch (...) {
    if (index.committed()) written.paths.clear();
    throw;
  }
  written.paths.clear();
  remove_files(obsolete);
}

inline void checkpoint_folder::save_single_file(const safetensors_writer& file) const {
  file.save(single_);
  if (has_index_) remove_index();
  remove_files(obsolete_);
}

inline void checkpoint_folder::remove_index() const {
  const folder_flusher folder(folder_);
  std::error_code error;
  std::filesystem::remove(index_, error);
  if (error)
    throw file_error(index_.string(), "cannot be removed, so the old checkpoint stays in force: " + error.message());
  // After a power cut the index must not be back while its shards are gone.
  if (const int number = folder.flush(); number != 0)
    throw file_error(folder_.string(), "has its new content, but cannot be flushed to the disk: " +
                                           std::generic_category().message(number));
}

}  // namespace detail

inline void checkpoint_writer::save(const std::filesystem::path& path, const checkpoint_options& options) const {
  if (path.extension() == detail::file_suffix) return safetensors_writer::save(path);
  const std::vector<safetensors_writer> shards = split(options.shard_bytes);
  const detail::checkpoint_folder folder(path);
  if (shards.size() == 1 && folder.can_take_single_file())
    folder.save_single_file(shards.front());
  else
    folder.save_shards(shards);
}

}  // namespace sluice::inline SLUICE_ISA
