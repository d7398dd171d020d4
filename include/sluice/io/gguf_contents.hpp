/// parse_gguf: the table of contents of a GGUF file, believed only after every number is checked.
///
///   "GGUF" | U32 version | U64 tensors | U64 keys | keys: name, U32 type, value | tensors: name, U32 dimensions,
///   U64 extents, the fastest first, U32 type, U64 offset | padding | data; offsets count from here
///
/// A name or a string is a U64 length and its bytes; an array is a U32 type, a U64 count and the elements. Data begins,
/// and so does every tensor, at a multiple of general.alignment, 32 if the file has no such key. Shapes are given here
/// slowest first, as everywhere else: a stack of experts [in, out, E] of the file is [E, out, in].
///
/// Refused with a file_error: other versions than 2 and 3, big-endian files; counts that the file has no room for;
/// strings, arrays and tensors that leave the file; arrays more than 8 deep; types of values that the format does not
/// have, booleans other than 0 and 1; keys and names that are empty, of more than 65535 bytes, or given twice; an
/// alignment that is no power of two from 8 on; more than 4 dimensions, extents whose product counts more bytes than
/// fit 63 bits, rows that are no whole blocks; offsets between multiples of the alignment; tensors that overlap, bytes
/// between or behind them that are more than padding. All arithmetic is checked before it is done, and no byte of data
/// is touched. A tensor of a type that is not known is no error (`other`, its bytes go on to the next tensor): whoever
/// reads it decides.
///
/// Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/io/byte_cursor.hpp>
#include <sluice/io/data_type.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/gguf_tensor.hpp>
#include <sluice/io/gguf_value.hpp>
#include <sluice/io/tensor_info.hpp>
#include <sluice/kernel/format/ggml_types.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <map>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct gguf_contents {
  std::uint32_t version = 0;
  std::uint64_t alignment = 32;
  std::uint64_t data_start = 0;
  std::map<std::string, gguf_value, std::less<>> metadata;
  std::vector<tensor_info> tensors;  // in the order of the file
  std::vector<std::size_t> by_name;  // indices into tensors, sorted by name
};

