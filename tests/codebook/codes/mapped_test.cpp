#include <sluice/codebook/codes/mapped.hpp>

#include <sluice/codebook/structure/residual.hpp>
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

namespace {

/// Mapped codes that count how often the map is evaluated.
struct counting_mapped_codes : mapped_codes<double> {
  using mapped_codes<double>::mapped_codes;
  mutable int evaluations = 0;

  void evaluate(memory& m, const executor_ref& executor) const {
    ++evaluations;
    mapped_codes<double>::evaluate(m, executor);
  }
};

}  // namespace

TEST_CASE("mapped_codes: a call of a structure in inference evaluates the map of every stage that it uses once", "[codebook][structure]") {
  residual_quantizer q{std::vector(3, vector_quantizer{counting_mapped_codes{5, 4}})};
  initialize(q, 1);
  q.use_stages(2);
  const matrix<double> x = test::random_matrix<double>(7, 4, 1);
  matrix<double> y(7, 4), decoded(7, 4);
  matrix<index_t> ids(7, 3);
  decltype(q)::workspace ws;
  const auto evaluations_since = [&] {
    std::vector<int> all;
    for (index_t j = 0; j < 3; ++j) all.push_back(std::exchange(q.stage(j).codebook().evaluations, 0));
    return all;
  };
  q.forward(x, y, ws);
  CHECK(evaluations_since() == std::vector{1, 1, 0});
  q.encode(x, ids, ws);
  CHECK(evaluations_since() == std::vector{1, 1, 0});
  q.decode(ids, decoded, ws);
  CHECK(evaluations_since() == std::vector{1, 1, 0});
  CHECK(test::same_bits(decoded, y));
  ids.col(2).setZero();
  q.decode(ids, decoded, ws);
  CHECK(evaluations_since() == std::vector{1, 1, 1});
}
