/// Quantisers of speech, sound and music, as papers have them: a row a paper (codebook/published.hpp).
#pragma once

#include <sluice/codebook/published/images.hpp>

#include <vector>

namespace sluice::inline SLUICE_ISA::published {

/// "Synthesizing Audio from Silent Video", 2024: VQ-VAE's layer on features of three-dimensional convolutions.
template <FloatOrDouble S>
auto silent_video(index_t codes, index_t width) {
  return vq_vae<S>(codes, width);
}

/// Fu et al. 2024, VQScore: 2048 x 32 by cosine, moving averages with decay 0.8, nothing replaced. The score of a
/// sequence: codebook/code_agreement.hpp. (released configuration)
template <FloatOrDouble S>
auto vq_score(index_t codes = 2048, index_t width = 32) {
  return unit_rows{vector_quantizer{moving_average_codes<S>{codes, width, {.decay = 0.8, .unit_length = true}},
                                    commitment_loss{.encoder = 1}}};
}

/// Baevski et al. 2020, vq-wav2vec by Gumbel: two groups of 320 that share a table, temperatures from 2 to 0.5. The
/// layer before its projection is the caller's. (released training command)
template <FloatOrDouble S>
auto vq_wav2vec(index_t inputs, index_t outputs, index_t entries = 320) {
  return gumbel_quantizer<S>{inputs, outputs, {.groups = 2, .entries = entries, .shared_table = true}};
}
/// The same by k-means: the nearest of 320 in each of two groups, commitment 0.25 as a mean over both.
template <FloatOrDouble S>
auto vq_wav2vec_kmeans(index_t width, index_t codes = 320) {
  return product_quantizer{std::vector(
      2, vector_quantizer{learned_codes<S>{codes, width / 2}, commitment_loss{.encoder = 0.125, .codebook = 0.5}})};
}

/// Wang et al. 2021, VQMIVC: 512 x 64, moving averages with decay 0.999 that begin at N = 0. Penalties of mutual
/// information are left out. (released code)
template <FloatOrDouble S>
auto vqmivc(index_t codes = 512, index_t width = 64) {
  return vector_quantizer{moving_average_codes<S>{codes, width, {.decay = 0.999, .initial_size = 0}}};
}

/// Defossez et al. 2022, EnCodec: stages of 1024 x 128, moving averages with decay 0.99, codes with N < 2 replaced; 32
/// stages are 24 kbit/s of 24 kHz, 16 of 48 kHz, and 8 are 6 kbit/s. First codes: 50 rounds of k-means on the first
/// batch. (released code; there the replacement comes before the average and is lost)
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

}  // namespace sluice::inline SLUICE_ISA::published
