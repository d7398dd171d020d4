#include <sluice/codebook/gumbel_quantizer.hpp>

#include "../layer/plain_checks.hpp"
#include "codebook_checks.hpp"

using namespace sluice;

namespace {

constexpr index_t gumbel_tokens = 13, gumbel_width = 5, gumbel_outputs = 6;

gumbel_quantizer<double> drawing_quantizer(gumbel_quantizer_options o = {.groups = 2, .entries = 7}) {
  gumbel_quantizer<double> q(gumbel_width, gumbel_outputs, o);
  initialize(q, 3);
  return q;
}

matrix<double> logits_by_hand(gumbel_quantizer<double>& q, const matrix<double>& x) {
  return (x * q.weight().to_matrix().transpose()).rowwise() + q.bias().to_matrix().transpose().row(0);
}

}  // namespace

TEST_CASE("gumbel_quantizer: at inference the best logit of every group, and its value", "[codebook]") {
  auto q = drawing_quantizer();
  const matrix<double> x = test::random_matrix<double>(gumbel_tokens, gumbel_width, 1), logits = logits_by_hand(q, x);
  gumbel_quantizer<double>::workspace workspace;
  matrix<double> y(gumbel_tokens, gumbel_outputs), decoded(gumbel_tokens, gumbel_outputs);
  matrix<index_t> ids(gumbel_tokens, 2);
  q.forward(x, y, workspace);
  q.encode(x, ids, workspace);
  q.decode(ids, decoded, workspace);
  CHECK(test::same_bits(y, decoded));
  for (index_t t = 0; t < gumbel_tokens; ++t)
    for (index_t g = 0; g < 2; ++g) {
      index_t best = 0;
      logits.row(t).segment(7 * g, 7).maxCoeff(&best);
      CHECK(ids(t, g) == best);
      CHECK(test::same_bits(y.row(t).segment(3 * g, 3), q.values().to_matrix().row(7 * g + best)));
    }
}

TEST_CASE("gumbel_quantizer: codes are drawn as often as the softmax says", "[codebook]") {
  gumbel_quantizer<double> q(1, 1, {.groups = 1, .entries = 3});
  q.weight().fill([](index_t v) { return 1.0 - static_cast<double>(v); });
  initialize(q.values(), 1);
  constexpr index_t draws = 20000;
  const matrix<double> x = matrix<double>::Ones(draws, 1);
  matrix<double> y(draws, 1);
  gumbel_quantizer<double>::tape tape;
  q.forward(x, y, tape, {.training = true, .random = random_source{1}});
  std::array<double, 3> found{};
  for (index_t t = 0; t < draws; ++t) found[as_size(tape.ids(t, 0))] += 1.0 / draws;
  const double sum = std::exp(1) + 1 + std::exp(-1);
  for (int v = 0; v < 3; ++v)
    CHECK(found[as_size(v)] == Approx(std::exp(1 - v) / sum).margin(5 * 0.5 / std::sqrt(double(draws))));
}

TEST_CASE("gumbel_quantizer: the gradient is that of the soft choice, colder with every step", "[codebook][gradient]") {
  auto q = drawing_quantizer({.groups = 2, .entries = 7, .start = 2, .stop = 0.9, .decay = 0.9});
  const matrix<double> x = test::random_matrix<double>(gumbel_tokens, gumbel_width, 1), dy = test::random_matrix<double>(gumbel_tokens, gumbel_outputs, 2);
  for (const index_t step : {0, 4, 100}) {
    routing_context<double> context{.random = random_source{5}, .step = step};
    const auto r = test::train_once(q, x, dy, context);
    const double tau = std::max(2 * std::pow(0.9, step), 0.9);
    const matrix<double> values = q.values().to_matrix();
    matrix<double> dlogits(gumbel_tokens, 14), logits = logits_by_hand(q, x);
    for (index_t t = 0; t < gumbel_tokens; ++t)
      for (index_t g = 0; g < 2; ++g) {
        Eigen::ArrayXd noisy(7);
        for (index_t v = 0; v < 7; ++v)
          noisy(v) =
              (logits(t, 7 * g + v) + context.random.gumbel(gumbel_quantizer<double>::site, (t * 2 + g) * 7 + v)) / tau;
        const Eigen::ArrayXd p = noisy.exp() / noisy.exp().sum();
        const Eigen::ArrayXd d = (values.middleRows(7 * g, 7) * dy.row(t).segment(3 * g, 3).transpose()).array();
        dlogits.row(t).segment(7 * g, 7) = (p * (d - (p * d).sum()) / tau).matrix().transpose();
      }
    CHECK(test::largest_difference(r.dx, matrix<double>(dlogits * q.weight().to_matrix())) < 1e-13);
    CHECK(test::largest_difference(r.gradients[0], matrix<double>(dlogits.transpose() * x)) < 1e-12);
  }
}

TEST_CASE("gumbel_quantizer: the diversity loss and its gradients", "[codebook][gradient]") {
  auto q = drawing_quantizer({.groups = 2, .entries = 7, .shared_table = true, .diversity_weight = 0.8});
  // All logits count, drawn or not: draws change nothing of it.
  test::check_loss_gradients(q, test::random_matrix<double>(gumbel_tokens, gumbel_width, 1));
  const matrix<double> none(0, gumbel_width);
  matrix<double> y(0, gumbel_outputs);
  gumbel_quantizer<double>::tape tape;
  q.forward(none, y, tape);
  CHECK(tape.loss() == 0);
}

TEST_CASE("gumbel_quantizer: without training nothing is drawn, and only values learn", "[codebook][gradient]") {
  auto q = drawing_quantizer();
  const matrix<double> x = test::random_matrix<double>(gumbel_tokens, gumbel_width, 1), dy = test::random_matrix<double>(gumbel_tokens, gumbel_outputs, 2);
  gumbel_quantizer<double>::tape tape;
  gumbel_quantizer<double>::workspace workspace;
  matrix<double> y(gumbel_tokens, gumbel_outputs), inferred(gumbel_tokens, gumbel_outputs), dx(gumbel_tokens, gumbel_width);
  q.forward(x, inferred, workspace);
  q.forward(x, y, tape, routing_context<double>{.random = random_source{1}});
  CHECK(test::same_bits(y, inferred));
  zero_gradients(q);
  q.backward(dy, dx, tape);
  CHECK(dx.isZero(0));
  CHECK(q.weight().gradient_matrix().isZero(0));
  CHECK(q.values().gradient_matrix().sum() == Approx(dy.sum()));
}

TEST_CASE("gumbel_quantizer: every promise of a layer, and options", "[codebook][conformance]") {
  test::check_quantizer_promises(drawing_quantizer({.groups = 2, .entries = 7, .diversity_weight = 0.1}), 5);
  CHECK_THROWS_WITH(gumbel_quantizer<float>(5, 6, {.groups = 4}), Catch::Contains("not 5, 6, 4"));
  CHECK_THROWS_AS(gumbel_quantizer<float>(5, 6, {.stop = 0}), std::invalid_argument);
  CHECK_THROWS_WITH(gumbel_quantizer<float>(5, 6, {.groups = 2, .entries = index_t(1) << 62}),
                    Catch::Contains("no array of 2 x 4611686018427387904 numbers"));
}
