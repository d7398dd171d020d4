/// Copies the little-endian, possibly unaligned elements of a file into C++ values, widening half and bfloat16 exactly.
///
/// Everything works on bits, so that -ffast-math and flush-to-zero change no value: subnormals, infinities and NaN
/// payloads of F16 and BF16 arrive unharmed. F64 read as float rounds to nearest; a finite value that no finite float
/// is near would become infinite, so exceeds_float finds it first.
#pragma once

#include <sluice/core/isa.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>

namespace sluice::inline SLUICE_ISA::detail {

static_assert(std::endian::native == std::endian::little,
              "sluice: safetensors files are little-endian; io/ does not yet support big-endian machines");

/// True if `value` is finite but rounds to an infinite float: its magnitude is at least FLT_MAX plus half a unit.
constexpr bool exceeds_float(double value) {
  const std::uint64_t magnitude = std::bit_cast<std::uint64_t>(value) & 0x7FFFFFFFFFFFFFFFU;
  return magnitude >= std::bit_cast<std::uint64_t>(0x1.ffffffp127) && magnitude < 0x7FF0000000000000U;
}

/// "1.5e+300"
inline std::string short_text(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%g", value);
  return text.data();
}

/// The i-th Stored in `bytes`; the caller has checked the bounds.
template <typename Stored>
Stored load_element(std::span<const std::byte> bytes, std::size_t i) {
  Stored value;
  std::memcpy(&value, bytes.data() + i * sizeof(Stored), sizeof(Stored));
  return value;
}

template <typename Stored, typename T, typename Convert>
void convert_elements(std::span<const std::byte> bytes, std::span<T> out, Convert convert) {
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<T>(convert(load_element<Stored>(bytes, i)));
}

static_assert(exceeds_float(-0x1p128) && !exceeds_float(0x1.fffffefffffffp127));

}  // namespace sluice::inline SLUICE_ISA::detail
