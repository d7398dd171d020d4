#include <sluice/codebook/codes/mapped.hpp>

#include <sluice/codebook/vector_quantizer.hpp>
#include <sluice/train/initialize.hpp>

#include "../../layer/plain_checks.hpp"

using namespace sluice;

TEST_CASE("mapped_codes: the gradient of the codes goes to the map, the basis stays", "[codebook][gradient]") {
  vector_quantizer q{mapped_codes<double>{7, 4, 3, {.bias = true}}, commitment_loss{.encoder = 0.25, .codebook = 1}};
  initialize(q, 3);
  const matrix<double> x = test::random_matrix<double>(20, 4, 1), dy = test::random_matrix<double>(20, 4, 2);
  vector_quantizer plain{q.codebook().fold(), commitment_loss{.encoder = 0.25, .codebook = 1}};
  const matrix<double> basis = q.codebook().basis().to_matrix();
  const auto mapped = test::train_once(q, x, dy), folded = test::train_once(plain, x, dy);
  CHECK(test::same_bits(mapped.y, folded.y));
  CHECK(test::same_bits(mapped.dx, folded.dx));
  const matrix<double>& dcodes = folded.gradients[0];
  CHECK(test::largest_difference(q.codebook().weight().gradient_matrix(), matrix<double>(dcodes.transpose() * basis)) < 1e-15);
  CHECK(test::largest_difference(q.codebook().bias().gradient_matrix().transpose(), dcodes.colwise().sum()) < 1e-15);
  CHECK(test::same_bits(q.codebook().basis().to_matrix(), basis));
  CHECK(!q.codebook().basis().is_learned());
}

TEST_CASE("mapped_codes: an identity map is the basis as a codebook", "[codebook]") {
  vector_quantizer q{mapped_codes<float>{7, 4}};
  initialize(q, 3);
  q.codebook().weight().assign(matrix<float>::Identity(4, 4));
  const matrix<float> x = test::random_matrix<float>(20, 4, 1);
  matrix<float> y(20, 4);
  decltype(q)::tape tape;
  q.forward(x, y, tape);
  const matrix<float> basis = q.codebook().basis().to_matrix();
  for (index_t t = 0; t < 20; ++t) CHECK(test::same_bits(y.row(t), basis.row(tape.ids(t, 0))));
  CHECK_THROWS_AS(mapped_codes<float>(7, 4, 0), std::invalid_argument);
}
