/// The quantisers of published systems, with their constants: a row a paper.
///
///   auto vq = published::t2m_gpt<float>();
///   auto rq = published::rq_vae<float>(4096);              // one size of your own, the rest the paper's
///
/// Sizes that are settled are defaults; where there is none the paper leaves it open, has several, or none was found,
/// and it is yours. Policies that are not named are vector_quantizer's. A paper's networks, and losses of what they
/// say, are the caller's; a line says what else is. First codes from data are too: codebook/kmeans.hpp. This header
/// brings the whole room and is in no umbrella.
///
/// Codebooks elsewhere: Transformer-VQ and LongVQ in codebook/attention/, MAUVE in codebook/divergence_frontier.hpp,
/// weights of EnCodec and DAC in checkpoint/. VQ4Rec surveys rows of this table, GIVT has no codebook.
#pragma once

#include <sluice/codebook/codebook.hpp>

#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace published {

// ---- Images, video, 3-D ----

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
/// 1), moving averages. Its transformer takes rows that are not quantised and answers with these ids.
template <FloatOrDouble S>
auto p_vq(index_t codes = 512, index_t width = 256) {
  return modality_quantizer{std::vector(2, vector_quantizer{moving_average_codes<S>{codes, width}})};
}

/// Esser et al. 2021, VQGAN: 1024 or 16384 x 256, with the weights of its code, 0.25 on the codebook's term. Frozen,
/// it is the tokenizer of ADDP (Tian et al. 2023), and its 16384 codes shrink to Mao et al. 2024's smaller ones in a
/// nested_codebook.
template <FloatOrDouble S>
auto vqgan(index_t codes = 1024, index_t width = 256) {
  return vector_quantizer{learned_codes<S>{codes, width}, commitment_loss{.encoder = 1, .codebook = 0.25}};
}

/// Gu et al. 2022, VQ-Diffusion: a frozen VQGAN of 8192 x 256, and the noise on the 2887 of its codes that are in
/// use, with a mask symbol, 100 steps. Tang et al. 2022, "Improved VQ-Diffusion", changes the sampling alone.
template <FloatOrDouble S>
auto vq_diffusion(index_t codes = 8192, index_t width = 256) {
  return vqgan<S>(codes, width);
}
inline mask_and_replace vq_diffusion_noise(index_t codes = 2887, index_t steps = 100) { return {codes, steps}; }

/// Hu et al. 2022, "Global Context with Discrete Diffusion": moving averages whose unused codes are replaced.
template <FloatOrDouble S>
auto vq_ddm(index_t codes, index_t width) {
  return vector_quantizer{moving_average_codes<S>{codes, width}, expire_codes{}};
}

/// Zheng et al. 2022, MoVQ: four groups of channels share the codes. Its decoder is modulated:
/// codebook/modulated_norm.hpp.
template <FloatOrDouble S>
auto movq(index_t codes, index_t group_width) {
  return shared_product_quantizer{vector_quantizer{learned_codes<S>{codes, group_width}}, 4};
}

/// Lee et al. 2022, RQ-VAE: one codebook of 16384 x 256 for four depths, moving averages with decay 0.99 which move
/// between depths, codes with N < 1 replaced, commitment 0.25 as a mean over prefixes.
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
/// in codebook/scalar/finite_scalar.hpp.
template <FloatOrDouble S>
auto fsq(const std::vector<index_t>& levels = {8, 5, 5, 5}) {
  return finite_scalar_quantizer<S, original_rounding<S>>{levels};
}

/// Yu et al. 2024, MAGVIT-v2: 2^18 codes without a table.
template <FloatOrDouble S>
auto magvit_v2(index_t bits = 18) {
  return lookup_free_quantizer<S>{bits};
}

/// Zheng, Vedaldi 2023, CVQ-VAE: sampled anchors by cosine. Its contrast is a policy more:
/// codebook/loss/code_contrast.hpp.
template <FloatOrDouble S>
auto cvq_vae(index_t codes, index_t width) {
  return vector_quantizer{learned_codes<S>{codes, width}, cosine_similarity{}, anchors<S>{codes, width}};
}

