/// safetensors_writer: collects tensors by reference and writes them as one safetensors file, all or nothing.
///
///   sluice::safetensors_writer file;
///   file.metadata("steps", "400");
///   file.add("router.weight", {8, 64}, weights);   // any contiguous range; it must live until save
///   file.save("layer.safetensors");
///
/// Equal calls give equal bytes: metadata sorted by key, then tensors of 8-byte elements, 4, 2, 1 and of other types,
/// each group in the order of its add calls, and the header padded with spaces to a multiple of 8. So every tensor of a
/// mapped file is aligned to its element. Wrong arguments throw std::invalid_argument and change nothing; a header
/// beyond the format's 100 MB throws std::length_error. save throws file_error and then leaves an existing file as it
/// was (atomic_file.hpp).
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/io/atomic_file.hpp>
#include <sluice/io/data_type.hpp>
#include <sluice/io/element_conversion.hpp>
#include <sluice/io/tensor_info.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <ranges>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// The contiguous ranges that may be referred to after the call: lvalues and views, not temporary vectors.
template <typename Range>
concept ReferableValues = std::ranges::contiguous_range<Range> && std::ranges::sized_range<Range> &&
    std::ranges::borrowed_range<Range> && StorableValue<std::ranges::range_value_t<Range>>;

}  // namespace detail

class safetensors_writer {
public:
  /// Sets a metadata entry; a second value for a key replaces the first.
  void metadata(const std::string& key, const std::string& value) {
    std::string quoted_key = quoted(key, "metadata key");
    metadata_.insert_or_assign(std::move(quoted_key), quoted(value, "metadata value"));
  }

  /// Adds a tensor; `values` holds the product of `shape` elements, row-major.
  template <detail::ReferableValues Range>
  void add(const std::string& name, const std::vector<std::int64_t>& shape, Range&& values) {
    using value = std::ranges::range_value_t<Range>;
    add(name, shape, data_type_of<value>,
        std::as_bytes(std::span<const value>(std::ranges::data(values), std::ranges::size(values))));
  }

  /// The same for any data_type but `other`, from its bytes in the file's (little-endian) order.
  void add(const std::string& name, const std::vector<std::int64_t>& shape, data_type type,
           std::span<const std::byte> bytes);
  /// The same as another file has it, whatever its type.
  void add(const tensor_info& tensor);

  /// The same from a source that hands out the bytes piece by piece: read(object, first element, bytes of whole
  /// elements). For arrays that lie in memory otherwise than in the file. The object must live until save.
  struct source {
    const void* object;
    void (*read)(const void* object, std::size_t first, std::span<std::byte> bytes);
  };
  void add(const std::string& name, const std::vector<std::int64_t>& shape, data_type type, source from);

  void save(const std::filesystem::path& path) const {
    atomic_file file(path);
    write_to([&file](std::span<const std::byte> bytes) { file.write(bytes); });
    file.commit();
  }

  /// Writers that together hold the tensors, in the order of the add calls, each with all of the metadata and at most
  /// `most_bytes` of data; a larger tensor is in one of its own. Without tensors it is one empty writer.
  std::vector<safetensors_writer> split(std::uint64_t most_bytes) const;

  const std::set<std::string>& names() const noexcept { return names_; }

  /// Of all tensors together.
  std::uint64_t data_bytes() const noexcept {
    std::uint64_t sum = 0;
    for (const entry& tensor : tensors_) sum += tensor.size;
    return sum;
  }

  /// The file that save would write.
  std::vector<std::byte> to_bytes() const {
    std::vector<std::byte> out;
    write_to([&out](std::span<const std::byte> bytes) { out.insert(out.end(), bytes.begin(), bytes.end()); });
    return out;
  }

private:
  struct entry {
    std::string name;
    std::vector<std::int64_t> shape;
    data_type type;
    std::uint64_t size;                ///< in bytes
    std::span<const std::byte> bytes;  ///< empty if there is a source
    std::optional<source> from;
    std::string other_type;
  };

  void add(const std::string& name, const std::vector<std::int64_t>& shape, data_type type,
           std::optional<std::uint64_t> given_bytes, std::span<const std::byte> bytes, std::optional<source> from,
           const std::string& other_type = {});

  /// The text as a JSON string.
  static std::string quoted(const std::string& text, const std::string& what) {
    try {
      return nlohmann::json(text).dump();
    } catch (const nlohmann::json::exception&) {
      throw std::invalid_argument("sluice::safetensors_writer: " + what + " \"" + detail::printable(text) +
                                  "\" is not UTF-8");
    }
  }

  /// Calls f(entry) in the order of the file.
  template <typename F>
  void for_each_entry(F f) const {
    for (const std::size_t size : {8U, 4U, 2U, 1U, 0U})
      for (const entry& tensor : tensors_)
        if (size_of(tensor.type) == size) f(tensor);
  }

  std::string header() const;

