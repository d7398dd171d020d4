// Any bytes are either refused with a file_error or are an index that names files of its own folder only and is the same
// when it is written and read again.
#include <sluice/io/checkpoint_index.hpp>

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include "demand.hpp"

using sluice::test::demand;

namespace {

std::optional<sluice::checkpoint_index> parse(std::span<const std::byte> bytes) {
  try {
    return sluice::parse_checkpoint_index(bytes, "fuzz");
  } catch (const sluice::file_error& error) {
    demand(std::strlen(error.what()) < 2500);
    return std::nullopt;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::optional<sluice::checkpoint_index> index = parse(std::as_bytes(std::span<const std::uint8_t>(data, size)));
  if (!index) return 0;

  const std::filesystem::path folder = "folder";
  for (const auto& [tensor, shard] : index->weight_map) {
    demand((folder / shard).lexically_normal().parent_path() == folder);
    demand(shard.find('\0') == std::string::npos && !shard.empty() && shard != "." && shard != "..");
  }
  const std::string text = nlohmann::json{{"metadata", index->metadata}, {"weight_map", index->weight_map}}.dump();
  const std::optional<sluice::checkpoint_index> again = parse(std::as_bytes(std::span<const char>(text)));
  demand(again && again->metadata == index->metadata && again->weight_map == index->weight_map);
  return 0;
}
