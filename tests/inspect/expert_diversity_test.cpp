#include <sluice/inspect/expert_diversity.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/linear.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("expert_diversity: distances of outputs by hand", "[inspect][diversity]") {
  expert_bank<linear_expert<double>> bank(3, 2, 2);
  matrix<double> w(2, 2);
  w << 1, 0, 0, 1;
  bank.expert(0).weight().assign(w);
  bank.expert(1).weight().assign(matrix<double>(3 * w));
  bank.expert(2).weight().assign(matrix<double>(-w));
  matrix<double> x(3, 2);
  x << 3, 0, quiet_nan<double>(), 1, 0, 4;  // outputs of length 5 as they are
  const matrix<double> d = expert_distances(bank, tokens_in<double>(x));
  CHECK(d(0, 1) == Approx(10));
  CHECK(d(0, 2) == Approx(10));
  CHECK(d(2, 1) == Approx(20));
  CHECK(d(1, 1) == 0);
  CHECK(diversity_of(d) == Approx(2.0 / 3));
  const matrix<double> unit = expert_distances(bank, tokens_in<double>(x), {.unit_outputs = true});
  CHECK(unit(0, 1) == Approx(0).margin(1e-15));
  CHECK(unit(0, 2) == Approx(2));
  CHECK(diversity_of(unit) == Approx(2.0 / 3));
  CHECK(diversity_of(matrix<double>::Zero(1, 1)) == 0);
  CHECK(diversity_of(matrix<double>::Zero(4, 4)) == 0);
  CHECK(diversity_of(expert_distances(bank, tokens_in<double>(matrix<double>(0, 2)))) == 0);
  CHECK_THROWS_WITH(expert_distances(bank, tokens_in<double>(matrix<double>(1, 3))),
                    Catch::Matchers::Contains("width 2"));
}
