/// The formats of quantised weights, a line each, and the storages that they make.
///
///   using experts = swiglu<float, coded_storage<q4_k_format>>                        exact weights
///   using experts = swiglu<float, coded_storage<q4_k_format, arithmetic::bytes>>     activations in 8 bits, the same memory
///
/// Bits a weight, in memory as in files: q8_0 8.5, q6_k 6.56, q5_k 5.5, q4_k 4.5, q3_k 3.44, q2_k 2.63, ternary 2.06
/// (TQ2_0's bytes; TQ1_0's numbers take 1.69 in files), iq4_xs 4.31 (4.25 in files), mxfp4 4.25, nvfp4 4.5, fp8 8.25.
/// Numbers are those of ggml's types of these names, of OCP MXFP4 and NVFP4, and of FP8 with a scale for 128 inputs.
#pragma once

#include <sluice/kernel/format/group_formats.hpp>
#include <sluice/kernel/format/nested_rounding.hpp>

#include <string_view>

namespace sluice::inline SLUICE_ISA {

struct q8_0_format
    : block_format<bit_planes<32, 8>, whole_levels<8, 128>, group_scales<float16, 32>, even_rounding<32, 128, 127>> {
  static constexpr std::string_view name = "q8_0";
};
struct q4_0_format
    : block_format<bit_planes<32, 4>, whole_levels<4, 8>, group_scales<float16, 32>, extreme_rounding<8>> {
  static constexpr std::string_view name = "q4_0";
};
struct q5_0_format
    : block_format<bit_planes<32, 4, 1>, whole_levels<5, 16>, group_scales<float16, 32>, extreme_rounding<16>> {
  static constexpr std::string_view name = "q5_0";
};
struct q4_1_format
    : block_format<bit_planes<32, 4>, whole_levels<4, 0>, group_scales_and_minima<float16, 32>, range_rounding<15>> {
  static constexpr std::string_view name = "q4_1";
};
struct q5_1_format
    : block_format<bit_planes<32, 4, 1>, whole_levels<5, 0>, group_scales_and_minima<float16, 32>, range_rounding<31>> {
  static constexpr std::string_view name = "q5_1";
};
struct iq4_nl_format : block_format<bit_planes<32, 4>, nonlinear_levels, group_scales<float16, 32>,
                                    table_rounding<nonlinear_levels, -127>> {
  static constexpr std::string_view name = "iq4_nl";
};
struct ternary_format
    : block_format<bit_planes<32, 2>, whole_levels<2, 1>, group_scales<float16, 256>, even_rounding<256, 1, 1>> {
  static constexpr std::string_view name = "ternary";
};

namespace detail {

using q2_k_scales = nested_scales_and_minima<bit_planes<32, 4>, 16>;
using q3_k_scales = nested_scales<bit_planes<16, 4, 2>, 32, 16>;
using q4_k_scales = nested_scales_and_minima<bit_planes<16, 4, 2>, 32>;
using q6_k_scales = nested_scales<bit_planes<16, 8>, 128, 16>;
using iq4_xs_scales = nested_scales<bit_planes<8, 4, 2>, 32, 32>;

}  // namespace detail

struct q2_k_format : block_format<bit_planes<32, 2>, whole_levels<2, 0>, detail::q2_k_scales,
                                  ranged_rounding<2, detail::q2_k_scales>> {
  static constexpr std::string_view name = "q2_k";
};
struct q3_k_format : block_format<bit_planes<32, 2, 1>, whole_levels<3, 4>, detail::q3_k_scales,
                                  scaled_rounding<whole_levels<3, 4>, 3, detail::q3_k_scales, -4>> {
  static constexpr std::string_view name = "q3_k";
};
struct q4_k_format : block_format<bit_planes<32, 4>, whole_levels<4, 0>, detail::q4_k_scales,
                                  ranged_rounding<4, detail::q4_k_scales>> {
  static constexpr std::string_view name = "q4_k";
};
struct q5_k_format : block_format<bit_planes<32, 4, 1>, whole_levels<5, 0>, detail::q4_k_scales,
                                  ranged_rounding<5, detail::q4_k_scales>> {
  static constexpr std::string_view name = "q5_k";
};
struct q6_k_format : block_format<bit_planes<32, 4, 2>, whole_levels<6, 32>, detail::q6_k_scales,
                                  scaled_rounding<whole_levels<6, 32>, 6, detail::q6_k_scales, -32>> {
  static constexpr std::string_view name = "q6_k";
};
struct iq4_xs_format : block_format<bit_planes<32, 4>, nonlinear_levels, detail::iq4_xs_scales,
                                    scaled_rounding<nonlinear_levels, 4, detail::iq4_xs_scales, -127>> {
  static constexpr std::string_view name = "iq4_xs";
};

struct mxfp4_format : block_format<bit_planes<32, 4>, e2m1_levels, exponents, power_rounding> {
  static constexpr std::string_view name = "mxfp4";
};
struct nvfp4_format : block_format<bit_planes<32, 4>, e2m1_levels, float_scales<64, false>,
                                   float_scale_rounding<float_scales<64, false>, false>> {
  static constexpr std::string_view name = "nvfp4";
};
/// With the factor of a tensor, kept for 256 inputs.
struct scaled_nvfp4_format : block_format<bit_planes<32, 4>, e2m1_levels, float_scales<256, true>,
                                          float_scale_rounding<float_scales<256, true>, true>> {
  static constexpr std::string_view name = "scaled_nvfp4";
};
struct fp8_format : block_format<bit_planes<32, 8>, e4m3_levels, group_scales<float, 128>, e4m3_rounding<128>> {
  static constexpr std::string_view name = "fp8";
};

}  // namespace sluice::inline SLUICE_ISA
