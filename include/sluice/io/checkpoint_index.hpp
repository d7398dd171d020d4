/// parse_checkpoint_index: the index of a checkpoint of several files (shards), and what those files are called.
///
///   {"metadata": {"total_size": 96}, "weight_map": {"tensor name": "model-00001-of-00002.safetensors", ...}}
///
/// Refused with a file_error, besides what read_json refuses: more than 100 MB; a key given twice; a shard that is not
/// a plain file name, so an index cannot lead out of its folder by name. Metadata may be missing. Its values are kept
/// as text, but for objects, arrays and total_size: it counts what shards are found to hold, and published indices have
/// it wrong. Other top-level keys are passed over. Format: https://huggingface.co/docs/transformers/big_models
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/json_text.hpp>
#include <sluice/io/tensor_info.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct checkpoint_index {
  std::map<std::string, std::string> metadata;
  std::map<std::string, std::string> weight_map;  // tensor to shard
};

namespace detail {

inline constexpr std::string_view file_suffix = ".safetensors";
inline constexpr const char* single_file_name = "model.safetensors";
inline constexpr const char* index_file_name = "model.safetensors.index.json";

struct shard_name {
  std::string_view stem;
  bool one_of_several;
};

/// The parts of "stem-00001-of-00002.safetensors", or nothing if the name has another form.
inline std::optional<shard_name> parse_shard_name(std::string_view name) {
  const auto drop = [&name](std::string_view end) {
    if (!name.ends_with(end)) return false;
    name.remove_suffix(end.size());
    return true;
  };
  const auto drop_number = [&name] {
    const std::size_t end = name.find_last_not_of("0123456789") + 1;  // npos + 1 is 0
    const std::size_t digits = name.size() - end;
    name = name.substr(0, end);
    return digits >= 5;
  };
  const bool one_of_one = name.ends_with("-of-00001.safetensors");
  if (!drop(file_suffix) || !drop_number() || !drop("-of-") || !drop_number() || !drop("-")) return std::nullopt;
  return shard_name{name, !one_of_one};
}

/// "model-00001-of-00002.safetensors"; "model-2-00001-of-00002.safetensors" for generation 2 of the same checkpoint.
inline std::string make_shard_name(std::size_t generation, std::size_t number, std::size_t count) {
  const auto digits = [](std::size_t n) {
    const std::string text = std::to_string(n);
    return text.size() < 5 ? std::string(5 - text.size(), '0') + text : text;
  };
  return (generation == 1 ? "model-" : "model-" + std::to_string(generation) + '-') + digits(number) + "-of-" +
         digits(count) + std::string(file_suffix);
}

/// Whether make_shard_name makes such names.
inline bool is_own_shard(std::string_view name) {
  const std::optional<shard_name> parts = parse_shard_name(name);
  if (!parts || !parts->stem.starts_with("model")) return false;
  const std::string_view generation = parts->stem.substr(5);
  return generation.empty() || (generation.size() > 1 && generation.front() == '-' &&
                                generation.find_first_not_of("0123456789", 1) == std::string_view::npos);
}

/// Why the text is no name of a file beside the index; empty if it is one.
inline std::string obstacle_of_shard(std::string_view name) {
  if (name.size() > 255) return "is longer than a file name";
  // A colon is for drives and streams on Windows.
  const auto leads_away = [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == 0x7F || c == '/' || c == '\\' || c == ':';
  };
  if (name.empty() || name == "." || name == ".." || std::any_of(name.begin(), name.end(), leads_away))
    return "is not a plain file name";
  return {};
}

/// Receives the JSON events of an index; see header_events.
class index_events : public json_handler {
public:
  explicit index_events(const std::string& file) : json_handler(file, "index") {}

  checkpoint_index index;

