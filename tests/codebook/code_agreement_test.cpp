#include <sluice/codebook/code_agreement.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("code_agreement: a mean over the tokens of a sequence that are seen", "[codebook]") {
  matrix<double> x(7, 2), y(7, 2);
  x << 3, 4, 1, 0, 9, 9, quiet_nan<double>(), 1, 0, 0, 5, 5, 6, 6;
  y << 3, 4, 1, 1, -1, 0, quiet_nan<double>(), 2, 1, 0, 1, 0, 1, 0;
  const std::vector<std::uint8_t> mask{1, 1, 0, 1, 1, 0, 0};
  const std::vector<index_t> borders{0, 4, 5, 7};
  std::vector<double> scores(3);
  const routing_context<double> context{.token_mask = mask, .sequences = borders};
  code_agreement<double>(x, y, scores, context);
  CHECK(scores[0] == Approx((1 + std::sqrt(0.5)) / 2));
  CHECK(scores[1] == 0);
  CHECK(is_nan(scores[2]));
  code_agreement<double>(x, y, scores, context, agreement::squared_distance);
  CHECK(scores[0] == Approx(0.25));
  CHECK(scores[1] == Approx(0.5));
  CHECK_THROWS_WITH(code_agreement<double>(x, y, scores), Catch::Contains("3 scores for 1"));
}