namespace detail {

inline constexpr std::uint64_t longest_gguf_name = 65535;
inline constexpr int deepest_gguf_array = 8;
inline constexpr std::uint32_t most_gguf_dimensions = 4;

/// Goes over one value and everything in it.
inline void check_gguf_value(byte_cursor& cursor, gguf_type type, const std::string& key, int depth = 0) {
  const auto refuse = [&](const std::string& reason) {
    throw file_error(cursor.file(), "key \"" + printable(key) + "\": " + reason);
  };
  if (const std::size_t size = row_of(type).size; size > 0) {
    const auto bytes = cursor.take(size, key);
    if (type == gguf_type::boolean && std::to_integer<unsigned>(bytes.front()) > 1)
      refuse("a boolean must be 0 or 1, is " + std::to_string(std::to_integer<unsigned>(bytes.front())));
    return;
  }
  if (type == gguf_type::string) {
    cursor.take(cursor.number<std::uint64_t>(key), key);
    return;
  }
  if (depth == deepest_gguf_array) refuse("arrays are nested more than " + std::to_string(depth) + " deep");
  const auto number = cursor.number<std::uint32_t>(key);
  if (number >= gguf_types.size()) refuse("elements are of type " + std::to_string(number) + ", which no value is");
  const auto element = static_cast<gguf_type>(number);
  const auto count = cursor.number<std::uint64_t>(key);
  const std::size_t size = row_of(element).size;
  const std::size_t least = size > 0 ? size : element == gguf_type::string ? 8 : 12;
  if (count > cursor.left() / least)
    refuse(std::to_string(count) + " elements do not fit the " + std::to_string(cursor.left()) + " bytes left");
  if (size > 0 && element != gguf_type::boolean)
    cursor.take(count * size, key);
  else
    for (std::uint64_t i = 0; i < count; ++i) check_gguf_value(cursor, element, key, depth + 1);
}

inline std::string gguf_name(byte_cursor& cursor, const char* what) {
  const auto length = cursor.number<std::uint64_t>(what);
  if (length == 0 || length > longest_gguf_name)
    throw file_error(cursor.file(), std::string(what) + " has " + std::to_string(length) + " bytes, must have 1 to " +
                                        std::to_string(longest_gguf_name));
  const auto bytes = cursor.take(length, what);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// One tensor as the file describes it, before its range is believed.
struct gguf_entry {
  std::string name;
  std::vector<std::int64_t> shape;  // slowest first
  std::uint32_t type;
  std::uint64_t offset;
  std::optional<std::uint64_t> size = std::nullopt;  // in bytes, where the type is known
};

/// How many bytes a tensor of a known type has.
inline std::uint64_t gguf_size(const gguf_entry& tensor, const ggml_type_traits& type, const std::string& file) {
  const std::int64_t row = tensor.shape.empty() ? 1 : tensor.shape.back();
  const std::string shape = "shape " + shape_text(tensor.shape) + " of " + std::string(type.name);
  if (row % type.inputs != 0)
    throw file_error(file, tensor.name, shape + ": rows are no whole blocks of " + std::to_string(type.inputs));
  std::vector<std::int64_t> blocks = tensor.shape;
  if (!blocks.empty()) blocks.back() /= type.inputs;
  // Elements are counted too: a block has more of them than bytes.
  const auto bytes = checked_byte_count(blocks, static_cast<std::size_t>(type.bytes));
  if (!bytes || !checked_byte_count(tensor.shape, 1))
    throw file_error(file, tensor.name, shape + " counts more than fits 63 bits");
  return *bytes;
}

inline gguf_entry read_gguf_entry(byte_cursor& cursor) {
  gguf_entry tensor{gguf_name(cursor, "the name of a tensor"), {}, 0, 0};
  const auto refuse = [&](const std::string& reason) { throw file_error(cursor.file(), tensor.name, reason); };
  const auto dimensions = cursor.number<std::uint32_t>("a tensor");
  if (dimensions > most_gguf_dimensions)
    refuse("has " + std::to_string(dimensions) + " dimensions, at most " + std::to_string(most_gguf_dimensions));
  for (std::uint32_t d = 0; d < dimensions; ++d) {
    const auto extent = cursor.number<std::uint64_t>("a tensor");
    if (extent >> 63U != 0) refuse("extent " + std::to_string(extent) + " exceeds 63 bits");
    tensor.shape.insert(tensor.shape.begin(), static_cast<std::int64_t>(extent));
  }
  tensor.type = cursor.number<std::uint32_t>("a tensor");
  tensor.offset = cursor.number<std::uint64_t>("a tensor");
  const ggml_type_traits* const type = find_ggml_type(tensor.type);
  if (type != nullptr)
    tensor.size = gguf_size(tensor, *type, cursor.file());
  else if (!checked_byte_count(tensor.shape, 1))
    refuse("shape " + shape_text(tensor.shape) + " counts more than fits 63 bits");
  return tensor;
}

/// Gives every tensor its size. Sorted by place they must follow each other with no more than padding between them.
inline void place_gguf_tensors(std::vector<gguf_entry>& tensors, std::uint64_t alignment, std::uint64_t data_size,
                               const std::string& file) {
  std::vector<gguf_entry*> order;
  for (gguf_entry& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const gguf_entry* a, const gguf_entry* b) {
    return std::pair(a->offset, a->size.value_or(1)) < std::pair(b->offset, b->size.value_or(1));
  });
  const auto padded = [alignment](std::uint64_t size) { return (size + alignment - 1) / alignment * alignment; };
  std::uint64_t covered = 0;
  const gguf_entry* previous = nullptr;
  for (std::size_t i = 0; i < order.size(); ++i) {
    gguf_entry& tensor = *order[i];
    const std::string place = "offset " + std::to_string(tensor.offset);
    if (tensor.offset % alignment != 0)
      throw file_error(file, tensor.name, place + " is no multiple of the alignment " + std::to_string(alignment));
    if (tensor.offset > data_size || tensor.size.value_or(0) > data_size - tensor.offset)
      throw file_error(file, tensor.name,
                       place + (tensor.size ? " and " + std::to_string(*tensor.size) + " bytes" : std::string()) +
                           " leave the data section of " + std::to_string(data_size) + " bytes");
    if (tensor.offset < covered)
      throw file_error(
          file, tensor.name,
          place + " lies inside tensor \"" + printable(previous->name) + "\" that ends at " + std::to_string(covered));
    if (tensor.offset > padded(covered))
      throw file_error(file, tensor.name,
                       place + ", but bytes from " + std::to_string(covered) + " on belong to no tensor");
    if (!tensor.size) tensor.size = (i + 1 < order.size() ? order[i + 1]->offset : data_size) - tensor.offset;
    if (*tensor.size > data_size - tensor.offset)  // of another type, in front of one that begins behind the end
      throw file_error(file, tensor.name, place + " and what follows leave the data section");
    covered = tensor.offset + *tensor.size;
    previous = &tensor;
  }
  if (data_size - covered >= alignment)
    throw file_error(file, "the last " + std::to_string(data_size - covered) + " of " + std::to_string(data_size) +
                               " data bytes belong to no tensor");
}

inline std::uint64_t gguf_alignment(const gguf_contents& contents, const std::string& file) {
  const auto found = contents.metadata.find("general.alignment");
  if (found == contents.metadata.end()) return 32;
  const std::optional<std::int64_t> value = found->second.integer();
  if (found->second.type() == gguf_type::u32 && value && *value >= 8 &&
      std::has_single_bit(static_cast<std::uint64_t>(*value)))
    return static_cast<std::uint64_t>(*value);
  throw file_error(file, "key \"general.alignment\": must be a U32 and a power of two from 8 on, is " +
                             found->second.type_text() + (value ? ' ' + std::to_string(*value) : std::string()));
}

/// The version, after which counts follow.
inline std::uint32_t gguf_version(byte_cursor& cursor) {
  const auto magic = cursor.take(4, "the beginning");
  if (std::string_view(reinterpret_cast<const char*>(magic.data()), 4) != "GGUF")
    throw file_error(cursor.file(), "does not begin with GGUF");
  const auto version = cursor.number<std::uint32_t>("the version");
  if (version == 2 || version == 3) return version;
  throw file_error(cursor.file(), version != 0 && (version & 0xFFFFU) == 0
                                      ? "is big-endian, only little-endian files are read"
                                      : "is of version " + std::to_string(version) + ", only 2 and 3 are read");
}

}  // namespace detail

