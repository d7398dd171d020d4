#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/gumbel_quantizer.hpp>
#include <sluice/codebook/repair/expire_codes.hpp>
#include <sluice/codebook/structure/product.hpp>
#include <sluice/codebook/structure/residual.hpp>
#include <sluice/codebook/structure/shared_product.hpp>
#include <sluice/codebook/vector_quantizer.hpp>

#include "subjects.hpp"

namespace codebooks {

std::vector<subject> several_codebooks() {
  using namespace sluice;
  constexpr index_t width = 16, codes = 64, stages = 4;
  const std::string kind = "several codebooks";
  const auto of_width = [](index_t d) {
    return vector_quantizer{moving_average_codes<float>{codes, d, {.decay = 0.9, .initial_size = 0}},
                            expire_codes{.threshold = 0.1}};
  };
  return {
      make_subject("residual", "residual, four codebooks (RQ)", kind,
                   [=] { return residual_quantizer{std::vector(stages, of_width(width))}; }),
      make_subject("residual_shared", "residual, one codebook four times (RQ-VAE)", kind,
                   [=] {
                     return residual_quantizer{of_width(width), stages};
                   }),
      make_subject("product", "four parts side by side (PQ)", kind,
                   [=] { return product_quantizer{std::vector(stages, of_width(width / stages))}; }),
      make_subject("product_shared", "four parts, one codebook (MoVQ's groups)", kind,
                   [=] {
                     return shared_product_quantizer{of_width(width / stages), stages};
                   }),
      make_subject(
          "gumbel", "two groups by sampled logits (vq-wav2vec)", kind,
          [] {
            return gumbel_quantizer<float>{width, width, {.groups = 2, .entries = 16, .diversity_weight = 0.1}};
          }),
  };
}

}  // namespace codebooks
