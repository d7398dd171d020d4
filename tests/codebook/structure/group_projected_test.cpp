#include <sluice/codebook/structure/group_projected.hpp>

#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/structure/product.hpp>
#include <sluice/codebook/vector_quantizer.hpp>

#include "../../layer/plain_checks.hpp"
#include "../codebook_checks.hpp"

using namespace sluice;

TEST_CASE("group_projected_quantizer: every item and group has mean 0 and variance 1 of its own", "[codebook][structure]") {
  const vector_quantizer part{learned_codes<double>{5, 3}};
  group_projected_quantizer q{2, product_quantizer{std::vector(2, part)}};
  initialize(q, 1);
  matrix<double> x = test::random_matrix<double>(12, 6, 2), y(12, 6);
  const std::vector<index_t> items{0, 5, 5, 12};
  std::vector<std::uint8_t> mask(12, 1);
  mask[7] = 0;
  x(7, 0) = quiet_nan<double>();
  decltype(q)::tape tape;
  q.forward(x, y, tape, {.training = true, .token_mask = mask, .groups = items});
  const matrix<double> z = tape.z.map();
  for (const index_t first : {0, 3}) {
    CHECK(std::abs(z.block(0, first, 5, 3).mean()) < 1e-12);
    CHECK(z.block(0, first, 5, 3).array().square().mean() == Approx(1).margin(1e-3));
    matrix<double> seen(6, 3);
    seen << z.block(5, first, 2, 3), z.block(8, first, 4, 3);
    CHECK(std::abs(seen.mean()) < 1e-12);
    CHECK(seen.array().square().mean() == Approx(1).margin(1e-3));
  }
  CHECK_THROWS_WITH((group_projected_quantizer{4, part}), Catch::Contains("not 4 of D = 3"));
}

TEST_CASE("group_projected_quantizer: every promise of a layer", "[codebook][structure][conformance]") {
  const vector_quantizer part{moving_average_codes<double>{5, 3}};
  test::check_quantizer_promises(group_projected_quantizer{2, product_quantizer{std::vector(2, part)}}, 1);
}
