/// converted_config: the config.json of a model whose weights are of another type now, and what saves one beside tensors.
#pragma once

#include <sluice/checkpoint/json_value.hpp>
#include <sluice/io/atomic_file.hpp>
#include <sluice/io/checkpoint_writer.hpp>
#include <sluice/io/data_type.hpp>
#include <sluice/io/folder.hpp>
#include <sluice/io/mapped_file.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>

namespace sluice::inline SLUICE_ISA::detail {

/// A config.json's text with the type's name wherever it names the type of weights. Everything else stays, to the byte:
/// also what is no strict JSON. Needs text that parse_json has accepted.
inline std::string with_weight_type(std::string_view text, std::string_view type) {
  constexpr std::array<std::string_view, 4> types{"\"float64\"", "\"float32\"", "\"bfloat16\"", "\"float16\""};
  const auto end_of_string = [text](std::size_t begin) {
    std::size_t i = begin + 1;
    while (text[i] != '"') i += text[i] == '\\' ? 2U : 1U;
    return i + 1;
  };
  constexpr std::string_view space = " \t\r\n";
  std::string out;
  std::size_t written = 0;
  for (std::size_t i = text.find('"'); i != std::string_view::npos; i = text.find('"', i)) {
    const std::string_view key = text.substr(i, end_of_string(i) - i);
    i += key.size();
    std::size_t at = text.find_first_not_of(space, i);
    if ((key != "\"torch_dtype\"" && key != "\"dtype\"") || at == std::string_view::npos || text[at] != ':') continue;
    at = text.find_first_not_of(space, at + 1);
    if (text[at] != '"') continue;
    const std::string_view value = text.substr(at, end_of_string(at) - at);
    if (std::find(types.begin(), types.end(), value) == types.end()) continue;
    out += text.substr(written, at - written);
    out += '"' + std::string(type) + '"';
    written = i = at + value.size();
  }
  return out += text.substr(written);
}

/// The folder's config.json, saying the new type; nothing if it has none.
inline std::optional<std::string> converted_config(const std::filesystem::path& folder, std::optional<data_type> type) {
  const std::filesystem::path path = folder / "config.json";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return std::nullopt;
  const mapped_file file(path);
  const std::string text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  if (!type) return text;
  parse_json(text, path.string());  // refuses what is no JSON
  const char* const name = *type == data_type::f64    ? "float64"
                           : *type == data_type::f32  ? "float32"
                           : *type == data_type::bf16 ? "bfloat16"
                                                      : "float16";
  return with_weight_type(text, name);
}

}  // namespace sluice::inline SLUICE_ISA::detail

namespace sluice::inline SLUICE_ISA {

/// A folder of tensors and, if there is one, their config.json. What may fail of the config does so before the tensors
/// are there. Throws as checkpoint_writer::save.
inline void save_with_config(const checkpoint_writer& tensors, const std::filesystem::path& folder,
                             std::optional<std::string_view> config, const checkpoint_options& options = {}) {
  const detail::folder_to_fill filling(folder);
  std::optional<atomic_file> config_file;
  if (config) {
    config_file.emplace(folder / "config.json");
    config_file->write(std::as_bytes(std::span(*config)));
  }
  tensors.save(folder, options);
  if (config_file) config_file->commit();
}

}  // namespace sluice::inline SLUICE_ISA
