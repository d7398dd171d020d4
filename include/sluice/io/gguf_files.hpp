/// gguf_files: a GGUF file, or all of those that one was split into.
///
///   model-00001-of-00003.gguf   any of the three opens all of them; a file without such a name is whole
///
/// Keys of the split are checked where they are there: split.count is that of the names, split.no that of each file,
/// counted from 0, and split.tensors.count what all of them hold together. A tensor that two of them have, or a file
/// that is not there, is refused: the first file alone has the keys, and says nothing of what the others should hold.
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/gguf_reader.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::inline SLUICE_ISA::detail {

inline constexpr std::string_view gguf_suffix = ".gguf";

struct gguf_split {
  std::string stem;
  std::size_t count;

  /// The file of that number, counted from 1.
  std::string name(std::size_t number) const {
    const auto digits = [](std::size_t n) {
      const std::string text = std::to_string(n);
      return text.size() < 5 ? std::string(5 - text.size(), '0') + text : text;
    };
    return stem + '-' + digits(number) + "-of-" + digits(count) + std::string(gguf_suffix);
  }
};

/// The parts of "stem-00001-of-00003.gguf", or nothing if the name has another form.
inline std::optional<gguf_split> parse_gguf_split(std::string_view name) {
  constexpr std::size_t tail = 5 + 4 + 5;  // 00001-of-00003
  if (!name.ends_with(gguf_suffix)) return std::nullopt;
  name.remove_suffix(gguf_suffix.size());
  if (name.size() < tail + 1 || name[name.size() - tail - 1] != '-') return std::nullopt;
  const std::string_view numbers = name.substr(name.size() - tail);
  const std::string_view first = numbers.substr(0, 5), last = numbers.substr(9);
  constexpr std::string_view decimal = "0123456789";
  if (numbers.substr(5, 4) != "-of-" || first.find_first_not_of(decimal) != std::string_view::npos ||
      last.find_first_not_of(decimal) != std::string_view::npos)
    return std::nullopt;
  std::size_t count = 0;
  for (const char c : last) count = 10 * count + static_cast<std::size_t>(c - '0');
  if (count == 0) return std::nullopt;
  return gguf_split{std::string(name.substr(0, name.size() - tail - 1)), count};
}

/// Opens them all, the first one first.
inline std::vector<gguf_reader> open_gguf(const std::filesystem::path& path) {
  std::vector<gguf_reader> files;
  const std::optional<gguf_split> split = parse_gguf_split(path.filename().string());
  if (!split) {
    files.emplace_back(path);
    if (const gguf_value* const count = files.front().find_key("split.count");
        count != nullptr && count->integer().value_or(1) > 1)
      throw file_error(path.string(), "is one of " + std::to_string(*count->integer()) +
                                          " files, and its name does not tell the others'");
    return files;
  }
  std::int64_t tensors = 0;
  for (std::size_t number = 1; number <= split->count; ++number) {
    files.emplace_back(path.parent_path() / split->name(number));
    const gguf_reader& file = files.back();
    tensors += static_cast<std::int64_t>(file.tensors().size());
    const auto expect = [&file](const char* key, std::size_t value) {
      const gguf_value* const told = file.find_key(key);
      if (told != nullptr && told->integer() != static_cast<std::int64_t>(value))
        throw file_error(file.file_name(), std::string("key \"") + key + "\": does not say " + std::to_string(value));
    };
    expect("split.count", split->count);
    expect("split.no", number - 1);
  }
  if (const gguf_value* const told = files.front().find_key("split.tensors.count");
      told != nullptr && told->integer() != tensors)
    throw file_error(path.string(), "key \"split.tensors.count\": does not say " + std::to_string(tensors) +
                                        ", as many tensors as the files have");
  return files;
}

}  // namespace sluice::inline SLUICE_ISA::detail
