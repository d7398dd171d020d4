/// What repairs ask of a codebook, as sentences: a codebook that lacks it gets one as its first error.
///
///   explain_counted_codes       sizes(): how many tokens chose each code lately
///   explain_replaceable_codes   replace(c, vector): a code can become any vector, and the others stay
#pragma once

#include <sluice/core/types.hpp>

namespace sluice::inline SLUICE_ISA::detail {

template <typename Codes>
consteval bool explain_counted_codes() {
  static_assert(
      requires(Codes & codebook) { codebook.sizes(); },
      "sluice: this repair needs a codebook that counts who chose its codes: moving_average_codes, or counted_codes "
      "around another (codebook/codes/counted.hpp)");
  return true;
}

template <typename Codes, typename Scalar>
consteval bool explain_replaceable_codes() {
  static_assert(
      requires(Codes & codebook, const Scalar* vector) { codebook.replace(index_t(), vector); },
      "sluice: the codes of this codebook are made of other parameters: none can be replaced on its own");
  return true;
}

}  // namespace sluice::inline SLUICE_ISA::detail