/// Checks `bytes`, a whole file; `file` is its name in messages. Everything refers to `bytes`, which must outlive it.
inline gguf_contents parse_gguf(std::span<const std::byte> bytes, const std::string& file) {
  detail::byte_cursor cursor(bytes, file);
  gguf_contents out;
  out.version = detail::gguf_version(cursor);
  const auto tensor_count = cursor.number<std::uint64_t>("the number of tensors");
  const auto key_count = cursor.number<std::uint64_t>("the number of keys");
  // The shortest key has 14 bytes, the shortest tensor 25.
  if (key_count > cursor.left() / 14 || tensor_count > (cursor.left() - key_count * 14) / 25)
    throw file_error(file, std::to_string(tensor_count) + " tensors and " + std::to_string(key_count) +
                               " keys do not fit the " + std::to_string(cursor.left()) + " bytes left");

  for (std::uint64_t i = 0; i < key_count; ++i) {
    std::string key = detail::gguf_name(cursor, "a key");
    const auto type = cursor.number<std::uint32_t>(key);
    if (type >= detail::gguf_types.size())
      throw file_error(
          file, "key \"" + detail::printable(key) + "\": is of type " + std::to_string(type) + ", which no value is");
    const std::span<const std::byte> rest = cursor.rest();
    detail::check_gguf_value(cursor, static_cast<gguf_type>(type), key);
    const gguf_value value(static_cast<gguf_type>(type), rest);
    if (!out.metadata.try_emplace(key, value).second)
      throw file_error(file, "key \"" + detail::printable(key) + "\" is given twice");
  }
  out.alignment = detail::gguf_alignment(out, file);

  std::vector<detail::gguf_entry> entries;
  for (std::uint64_t i = 0; i < tensor_count; ++i) entries.push_back(detail::read_gguf_entry(cursor));
  const std::uint64_t padding = (out.alignment - cursor.at() % out.alignment) % out.alignment;
  out.data_start = cursor.at() + padding;
  // Without data there may be no padding either.
  const auto data = padding <= cursor.left() ? cursor.rest().subspan(padding) : std::span<const std::byte>();
  detail::place_gguf_tensors(entries, out.alignment, data.size(), file);

  for (detail::gguf_entry& entry : entries)
    out.tensors.push_back(detail::gguf_tensor(std::move(entry.name), entry.type, std::move(entry.shape),
                                              data.subspan(entry.offset, *entry.size)));
  out.by_name = detail::sorted_names(out.tensors, file);
  return out;
}

}  // namespace sluice::inline SLUICE_ISA
