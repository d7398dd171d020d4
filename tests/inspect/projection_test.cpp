#include <sluice/inspect/projection.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

/// Six points in a plane of `width` dimensions, at (+-3, +-1) and (+-2, 0) of it, far from the origin.
matrix<double> points_in_a_plane(index_t width) {
  const double places[6][2] = {{3, 1}, {3, -1}, {-3, 1}, {-3, -1}, {2, 0}, {-2, 0}};
  matrix<double> points(6, width);
  for (index_t i = 0; i < 6; ++i)
    for (index_t f = 0; f < width; ++f) {
      const double u = f < 2 ? std::sqrt(0.5) : 0, v = f == 0 ? std::sqrt(0.5) : f == 1 ? -std::sqrt(0.5) : 0;
      points(i, f) = 5 + places[i][0] * u + places[i][1] * v;
    }
  return points;
}

}  // namespace

TEST_CASE("projection: a plane is found again, from few points and from many", "[inspect]") {
  for (const index_t width : {2, 9}) {
    const projected_points p = principal_components(points_in_a_plane(width), {.unit_variance = false});
    matrix<double> expected(6, 2);
    expected << 3, 1, 3, -1, -3, 1, -3, -1, 2, 0, -2, 0;
    CHECK(test::largest_difference(p.coordinates, expected) < 1e-12);
    CHECK_THAT(p.share[0], Catch::WithinAbs(44.0 / 48, 1e-14));
    CHECK_THAT(p.share[1], Catch::WithinAbs(4.0 / 48, 1e-14));
    const projected_points more =
        principal_components(points_in_a_plane(width), {.components = 4, .unit_variance = false});
    CHECK(more.coordinates.rightCols(2).isZero(0));
    CHECK(more.share[3] == 0);
  }
}

TEST_CASE("projection: components are uncorrelated, and all of them keep every distance", "[inspect]") {
  const matrix<float> x = test::random_matrix<float>(5, 12, 3);
  const projected_points p = principal_components(x, {.components = 4, .unit_variance = false});
  const matrix<double> products = p.coordinates.transpose() * p.coordinates;
  for (index_t c = 1; c < 4; ++c) {
    CHECK(std::abs(products(c, c - 1)) < 1e-12 * products(0, 0));
    CHECK(p.share[as_size(c)] <= p.share[as_size(c - 1)]);
  }
  CHECK_THAT(p.share[0] + p.share[1] + p.share[2] + p.share[3], Catch::WithinAbs(1, 1e-12));
  CHECK_THAT((p.coordinates.row(1) - p.coordinates.row(4)).norm(),
             Catch::WithinRel((x.row(1) - x.row(4)).cast<double>().norm(), 1e-6));
}

TEST_CASE("projection: columns are scaled, constant ones say nothing", "[inspect]") {
  matrix<double> x(4, 3);
  x << 1, 1000, 0.1, -1, -1000, 0.1, 1, -1000, 0.1, -1, 1000, 0.1;
  CHECK(principal_components(x, {.unit_variance = false}).share[0] > 0.99999);
  const projected_points scaled = principal_components(x);
  CHECK_THAT(scaled.share[0], Catch::WithinAbs(0.5, 1e-12));
  CHECK_THAT(scaled.share[0] + scaled.share[1], Catch::WithinAbs(1, 1e-12));
  // Deviations divide by n - 1: two columns of variance 1, three times each in all.
  CHECK_THAT(scaled.coordinates.squaredNorm(), Catch::WithinAbs(6, 1e-12));
}

TEST_CASE("projection: little to see, and what it refuses", "[inspect]") {
  CHECK(principal_components(matrix<double>(0, 3)).coordinates.rows() == 0);
  CHECK(principal_components(matrix<double>::Ones(1, 3).eval()).coordinates.isZero(0));
  const projected_points equal = principal_components(matrix<double>::Constant(5, 3, 0.1).eval());
  CHECK(equal.coordinates.isZero(0));
  CHECK(equal.share == std::vector<double>{0, 0});
  CHECK_THROWS_WITH(principal_components(matrix<double>::Constant(2, 2, quiet_nan<double>()).eval()),
                    Catch::Contains("not finite"));
  CHECK_THROWS_WITH(principal_components(matrix<double>::Ones(2, 2).eval(), {.components = 0}),
                    Catch::Contains("not 0"));
}

TEST_CASE("projection: points of experts and of units", "[inspect]") {
  const std::vector<matrix<float>> of{test::random_matrix<float>(2, 3, 1), test::random_matrix<float>(4, 3, 2)};
  CHECK(all_units(of).rows() == 6);
  CHECK(all_units(of).row(3) == of[1].row(1));
  CHECK(all_units(std::vector<matrix<float>>{}).size() == 0);
  CHECK_THROWS_AS(flattened(of), std::invalid_argument);
  CHECK_THROWS_AS(all_units(std::vector<matrix<float>>{of[0], matrix<float>(1, 2)}), std::invalid_argument);
  CHECK(flattened(std::vector<matrix<float>>{of[0]})(0, 4) == of[0](1, 1));
}
