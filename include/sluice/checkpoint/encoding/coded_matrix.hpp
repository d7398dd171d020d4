/// coded_matrix: what the layouts of quantised checkpoints have in common: rows of weights that several tensors encode.
///
///   weights [rows, inputs]: the outputs of one matrix, or of a stack of them, one below the other
///
///   read(first, out)             the numbers, exactly as the format defines them, without a copy of the whole
///   codes(first, step, count)    rows first, first + step, ... as codes and scales (kernel/format/grouped_codes.hpp):
///                                the same numbers, for a storage that keeps them as they are
///
/// A layout is a class that is made of its tensors, checks them, and decodes part of a row. What does not fit it throws
/// unfit_parts, whose message says what was seen and what was wanted; the tensors' bytes must outlive it.
#pragma once

#include <sluice/core/half.hpp>
#include <sluice/core/types.hpp>
#include <sluice/io/element_conversion.hpp>
#include <sluice/io/file_error.hpp>
#include <sluice/io/safetensors_reader.hpp>
#include <sluice/io/tensor_info.hpp>
#include <sluice/kernel/format/grouped_codes.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace sluice::inline SLUICE_ISA {

class coded_matrix : public element_decoder {
public:
  /// Of the weights, slowest first; the last is the inputs.
  const std::vector<std::int64_t>& shape() const noexcept { return shape_; }
  index_t inputs() const noexcept { return inputs_; }
  index_t rows() const noexcept { return rows_; }
  int bits() const noexcept { return bits_; }
  /// Of codes, scales and zeros together.
  std::uint64_t bytes() const noexcept { return bytes_; }

  void read(std::size_t first, std::span<float> out) const noexcept final {
    auto row = static_cast<index_t>(first) / inputs_, input = static_cast<index_t>(first) % inputs_;
    while (!out.empty()) {
      const std::size_t count = (std::min)(out.size(), as_size(inputs_ - input));
      read_row(row, input, out.first(count));
      out = out.subspan(count);
      ++row, input = 0;
    }
  }

  // ---- what rows are made of ---------------------------------------------------------------------------------------

  virtual std::uint8_t code(index_t row, index_t input) const noexcept = 0;
  virtual float scale(index_t row, index_t group) const noexcept = 0;  ///< besides that of the tensor
  virtual float zero(index_t row, index_t group) const noexcept = 0;   ///< 0 where there are none
  bool has_zeros() const noexcept { return has_zeros_; }
  float tensor_scale() const noexcept { return tensor_scale_; }
  index_t group_at(index_t input) const noexcept {
    return group_of_.empty() ? input / group_ : static_cast<index_t>(group_of_[as_size(input)]);
  }

  grouped_codes codes(index_t first, index_t step, index_t count) const {
    grouped_codes out;
    out.bits = bits_;
    out.meaning = meaning_;
    out.tensor_scale = tensor_scale_;
    out.group = group_;
    out.group_of = group_of_;
    out.codes.resize(count, inputs_);
    out.scales.resize(count, groups_);
    if (has_zeros_) out.zeros.resize(count, groups_);
    for (index_t to = 0; to < count; ++to) {
      const index_t row = first + to * step;
      for (index_t i = 0; i < inputs_; ++i) out.codes(to, i) = code(row, i);
      for (index_t g = 0; g < groups_; ++g) out.scales(to, g) = scale(row, g);
      if (has_zeros_)
        for (index_t g = 0; g < groups_; ++g) out.zeros(to, g) = zero(row, g);
    }
    return out;
  }

  const coded_matrix* coded() const noexcept final { return this; }

protected:
  coded_matrix(std::vector<std::int64_t> shape, std::initializer_list<const tensor_info*> parts)
      : shape_(std::move(shape)), inputs_(shape_.back()) {
    rows_ = 1;
    for (std::size_t i = 0; i + 1 < shape_.size(); ++i) rows_ *= shape_[i];
    for (const tensor_info* const part : parts)
      if (part != nullptr) bytes_ += part->bytes.size();
  }

  int bits_ = 8;
  code_meaning meaning_ = code_meaning::whole;
  float tensor_scale_ = 1;
  bool has_zeros_ = false;
  index_t group_ = 1;  ///< inputs of a group
  index_t groups_ = 0;
  std::vector<std::int32_t> group_of_;  ///< every input's, where they come in any order