/// Zhu et al. 2024, SimVQ: 65536 x 128 by a learned map, with the weights of its code.
template <FloatOrDouble S>
auto simvq(index_t codes = 65536, index_t width = 128) {
  return vector_quantizer{mapped_codes<S>{codes, width, {.bias = true}},
                          commitment_loss{.encoder = 1, .codebook = 0.25}};
}

/// Fifty et al. 2024: the rotation trick for moving averages.
template <FloatOrDouble S>
auto rotation_trick(index_t codes, index_t width) {
  return vector_quantizer{moving_average_codes<S>{codes, width}, rotation{.adds = true}};
}

/// Zhang et al. 2024, OptVQ: 16384 x 64 by a learned map, transport in training.
template <FloatOrDouble S>
auto opt_vq(index_t codes = 16384, index_t width = 64) {
  return vector_quantizer{mapped_codes<S>{codes, width, {.bias = true, .learned_basis = true}}, transport_assignment{},
                          distance_cross_entropy{}};
}

/// Shi et al. 2024, IBQ: 262144 x 256, every code learns. Its entropy penalty is a policy more:
/// codebook/loss/code_entropy.hpp.
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

/// Zhu et al. 2022, McQuic: two parts, levels of 8192, 2048 and 512 codes. Networks between the levels lower the
/// resolution, and codes are entropy-coded: left out.
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

// ---- Audio and speech ----

/// "Synthesizing Audio from Silent Video", 2024: VQ-VAE's layer on features of three-dimensional convolutions.
template <FloatOrDouble S>
auto silent_video(index_t codes, index_t width) {
  return vq_vae<S>(codes, width);
}

/// Fu et al. 2024, VQScore: 2048 x 32 by cosine, moving averages with decay 0.8, nothing replaced. The score of a
/// sequence: codebook/code_agreement.hpp.
template <FloatOrDouble S>
auto vq_score(index_t codes = 2048, index_t width = 32) {
  return unit_rows{vector_quantizer{moving_average_codes<S>{codes, width, {.decay = 0.8, .unit_length = true}},
                                    commitment_loss{.encoder = 1}}};
}

/// Baevski et al. 2020, vq-wav2vec by Gumbel: two groups of 320.
template <FloatOrDouble S>
auto vq_wav2vec(index_t inputs, index_t outputs, index_t entries = 320) {
  return gumbel_quantizer<S>{inputs, outputs, {.groups = 2, .entries = entries}};
}
/// The same by k-means: the nearest of 320 in each of two groups, commitment 0.25 as a mean over both.
template <FloatOrDouble S>
auto vq_wav2vec_kmeans(index_t width, index_t codes = 320) {
  return product_quantizer{std::vector(2, vector_quantizer{learned_codes<S>{codes, width / 2},
                                                           commitment_loss{.encoder = 0.125, .codebook = 0.5}})};
}

/// Wang et al. 2021, VQMIVC: 512 x 64, moving averages with decay 0.999. Penalties of mutual information are left
/// out.
template <FloatOrDouble S>
auto vqmivc(index_t codes = 512, index_t width = 64) {
  return vector_quantizer{moving_average_codes<S>{codes, width, {.decay = 0.999}}};
}

/// Defossez et al. 2022, EnCodec: stages of 1024 x 128, moving averages with decay 0.99, codes with N < 2 replaced.
template <FloatOrDouble S>
auto encodec(index_t stages = 8, index_t codes = 1024, index_t width = 128) {
  const vector_quantizer stage{moving_average_codes<S>{codes, width}, commitment_loss{.encoder = 1},
                               expire_codes{.threshold = 2}};
  return residual_quantizer{std::vector(as_size(stages), stage), {.gradient = residual_gradient::through_stages}};
}

/// Li et al. 2024, MERT: eight of EnCodec's stages, frozen; their ids are the targets of masked frames.
template <FloatOrDouble S>
auto mert(index_t codes = 1024, index_t width = 128) {
  return encodec<S>(8, codes, width);
}

