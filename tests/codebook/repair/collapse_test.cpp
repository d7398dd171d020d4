// What repairs are for: codes that begin far from most of the data stay unused without one, and come into use with any.
#include <sluice/codebook/codes/counted.hpp>
#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/repair/anchors.hpp>
#include <sluice/codebook/repair/expire_codes.hpp>
#include <sluice/codebook/repair/split_most_used.hpp>
#include <sluice/codebook/vector_quantizer.hpp>
#include <sluice/train/sgd.hpp>

#include "../codebook_checks.hpp"

using namespace sluice;

namespace {

constexpr index_t collapse_tokens = 256, collapse_codes = 64, collapse_width = 8, collapse_centres = 16;

/// Tokens around some centres.
matrix<float> tokens_around_centres(std::uint64_t seed) {
  const matrix<float> all = 5 * test::random_matrix<float>(collapse_centres, collapse_width, 1);
  matrix<float> x = 0.5F * test::random_matrix<float>(collapse_tokens, collapse_width, seed);
  for (index_t t = 0; t < collapse_tokens; ++t) x.row(t) += all.row(t % collapse_centres);
  return x;
}

/// The share of codes that the last ten of 200 batches used.
template <typename Codes, typename... Repair>
double share_in_use(Codes codes, Repair... repair) {
  vector_quantizer q{std::move(codes), repair...};
  initialize(q, 3);
  sgd<float> optimizer{{.learning_rate = 50, .clear_gradients = true}};
  typename decltype(q)::tape tape;
  code_usage usage(collapse_codes);
  matrix<float> y(collapse_tokens, collapse_width), dx(collapse_tokens, collapse_width);
  const matrix<float> none = matrix<float>::Zero(collapse_tokens, collapse_width);
  for (std::uint64_t step = 0; step < 200; ++step) {
    q.forward(tokens_around_centres(100 + step), y, tape, {.training = true, .random = random_source{7, step}});
    q.backward(none, dx, tape);
    optimizer.step(q);
    q.after_step(tape);
    if (step >= 190) usage.add(tape.usage);
  }
  return usage.utilisation();
}

}  // namespace

TEST_CASE("repairs: without one most codes stay unused, with any nearly all are used", "[codebook][slow]") {
  // Averages look back a few batches. Of codes that all are at one place, and so have the same anchor, one a batch
  // comes into use.
  const moving_average_codes<float> averages{collapse_codes, collapse_width, {.decay = 0.8}};
  const learned_codes<float> learned{collapse_codes, collapse_width};
  const counted_codes counted{learned, {.decay = 0.8}};
  const auto anchored = [](anchor_choice choice) {
    return anchors<float, squared_distance>{collapse_codes, collapse_width, {.choice = choice, .decay = 0.8}};
  };
  CHECK(share_in_use(averages) < 0.5);
  CHECK(share_in_use(learned) < 0.5);
  CHECK(share_in_use(averages, expire_codes{.threshold = 1}) >= 0.95);
  CHECK(share_in_use(counted, expire_codes{.threshold = 1}) >= 0.95);
  // The closest token is often that of several codes, which then are equal, and of equals one is used: which of them
  // crowd, rounding decides, and 0.83 to 0.97 were seen.
  CHECK(share_in_use(learned, anchored(anchor_choice::closest)) >= 0.75);
  CHECK(share_in_use(learned, cosine_similarity{}, anchors<float>{collapse_codes, collapse_width, {.decay = 0.8}}) >= 0.95);
  // By distances a sampled anchor is nearly always the closest, and codes crowd where tokens are.
  CHECK(share_in_use(learned, anchored(anchor_choice::sampled)) >= 0.9);
  CHECK(share_in_use(learned, anchored(anchor_choice::random)) >= 0.95);
  CHECK(share_in_use(counted, split_most_used{.unused_below = 0.1}) >= 0.95);
}
