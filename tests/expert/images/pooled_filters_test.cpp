#include <sluice/expert/images/pooled_filters.hpp>

#include <sluice/train/conformance.hpp>
#include <sluice/train/initialize.hpp>

#include "../../support.hpp"

using namespace sluice;

TEST_CASE("pooled_filters: two pieces, two classes, worked out by hand", "[expert][images]") {
  pooled_filters<double, cube> expert(2, 2, 2, 1);
  matrix<double> weight(2, 2), x(1, 4), y(1, 2), dy(1, 2), dx(1, 4), saved(1, expert.saved_columns());
  weight << 1, 2, 0, -1;
  expert.weight().assign(weight);
  expert.bias().value()[0] = 1;
  x << 1, -1, 2, 0;  // z of class 0: 0 and 3, of class 1: 1 and 0
  expert.forward(x, y, saved);
  CHECK((y(0, 0) == 27 && y(0, 1) == 1));
  dy << 1, 2;
  expert.backward(x, dy, saved, dx);
  matrix<double> dx_expected(1, 4), dweight(2, 2);  // dz: 0 and 27, 6 and 0
  dx_expected << 0, -6, 27, 54;
  dweight << 54, 0, 6, -6;
  CHECK(dx == dx_expected);
  CHECK(expert.weight().gradient_matrix() == dweight);
  CHECK((expert.bias().gradient()[0] == 27 && expert.bias().gradient()[1] == 6));
}

TEST_CASE("pooled_filters: the order of the pieces means nothing", "[expert][images]") {
  pooled_filters<double, cube> expert(3, 5, 2, 4);
  initialize(expert, 1);
  const matrix<double> x = test::random_matrix<double>(1, 15, 2);
  matrix<double> turned(1, 15), y(1, 2), other(1, 2), saved(1, expert.saved_columns());
  turned << x.rightCols(5), x.leftCols(10);
  expert.forward(x, y, saved);
  expert.forward(turned, other, saved);
  CHECK(test::largest_difference(y, other) < test::bound<double>(12, 100));
}

TEST_CASE("pooled_filters: keeps the promises of experts", "[expert][images]") {
  pooled_filters<double, cube> cubic(3, 4, 2, 3);
  initialize(cubic, 3);
  const auto report = check_expert(cubic);
  INFO(report.describe());
  CHECK(report.passed());
  CHECK_THROWS_AS((pooled_filters<double>(0, 4, 2, 3)), std::invalid_argument);
}
