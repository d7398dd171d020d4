/// gguf_value: one value of a GGUF file's metadata, of any of the thirteen types that the format has.
///
///   if (const auto k = file.metadata("qwen3moe.expert_used_count").integer()) ...
///   file.metadata("tokenizer.ggml.tokens").for_each([](const gguf_value& token) { ... token.text() ... });
///
/// A view of the file's bytes, which parse_gguf has checked as a whole, arrays inside arrays too: nothing here is
/// copied, and reading an array of a hundred thousand words allocates nothing. What a value is not, it gives as
/// nothing. Integers beyond 63 bits are no integers here.
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/io/element_conversion.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace sluice::inline SLUICE_ISA {

/// With the numbers that files have for them.
enum class gguf_type : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

namespace detail {

struct gguf_type_row {
  std::string_view name;
  std::size_t size;  // in bytes; 0: it tells its own length
};

/// Indexed by gguf_type.
inline constexpr std::array<gguf_type_row, 13> gguf_types{{{"U8", 1},
                                                           {"I8", 1},
                                                           {"U16", 2},
                                                           {"I16", 2},
                                                           {"U32", 4},
                                                           {"I32", 4},
                                                           {"F32", 4},
                                                           {"boolean", 1},
                                                           {"string", 0},
                                                           {"array", 0},
                                                           {"U64", 8},
                                                           {"I64", 8},
                                                           {"F64", 8}}};

constexpr const gguf_type_row& row_of(gguf_type type) { return gguf_types[static_cast<std::size_t>(type)]; }

}  // namespace detail

class gguf_value {
public:
  /// `bytes` is where a checked value begins; it may go on behind the value.
  gguf_value(gguf_type type, std::span<const std::byte> bytes) noexcept : type_(type), bytes_(bytes) {}

  gguf_type type() const noexcept { return type_; }

  std::optional<std::int64_t> integer() const noexcept {
    switch (type_) {
      case gguf_type::u8:
        return read<std::uint8_t>();
      case gguf_type::i8:
        return read<std::int8_t>();
      case gguf_type::u16:
        return read<std::uint16_t>();
      case gguf_type::i16:
        return read<std::int16_t>();
      case gguf_type::u32:
        return read<std::uint32_t>();
      case gguf_type::i32:
        return read<std::int32_t>();
      case gguf_type::i64:
        return read<std::int64_t>();
      case gguf_type::u64:
        if (const auto value = read<std::uint64_t>();
            value <= static_cast<std::uint64_t>((std::numeric_limits<std::int64_t>::max)()))
          return static_cast<std::int64_t>(value);
        return std::nullopt;
      default:
        return std::nullopt;
    }
  }

  /// Of floating point.
  std::optional<double> number() const noexcept {
    if (type_ == gguf_type::f32) return static_cast<double>(read<float>());
    if (type_ == gguf_type::f64) return read<double>();
    return std::nullopt;
  }

  std::optional<bool> boolean() const noexcept {
    if (type_ != gguf_type::boolean) return std::nullopt;
    return read<std::uint8_t>() != 0;
  }

  std::optional<std::string_view> text() const noexcept {
    if (type_ != gguf_type::string) return std::nullopt;
    const std::size_t length = read<std::uint64_t>();
    return std::string_view(reinterpret_cast<const char*>(bytes_.data()) + 8, length);
  }

  /// Of an array; of everything else its own type and 1.
  gguf_type element_type() const noexcept {
    return type_ == gguf_type::array ? static_cast<gguf_type>(read<std::uint32_t>()) : type_;
  }
  std::uint64_t elements() const noexcept { return type_ == gguf_type::array ? read<std::uint64_t>(4) : 1; }

  /// f(value) for every element of an array, or for the value itself.
  template <typename F>
  void for_each(F&& f) const {
    std::span<const std::byte> rest = type_ == gguf_type::array ? bytes_.subspan(12) : bytes_;
    for (std::uint64_t i = 0; i < elements(); ++i) {
      const gguf_value element(element_type(), rest);
      f(element);
      rest = rest.subspan(element.length());
    }
  }

  /// How many of the bytes are the value's.
  std::size_t length() const noexcept {
    if (type_ == gguf_type::string) return 8 + read<std::uint64_t>();
    if (type_ != gguf_type::array) return detail::row_of(type_).size;
    if (const std::size_t size = detail::row_of(element_type()).size; size > 0)
      return 12 + elements() * size;
    std::size_t length = 12;
    for_each([&length](const gguf_value& element) { length += element.length(); });
    return length;
  }

  /// As they are in the file, behind the type.
  std::span<const std::byte> bytes() const noexcept { return bytes_.first(length()); }

  /// "U32", "array of string" for messages.
  std::string type_text() const {
    std::string text(detail::row_of(type_).name);
    if (type_ == gguf_type::array) text += " of " + std::string(detail::row_of(element_type()).name);
    return text;
  }

private:
  template <typename T>
  T read(std::size_t at = 0) const noexcept {
    T value;
    std::memcpy(&value, bytes_.data() + at, sizeof value);
    return value;
  }

  gguf_type type_;
  std::span<const std::byte> bytes_;
};

}  // namespace sluice::inline SLUICE_ISA
