/// Formats of whole numbers with a scale for a group of inputs, as quantisers of GPTQ's kind make them.
///
///   symmetric_format<Bits, Type, Group>    w = s (q - 2^(Bits - 1))
///   zero_point_format<Bits, Type, Group>   w = s (q - z), z a whole number of the group
///
/// Bits is 2, 3, 4, 5, 6 or 8; s is a float16, bfloat16 or float for 16 inputs or a multiple of 32. Numbers that are
/// encoded get s = largest / (2^(Bits - 1) - 1) or the range with 0 in it, as Type holds it, and the nearest codes.
#pragma once

#include <sluice/kernel/format/block_rounding.hpp>
#include <sluice/kernel/format/coded_storage.hpp>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <int Bits, index_t Group>
struct planes_of_bits;
template <index_t Group>
struct planes_of_bits<2, Group> : bit_planes<Group == 16 ? 16 : 32, 2> {};
template <index_t Group>
struct planes_of_bits<3, Group> : bit_planes<Group == 16 ? 16 : 32, 2, 1> {};
template <index_t Group>
struct planes_of_bits<4, Group> : bit_planes<Group == 16 ? 16 : 32, 4> {};
template <index_t Group>
struct planes_of_bits<5, Group> : bit_planes<Group == 16 ? 16 : 32, 4, 1> {};
template <index_t Group>
struct planes_of_bits<6, Group> : bit_planes<Group == 16 ? 16 : 32, 4, 2> {};
template <index_t Group>
struct planes_of_bits<8, Group> : bit_planes<Group == 16 ? 16 : 32, 8> {};

}  // namespace detail

template <int Bits, typename Type, index_t Group>
struct symmetric_format
    : block_format<detail::planes_of_bits<Bits, Group>, whole_levels<Bits, 1 << (Bits - 1)>, group_scales<Type, Group>,
                   nearest_rounding<Type, Group, 1 << (Bits - 1), (1 << (Bits - 1)) - 1>> {};

/// Levels of bytes begin at -128: zeros count from there too.
template <int Bits, typename Type, index_t Group>
struct zero_point_format
    : block_format<detail::planes_of_bits<Bits, Group>, whole_levels<Bits, Bits == 8 ? 128 : 0>,
                   group_scales_and_zeros<Type, Group>, zero_rounding<Type, Group, Bits, Bits == 8 ? 128 : 0>> {};

}  // namespace sluice::inline SLUICE_ISA
