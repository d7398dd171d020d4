/// Binary spherical quantisation: signs of a vector of unit length, and entropies that sum over small groups of them.
///
///   u [T,D], |u[t]| = 1 -> ids [T,M] -> y = length / sqrt(D) sign(u), - for 0
///   du = length / sqrt(D) dy + gradient of
///   loss = beta mean over t of |u[t] - y[t]|^2 + zeta (gamma0 * per sample - gamma * batch) / inverse_temperature
///
///   projected_quantizer bsq{512, unit_rows{binary_spherical_quantizer<float>{36, {.group = 9}}}};
///
/// It does not normalise: unit_rows around it does (codebook/structure/unit_rows.hpp). The entropies sum over groups of
/// `group` numbers, T D / group 2^group products (codebook/scalar/code_entropy.hpp); group = 1 is the analytical form,
/// whose per sample entropy is that of all 2^D codes. length = sqrt(D) makes the codes +-1, for vectors that are not
/// normalised. columns = D / group gives the ids of the groups in the place of one id. In a tape: entropy.per_sample,
/// entropy.batch, entropy.mean_probabilities(), commitment without beta.
/// Zhao et al. 2025 (BSQ), arXiv:2406.07548.
#pragma once

#include <sluice/codebook/scalar/sign_quantizer.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class binary_spherical_quantizer : public sign_quantizer<binary_spherical_quantizer<Scalar>, Scalar, added_logarithm> {
  using signs = sign_quantizer<binary_spherical_quantizer, Scalar, added_logarithm>;

public:
  struct options {
    index_t columns = 1;
    index_t group = 1;
    Scalar length = 1;  ///< of a code
    double beta = 0;
    double gamma0 = 1;
    double gamma = 1;
    double zeta = 1;
    double inverse_temperature = 1;
  };

  /// Throws std::invalid_argument unless columns and groups divide D, a column has at most 62 numbers and a group 30,
  /// and length and inverse temperature are above 0.
  explicit binary_spherical_quantizer(index_t inputs, options o = {})
      : signs(inputs, o.columns, rounding(inputs, o), losses(o)) {}

private:
  static sign_rounding<Scalar> rounding(index_t inputs, const options& o) {
    const Scalar size = o.length / std::sqrt(static_cast<Scalar>(inputs < 1 ? 1 : inputs));
    return sign_rounding<Scalar>(size, size);
  }
  static detail::sign_losses<Scalar> losses(const options& o) {
    return {.commitment = o.beta,
            .per_sample = o.zeta * o.gamma0 / o.inverse_temperature,
            .batch = o.zeta * o.gamma / o.inverse_temperature,
            .inverse_temperature = o.inverse_temperature,
            .part = o.group};
  }
};

static_assert(Quantizer<binary_spherical_quantizer<float>>);

}  // namespace sluice::inline SLUICE_ISA
