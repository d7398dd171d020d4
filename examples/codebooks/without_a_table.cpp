#include <sluice/codebook/scalar/binary_spherical.hpp>
#include <sluice/codebook/scalar/finite_scalar.hpp>
#include <sluice/codebook/scalar/lookup_free.hpp>
#include <sluice/codebook/structure/residual.hpp>

#include "subjects.hpp"

namespace codebooks {

std::vector<subject> without_a_table() {
  using namespace sluice;
  const std::string kind = "no table";
  return {
      make_subject("finite_scalar", "finite scalars, 8 x 5 x 5 x 5 (FSQ)", kind,
                   [] {
                     return finite_scalar_quantizer<float>{{8, 5, 5, 5}};
                   }),
      make_subject("finite_scalar_8", "finite scalars, eight of five levels (FSQ)", kind,
                   [] { return finite_scalar_quantizer<float>{std::vector<index_t>(8, 5)}; }),
      make_subject("lookup_free", "signs of ten numbers (LFQ)", kind, [] { return lookup_free_quantizer<float>{10}; }),
      make_subject("binary_spherical", "signs on a sphere of ten numbers (BSQ)", kind,
                   [] { return binary_spherical_quantizer<float>{10}; }),
  };
}

}  // namespace codebooks
