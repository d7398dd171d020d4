#include <sluice/codebook/codes/zero_first.hpp>

#include <sluice/codebook/codes/mapped.hpp>
#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/structure/residual.hpp>
#include <sluice/codebook/vector_quantizer.hpp>

#include "../../layer/plain_checks.hpp"
#include "../codebook_checks.hpp"

using namespace sluice;

TEST_CASE("zero_first: code 0 is zero, the others are the codebook's, in search, gradients and learning", "[codebook]") {
  vector_quantizer q{zero_first{learned_codes<double>{6, 3}}};
  q.codebook().others().table().assign(test::random_matrix<double>(6, 3, 1));
  vector_quantizer whole{learned_codes<double>{7, 3}};
  matrix<double> codes = matrix<double>::Zero(7, 3);
  codes.bottomRows(6) = q.codebook().others().table().to_matrix();
  whole.codebook().table().assign(codes);
  matrix<double> x = test::random_matrix<double>(40, 3, 2), dy = test::random_matrix<double>(40, 3, 3);
  x.topRows(10) *= 0.01;
  const auto own = test::train_once(q, x, dy), expected = test::train_once(whole, x, dy);
  CHECK(test::same_bits(own.y, expected.y));
  CHECK(own.y.row(0).isZero(0));
  CHECK(test::same_bits(own.dx, expected.dx));
  CHECK(test::same_bits(own.gradients[0], expected.gradients[0].bottomRows(6)));
}

TEST_CASE("zero_first: no stage makes the error larger, after training too, and nothing moves code 0", "[codebook]") {
  residual_quantizer rq{vector_quantizer{zero_first{moving_average_codes<double>{4, 3, {.decay = 0.5}}}}, 5};
  initialize(rq, 1);
  const matrix<double> x = test::random_matrix<double>(50, 3, 2);
  matrix<double> y(50, 3);
  decltype(rq)::tape tape;
  decltype(rq)::workspace workspace;
  for (int step = 0; step < 5; ++step) {
    rq.forward(x, y, tape);
    rq.after_step(tape);
    double before = x.squaredNorm();
    for (index_t n = 1; n <= 5; ++n) {
      rq.use_stages(n);
      rq.forward(x, y, workspace);
      CHECK((x - y).squaredNorm() <= before + 1e-12);
      before = (x - y).squaredNorm();
    }
  }
  rq.stage(0).codebook().replace(0, x.data());
  const matrix<index_t> ids = matrix<index_t>::Zero(1, 1);
  matrix<double> zero(1, 3);
  vector_quantizer<zero_first<moving_average_codes<double>>>::workspace own;
  rq.stage(0).decode(ids, zero, own);
  CHECK(zero.isZero(0));
}

TEST_CASE("zero_first: every promise of a layer", "[codebook][conformance]") {
  test::check_quantizer_promises(vector_quantizer{zero_first{moving_average_codes<double>{6, 3}}}, 1);
  test::check_quantizer_promises(vector_quantizer{zero_first{mapped_codes<double>{6, 3}}, cosine_similarity{}}, 2);
}
