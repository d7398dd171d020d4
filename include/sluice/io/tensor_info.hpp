/// tensor_info: what a file says of one tensor, and the overflow-safe arithmetic on its shape.
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/io/data_type.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/kernel/format/ggml_types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::inline SLUICE_ISA {

class coded_matrix;  // checkpoint/encoding/coded_matrix.hpp

/// Numbers that are not stored as such: codes with scales, in one tensor or several.
class element_decoder {
public:
  virtual ~element_decoder() = default;
  /// Elements first, first + 1, ... of the tensor, row-major, each the float that its format defines. The caller has
  /// checked the bounds. Calls may run in parallel.
  virtual void read(std::size_t first, std::span<float> out) const noexcept = 0;

  /// Where rows are whole blocks of a type of ggml, one after the other: the type, and all of them.
  struct typed_blocks {
    ggml_type type;
    std::span<const std::byte> bytes;
  };
  virtual std::optional<typed_blocks> blocks() const noexcept { return std::nullopt; }
  /// Where rows are codes with scales in tensors of their own: those.
  virtual const coded_matrix* coded() const noexcept { return nullptr; }
};

struct tensor_info {
  std::string name;
  data_type dtype{};
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;  // row-major, little-endian, at any alignment
  std::string other_type = {};       // what the file calls the type, if dtype is data_type::other
  std::shared_ptr<const element_decoder> decoder = {};  // of types that are other, where their numbers are known

  std::size_t elements() const noexcept {
    std::size_t product = 1;
    for (const std::int64_t extent : shape) product *= static_cast<std::size_t>(extent);
    return product;
  }
  /// The type that holds its numbers: its own, float where they are decoded.
  data_type number_type() const noexcept { return decoder == nullptr ? dtype : data_type::f32; }
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

/// Indices of things with names, sorted by name, if no name occurs twice.
template <typename Named>
std::vector<std::size_t> sorted_names(const std::vector<Named>& tensors, const std::string& file) {
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return tensors[a].name < tensors[b].name; });
  const auto twin = std::adjacent_find(
      order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return tensors[a].name == tensors[b].name; });
  if (twin != order.end()) throw file_error(file, tensors[*twin].name, "is listed twice");
  return order;
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
