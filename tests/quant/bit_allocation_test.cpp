#include <sluice/quant/bit_allocation.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

/// By trying every assignment.
double least_cost(const matrix<double>& cost, index_t budget, bool everything_used) {
  const index_t E = cost.rows(), B = cost.cols();
  index_t count = 1;
  for (index_t i = 0; i < E; ++i) count *= B;
  double best = 1e300;
  for (index_t n = 0; n < count; ++n) {
    index_t rest = n, bits = 0;
    double sum = 0;
    bool two = false, three = false;
    for (index_t i = 0; i < E; ++i, rest /= B) {
      const index_t b = rest % B + 1;
      bits += b;
      sum += cost(i, b - 1);
      two = two || b == 2;
      three = three || b == 3;
    }
    if (bits <= budget && (!everything_used || (two && three))) best = std::min(best, sum);
  }
  return best;
}

}  // namespace

TEST_CASE("allocate_bits: the worked example of three experts", "[quant][bit_allocation]") {
  matrix<double> cost(3, 3);
  cost << 9, 4, 1, 9, 4, 1, 90, 4, 1;
  const bit_allocation found = allocate_bits(cost, 6);
  CHECK(found.cost == 14);
  CHECK(found.bits == std::vector<index_t>{1, 2, 3});  // the first of four
  CHECK(allocate_bits(cost, 6, false).bits == std::vector<index_t>{2, 2, 2});
  CHECK(allocate_bits(cost, 6, false).cost == 12);
  CHECK(allocate_bits(cost, 100).cost == 6);  // everything at 3 bits, but for one at 2
  CHECK_THROWS_WITH(allocate_bits(cost, 5), "sluice: 3 experts need a budget of 6 bits or more, not 5");
  CHECK_THROWS_AS(allocate_bits(cost, 2, false), std::invalid_argument);
  CHECK_THROWS_AS(allocate_bits(cost.topRows(1), 9), std::invalid_argument);
  cost(1, 1) = quiet_nan<double>();
  CHECK_THROWS_WITH(allocate_bits(cost, 6),
                    Catch::Matchers::StartsWith("sluice: costs of experts are 0 or more, not "));
}

TEST_CASE("allocate_bits: as cheap as the best of all assignments", "[quant][bit_allocation]") {
  for (std::uint64_t seed = 1; seed <= 8; ++seed)
    for (const index_t budget : {8, 9, 11, 14}) {
      const matrix<double> cost = test::random_matrix<double>(5, 3, seed).array().square().matrix();
      for (const bool everything : {true, false}) {
        const bit_allocation found = allocate_bits(cost, budget, everything);
        CHECK(found.cost == Approx(least_cost(cost, budget, everything)));
        double sum = 0;
        index_t bits = 0;
        for (index_t i = 0; i < 5; ++i) {
          sum += cost(i, found.bits[as_size(i)] - 1);
          bits += found.bits[as_size(i)];
        }
        CHECK(sum == Approx(found.cost));
        CHECK(bits <= budget);
      }
    }
}

TEST_CASE("allocation_costs: shares and errors to their powers", "[quant][bit_allocation]") {
  matrix<double> error(2, 3);
  error << 4, 2, 1, 8, 4, 2;
  const std::vector<double> tokens{1, 3}, weights{1, 0}, none{0, 0};
  const matrix<double> cost = allocation_costs(tokens, weights, error, {.error_exponent = 2});
  CHECK(cost(0, 0) == Approx(0.25 * 16));
  CHECK(cost(1, 0) == 0);  // nobody gave it weight
  CHECK(allocation_costs(none, none, error) == error);
  CHECK_THROWS_AS(allocation_costs(tokens, weights, error.topRows(1)), std::invalid_argument);
  for (const double bad : {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    CHECK_THROWS_WITH(allocation_costs(tokens, weights, error, {.token_exponent = bad}),
                      Catch::Matchers::Contains("exponents >= 0"));
    CHECK_THROWS_AS(allocation_costs(tokens, weights, error, {.weight_exponent = bad}), std::invalid_argument);
    CHECK_THROWS_AS(allocation_costs(tokens, weights, error, {.error_exponent = bad}), std::invalid_argument);
  }
}
