/// Lookup-free quantisation: a codebook of 2^B codes that are the signs of B numbers.
///
///   x [T,D] -> ids [T,M] -> y [T,D], +scale where x > 0, else -scale            D = M B
///   dx = dy + gradient of
///   loss = entropy_weight (per sample - diversity_gamma batch) + commitment_weight mean over all numbers of (x - y)^2
///
///   lookup_free_quantizer<float> lfq{18};                                        // 2^18 codes
///   lookup_free_quantizer<float> lfq{9, {.codebooks = 2, .entropy_weight = 0.1, .diversity_gamma = 2.5}};
///
/// The entropies are means over the codebooks: per sample that of one token's soft choice, batch that of the tokens'
/// mean. They sum over all 2^B codes (codebook/scalar/code_entropy.hpp), 4.3e9 products and logarithms for 18 bits and
/// 16,384 tokens; entropy_weight = 0 leaves them out. In a tape: entropy.per_sample and entropy.batch, as sums over
/// codebooks, and commitment, as a sum over the numbers of a token.
///
/// What the library that most use does before it stands around it:
///   soft_clamped{lfq, 2}                                                                         its soft clamp
///   unit_rows{lookup_free_quantizer<float>{B, {.scale = 1 / sqrt(B)}}, {.smallest = 1e-12}}      its spherical form
///   projected_quantizer{512, lfq}                                                                its projections
/// Yu et al. 2024 (MAGVIT-v2), arXiv:2310.05737.
#pragma once

#include <sluice/codebook/scalar/sign_quantizer.hpp>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class lookup_free_quantizer : public sign_quantizer<lookup_free_quantizer<Scalar>, Scalar, clamped_logarithm> {
  using signs = sign_quantizer<lookup_free_quantizer, Scalar, clamped_logarithm>;

public:
  struct options {
    index_t codebooks = 1;
    Scalar scale = 1;
    double entropy_weight = 0.1;
    double diversity_gamma = 1;
    double commitment_weight = 0.25;
    double inverse_temperature = 100;
  };

  /// Throws std::invalid_argument unless 1 <= bits <= 62, or 30 with entropies, and there is a codebook, a scale and an
  /// inverse temperature above 0.
  explicit lookup_free_quantizer(index_t bits, options o = {})
      : signs(checked_product(bits, o.codebooks), o.codebooks, sign_rounding<Scalar>(o.scale), losses(bits, o)) {}

private:
  static detail::sign_losses<Scalar> losses(index_t bits, const options& o) {
    const auto columns = static_cast<double>(o.codebooks);
    return {.commitment = o.commitment_weight / (columns * static_cast<double>(bits)),
            .per_sample = o.entropy_weight / columns,
            .batch = o.entropy_weight * o.diversity_gamma / columns,
            .inverse_temperature = o.inverse_temperature,
            .part = bits};
  }
};

static_assert(Quantizer<lookup_free_quantizer<float>>);

}  // namespace sluice::inline SLUICE_ISA