/// Zhang et al. 2023, "Composer Style-specific Symbolic Music Generation": VQ-VAE's layer; its discrete diffusion is
/// codebook/mask_and_replace.hpp.
template <FloatOrDouble S>
auto composer_music(index_t codes, index_t width) {
  return vq_vae<S>(codes, width);
}

// ---- Motion and behaviour ----

/// Zhang et al. 2023, T2M-GPT: 512 x 512, moving averages with decay 0.99, codes with N < 1 replaced, commitment
/// 0.02.
template <FloatOrDouble S>
auto t2m_gpt(index_t codes = 512, index_t width = 512) {
  return vector_quantizer{moving_average_codes<S>{codes, width, {.epsilon = 0, .least_size = 1}},
                          commitment_loss{.encoder = 0.02}, expire_codes{.threshold = 1}};
}

/// Fu 2024, Mogo: T2M-GPT's layer in stages with codebooks of their own. The defaults are MoMask's (Guo et al. 2024),
/// which it follows: six stages of 512 x 512, a fifth of the items with fewer in training.
template <FloatOrDouble S>
auto mogo(index_t stages = 6, index_t codes = 512, index_t width = 512) {
  const vector_quantizer stage{moving_average_codes<S>{codes, width, {.epsilon = 0, .least_size = 1}},
                               commitment_loss{.encoder = 0.02 / static_cast<double>(stages)},
                               expire_codes{.threshold = 1}};
  return residual_quantizer{std::vector(as_size(stages), stage),
                            {.gradient = residual_gradient::each_stage, .dropout = 0.2}};
}

/// Lee et al. 2024, VQ-BeT: two stages of 16 codes, width 512, moving averages with decay 0.8. What the codes leave
/// over is the business of its offset head.
template <FloatOrDouble S>
auto vq_bet(index_t codes = 16, index_t width = 512) {
  const vector_quantizer stage{moving_average_codes<S>{codes, width, {.decay = 0.8}}, commitment_loss{.encoder = 1}};
  return residual_quantizer{std::vector(2, stage), {.gradient = residual_gradient::each_stage}};
}

// ---- Text ----

/// Yoo, Choi 2024, Topic-VQ-VAE: VQ-VAE's layer on embeddings of a language model; a document is the counts of its
/// codes (codebook/code_usage.hpp).
template <FloatOrDouble S>
auto topic_vq_vae(index_t codes, index_t width) {
  return vq_vae<S>(codes, width);
}

/// Zemlyanskiy et al. 2023, MEMORY-VQ: 256 parts of 16 numbers, 65536 codes each, decay 0.999, no commitment.
template <FloatOrDouble S>
auto memory_vq(index_t parts = 256, index_t codes = 65536, index_t part_width = 16) {
  const vector_quantizer part{moving_average_codes<S>{codes, part_width, {.decay = 0.999}},
                              commitment_loss{.encoder = 0}};
  return product_quantizer{std::vector(as_size(parts), part)};
}

// ---- Recommenders and retrieval ----

/// Rajput et al. 2023, TIGER's semantic ids: three stages of 256 x 32. Items with equal ids get one more number from
/// the caller.
template <FloatOrDouble S>
auto semantic_ids(index_t stages = 3, index_t codes = 256, index_t width = 32) {
  return residual_quantizer{std::vector(as_size(stages), vector_quantizer{learned_codes<S>{codes, width}})};
}

/// Xiao et al. 2022, Distill-VQ: 96 parts of 8 numbers, 256 codes each. There ranks teach the codes, here VQ-VAE's
/// losses.
template <FloatOrDouble S>
auto distill_vq(index_t parts = 96, index_t codes = 256, index_t part_width = 8) {
  return product_quantizer{std::vector(as_size(parts), vector_quantizer{learned_codes<S>{codes, part_width}})};
}

}  // namespace published

}  // namespace sluice::inline SLUICE_ISA
