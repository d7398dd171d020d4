#include <sluice/quant/range_calibration.hpp>
#include <sluice/quant/token_precision.hpp>

#include "support.hpp"

using namespace sluice;

TEST_CASE("range_calibration: blocks begin after spread out activations and every third layer",
          "[quant][range_calibration]") {
  // One token of every hundred, or all alike: entropies near 0 and large.
  matrix<float> peaked = matrix<float>::Zero(100, 4), even = matrix<float>::Ones(100, 4);
  peaked.row(7).setConstant(3);
  range_calibration calibration({4, 4, 4, 4, 4, 4}, {.dependent_from = 5.0});
  const std::vector<const matrix<float>*> seen{&peaked, &even, &peaked, &peaked, &peaked, &peaked};
  for (index_t layer = 0; layer < 6; ++layer) calibration.observe(layer, *seen[as_size(layer)]);
  CHECK(calibration.entropy(0) == 0);
  CHECK(calibration.entropy(1) == Approx(100 * 0.1 * std::log(10.0)));  // p = 1 / sqrt(100)
  std::vector<index_t> blocks;
  for (index_t layer = 0; layer < 6; ++layer) blocks.push_back(calibration.block_of(layer));
  CHECK(blocks == std::vector<index_t>{0, 0, 1, 1, 1, 2});
  CHECK_THROWS_WITH(calibration.observe(0, even), "sluice: activations were observed after others had been weighed");
}

TEST_CASE("range_calibration: a block's factor is that with the least summed loss", "[quant][range_calibration]") {
  matrix<float> tight = test::random_matrix<float>(400, 2, 1), wide = test::random_matrix<float>(400, 2, 2);
  wide.row(3).setConstant(40);  // an outlier: a smaller range serves the others better
  wide(5, 1) = quiet_nan<float>();
  const range_options o{.bits = 3, .longest = 2, .dependent_from = 1e9};
  range_calibration calibration({2, 2, 2}, o);
  const std::vector<const matrix<float>*> seen{&tight, &wide, &tight};
  for (index_t layer = 0; layer < 3; ++layer) calibration.observe(layer, *seen[as_size(layer)]);
  for (index_t layer = 0; layer < 3; ++layer) calibration.weigh(layer, *seen[as_size(layer)]);
  const auto loss = [&](const matrix<float>& x, double factor) {
    double sum = 0;
    for (index_t c = 0; c < 2; ++c) {
      kernel::number_range range;
      for (index_t r = 0; r < 400; ++r)
        if (r != 5 || &x != &wide) range = {std::min(range.least, x(r, c)), std::max(range.most, x(r, c))};
      const kernel::code_grid grid = fit_code_grid(
          {static_cast<float>(factor) * range.least, static_cast<float>(factor) * range.most}, code_range::min_max, 3);
      for (index_t r = 0; r < 400; ++r)
        if (r != 5 || &x != &wide)
          sum += std::sqrt(std::abs(static_cast<double>(x(r, c) - grid.value(grid.nearest(x(r, c))))));
    }
    return sum;
  };
  double best = 1, least = 1e9, best_alone = 1, least_alone = 1e9;
  for (int f = 0; f < 7; ++f) {
    const double factor = 1 - 0.1 * f;
    if (const double both = loss(tight, factor) + loss(wide, factor); both < least) least = both, best = factor;
    if (const double alone = loss(tight, factor); alone < least_alone) least_alone = alone, best_alone = factor;
  }
  CHECK(calibration.factor(0) == best);
  CHECK(calibration.factor(1) == best);
  CHECK(calibration.factor(2) == best_alone);
  CHECK(best != best_alone);
  CHECK(calibration.grids(1).size() == 2);
  CHECK_THROWS_AS(calibration.weigh(3, tight), std::invalid_argument);
  CHECK_THROWS_AS(calibration.weigh(0, wide.leftCols(1)), std::invalid_argument);
  CHECK_THROWS_AS(range_calibration({3}, {.factors = 11}), std::invalid_argument);
  CHECK(range_calibration({3}).factor(0) == 1);  // nothing seen
}

TEST_CASE("token_precision: tokens with outliers have 8 bits, the others what the score says",
          "[quant][token_precision]") {
  matrix<float> x = test::random_matrix<float>(500, 8, 3);
  x(4, 2) = 30;
  x(9, 0) = quiet_nan<float>();
  const auto found = [&](precision_options o) {
    token_precision precision({{8, 100}, {8, 1}}, std::move(o));
    for (const index_t layer : {0, 1}) precision.observe(layer, x);
    for (const index_t layer : {0, 1}) precision.count(layer, x);
    return precision;
  };
  const token_precision precision = found({.balance = 0.3});
  CHECK(precision.has_outlier(0, &x(4, 0)));
  CHECK(precision.has_outlier(0, &x(9, 0)));
  CHECK_FALSE(precision.has_outlier(0, &x(5, 0)));
  CHECK(precision.score(0, 8) == 0);
  const std::vector<int> bits = precision.layer_bits();
  CHECK(bits[0] < 8);   // nearly all operations are its own
  CHECK(bits[1] == 8);  // saves next to nothing
  CHECK(found({.balance = 0}).layer_bits() == std::vector<int>{2, 2});
  CHECK(found({.balance = 1}).layer_bits() == std::vector<int>{8, 8});
  const std::vector<int> limited = found({.balance = 1, .memory = 8 * 12}).layer_bits();
  CHECK(limited[0] + limited[1] <= 12);
  CHECK_THROWS_WITH(found({.memory = 8}).layer_bits(), Catch::Matchers::Contains("cannot be kept in 8"));
  CHECK(token_precision({{8, 1}}).layer_bits() == std::vector<int>{8});
  CHECK_THROWS_AS(token_precision({{0, 1}}), std::invalid_argument);
  CHECK_THROWS_AS(token_precision({{8, 1}}, {.choices = {4, 2}}), std::invalid_argument);
}
