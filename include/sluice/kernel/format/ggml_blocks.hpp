/// ggml's blocks, byte by byte: what GGUF files hold, decoded to floats and packed.
///
///   unpack_ggml_block<ggml_layout<type>>(bytes)      codes and scales as they are: what encoded_matrix::fill_coded takes
///   decode_ggml_block(type, bytes, numbers)          as floats, exactly
///   encode_ggml_block(type, numbers, bytes)          rounded, as the format does (kernel/format/formats.hpp)
///   with_ggml_layout(type, f)                        from a number at run time to a type
///
/// For the types of kernel/format/ggml_layouts.hpp; others are answered with false.
#pragma once

#include <sluice/kernel/format/ggml_layouts.hpp>

#include <algorithm>

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

}  // namespace sluice::inline SLUICE_ISA
