/// tensor_info: what a file says of one tensor, and the overflow-safe arithmetic on its shape.
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/io/data_type.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct tensor_info {
  std::string name;
  data_type dtype{};
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;  // row-major, little-endian, at any alignment
  std::string other_type = {};       // what the file calls the type, if dtype is data_type::other

  std::size_t elements() const noexcept {
    std::size_t product = 1;
    for (const std::int64_t extent : shape) product *= static_cast<std::size_t>(extent);
    return product;
  }
  /// The type as the file names it.
  std::string_view type_name() const noexcept { return dtype == data_type::other ? other_type : name_of(dtype); }
};

namespace detail {

inline constexpr std::string_view metadata_key = "__metadata__";
inline constexpr std::uint64_t longest_header = 100'000'000;
inline constexpr std::size_t most_dimensions = 64;

/// Product of the extents times `element_size`, or nothing if an extent is negative or if the extents other than 0
/// multiply beyond 63 bits: an extent 0 elsewhere does not excuse them, since callers multiply parts of a shape too.
inline std::optional<std::uint64_t> checked_byte_count(std::span<const std::int64_t> shape, std::size_t element_size) {
  constexpr auto most = static_cast<std::uint64_t>((std::numeric_limits<std::int64_t>::max)());
  std::uint64_t product = element_size;
  bool empty = false;
  for (const std::int64_t extent : shape) {
    if (extent < 0) return std::nullopt;
    const auto factor = static_cast<std::uint64_t>(extent);
    if (factor == 0) {
      empty = true;
    } else if (product > most / factor) {
      return std::nullopt;
    } else {
      product *= factor;
    }
  }
  return empty ? 0 : product;
}

/// "[2, 3]"
inline std::string shape_text(std::span<const std::int64_t> shape) {
  std::string out = "[";
  for (const std::int64_t extent : shape) {
    if (out.size() > 1) out += ", ";
    out += std::to_string(extent);
  }
  return out + "]";
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
