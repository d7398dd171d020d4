/// Memory for rows that are packed as whichever of several storages wants them: what a bank keeps of x and of h.
///
///   rows of an expert begin at (their first row) * (the largest place that any of the storages needs)
///
/// Every expert's rows are packed as its own map reads them, so there is a place for a row and not one a storage;
/// which expert has which storage changes no size, and a warm call allocates nothing whatever is routed where. With
/// one storage this is an array of its packed rows. Storages that pack number by number share rows
/// (kernel/storage.hpp).
#pragma once

#include <sluice/kernel/linear_map.hpp>
#include <sluice/kernel/row_blocks.hpp>

#include <algorithm>
#include <array>
#include <type_traits>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Whether what is packed for a map of storage A can be read by one of storage B.
template <typename A, typename B>
inline constexpr bool pack_alike = (packs_numbers<A> && packs_numbers<B>) ||
                                   (std::same_as<packing_of<A>, packing_of<B>> && std::is_empty_v<packing_of<A>>);

}  // namespace detail

namespace kernel {

template <typename List>
class packed_memory;

template <typename First, typename... Rest>
class packed_memory<sluice::detail::storage_list<First, Rest...>> {
public:
  using scalar = typename First::scalar;
  static constexpr bool all_numbers =
      sluice::detail::packs_numbers<First> && (sluice::detail::packs_numbers<Rest> && ...);
  static constexpr bool no_numbers =
      !sluice::detail::packs_numbers<First> && !(sluice::detail::packs_numbers<Rest> || ...);
  /// Whether any two maps read the same rows.
  static constexpr bool all_alike =
      sluice::detail::pack_alike<First, First> && (sluice::detail::pack_alike<First, Rest> && ...);

  static index_t row_bytes(index_t inputs) { return unit_bytes(inputs) + factor_bytes(inputs); }
  void reserve(index_t rows, index_t inputs) {
    factors_.reserve(rows * factor_bytes(inputs));
    units_.reserve(rows * unit_bytes(inputs));  // last: where they have room, everything has
  }
  bool has_room(index_t rows, index_t inputs) const { return units_.capacity() >= rows * unit_bytes(inputs); }
  /// What is taken.
  index_t bytes() const noexcept { return factors_.capacity() + units_.capacity(); }
  void resize(index_t rows, index_t inputs) {
    factors_.resize(rows * factor_bytes(inputs));
    units_.resize(rows * unit_bytes(inputs));
  }

  /// The rows of one expert, in a batch that begins at row `begin`. Rows `width` wide leave the end of places for
  /// rows of `widest` unused.
  template <typename Storage>
  packed_rows<Storage> rows_as(const row_blocks& rows, index_t begin, index_t width, index_t widest) {
    using packed = packed_rows<Storage>;
    const index_t before = rows.first() - begin;
    packed at{reinterpret_cast<typename packed::activation*>(units_.data() + before * unit_bytes(widest)), nullptr,
              width, rows.first()};
    if constexpr (SumsInBlocks<Storage>)
      at.factors = reinterpret_cast<typename packed::factor*>(factors_.data() + before * factor_bytes(widest));
    return at;
  }

private:
  static constexpr index_t alignment = 16;
  static constexpr index_t aligned(index_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

  template <typename Storage>
  static index_t units_of(index_t inputs) {
    return packed_rows<Storage>::pitch(inputs) *
           static_cast<index_t>(sizeof(typename packed_rows<Storage>::activation));
  }
  template <typename Storage>
  static index_t factors_of(index_t inputs) {
    return packed_rows<Storage>::row_factors(inputs) *
           static_cast<index_t>(sizeof(typename packed_rows<Storage>::factor));
  }
  static index_t unit_bytes(index_t inputs) {
    return aligned((std::max)({units_of<First>(inputs), units_of<Rest>(inputs)...}));
  }
  static index_t factor_bytes(index_t inputs) {
    return aligned((std::max)({factors_of<First>(inputs), factors_of<Rest>(inputs)...}));
  }

  buffer<std::byte> units_, factors_;
};

/// Where one expert's rows of numbers lie: packed already, or row by row until somebody packs them.
template <typename Scalar>
struct number_rows {
  Scalar* numbers = nullptr;  ///< of the expert's first row
  index_t pitch = 0;          ///< numbers of a row
  bool is_packed = true;

  static constexpr index_t lanes = simd_width<Scalar>;

  /// From L numbers of a row of a block to those of the next row.
  index_t row_step() const noexcept { return is_packed ? lanes : pitch; }
  /// L numbers of row i of block b.
  Scalar* panel(const row_blocks& rows, index_t b, index_t i, index_t p) const noexcept {
    const index_t column = is_packed ? rows.size(b) * lanes : lanes;
    return numbers + (rows.begin(b) - rows.first()) * pitch + i * row_step() + p * column;
  }
};

}  // namespace kernel

}  // namespace sluice::inline SLUICE_ISA
