/// Small checkpoints on disk for the tests of checkpoint_files and checkpoint_writer.
#pragma once

#include <sluice/io/checkpoint_files.hpp>

#include "file_cases.hpp"
#include "temporary_folder.hpp"

#include <cstddef>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace sluice::test {

inline const std::string first_shard = "model-00001-of-00002.safetensors";
inline const std::string second_shard = "model-00002-of-00002.safetensors";
inline const std::string index_name = "model.safetensors.index.json";

/// A safetensors file of tensors of bytes, given by name and content.
inline std::string file_of_bytes(const std::vector<std::pair<std::string, std::string>>& tensors) {
  std::string header;
  std::string data;
  for (const auto& [name, content] : tensors) {
    const std::string begin = std::to_string(data.size());
    data += content;
    header += (header.empty() ? "{" : ",") + file_cases::entry(name, "U8", "[" + std::to_string(content.size()) + "]",
                                                               "[" + begin + "," + std::to_string(data.size()) + "]");
  }
  return file_cases::file_of(header.empty() ? "{}" : header + "}") + data;
}

/// An index of tensors and their shards.
inline std::string index_of(const std::vector<std::pair<std::string, std::string>>& weight_map) {
  std::string text;
  for (const auto& [tensor, shard] : weight_map) text += (text.empty() ? "\"" : ",\"") + tensor + "\":\"" + shard + '"';
  return R"({"metadata":{"total_size":6,"origin":"test"},"weight_map":{)" + text + "}}";
}

/// Tensors a "first", b "second" in the first shard, c "third" in the second.
inline void write_two_shards(const std::filesystem::path& folder) {
  write_bytes(folder / first_shard, file_of_bytes({{"b", "second"}, {"a", "first"}}));
  write_bytes(folder / second_shard, file_of_bytes({{"c", "third"}}));
  write_bytes(folder / index_name, index_of({{"a", first_shard}, {"c", second_shard}, {"b", first_shard}}));
}

/// Every tensor with its bytes.
inline std::map<std::string, std::string> content_of(const checkpoint_files& files) {
  std::map<std::string, std::string> content;
  for (const located_tensor& tensor : files.tensors()) {
    const auto bytes = tensor.info.bytes;
    content[tensor.info.name] = std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return content;
}

inline std::map<std::string, std::string> content_of(const std::filesystem::path& path) {
  return content_of(checkpoint_files(path));
}

inline std::set<std::string> names_in(const std::filesystem::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) names.insert(entry.path().filename().string());
  return names;
}

/// Whatever a checkpoint_files accepts must make sense: sizes are those of the shapes, and every tensor is found.
inline bool is_consistent(const checkpoint_files& files) {
  std::uint64_t total = 0;
  for (const located_tensor& tensor : files.tensors()) {
    std::size_t need = size_of(tensor.info.dtype);
    for (const std::int64_t extent : tensor.info.shape) need *= static_cast<std::size_t>(extent);
    if (tensor.info.dtype == data_type::other) need = tensor.info.bytes.size();
    if (need != tensor.info.bytes.size() || files.find(tensor.info.name) != &tensor) return false;
    unsigned sum = 0;  // touches every byte
    for (const std::byte byte : tensor.info.bytes) sum += std::to_integer<unsigned>(byte);
    if (sum > 255 * need) return false;
    total += need;
  }
  return total == files.bytes();
}

}  // namespace sluice::test
