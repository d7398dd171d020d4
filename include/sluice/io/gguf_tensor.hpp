/// gguf_tensor: a tensor of a GGUF file as others see it: plain numbers as those of a safetensors file, blocks of codes
/// with a decoder.
///
/// A block is decoded as a whole, whatever part of it is asked for; rows are whole blocks and follow each other without
/// padding, so that elements count through all of them. Q8_1 and Q8_K are for activations, and no tensor's.
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/core/types.hpp>
#include <sluice/io/data_type.hpp>
#include <sluice/io/tensor_info.hpp>
#include <sluice/kernel/format/ggml_blocks.hpp>
#include <sluice/kernel/format/ggml_types.hpp>
#include <sluice/kernel/format/grid_blocks.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA::detail {

/// The type of plain numbers that a type of ggml is, or `other`.
constexpr data_type plain_type(ggml_type type) {
  switch (type) {
    case ggml_type::f32:
      return data_type::f32;
    case ggml_type::f16:
      return data_type::f16;
    case ggml_type::bf16:
      return data_type::bf16;
    case ggml_type::f64:
      return data_type::f64;
    case ggml_type::i8:
      return data_type::i8;
    case ggml_type::i16:
      return data_type::i16;
    case ggml_type::i32:
      return data_type::i32;
    case ggml_type::i64:
      return data_type::i64;
    default:
      return data_type::other;
  }
}

/// The numbers of one block of that type.
inline void decode_block(ggml_type type, const std::byte* block, float* numbers) noexcept {
  switch (type) {
    case ggml_type::iq1_s:
      return decode_grid_block<iq1_s>(block, numbers);
    case ggml_type::iq1_m:
      return decode_grid_block<iq1_m>(block, numbers);
    case ggml_type::iq2_xxs:
      return decode_grid_block<iq2_xxs>(block, numbers);
    case ggml_type::iq2_xs:
      return decode_grid_block<iq2_xs>(block, numbers);
    case ggml_type::iq2_s:
      return decode_grid_block<iq2_s>(block, numbers);
    case ggml_type::iq3_xxs:
      return decode_grid_block<iq3_xxs>(block, numbers);
    case ggml_type::iq3_s:
      return decode_grid_block<iq3_s>(block, numbers);
    default:
      decode_ggml_block(type, reinterpret_cast<const std::uint8_t*>(block), numbers);
  }
}

class block_decoder final : public element_decoder {
public:
  block_decoder(const ggml_type_traits& type, std::span<const std::byte> bytes) : type_(type), bytes_(bytes) {}

  void read(std::size_t first, std::span<float> out) const noexcept override {
    const auto inputs = as_size(type_.inputs), size = as_size(type_.bytes);
    std::array<float, 256> numbers;
    while (!out.empty()) {
      const std::size_t within = first % inputs, count = (std::min)(out.size(), inputs - within);
      const std::byte* const block = bytes_.data() + first / inputs * size;
      if (count == inputs) {
        decode_block(type_.type, block, out.data());
      } else {
        decode_block(type_.type, block, numbers.data());
        std::copy_n(numbers.begin() + static_cast<std::ptrdiff_t>(within), count, out.begin());
      }
      first += count;
      out = out.subspan(count);
    }
  }

  std::optional<typed_blocks> blocks() const noexcept override { return typed_blocks{type_.type, bytes_}; }

private:
  const ggml_type_traits& type_;
  std::span<const std::byte> bytes_;
};

/// From bytes that are as many as the shape needs, where the type is known.
inline tensor_info gguf_tensor(std::string name, std::uint32_t number, std::vector<std::int64_t> shape,
                               std::span<const std::byte> bytes) {
  const ggml_type_traits* const traits = find_ggml_type(number);
  tensor_info tensor{std::move(name), traits == nullptr ? data_type::other : plain_type(traits->type), std::move(shape),
                     bytes};
  if (tensor.dtype != data_type::other) return tensor;
  tensor.other_type = traits == nullptr ? "type " + std::to_string(number) : std::string(traits->name);
  if (traits != nullptr) tensor.decoder = std::make_shared<block_decoder>(*traits, bytes);
  return tensor;
}

}  // namespace sluice::inline SLUICE_ISA::detail
