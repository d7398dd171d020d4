/// gguf_tensor: a tensor of a GGUF file as others see it: plain numbers as those of a safetensors file, blocks of codes
/// with a decoder.
///
/// A block is decoded as a whole, whatever part of it is asked for; rows are whole blocks and follow each other without
/// padding, so that elements count through all of them.
#pragma once

#include <sluice/core/isa.hpp>
#include <sluice/core/types.hpp>
#include <sluice/io/data_type.hpp>
#include <sluice/io/tensor_info.hpp>
#include <sluice/kernel/format/ggml_types.hpp>

#include <cstddef>
#include <cstdint>
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

/// From bytes that are as many as the shape needs, where the type is known.
inline tensor_info gguf_tensor(std::string name, std::uint32_t number, std::vector<std::int64_t> shape,
                               std::span<const std::byte> bytes) {
  const ggml_type_traits* const traits = find_ggml_type(number);
  tensor_info tensor{std::move(name), traits == nullptr ? data_type::other : plain_type(traits->type), std::move(shape),
                     bytes};
  if (tensor.dtype != data_type::other) return tensor;
  tensor.other_type = traits == nullptr ? "type " + std::to_string(number) : std::string(traits->name);
  return tensor;
}

}  // namespace sluice::inline SLUICE_ISA::detail
