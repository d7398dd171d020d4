/// Finite scalar quantisation: a few numbers, each squashed and rounded to a few levels. The codebook is their grid.
///
///   x [T,D] -> ids [T,M] -> y [T,D] in [-1, 1]        D = M B for levels L[0] ... L[B-1] and M codebooks
///   finite_scalar_quantizer<float> fsq{{8, 5, 5, 5}};                                         // 1000 codes
///   finite_scalar_quantizer<float, original_rounding<float>> fsq{{8, 6, 5}};                  // the paper's own code
///   finite_scalar_quantizer<float, symmetric_rounding<float>> fsq{{7, 6}, {.codebooks = 2}};
///
/// Which form it is says the rounding (codebook/scalar/rounding.hpp), ids and costs are those of a grid
/// (codebook/scalar/grid.hpp), the first number fastest. There is no loss, nothing is learned, no code dies. dx is the
/// squashing's exact derivative times dy, with rounding copied past. Quantising twice is not quantising once, but for
/// symmetric_rounding<Scalar, hard_tanh>: codes are not where the squashing puts them; ids_of_codes goes back from
/// codes. For a model of another width: projected_quantizer (codebook/structure/projected.hpp).
///
/// The paper's levels for about 2^8, 2^10, 2^12, 2^14, 2^16 codes: 8 6 5, 8 5 5 5, 7 5 5 5 5, 8 8 8 6 5, 8 8 8 5 5 5.
/// Mentzer et al. 2024, arXiv:2309.15505.
#pragma once

#include <sluice/codebook/scalar/grid.hpp>

#include <span>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, typename Rounding = zero_centred_rounding<Scalar>>
class finite_scalar_quantizer : public grid_quantizer<finite_scalar_quantizer<Scalar, Rounding>, Scalar, Rounding> {
  using grid = grid_quantizer<finite_scalar_quantizer, Scalar, Rounding>;

public:
  struct options {
    index_t codebooks = 1;  ///< each with the same levels
  };

  /// Throws std::invalid_argument unless there are levels, each at least 2, and their product fits 63 bits.
  explicit finite_scalar_quantizer(const std::vector<index_t>& levels, options o = {})
      : finite_scalar_quantizer(std::span<const Rounding>(std::vector<Rounding>(levels.begin(), levels.end())), o) {}
  /// The same with roundings that are not the default ones of their levels.
  explicit finite_scalar_quantizer(std::span<const Rounding> roundings, options o = {})
      : grid(repeated(roundings, o.codebooks), o.codebooks, fastest_number::first) {}

private:
  static std::vector<Rounding> repeated(std::span<const Rounding> roundings, index_t times) {
    std::vector<Rounding> all;
    for (index_t m = 0; m < times; ++m) all.insert(all.end(), roundings.begin(), roundings.end());
    return all;
  }
};

static_assert(Quantizer<finite_scalar_quantizer<float>> &&
              Quantizer<finite_scalar_quantizer<double, original_rounding<double>>>);

}  // namespace sluice::inline SLUICE_ISA
