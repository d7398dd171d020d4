/// Codes with a scale a group (kernel/format/grouped_codes.hpp) as blocks of a format, without changing a number.
///
///   assign_codes(map, codes)        writes all weights of a map whose storage is a coded_storage
///   holds_codes<Format>(codes)      whether it would
///
/// A format holds codes if its groups are parts of theirs and its scales, zeros and minima are exactly theirs: float16
/// where the format has float16, a power of two where it has exponents, and so on. Inputs in groups of any order
/// (act-order) are held only where each block happens to lie in one group. Every weight is compared, bit by bit but for
/// the sign of zero; what does not fit throws std::invalid_argument, which says which weight and what it would have
/// become.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/kernel/format/formats.hpp>
#include <sluice/kernel/format/grouped_codes.hpp>
#include <sluice/kernel/linear_map.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

namespace sluice::inline SLUICE_ISA {

namespace detail {

// Codes are grouped_codes, or what has its names (rows of a file, without a copy).

template <typename Codes>
float group_zero(const Codes& c, index_t output, index_t input) noexcept {
  return c.zeros.size() == 0 ? 0.0F : c.zeros(output, c.group_at(input));
}

/// A whole number as a code, wrapped: what does not fit is found when values are compared.
inline std::uint8_t wrapped_code(float whole) noexcept {
  return (std::abs)(whole) <= 255 ? to_code(static_cast<int>(whole) & 255) : std::uint8_t(0);
}

template <typename Format, typename Codes>
coded_block group_block(const Codes& c, index_t output, index_t first) noexcept {
  using scales = typename Format::scales;
  using levels = typename Format::levels;
  const index_t last = (std::min)(first + Format::inputs, c.inputs());
  const float scale = c.scale_at(output, first), zero = group_zero(c, output, first);
  coded_block b;
  if constexpr (requires { scales::has_factor; }) {
    // Each run has a scale of its own, beside the tensor's.
    b.scale = c.tensor_scale;
    for (index_t i = first; i < last; i += scales::run)
      b.scales[as_size((i - first) / scales::run)] = round_to_e4m3(c.scales(output, c.group_at(i)));
  } else if constexpr (std::same_as<scales, exponents>) {
    b.scales[0] = exponent_of(scale);
  } else {
    b.scale = scale;
  }
  if constexpr (scales::has_minimum) b.minimum = c.minima.size() == 0 ? 0.0F : c.minima(output, c.group_at(first));
  // Levels count from the format's zero, codes from the group's; a format with zeros takes codes as they are.
  float shift = 0;
  if constexpr (scales::has_zero)
    b.minima[0] = wrapped_code(zero - float(levels::zero) + 128);
  else if constexpr (requires { levels::zero; })
    shift = float(levels::zero) - zero;
  for (index_t i = first; i < last; ++i)
    b.codes[as_size(i - first)] = shift == 0 ? c.codes(output, i) : wrapped_code(float(c.codes(output, i)) + shift);
  return b;
}

/// The first input of the block that would become another number.
template <typename Format, typename Codes>
std::optional<index_t> changed_by_format(const Codes& c, index_t output, index_t first) noexcept {
  // What a panel would give back: scales of the format's types, codes of its bits.
  coded_block held = group_block<Format>(c, output, first);
  std::array<std::byte, as_size(Format::scales::bytes)> memory{};
  Format::scales::put(held, 0, memory.data());
  Format::scales::get(memory.data(), 0, held);
  for (std::uint8_t& code : held.codes) code &= (1U << Format::codes::bits) - 1;
  for (index_t i = first; i < (std::min)(first + Format::inputs, c.inputs()); ++i) {
    const float ours = Format::value(held, i - first), theirs = c.value(output, i);
    if (bits_of(ours) != bits_of(theirs) && !(ours == 0 && theirs == 0) && !(is_nan(ours) && is_nan(theirs))) return i;
  }
  return {};
}

}  // namespace detail

template <typename Format>
bool holds_codes(const grouped_codes& c) {
  c.validate();
  for (index_t o = 0; o < c.outputs(); ++o)
    for (index_t first = 0; first < c.inputs(); first += Format::inputs)
      if (detail::changed_by_format<Format>(c, o, first)) return false;
  return true;
}

template <typename Format, arithmetic By>
void assign_codes(linear_map<coded_storage<Format, By>>& map, const grouped_codes& c) {
  c.validate();
  if (map.outputs() != c.outputs() || map.inputs() != c.inputs())
    throw_invalid("a map [", map.outputs(), ", ", map.inputs(), "] cannot take codes [", c.outputs(), ", ", c.inputs(),
                  "]");
  for (index_t o = 0; o < c.outputs(); ++o)
    for (index_t first = 0; first < c.inputs(); first += Format::inputs)
      if (const auto i = detail::changed_by_format<Format>(c, o, first))
        throw_invalid("the weight of output ", o, " and input ", *i, ", ", c.value(o, *i),
                      ", is none of the format's: code ", int(c.codes(o, *i)), ", scale ", c.scale_at(o, *i),
                      ", groups of ", c.group, " inputs; the format has blocks of ", Format::inputs, " inputs");
  map.weight().fill_coded([&](index_t o, index_t first) { return detail::group_block<Format>(c, o, first); });
}

}  // namespace sluice::inline SLUICE_ISA