  bool null() { return scalar("null"); }
  bool boolean(bool value) { return scalar(value ? "true" : "false"); }
  bool number_integer(std::int64_t value) { return scalar(std::to_string(value)); }
  bool number_unsigned(std::uint64_t value) { return scalar(std::to_string(value)); }
  bool number_float(double, const std::string& text) { return scalar(written(text)); }
  bool binary(nlohmann::json::binary_t&) { refuse("binary data"); }

  bool string(std::string& value) {
    if (place_ != place::weight_map || passed_over_ > 0) return scalar(std::move(value));
    if (const std::string obstacle = obstacle_of_shard(value); !obstacle.empty())
      throw file_error(file(), key_, "shard \"" + printable(value) + "\" " + obstacle);
    index.weight_map[key_] = std::move(value);
    return true;
  }

  bool key(std::string& name) {
    if (passed_over_ > 0) return true;
    if (place_ == place::root) {
      const bool is_known = name == "metadata" || name == "weight_map";
      if (is_known && std::exchange(name == "metadata" ? metadata_seen_ : weight_map_seen_, true))
        throw file_error(file(), "index has the key \"" + name + "\" twice");
    } else if (place_ == place::metadata ? index.metadata.contains(name) : index.weight_map.contains(name)) {
      if (place_ == place::weight_map) throw file_error(file(), name, "is listed twice");
      throw file_error(file(), "metadata key \"" + printable(name) + "\" is given twice");
    }
    key_ = std::move(name);
    return true;
  }

  bool start_object(std::size_t) {
    if (passes_over()) return ++passed_over_ > 0;
    if (place_ == place::document)
      place_ = place::root;
    else if (place_ == place::root)
      place_ = key_ == "metadata" ? place::metadata : place::weight_map;
    else
      refuse("an object");
    return true;
  }

  bool end_object() {
    if (passed_over_ > 0) return passed_over_-- > 0;
    if (place_ == place::root && !weight_map_seen_) throw file_error(file(), "index has no weight_map");
    place_ = place_ == place::root ? place::document : place::root;
    return true;
  }

  bool start_array(std::size_t) {
    if (!passes_over()) refuse("an array");
    return ++passed_over_ > 0;
  }
  bool end_array() { return passed_over_-- > 0; }

private:
  enum class place { document, root, metadata, weight_map };

  /// Whether what begins here says nothing about tensors.
  bool passes_over() const {
    return passed_over_ > 0 || place_ == place::metadata ||
           (place_ == place::root && key_ != "metadata" && key_ != "weight_map");
  }

  bool scalar(std::string value) {
    if (passed_over_ > 0 || (passes_over() && place_ == place::root)) return true;
    if (place_ != place::metadata) refuse("\"" + printable(value) + "\"");
    index.metadata[key_] = std::move(value);
    return true;
  }

  [[noreturn]] void refuse(const std::string& what) const {
    if (place_ == place::document) throw file_error(file(), "index must be a JSON object, is " + what);
    if (place_ == place::root) throw file_error(file(), "index: " + key_ + " must be an object, is " + what);
    if (place_ == place::weight_map) throw file_error(file(), key_, "shard must be a string, is " + what);
    throw file_error(file(), "metadata \"" + printable(key_) + "\" must be a number or text, is " + what);
  }

  place place_ = place::document;
  bool metadata_seen_ = false;
  bool weight_map_seen_ = false;
  std::size_t passed_over_ = 0;  // objects and arrays that are open and said nothing of
  std::string key_;
};

}  // namespace detail

/// Checks `bytes`, a whole index; `file` is its name in messages. Shards are not looked for.
inline checkpoint_index parse_checkpoint_index(std::span<const std::byte> bytes, const std::string& file) {
  if (bytes.size() > detail::longest_header)
    throw file_error(file, "index of " + std::to_string(bytes.size()) + " bytes exceeds the limit of " +
                               std::to_string(detail::longest_header));
  detail::index_events events(file);
  detail::read_json(bytes, events);
  events.index.metadata.erase("total_size");
  return std::move(events.index);
}

}  // namespace sluice::inline SLUICE_ISA