  template <typename Sink>
  void write_to(Sink sink) const {
    const std::string text = header();
    const std::uint64_t length = text.size();
    sink(std::as_bytes(std::span<const std::uint64_t>(&length, 1)));
    sink(std::as_bytes(std::span<const char>(text)));
    for_each_entry([&sink](const entry& tensor) {
      if (!tensor.from) return sink(tensor.bytes);
      std::array<std::byte, 16384> piece;
      for (std::uint64_t begin = 0; begin < tensor.size; begin += piece.size()) {
        const auto bytes = std::span(piece).first(std::min<std::uint64_t>(piece.size(), tensor.size - begin));
        tensor.from->read(tensor.from->object, begin / size_of(tensor.type), bytes);
        sink(std::span<const std::byte>(bytes));
      }
    });
  }

  std::map<std::string, std::string> metadata_;  // both as JSON strings
  std::vector<entry> tensors_;
  std::set<std::string> names_;
};

inline void safetensors_writer::add(const std::string& name, const std::vector<std::int64_t>& shape, data_type type,
                                    std::span<const std::byte> bytes) {
  add(name, shape, type, bytes.size(), bytes, std::nullopt);
}

inline void safetensors_writer::add(const std::string& name, const std::vector<std::int64_t>& shape, data_type type,
                                    source from) {
  add(name, shape, type, std::nullopt, {}, from);
}

inline void safetensors_writer::add(const tensor_info& tensor) {
  add(tensor.name, tensor.shape, tensor.dtype, tensor.bytes.size(), tensor.bytes, std::nullopt, tensor.other_type);
}

inline void safetensors_writer::add(const std::string& name, const std::vector<std::int64_t>& shape, data_type type,
                                    std::optional<std::uint64_t> given_bytes, std::span<const std::byte> bytes,
                                    std::optional<source> from, const std::string& other_type) {
  const auto refuse = [&name](const std::string& reason) {
    throw std::invalid_argument("sluice::safetensors_writer: tensor \"" + detail::printable(name) + "\" " + reason);
  };
  if (name == detail::metadata_key) refuse("has the name that the format reserves");
  if (names_.contains(name)) refuse("is added twice");
  if (shape.size() > detail::most_dimensions)
    refuse("has " + std::to_string(shape.size()) + " dimensions, at most " + std::to_string(detail::most_dimensions));
  const bool has_size = type != data_type::other;
  if (!has_size && other_type.empty()) refuse("has no type that a file can name");
  const std::optional<std::uint64_t> need =
      has_size ? detail::checked_byte_count(shape, size_of(type)) : given_bytes;
  if (!need) refuse("has the impossible shape " + detail::shape_text(shape));
  if (given_bytes && *need != *given_bytes)
    refuse("of shape " + detail::shape_text(shape) + " needs " + std::to_string(*need) + " bytes, is given " +
           std::to_string(*given_bytes));

  for (const std::string& text : {name, other_type}) static_cast<void>(quoted(text, "tensor name"));  // is it UTF-8?
  std::set<std::string> staged{name};
  tensors_.push_back({name, shape, type, *need, bytes, from, other_type});
  names_.merge(staged);  // hands the node over and cannot throw, so a failed add changes nothing
}

inline std::vector<safetensors_writer> safetensors_writer::split(std::uint64_t most_bytes) const {
  std::vector<safetensors_writer> parts(1);
  std::uint64_t room = most_bytes;
  for (const entry& tensor : tensors_) {
    if (tensor.size > room && !parts.back().tensors_.empty()) {
      parts.emplace_back();
      room = most_bytes;
    }
    room -= (std::min)(room, tensor.size);
    parts.back().names_.insert(tensor.name);
    parts.back().tensors_.push_back(tensor);
  }
  for (safetensors_writer& part : parts) part.metadata_ = metadata_;
  return parts;
}

inline std::string safetensors_writer::header() const {
  std::string text = "{";
  const auto next = [&text] {
    if (text.back() != '{') text += ',';
  };
  if (!metadata_.empty()) {
    text += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata_) {
      next();
      text += key + ":" + value;
    }
    text += "}";
  }
  std::uint64_t begin = 0;
  for_each_entry([&](const entry& tensor) {
    const std::uint64_t end = begin + tensor.size;
    next();
    const std::string type = tensor.type != data_type::other ? std::string(name_of(tensor.type)) : tensor.other_type;
    text += quoted(tensor.name, "tensor name") + ":{\"dtype\":" + quoted(type, "type") + ",\"shape\":[";
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
      if (i > 0) text += ',';
      text += std::to_string(tensor.shape[i]);
    }
    text += "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
    begin = end;
  });
  text += "}";
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > detail::longest_header)
    throw std::length_error("sluice::safetensors_writer: header of " + std::to_string(text.size()) +
                            " bytes exceeds the format's limit of " + std::to_string(detail::longest_header));
  return text;
}

}  // namespace sluice::inline SLUICE_ISA
