/// conversion_loss: what rounding to another type of numbers has cost them, counted.
///
///   sluice::conversion_loss loss;
///   sluice::add_losses(tensor, 0, tensor.elements(), sluice::data_type::f16, loss);
///   if (loss.beyond > 0) ...                     // finite numbers that float16 would make infinite
///
/// Rounding is to nearest, ties to even. A number is exact if it comes back with its bits; NaN stays NaN, its payload
/// may not stay. conversion_report sums up many tensors. Everything is compared as bits, whatever -ffast-math assumes.
#pragma once

#include <sluice/core/half.hpp>
#include <sluice/core/isa.hpp>
#include <sluice/io/data_type.hpp>
#include <sluice/io/element_conversion.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/tensor_info.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace sluice::inline SLUICE_ISA {

struct conversion_loss {
  std::uint64_t elements = 0;      ///< that were converted
  std::uint64_t rounded = 0;       ///< finite before and after, and another number after
  std::uint64_t to_zero = 0;       ///< of the rounded: not zero before, zero after
  std::uint64_t beyond = 0;        ///< finite before, infinite after
  std::uint64_t not_a_number = 0;  ///< NaN before and after
  double largest_error = 0;        ///< |after - before| of the rounded
  double largest_beyond = 0;       ///< magnitude, before, of those beyond

  conversion_loss& operator+=(const conversion_loss& other) {
    elements += other.elements;
    rounded += other.rounded;
    to_zero += other.to_zero;
    beyond += other.beyond;
    not_a_number += other.not_a_number;
    if (other.largest_error > largest_error) largest_error = other.largest_error;
    if (other.largest_beyond > largest_beyond) largest_beyond = other.largest_beyond;
    return *this;
  }
  friend bool operator==(const conversion_loss&, const conversion_loss&) = default;
};

/// The same for many tensors.
struct conversion_report {
  conversion_loss total = {};
  std::string worst = {};  ///< the tensor of the largest error; empty if nothing was rounded

  void add(std::string_view tensor, const conversion_loss& loss) {
    if (loss.rounded > 0 && (worst.empty() || loss.largest_error > total.largest_error)) worst = tensor;
    total += loss;
  }
  friend bool operator==(const conversion_report&, const conversion_report&) = default;
};

