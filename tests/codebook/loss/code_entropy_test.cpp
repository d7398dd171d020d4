#include <sluice/codebook/loss/code_entropy.hpp>

#include <sluice/codebook/vector_quantizer.hpp>

#include "../codebook_checks.hpp"

using namespace sluice;

TEST_CASE("code_entropy_loss: the formula and its gradients", "[codebook][gradient]") {
  constexpr index_t T = 21, C = 140, D = 4;
  vector_quantizer q{learned_codes<double>{C, D}, inner_product{},
                     code_entropy_loss{.sample = 0.8, .batch_weight = 0.6, .temperature = 0.7, .coefficient = 0.5}};
  q.codebook().table().assign(test::random_matrix<double>(C, D, 3));
  const matrix<double> x = test::random_matrix<double>(T, D, 1);
  decltype(q)::tape tape;
  matrix<double> y(T, D);
  q.forward(x, y, tape);
  Eigen::ArrayXd mean = Eigen::ArrayXd::Zero(C);
  double sample = 0;
  for (index_t t = 0; t < T; ++t) {
    const Eigen::ArrayXd l = (q.codebook().table().to_matrix() * x.row(t).transpose()).array() / 0.7;
    const Eigen::ArrayXd p = l.exp() / l.exp().sum();
    sample -= (p * p.log()).sum() / T;
    mean += p / T;
  }
  CHECK(tape.loss() == Approx(0.5 * (0.8 * sample + 0.6 * (mean * (mean + 1e-5).log()).sum())));
  test::check_loss_gradients(q, x);
}

TEST_CASE("code_entropy_loss: large logits keep the digits of a small entropy", "[codebook]") {
  // Two codes that differ by little beside a common part.
  vector_quantizer q{learned_codes<float>{2, 2}, inner_product{},
                     code_entropy_loss{.batch_weight = 0, .temperature = 0.01}};
  q.codebook().table().assign((matrix<float>(2, 2) << 8, 0, 8, 0.0625F).finished());
  const matrix<float> x = (matrix<float>(1, 2) << 8, 1).finished();
  matrix<float> y(1, 2);
  decltype(q)::tape tape;
  q.forward(x, y, tape);
  const double p = 1 / (1 + std::exp(-6.25));
  CHECK(tape.loss() == Approx(-p * std::log(p) - (1 - p) * std::log1p(-p)).epsilon(1e-3));
}

TEST_CASE("code_entropy_loss: every promise of a layer, and options", "[codebook][conformance]") {
  test::check_quantizer_promises(vector_quantizer{learned_codes<double>{11, 6}, inner_product{}, code_entropy_loss{}},
                                 5);
  CHECK_THROWS_AS(vector_quantizer(learned_codes<double>{11, 6}, code_entropy_loss{.temperature = 0}),
                  std::invalid_argument);
}
