#include <sluice/codebook/published.hpp>

#include <sluice/io/model_file.hpp>
#include <sluice/train/sgd.hpp>

#include "../io/temporary_folder.hpp"
#include "codebook_checks.hpp"
#include "quantizer_calls.hpp"

#include <cmath>
#include <vector>

using namespace sluice;
namespace paper = sluice::published;

namespace {

constexpr index_t published_tokens = 32;  // two images of 4 x 4

/// Three steps of training, then what is left comes back from its ids, and from a file into one that knows nothing.
template <typename Make>
void check_row(const char* name, const Make& make) {
  CAPTURE(name);
  auto q = make();
  static_assert(Quantizer<decltype(q)>);
  initialize(q, 1);
  std::vector<index_t> modalities(as_size(published_tokens));
  for (std::size_t t = 0; t < modalities.size(); ++t) modalities[t] = static_cast<index_t>(t % 2);
  const matrix<float> x = test::random_matrix<float>(published_tokens, q.inputs(), 2);
  const matrix<float> dy = test::random_matrix<float>(published_tokens, q.outputs(), 3);
  const routing_context<float> inference{.modality_ids = modalities};
  const auto untrained = test::inferred(q, x, inference);
  sgd<float> optimizer{{.learning_rate = 0.1f}};
  for (index_t step = 0; step < 3; ++step) {
    zero_gradients(q);
    const random_source random{7, static_cast<std::uint64_t>(step)};
    test::trained r(q, x, dy, {.random = random, .modality_ids = modalities, .step = step});
    CHECK(r.y.allFinite());
    CHECK(r.dx.allFinite());
    CHECK(std::isfinite(r.tape.loss()));
    optimizer.step(q);
    q.after_step(r.tape);
  }
  const auto y = test::inferred(q, x, inference);
  const auto ids = test::encoded(q, x, inference);
  CHECK((ids.array() >= 0).all());
  CHECK(test::same_bits(test::decoded(q, ids), y));

  bool learns = false;
  for_each_parameter(q, [&](const std::string&, auto&) { learns = true; });
  CHECK(test::same_bits(untrained, y) == !learns);
  const test::temporary_folder folder;
  save(q, folder / "quantizer.safetensors");
  auto loaded = make();
  load(loaded, folder / "quantizer.safetensors");
  CHECK(test::encoded(loaded, x, inference) == ids);
  CHECK(test::same_bits(test::decoded(loaded, ids), y));
}

}  // namespace

TEST_CASE("published: quantisers of images are trained, come back from ids and from files", "[codebook][published]") {
  check_row("vq_vae", [] { return paper::vq_vae<float>(); });
  check_row("vq_vae_2", [] { return paper::vq_vae_2<float>({.height = 4, .width = 4}); });
  check_row("p_vq", [] { return paper::p_vq<float>(); });
  check_row("vqgan", [] { return paper::vqgan<float>(); });
  check_row("vq_diffusion", [] { return paper::vq_diffusion<float>(32, 8); });
  check_row("vq_ddm", [] { return paper::vq_ddm<float>(16, 8); });
  check_row("movq", [] { return paper::movq<float>(32, 4); });
  check_row("rq_vae", [] { return paper::rq_vae<float>(64, 16); });
  check_row("vit_vqgan", [] { return paper::vit_vqgan<float>(64); });
  check_row("fsq", [] { return paper::fsq<float>(); });
  check_row("magvit_v2", [] { return paper::magvit_v2<float>(6); });
}

TEST_CASE("published: quantisers against collapse are trained, come back from ids and from files",
          "[codebook][published]") {
  check_row("cvq_vae", [] { return paper::cvq_vae<float>(16, 8); });
  check_row("simvq", [] { return paper::simvq<float>(64, 16); });
  check_row("rotation_trick", [] { return paper::rotation_trick<float>(16, 8); });
  check_row("opt_vq", [] { return paper::opt_vq<float>(16, 4, 2); });
  check_row("ibq", [] { return paper::ibq<float>(32, 8); });
  check_row("vq_wae", [] { return paper::vq_wae<float>(8, 4); });
  check_row("mcquic", [] { return paper::mcquic<float>(4, {16, 8, 4}); });
}

TEST_CASE("published: quantisers of sound, motion, text and items are trained, come back from ids and from files",
          "[codebook][published]") {
  check_row("vq_score", [] { return paper::vq_score<float>(64); });
  check_row("vq_wav2vec", [] { return paper::vq_wav2vec<float>(12, 8, 20); });
  check_row("vq_wav2vec_kmeans", [] { return paper::vq_wav2vec_kmeans<float>(12); });
  check_row("mert", [] { return paper::mert<float>(16); });
  check_row("t2m_gpt", [] { return paper::t2m_gpt<float>(); });
  check_row("mogo", [] { return paper::mogo<float>(6, 16, 8); });
  check_row("vq_bet", [] { return paper::vq_bet<float>(); });
  check_row("semantic_ids", [] { return paper::semantic_ids<float>(); });
  check_row("memory_vq", [] { return paper::memory_vq<float>(4, 64); });
}

TEST_CASE("published: rows that are another paper's layer are of its type, with their own sizes",
          "[codebook][published]") {
  const auto same_type = [](const auto& row, const auto& of) { return std::is_same_v<decltype(row), decltype(of)>; };
  const auto vq_vae = paper::vq_vae<float>();
  CHECK((same_type(paper::global_channels<float>(8, 64), vq_vae) && same_type(paper::vq_nerf<float>(8, 4), vq_vae) &&
         same_type(paper::e_vilm<float>(8, 4), vq_vae) && same_type(paper::silent_video<float>(8, 4), vq_vae) &&
         same_type(paper::composer_music<float>(8, 4), vq_vae) && same_type(paper::topic_vq_vae<float>(8, 4), vq_vae)));
  CHECK(same_type(paper::vq3d<float>(8), paper::vit_vqgan<float>(8)));
  CHECK(same_type(paper::vqmivc<float>(), paper::vq_vae_2<float>({}).stage(0)));
  CHECK(paper::vqmivc<float>().codebook().options().decay == 0.999);
  CHECK(paper::distill_vq<float>().inputs() == 768);
}

TEST_CASE("published: VQ-Diffusion's noise has its codes, their mask symbol and steps", "[codebook][published]") {
  const mask_and_replace noise = paper::vq_diffusion_noise();
  CHECK(paper::vq_diffusion<float>().codes() == 8192);
  CHECK(noise.codes() == 2887);
  CHECK(noise.mask() == 2887);
  CHECK(noise.steps() == 100);
}

TEST_CASE("published: a channel over all positions has one code, once the caller transposes", "[codebook][published]") {
  auto q = paper::global_channels<float>(8, 64);
  initialize(q, 1);
  const matrix<float> image = test::random_matrix<float>(64, 5, 2), channels = image.transpose();
  const auto ids = test::encoded(q, channels);
  CHECK(ids.rows() == 5);
  CHECK(test::same_bits(test::decoded(q, ids), test::inferred(q, channels)));
}
