/// Quantisers of images, video and scenes, as papers have them: a row a paper (codebook/published.hpp).
#pragma once

#include <sluice/codebook/codebook.hpp>

#include <vector>

namespace sluice::inline SLUICE_ISA::published {

/// van den Oord et al. 2017, VQ-VAE: 512 x 64, commitment 0.25.
template <FloatOrDouble S>
auto vq_vae(index_t codes = 512, index_t width = 64) {
  return vector_quantizer{learned_codes<S>{codes, width}};
}

/// Razavi et al. 2019, VQ-VAE-2, and Peng et al. 2021's hierarchy for inpainting: two levels of 512 x 64, moving
/// averages, decay 0.99. The networks between the levels, and Peng's distances to codes as features, are left out.
template <FloatOrDouble S>
auto vq_vae_2(token_grid grid, index_t codes = 512, index_t width = 64) {
  return pyramid_quantizer{std::vector(2, vector_quantizer{moving_average_codes<S>{codes, width}}), {2, 1}, grid};
}

/// Liu et al. 2022, P-VQ of PUT: 512 x 256 for patches that are seen (modality 0), as many for masked ones (modality
/// 1), moving averages. Its transformer takes rows that are not quantised and answers with these ids. (released
/// configuration)
template <FloatOrDouble S>
auto p_vq(index_t codes = 512, index_t width = 256) {
  return modality_quantizer{std::vector(2, vector_quantizer{moving_average_codes<S>{codes, width}})};
}

/// Esser et al. 2021, VQGAN: 1024 or 16384 x 256, with the weights of its code, 0.25 on the codebook's term. Frozen,
/// it is the tokenizer of ADDP (Tian et al. 2023), and its 16384 codes shrink to Mao et al. 2024's smaller ones in a
/// nested_codebook. (released configurations and code)
template <FloatOrDouble S>
auto vqgan(index_t codes = 1024, index_t width = 256) {
  return vector_quantizer{learned_codes<S>{codes, width}, commitment_loss{.encoder = 1, .codebook = 0.25}};
}

/// Gu et al. 2022, VQ-Diffusion: text to image on a frozen VQGAN whose 8192 codes of width 256 are chosen by logits
/// (the Gumbel one, for OpenImages), and the noise on the 2887 of them that are in use, with a mask symbol, 100 steps.
/// By class it has vqgan(16384), of which 974 are in use. Tang et al. 2022, "Improved VQ-Diffusion", changes the
/// sampling alone. (released configurations)
template <FloatOrDouble S>
auto vq_diffusion(index_t codes = 8192, index_t width = 256) {
  return gumbel_quantizer<S>{width, width, {.groups = 1, .entries = codes}};
}
inline mask_and_replace vq_diffusion_noise(index_t codes = 2887, index_t steps = 100) { return {codes, steps}; }

/// Hu et al. 2022, "Global Context with Discrete Diffusion": moving averages whose unused codes are replaced.
template <FloatOrDouble S>
auto vq_ddm(index_t codes, index_t width) {
  return vector_quantizer{moving_average_codes<S>{codes, width}, expire_codes{}};
}

/// Zheng et al. 2022, MoVQ: four groups of channels share the codes (paper; the program that is public, another's, has
/// one group of 16384 x 4). Its decoder is modulated: codebook/modulated_norm.hpp.
template <FloatOrDouble S>
auto movq(index_t codes, index_t group_width) {
  return shared_product_quantizer{vector_quantizer{learned_codes<S>{codes, group_width}}, 4};
}

/// Lee et al. 2022, RQ-VAE: one codebook of 16384 x 256 for four depths, moving averages with decay 0.99 which move
/// between depths, codes with N < 1 replaced, commitment 0.25 as a mean over prefixes. (released configuration)
template <FloatOrDouble S>
auto rq_vae(index_t codes = 16384, index_t width = 256, index_t depth = 4) {
  return residual_quantizer{vector_quantizer{moving_average_codes<S>{codes, width, {.initial_size = 0}},
                                             commitment_loss{.encoder = 0.25 / static_cast<double>(depth)},
                                             expire_codes{.threshold = 1, .recompute = true}},
                            depth, moves_between_depths{}};
}

/// Yu et al. 2022, ViT-VQGAN: 8192 x 32, tokens and codes of length 1. Losses see a code before its length is taken
/// away.
template <FloatOrDouble S>
auto vit_vqgan(index_t codes = 8192, index_t width = 32) {
  return unit_rows{vector_quantizer{learned_codes<S>{codes, width}, cosine_similarity{}}, {.outputs = true}};
}

/// Sargent et al. 2023, VQ3D: the same. Triplanes and their rendering are left out.
template <FloatOrDouble S>
auto vq3d(index_t codes = 8192, index_t width = 32) {
  return vit_vqgan<S>(codes, width);
}

/// Mentzer et al. 2024, FSQ, as its own code rounds: 8 5 5 5 for the place of about 2^10 codes; more sets of levels
/// in codebook/scalar/finite_scalar.hpp. (released code)
template <FloatOrDouble S>
auto fsq(const std::vector<index_t>& levels = {8, 5, 5, 5}) {
  return finite_scalar_quantizer<S, original_rounding<S>>{levels};
}

/// Yu et al. 2024, MAGVIT-v2: 2^18 codes without a table. (paper)
template <FloatOrDouble S>
auto magvit_v2(index_t bits = 18) {
  return lookup_free_quantizer<S>{bits};
}

/// Zhu et al. 2022, McQuic: two parts, levels of 8192, 2048 and 512 codes. Networks between the levels lower the
/// resolution, and codes are entropy-coded: left out. (names of the released configurations)
template <FloatOrDouble S>
auto mcquic(index_t part_width, const std::vector<index_t>& codes = {8192, 2048, 512}) {
  std::vector<mixture_quantizer<S>> levels;
  for (const index_t k : codes) levels.emplace_back(2, k, part_width);
  return residual_quantizer{std::move(levels), {.gradient = residual_gradient::through_stages}};
}

/// Elsner et al. 2024, Quantised Global Autoencoder: a code for a whole channel. Rows are channels over all positions
/// of an image, which the caller transposes.
template <FloatOrDouble S>
auto global_channels(index_t codes, index_t positions) {
  return vq_vae<S>(codes, positions);
}

/// Yang et al. 2023, VQ-NeRF: VQ-VAE's layer on features of low resolution, trained before and frozen.
template <FloatOrDouble S>
auto vq_nerf(index_t codes, index_t width) {
  return vq_vae<S>(codes, width);
}

/// Fang et al. 2024, E-ViLM: a frozen tokenizer whose ids are the targets of masked patches.
template <FloatOrDouble S>
auto e_vilm(index_t codes, index_t width) {
  return vq_vae<S>(codes, width);
}

}  // namespace sluice::inline SLUICE_ISA::published
