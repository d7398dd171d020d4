/// parse_safetensors: the table of contents of a safetensors file, believed only after every number is checked.
///
///   8 bytes  little-endian N | N bytes  JSON header (safetensors_header.hpp) | the rest: data; offsets count from here
///
/// Refused with a file_error, besides what header_events refuses: a header longer than the file or than 100 MB; a NUL
/// in the header; a tensor listed twice; a shape whose byte count overflows or, where the type's size is known, differs
/// from its range; ranges that leave the data section or overlap; bytes that belong to no tensor. All arithmetic is
/// checked before it is done, and no data byte is touched. A shape [] is one element; an extent of 0 makes an empty
/// tensor.
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/io/data_type.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/json_text.hpp>
#include <sluice/io/safetensors_header.hpp>
#include <sluice/io/tensor_info.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct safetensors_contents {
  std::vector<tensor_info> tensors;  // in the order of the header
  std::map<std::string, std::string> metadata;
  std::vector<std::size_t> by_name;  // indices into tensors, sorted by name
};

namespace detail {

/// The part of the file that holds the JSON text, within the file and without padding tricks.
inline std::span<const std::byte> header_text(std::span<const std::byte> bytes, const std::string& file) {
  if (bytes.size() < 8)
    throw file_error(file, "has " + std::to_string(bytes.size()) + " bytes, fewer than the 8 of the header length");
  std::uint64_t length = 0;
  for (std::size_t i = 8; i-- > 0;) length = (length << 8U) | std::to_integer<std::uint64_t>(bytes[i]);
  if (length > longest_header)
    throw file_error(file, "header length " + std::to_string(length) + " exceeds the limit of " +
                               std::to_string(longest_header) + " bytes");
  if (length > bytes.size() - 8)
    throw file_error(file, "header length " + std::to_string(length) + " exceeds the " +
                               std::to_string(bytes.size() - 8) + " bytes after it");
  const std::size_t text_size = length;
  const auto text = bytes.subspan(8, text_size);
  if (text.empty() || text.front() != std::byte{'{'}) throw file_error(file, "header does not begin with {");
  return text;
}

/// The range lies in the data section and holds exactly what the shape needs.
inline void check_range(const tensor_entry& tensor, std::uint64_t data_size, const std::string& file) {
  const std::uint64_t begin = tensor.offsets->front();
  const std::uint64_t end = tensor.offsets->back();
  const std::string range = "data_offsets [" + std::to_string(begin) + ", " + std::to_string(end) + "]";
  if (begin > end) throw file_error(file, tensor.name, range + " end before they begin");
  if (end > data_size)
    throw file_error(file, tensor.name, range + " leave the data section of " + std::to_string(data_size) + " bytes");
  const bool has_size = *tensor.dtype != data_type::other;  // else its elements are counted as if they were bytes
  const std::string shape =
      "shape " + shape_text(*tensor.shape) + (has_size ? " of " + std::string(name_of(*tensor.dtype)) : "");
  const std::optional<std::uint64_t> need =
      checked_byte_count(*tensor.shape, has_size ? size_of(*tensor.dtype) : std::size_t{1});
  if (!need) throw file_error(file, tensor.name, shape + " counts more bytes than fit 63 bits");
  if (has_size && *need != end - begin)
    throw file_error(
        file, tensor.name,
        shape + " needs " + std::to_string(*need) + " bytes, " + range + " hold " + std::to_string(end - begin));
}

/// Ranges, sorted, must cover the data section from the first byte to the last without gap or overlap.
inline void check_tiling(const std::vector<tensor_entry>& tensors, std::uint64_t data_size, const std::string& file) {
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return *tensors[a].offsets < *tensors[b].offsets; });
  std::uint64_t covered = 0;
  const tensor_entry* previous = nullptr;
  for (const std::size_t i : order) {
    const tensor_entry& tensor = tensors[i];
    const std::uint64_t begin = tensor.offsets->front();
    if (begin < covered)
      throw file_error(file, tensor.name,
                       "begins at byte " + std::to_string(begin) + ", inside tensor \"" + printable(previous->name) +
                           "\" that ends at " + std::to_string(covered));
    if (begin > covered)
      throw file_error(file, tensor.name,
                       "begins at byte " + std::to_string(begin) + ", but bytes from " + std::to_string(covered) +
                           " on belong to no tensor");
    covered = tensor.offsets->back();
    previous = &tensor;
  }
  if (covered != data_size)
    throw file_error(file, "the last " + std::to_string(data_size - covered) + " of " + std::to_string(data_size) +
                               " data bytes belong to no tensor");
}

}  // namespace detail

/// Checks `bytes`, a whole file; `file` is its name in messages. The tensors refer to `bytes`, which must outlive them.
inline safetensors_contents parse_safetensors(std::span<const std::byte> bytes, const std::string& file) {
  const std::span<const std::byte> text = detail::header_text(bytes, file);
  const std::span<const std::byte> data = bytes.subspan(8 + text.size());
  detail::header_events header(file);
  detail::read_json(text, header);

  safetensors_contents out;
  out.by_name = detail::sorted_names(header.tensors, file);
  for (const detail::tensor_entry& tensor : header.tensors) detail::check_range(tensor, data.size(), file);
  detail::check_tiling(header.tensors, data.size(), file);

  out.metadata = std::move(header.metadata);
  out.tensors.reserve(header.tensors.size());
  for (detail::tensor_entry& tensor : header.tensors) {
    const auto begin = std::size_t{tensor.offsets->front()};
    const auto end = std::size_t{tensor.offsets->back()};
    out.tensors.push_back({std::move(tensor.name), *tensor.dtype, std::move(*tensor.shape),
                           data.subspan(begin, end - begin), std::move(tensor.other_type)});
  }
  return out;
}

}  // namespace sluice::inline SLUICE_ISA
