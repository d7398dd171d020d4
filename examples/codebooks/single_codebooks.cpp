#include <sluice/codebook/assign/transport.hpp>
#include <sluice/codebook/codes/mapped.hpp>
#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/gradient/index_propagation.hpp>
#include <sluice/codebook/gradient/rotation.hpp>
#include <sluice/codebook/loss/distance_cross_entropy.hpp>
#include <sluice/codebook/repair/anchors.hpp>
#include <sluice/codebook/repair/expire_codes.hpp>
#include <sluice/codebook/vector_quantizer.hpp>

#include "subjects.hpp"

namespace codebooks {

std::vector<subject> single_codebooks() {
  using namespace sluice;
  constexpr index_t width = 16, codes = 256;
  const std::string kind = "one codebook";
  const auto learned = [] { return learned_codes<float>{codes, width}; };
  const auto averages = [] { return moving_average_codes<float>{codes, width, {.decay = 0.9, .initial_size = 0}}; };
  return {
      make_subject("gradient", "codes by gradients (VQ-VAE)", kind, [=] { return vector_quantizer{learned()}; }),
      make_subject("anchors", "the same, unused codes pulled to tokens (CVQ)", kind,
                   [=] {
                     return vector_quantizer{learned(), anchors<float>{codes, width}};
                   }),
      make_subject("index_propagation", "every code has a gradient (IBQ)", kind,
                   [=] {
                     return vector_quantizer{learned(), inner_product{}, index_propagation{}};
                   }),
      make_subject("mapped", "a learned map of fixed codes (SimVQ)", kind,
                   [] {
                     return vector_quantizer{mapped_codes<float>{codes, width}, rotation{}};
                   }),
      make_subject("transport", "assigned evenly in training (OptVQ)", kind,
                   [] {
                     return vector_quantizer{mapped_codes<float>{codes, width}, transport_assignment{},
                                             distance_cross_entropy{}, commitment_loss{}};
                   }),
      make_subject("moving_average", "moving averages (VQ-VAE, appendix)", kind,
                   [] {
                     return vector_quantizer{moving_average_codes<float>{codes, width, {.decay = 0.9}}};
                   }),
      make_subject("expire", "the same, unused codes restart", kind,
                   [=] {
                     return vector_quantizer{averages(), expire_codes{.threshold = 0.1}};
                   }),
      make_subject("rotation", "the same, with the rotation trick", kind,
                   [=] {
                     return vector_quantizer{averages(), expire_codes{.threshold = 0.1}, rotation{}};
                   }),
  };
}

}  // namespace codebooks
