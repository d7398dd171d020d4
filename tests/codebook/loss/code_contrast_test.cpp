#include <sluice/codebook/loss/code_contrast.hpp>

#include <sluice/codebook/vector_quantizer.hpp>

#include "../codebook_checks.hpp"

using namespace sluice;

namespace {

template <typename Metric>
auto contrasting_quantizer(index_t codes, index_t width) {
  vector_quantizer q{learned_codes<double>{codes, width}, Metric{},
                     code_contrast_loss<Metric>{.coefficient = 0.7, .temperature = 0.5}};
  q.codebook().table().assign(test::random_matrix<double>(codes, width, 3));
  return q;
}

}  // namespace

TEST_CASE("code_contrast_loss: the formula, and gradients that reach codes only", "[codebook][gradient]") {
  const matrix<double> x = test::random_matrix<double>(23, 4, 1);
  auto q = contrasting_quantizer<squared_distance>(5, 4);
  test::check_loss_gradients(q, x, false);
  auto cosine = contrasting_quantizer<cosine_similarity>(70, 4);  // more codes than are looked at together
  test::check_loss_gradients(cosine, x, false);
  auto product = contrasting_quantizer<inner_product>(5, 4);
  test::check_loss_gradients(product, x, false);

  decltype(q)::tape tape;
  matrix<double> y(23, 4);
  q.forward(x, y, tape);
  double expected = 0;
  const matrix<double> codes = q.codebook().table().to_matrix();
  for (index_t c = 0; c < 5; ++c) {
    std::vector<double> scores;
    for (index_t t = 0; t < 23; ++t) scores.push_back(-(x.row(t) - codes.row(c)).squaredNorm());
    std::sort(scores.begin(), scores.end());
    double best = 0, worst = 0;
    for (std::size_t i = 19; i < 23; ++i) best += scores[i] / 4;  // 23 / 5 = 4 of them, against 11
    for (std::size_t i = 0; i < 11; ++i) worst += std::exp(scores[i] / 0.5);
    expected += std::log(1 + worst / std::exp(best / 0.5)) / 5;
  }
  CHECK(tape.loss() == Approx(0.7 * expected));
}

TEST_CASE("code_contrast_loss: one token, and none", "[codebook]") {
  auto q = contrasting_quantizer<squared_distance>(5, 4);
  test::check_loss_gradients(q, test::random_matrix<double>(1, 4, 1), false);
  test::check_loss_gradients(q, test::random_matrix<double>(2, 4, 1), false);
  test::check_quantizer_promises(q, 5);
}

TEST_CASE("code_contrast_loss: threads change no bit", "[codebook]") {
  auto q = contrasting_quantizer<cosine_similarity>(70, 4);
  const matrix<double> x = test::random_matrix<double>(23, 4, 1), none = matrix<double>::Zero(23, 4);
  matrix<double> y(23, 4), dx(23, 4);
  std::vector<matrix<double>> gradients;
  test::shuffled_threads threads(3);
  for (const executor_ref& executor : {executor_ref(), executor_ref(threads)}) {
    decltype(q)::tape tape;
    q.forward(x, y, tape, {.training = true, .executor = executor});
    zero_gradients(q);
    q.backward(none, dx, tape);
    gradients.push_back(q.codebook().table().gradient_matrix());
  }
  CHECK(test::same_bits(gradients[0], gradients[1]));
}
