/// ggml's blocks, byte by byte: what GGUF files hold, decoded to floats and packed.
///
///   unpack_ggml_block<ggml_layout<type>>(bytes)      codes and scales as they are: what encoded_matrix::fill_coded takes
///   decode_ggml_block(type, bytes, numbers)          as floats, exactly
///   encode_ggml_block(type, numbers, bytes)          rounded, as the format does (kernel/format/formats.hpp)
///   assign_ggml_blocks(map, type, bytes)             a whole matrix, rows of blocks, into a map of the type's format
///   with_ggml_layout(type, f)                        from a number at run time to a type
///
/// For the types of kernel/format/ggml_layouts.hpp; others are answered with false.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/kernel/format/ggml_layouts.hpp>
#include <sluice/kernel/linear_map.hpp>

#include <algorithm>
#include <span>
#include <type_traits>

namespace sluice::inline SLUICE_ISA {

/// Calls f(ggml_layout<type>()) for one of the types that have a layout here, and says whether it is one.
template <typename F>
bool with_ggml_layout(ggml_type type, F&& f) {
  switch (type) {
    case ggml_type::q4_0:
      return f(ggml_layout<ggml_type::q4_0>()), true;
    case ggml_type::q4_1:
      return f(ggml_layout<ggml_type::q4_1>()), true;
    case ggml_type::q5_0:
      return f(ggml_layout<ggml_type::q5_0>()), true;
    case ggml_type::q5_1:
      return f(ggml_layout<ggml_type::q5_1>()), true;
    case ggml_type::q8_0:
      return f(ggml_layout<ggml_type::q8_0>()), true;
    case ggml_type::q2_k:
      return f(ggml_layout<ggml_type::q2_k>()), true;
    case ggml_type::q3_k:
      return f(ggml_layout<ggml_type::q3_k>()), true;
    case ggml_type::q4_k:
      return f(ggml_layout<ggml_type::q4_k>()), true;
    case ggml_type::q5_k:
      return f(ggml_layout<ggml_type::q5_k>()), true;
    case ggml_type::q6_k:
      return f(ggml_layout<ggml_type::q6_k>()), true;
    case ggml_type::iq4_nl:
      return f(ggml_layout<ggml_type::iq4_nl>()), true;
    case ggml_type::iq4_xs:
      return f(ggml_layout<ggml_type::iq4_xs>()), true;
    case ggml_type::mxfp4:
      return f(ggml_layout<ggml_type::mxfp4>()), true;
    case ggml_type::nvfp4:
      return f(ggml_layout<ggml_type::nvfp4>()), true;
    case ggml_type::tq1_0:
      return f(ggml_layout<ggml_type::tq1_0>()), true;
    case ggml_type::tq2_0:
      return f(ggml_layout<ggml_type::tq2_0>()), true;
    default:
      return false;
  }
}

template <typename Layout>
coded_block unpack_ggml_block(const std::uint8_t* bytes) noexcept {
  coded_block b;
  Layout::unpack(bytes, b);
  return b;
}

/// The numbers of one block. False for types that have no layout here.
inline bool decode_ggml_block(ggml_type type, const std::uint8_t* bytes, float* numbers) {
  return with_ggml_layout(type, [&]<typename Layout>(Layout) {
    const coded_block b = unpack_ggml_block<Layout>(bytes);
    for (index_t i = 0; i < Layout::format::inputs; ++i) numbers[i] = Layout::format::value(b, i);
  });
}

/// One block of numbers, rounded. False for types that have no layout here.
inline bool encode_ggml_block(ggml_type type, const float* numbers, std::uint8_t* bytes) {
  return with_ggml_layout(type, [&]<typename Layout>(Layout) {
    coded_block b;
    Layout::format::rounding::choose(numbers, b);
    std::fill_n(bytes, find_ggml_type(static_cast<std::uint32_t>(type))->bytes, std::uint8_t(0));
    Layout::pack(b, bytes);
  });
}

/// Throws std::invalid_argument unless the map is of the format that blocks of this type are of, its inputs are whole
/// blocks, and there are as many bytes as it takes. No number changes.
template <typename Format, arithmetic By>
void assign_ggml_blocks(linear_map<coded_storage<Format, By>>& map, ggml_type type, std::span<const std::byte> bytes) {
  const ggml_type_traits* const traits = find_ggml_type(static_cast<std::uint32_t>(type));
  bool is_taken = false;
  with_ggml_layout(type, [&]<typename Layout>(Layout) {
    if constexpr (std::is_same_v<typename Layout::format, Format>) {
      if (map.inputs() % traits->inputs != 0 ||
          static_cast<index_t>(bytes.size()) != map.outputs() * (map.inputs() / traits->inputs) * traits->bytes)
        throw_invalid(static_cast<index_t>(bytes.size()), " bytes are not [", map.outputs(), ", ", map.inputs(),
                      "] weights of ", traits->name, ", ", traits->bytes, " bytes for ", traits->inputs, " inputs");
      const auto* const first_block = reinterpret_cast<const std::uint8_t*>(bytes.data());
      map.weight().fill_coded([&](index_t row, index_t first) {
        return unpack_ggml_block<Layout>(first_block + (row * map.inputs() + first) / traits->inputs * traits->bytes);
      });
      is_taken = true;
    }
  });
  if (!is_taken)
    throw_invalid("a map of ", Format::name, " cannot take blocks of ",
                  traits != nullptr ? traits->name : "an unknown type");
}

}  // namespace sluice::inline SLUICE_ISA