namespace detail {

/// The types in which weights are read and written.
constexpr bool holds_weights(data_type type) {
  return type == data_type::f64 || type == data_type::f32 || type == data_type::bf16 || type == data_type::f16;
}

/// The types in which whole numbers are read and written: ids.
constexpr bool holds_whole_numbers(data_type type) { return type == data_type::i32 || type == data_type::i64; }

/// Whether the first type's numbers are all numbers of the second.
constexpr bool is_within(data_type from, data_type to) {
  return from == to || to == data_type::f64 ||
         (to == data_type::f32 && (from == data_type::f16 || from == data_type::bf16));
}

/// Adds what became of one number.
inline void add_change(double before, double after, conversion_loss& loss) {
  constexpr std::uint64_t infinite = 0x7FF0000000000000U;
  constexpr std::uint64_t magnitude = 0x7FFFFFFFFFFFFFFFU;
  const auto before_bits = std::bit_cast<std::uint64_t>(before);
  const auto after_bits = std::bit_cast<std::uint64_t>(after);
  ++loss.elements;
  if ((before_bits & magnitude) > infinite) {
    ++loss.not_a_number;
  } else if (after_bits == before_bits) {
    return;
  } else if ((after_bits & magnitude) >= infinite) {
    ++loss.beyond;
    const double size = before < 0 ? -before : before;
    if (size > loss.largest_beyond) loss.largest_beyond = size;
  } else {
    ++loss.rounded;
    if ((after_bits & magnitude) == 0) ++loss.to_zero;
    const double error = after < before ? before - after : after - before;
    if (error > loss.largest_error) loss.largest_error = error;
  }
}

/// The same for one that is converted.
template <typename To>
void add_loss(double before, conversion_loss& loss) {
  add_change(before, static_cast<double>(to_number(to_element<To>(before))), loss);
}

/// One element of a tensor of weights, exactly.
inline double weight_at(const tensor_info& tensor, std::size_t i) {
  if (tensor.decoder != nullptr) {
    float value = 0;
    tensor.decoder->read(i, {&value, 1});
    return static_cast<double>(value);
  }
  switch (tensor.dtype) {
    case data_type::f64:
      return load_element<double>(tensor.bytes, i);
    case data_type::f32:
      return static_cast<double>(load_element<float>(tensor.bytes, i));
    case data_type::bf16:
      return static_cast<double>(to_float(load_element<bfloat16>(tensor.bytes, i)));
    default:
      return static_cast<double>(to_float(load_element<float16>(tensor.bytes, i)));
  }
}

/// How many elements of a tensor of weights are NaN.
inline std::uint64_t count_nan(const tensor_info& tensor) {
  std::uint64_t count = 0;
  for (std::size_t i = 0; i < tensor.elements(); ++i)
    if ((std::bit_cast<std::uint64_t>(weight_at(tensor, i)) & 0x7FFFFFFFFFFFFFFFU) > 0x7FF0000000000000U) ++count;
  return count;
}

/// "8 of 8 values are NaN"
inline std::string nan_text(std::uint64_t count, std::size_t elements) {
  return std::to_string(count) + " of " + std::to_string(elements) +
         (count == 1 ? " values is NaN" : " values are NaN");
}

/// "2 of 512 values are beyond F16, the largest 1e+05"
inline std::string beyond_text(const conversion_loss& loss, data_type type) {
  return std::to_string(loss.beyond) + " of " + std::to_string(loss.elements) +
         (loss.beyond == 1 ? " values is beyond " : " values are beyond ") + std::string(name_of(type)) +
         ", the largest " + short_text(loss.largest_beyond);
}

}  // namespace detail

/// Adds what becomes of `count` elements of a tensor of weights from `first` on where they are converted to the type.
/// Costs nothing where that is exact; elements are then not counted either.
inline void add_losses(const tensor_info& from, std::size_t first, std::size_t count, data_type to,
                       conversion_loss& loss) {
  if (detail::is_within(from.number_type(), to)) return;
  const auto add_each = [&]<typename To>(To) {
    if (from.decoder != nullptr) {  // whole blocks at a time
      std::array<float, 1024> piece;
      for (std::size_t done = 0; done < count; done += piece.size()) {
        const auto some = std::span(piece).first((std::min)(piece.size(), count - done));
        from.decoder->read(first + done, some);
        for (const float value : some) detail::add_loss<To>(static_cast<double>(value), loss);
      }
      return;
    }
    for (std::size_t i = first; i < first + count; ++i) detail::add_loss<To>(detail::weight_at(from, i), loss);
  };
  if (to == data_type::f32) add_each(float());
  if (to == data_type::bf16) add_each(bfloat16());
  if (to == data_type::f16) add_each(float16());
}

/// "no value was rounded", or how many, with the largest error and where it is.
inline std::string to_string(const conversion_report& report) {
  const conversion_loss& loss = report.total;
  std::string text = "no value was rounded";
  if (loss.rounded > 0) {
    text = std::to_string(loss.rounded) + " of " + std::to_string(loss.elements) + " values were rounded, " +
           (loss.to_zero > 0 ? std::to_string(loss.to_zero) + " of them to zero, " : "") + "the largest error is " +
           detail::short_text(loss.largest_error) + " in \"" + detail::printable(report.worst) + '"';
  }
  if (loss.not_a_number > 0)
    text += "; " + std::to_string(loss.not_a_number) + (loss.not_a_number == 1 ? " is NaN" : " are NaN");
  return text;
}

}  // namespace sluice::inline SLUICE_ISA
