/// Quantisers of motion and behaviour, of text, and of items to recommend or retrieve: a row a paper
/// (codebook/published.hpp).
#pragma once

#include <sluice/codebook/published/images.hpp>

#include <vector>

namespace sluice::inline SLUICE_ISA::published {

/// Zhang et al. 2023, T2M-GPT: 512 x 512, moving averages with decay 0.99, codes with N < 1 replaced, commitment
/// 0.02. Its replaced codes keep their N, so that they are replaced until tokens come; here they begin anew at N = 1
/// and are, if none came, below it after a step. (released code)
template <FloatOrDouble S>
auto t2m_gpt(index_t codes = 512, index_t width = 512) {
  return vector_quantizer{moving_average_codes<S>{codes, width, {.epsilon = 0, .least_size = 1}},
                          commitment_loss{.encoder = 0.02}, expire_codes{.threshold = 1}};
}

/// Fu 2024, Mogo: T2M-GPT's layer in stages with codebooks of their own. The defaults are those of MoMask's released
/// model (Guo et al. 2024), which it follows: six stages of 512 x 512, a fifth of the items with fewer in training.
template <FloatOrDouble S>
auto mogo(index_t stages = 6, index_t codes = 512, index_t width = 512) {
  const vector_quantizer stage{moving_average_codes<S>{codes, width, {.epsilon = 0, .least_size = 1}},
                               commitment_loss{.encoder = 0.02 / static_cast<double>(stages)},
                               expire_codes{.threshold = 1}};
  return residual_quantizer{std::vector(as_size(stages), stage),
                            {.gradient = residual_gradient::each_stage, .dropout = 0.2}};
}

/// Lee et al. 2024, VQ-BeT: two stages of 16 codes, width 512, moving averages with decay 0.8. What the codes leave
/// over is the business of its offset head. (programs that follow it)
template <FloatOrDouble S>
auto vq_bet(index_t codes = 16, index_t width = 512) {
  const vector_quantizer stage{moving_average_codes<S>{codes, width, {.decay = 0.8}}, commitment_loss{.encoder = 1}};
  return residual_quantizer{std::vector(2, stage), {.gradient = residual_gradient::each_stage}};
}

/// Yoo, Choi 2024, Topic-VQ-VAE: VQ-VAE's layer on embeddings of a language model; a document is the counts of its
/// codes (codebook/code_usage.hpp).
template <FloatOrDouble S>
auto topic_vq_vae(index_t codes, index_t width) {
  return vq_vae<S>(codes, width);
}

/// Zemlyanskiy et al. 2023, MEMORY-VQ: 256 parts of 16 numbers, 65536 codes each, decay 0.999, no commitment. (paper)
template <FloatOrDouble S>
auto memory_vq(index_t parts = 256, index_t codes = 65536, index_t part_width = 16) {
  const vector_quantizer part{moving_average_codes<S>{codes, part_width, {.decay = 0.999}},
                              commitment_loss{.encoder = 0}};
  return product_quantizer{std::vector(as_size(parts), part)};
}

/// Rajput et al. 2023, TIGER's semantic ids: three stages of 256 x 32, commitment 0.25. Items with equal ids get one
/// more number by codebook/equal_items.hpp. (paper, as a program that follows it has it)
template <FloatOrDouble S>
auto semantic_ids(index_t stages = 3, index_t codes = 256, index_t width = 32) {
  return residual_quantizer{std::vector(as_size(stages), vector_quantizer{learned_codes<S>{codes, width}})};
}

/// Xiao et al. 2022, Distill-VQ: 96 parts of 8 numbers, 256 codes each. There ranks teach the codes, here VQ-VAE's
/// losses. (released code)
template <FloatOrDouble S>
auto distill_vq(index_t parts = 96, index_t codes = 256, index_t part_width = 8) {
  return product_quantizer{std::vector(as_size(parts), vector_quantizer{learned_codes<S>{codes, part_width}})};
}

}  // namespace sluice::inline SLUICE_ISA::published