  /// scale (code - zero) of a row, scale and zero found once a group: read_row where code_at(row, input) is a whole
  /// number.
  template <typename CodeAt>
  void read_whole_codes(index_t row, index_t first, std::span<float> out, const CodeAt& code_at) const noexcept {
    index_t known = -1;  // the group that scale and zero are of
    float factor = 0, origin = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      const index_t input = first + static_cast<index_t>(i);
      if (const index_t g = group_at(input); g != known) {
        known = g;
        factor = scale(row, g);
        origin = zero(row, g);
      }
      out[i] = factor * (static_cast<float>(code_at(row, input)) - origin);
    }
  }

private:
  /// Part of a row of weights: never beyond its end.
  virtual void read_row(index_t row, index_t first, std::span<float> out) const noexcept = 0;
  std::vector<std::int64_t> shape_;
  index_t inputs_;
  index_t rows_ = 0;
  std::uint64_t bytes_ = 0;
};

/// Rows of a matrix under the names of grouped_codes, without a copy: for what makes blocks of codes.
struct coded_rows {
  struct zero_table {
    const coded_matrix& of;
    index_t size() const noexcept { return of.has_zeros() ? 1 : 0; }
    float operator()(index_t row, index_t group) const noexcept { return of.zero(row, group); }
  };
  struct no_table {
    static constexpr index_t size() noexcept { return 0; }
    constexpr float operator()(index_t, index_t) const noexcept { return 0; }
  };

  explicit coded_rows(const coded_matrix& matrix) : of(matrix), zeros{matrix}, tensor_scale(matrix.tensor_scale()) {}

  index_t inputs() const noexcept { return of.inputs(); }
  index_t group_at(index_t input) const noexcept { return of.group_at(input); }
  std::uint8_t codes(index_t row, index_t input) const noexcept { return of.code(row, input); }
  float scales(index_t row, index_t group) const noexcept { return of.scale(row, group); }
  float scale_at(index_t row, index_t input) const noexcept { return of.scale(row, of.group_at(input)) * tensor_scale; }
  float value(index_t row, index_t input) const noexcept {
    float number = 0;
    of.read(as_size(row * of.inputs() + input), {&number, 1});
    return number;
  }

  const coded_matrix& of;
  zero_table zeros;
  SLUICE_NO_UNIQUE_ADDRESS no_table minima{};
  float tensor_scale;
};

/// Why tensors do not make up a layout.
struct unfit_parts : std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace detail {

/// "\"scales\" is F32 [2, 3]": how messages speak of a tensor.
inline std::string described(const tensor_info& tensor) {
  return '"' + printable(tensor.name) + "\" is " + printable(tensor.type_name(), 40) + ' ' + shape_text(tensor.shape);
}

/// Throws unfit_parts unless the tensor has that shape and one of these types.
inline void expect_part(const tensor_info& tensor, const std::vector<std::int64_t>& shape,
                        std::initializer_list<data_type> types) {
  if (tensor.shape == shape && std::find(types.begin(), types.end(), tensor.dtype) != types.end()) return;
  std::string wanted;
  for (const data_type type : types) wanted += (wanted.empty() ? "" : " or ") + std::string(name_of(type));
  throw unfit_parts(described(tensor) + ", must be " + wanted + ' ' + shape_text(shape));
}

/// An element of a tensor of F32, BF16, F16 or exponents (F8_E8M0, U8).
inline float scale_in(const tensor_info& tensor, index_t i) noexcept {
  if (tensor.dtype == data_type::f8_e8m0 || tensor.dtype == data_type::u8)
    return e8m0_to_float(load_element<std::uint8_t>(tensor.bytes, as_size(i)));
  float value = 0;
  safetensors_reader::copy(tensor, as_size(i), std::span(&value, 1));
  return value;
}

/// Code i of a stream of `bits` bits each, the lowest first, in words that word(0), word(1), ... gives.
template <typename Word>
  requires std::invocable<Word, index_t> std::uint32_t code_in(Word&& word, index_t i, index_t bits)
noexcept {
  const index_t at = i * bits;
  const auto shift = static_cast<std::uint32_t>(at % 32);
  std::uint32_t code = word(at / 32) >> shift;
  if (at % 32 + bits > 32) code |= word(at / 32 + 1) << (32 - shift);
  return code & ((1U << bits) - 1U);
}

/// The sizes that follow from inputs and groups: whole matrices have a group a row.
inline index_t group_length(index_t inputs, index_t told) { return told > 0 ? told : (std::max)(inputs, index_t{1}); }
inline index_t pieces_of(index_t count, index_t length) { return (count + length - 1) / length; }

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
