// A codebook learns clusters: vectors go to their nearest code and come back as that code.
#include <sluice/codebook/codebook.hpp>
#include <sluice/train/initialize.hpp>

#include <iostream>

int main() {
  using namespace sluice;

  // Eight clusters in the plane.
  const random_source draws(7);
  constexpr random_site clusters("example.clusters");
  matrix<float> x(512, 2), y(512, 2), dy = matrix<float>::Zero(512, 2), dx(512, 2);
  for (index_t t = 0; t < x.rows(); ++t)
    for (index_t d = 0; d < 2; ++d)
      x(t, d) = static_cast<float>(4 * draws.uniform(clusters, 2 * (t % 8) + d) +
                                   0.05 * draws.normal(clusters, 1000 + 2 * t + d));

  vector_quantizer vq{moving_average_codes<float>{16, 2, {.decay = 0.9, .initial_size = 0}}, rotation{},
                      expire_codes{.threshold = 1}};
  initialize(vq, 7);

  decltype(vq)::tape tape;
  for (index_t step = 0; step < 60; ++step) {
    vq.forward(x, y, tape, {.training = true, .random = draws.at_step(static_cast<std::uint64_t>(step))});
    vq.backward(dy, dx, tape);  // dy comes from the decoder behind it, dx goes to the encoder before it
    vq.after_step(tape);        // codes move to the means of their tokens, unused ones to tokens
  }
  std::cout << "error " << (y - x).squaredNorm() / static_cast<float>(x.rows()) << ", perplexity "
            << tape.usage.perplexity() << " of " << vq.codes() << " codes\n";

  decltype(vq)::workspace workspace;
  matrix<index_t> ids(512, 1);
  vq.encode(x, ids, workspace);  // 512 small numbers are all that has to be kept
  vq.decode(ids, y, workspace);
  return (y - x).squaredNorm() / static_cast<float>(x.rows()) < 0.05F ? 0 : 1;
}
