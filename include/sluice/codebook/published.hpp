/// The quantisers of published systems, with their constants: a row a paper.
///
///   auto vq = published::t2m_gpt<float>();
///   auto rq = published::rq_vae<float>(4096);              // one size of your own, the rest the paper's
///
/// Sizes that are settled are defaults; where there is none the paper leaves it open, has several, or none was found,
/// and it is yours. At the end of a row stands where its numbers were read: the paper, the released code or its
/// configuration; what is well known has no such end. Policies that are not named are vector_quantizer's. A paper's
/// networks, and losses of what they say, are the caller's; a line says what else is. First codes from data are too:
/// codebook/kmeans.hpp. These headers bring the whole room and are in no umbrella.
///
/// Codebooks elsewhere: Transformer-VQ and LongVQ in codebook/attention/, MAUVE in codebook/divergence_frontier.hpp,
/// weights of EnCodec and DAC in checkpoint/. VQ4Rec surveys rows of this table, GIVT has no codebook.
#pragma once

#include <sluice/codebook/published/images.hpp>
#include <sluice/codebook/published/methods.hpp>
#include <sluice/codebook/published/motion_text_items.hpp>
#include <sluice/codebook/published/sound.hpp>
