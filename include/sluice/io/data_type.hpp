/// data_type: the element types that the safetensors format publishes, their names and their sizes.
///
/// Every type is known by size, so that the bounds of every tensor can be checked. C++ values exist for the integers,
/// F32 and F64 (data_type_of); the others travel as raw bytes, or are widened to float or double when they are read.
/// The format grows: a tensor of a type that is not in this list is `other`. Its bytes can be copied and nothing else.
#pragma once

#include <sluice/core/isa.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace sluice::inline SLUICE_ISA {

enum class data_type : std::uint8_t {
  boolean,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  f64,
  i64,
  u64,
  other
};

namespace detail {

struct data_type_row {
  std::string_view name;
  std::size_t size;
};

/// Indexed by data_type.
inline constexpr std::array<data_type_row, 17> data_types{{{"BOOL", 1},
                                                           {"U8", 1},
                                                           {"I8", 1},
                                                           {"F8_E5M2", 1},
                                                           {"F8_E4M3", 1},
                                                           {"F8_E8M0", 1},
                                                           {"I16", 2},
                                                           {"U16", 2},
                                                           {"F16", 2},
                                                           {"BF16", 2},
                                                           {"I32", 4},
                                                           {"U32", 4},
                                                           {"F32", 4},
                                                           {"F64", 8},
                                                           {"I64", 8},
                                                           {"U64", 8},
                                                           {"of another type", 0}}};

}  // namespace detail

/// The name in the file: "F32".
constexpr std::string_view name_of(data_type type) { return detail::data_types[static_cast<std::size_t>(type)].name; }

/// Bytes of one element; 0 for `other`.
constexpr std::size_t size_of(data_type type) { return detail::data_types[static_cast<std::size_t>(type)].size; }

/// The type of that name, or nothing; names are upper case and matched exactly.
constexpr std::optional<data_type> parse_data_type(std::string_view name) {
  for (std::size_t i = 0; i < static_cast<std::size_t>(data_type::other); ++i)
    if (detail::data_types[i].name == name) return static_cast<data_type>(i);
  return std::nullopt;
}

/// C++ types whose values a file can hold as they are.
template <typename T>
concept StorableValue = std::same_as<T, float> || std::same_as<T, double> ||
    (std::integral<T> && !std::same_as<T, bool> && !std::same_as<T, char> && !std::same_as<T, wchar_t> &&
     !std::same_as<T, char8_t> && !std::same_as<T, char16_t> && !std::same_as<T, char32_t> && sizeof(T) <= 8);

namespace detail {

template <StorableValue T>
constexpr data_type type_of_value() {
  if constexpr (std::same_as<T, float>) return data_type::f32;
  if constexpr (std::same_as<T, double>) return data_type::f64;
  if constexpr (std::signed_integral<T>) {
    return sizeof(T) == 1   ? data_type::i8
           : sizeof(T) == 2 ? data_type::i16
           : sizeof(T) == 4 ? data_type::i32
                            : data_type::i64;
  }
  return sizeof(T) == 1   ? data_type::u8
         : sizeof(T) == 2 ? data_type::u16
         : sizeof(T) == 4 ? data_type::u32
                          : data_type::u64;
}

}  // namespace detail

/// The data_type that stores a T: data_type_of<float> is data_type::f32.
template <StorableValue T>
inline constexpr data_type data_type_of = detail::type_of_value<T>();

static_assert(data_type_of<float> == data_type::f32 && data_type_of<std::int64_t> == data_type::i64);
static_assert(name_of(data_type::u64) == "U64" && size_of(data_type::bf16) == 2);

}  // namespace sluice::inline SLUICE_ISA
