/// Papers about how codes are chosen and learn, not about what they encode: a row a paper (codebook/published.hpp).
#pragma once

#include <sluice/codebook/codebook.hpp>

namespace sluice::inline SLUICE_ISA::published {

/// Zheng, Vedaldi 2023, CVQ-VAE: 512 x 64, anchors by cosine; sampled, as its class has them, while its program asks
/// for the closest. Its contrast is a policy more: codebook/loss/code_contrast.hpp. (released code)
template <FloatOrDouble S>
auto cvq_vae(index_t codes = 512, index_t width = 64) {
  return vector_quantizer{learned_codes<S>{codes, width}, cosine_similarity{}, anchors<S>{codes, width}};
}

/// Zhu et al. 2024, SimVQ: 65536 x 128 by a learned map, VQ-VAE's weights: its configurations say "legacy: false".
/// (released configuration, whose own size is 1024; 65536 is in the paper's table)
template <FloatOrDouble S>
auto simvq(index_t codes = 65536, index_t width = 128) {
  return vector_quantizer{mapped_codes<S>{codes, width, {.bias = true}}};
}

/// Fifty et al. 2024: the rotation trick for moving averages.
template <FloatOrDouble S>
auto rotation_trick(index_t codes, index_t width) {
  return vector_quantizer{moving_average_codes<S>{codes, width}, rotation{.adds = true}};
}

/// Zhang et al. 2024, OptVQ: 16384 codes of width 64 by a learned map for each of four heads, which share codes and
/// plan; transport in training, squares with 0.25 on the codebook's term. (released configuration)
template <FloatOrDouble S>
auto opt_vq(index_t codes = 16384, index_t head_width = 64, index_t heads = 4) {
  return shared_product_quantizer{
      vector_quantizer{mapped_codes<S>{codes, head_width, {.bias = true, .learned_basis = true}},
                       transport_assignment{}, commitment_loss{.encoder = 1, .codebook = 0.25}},
      heads};
}

/// Shi et al. 2024, IBQ: 262144 x 256, every code learns. Its entropy penalty is a policy more:
/// codebook/loss/code_entropy.hpp. (paper; released code)
template <FloatOrDouble S>
auto ibq(index_t codes = 262144, index_t width = 256) {
  return vector_quantizer{learned_codes<S>{codes, width}, inner_product{}, index_propagation{},
                          commitment_loss{.encoder = 1, .codebook = 0.25, .surrogate = 1}};
}

/// Vuong et al. 2023, VQ-WAE: weights of its distance are chosen for each data set.
template <FloatOrDouble S>
auto vq_wae(index_t codes, index_t width, wasserstein_options o = {}) {
  return vector_quantizer{learned_codes<S>{codes, width}, wasserstein_loss<S>{codes, o}};
}

}  // namespace sluice::inline SLUICE_ISA::published
