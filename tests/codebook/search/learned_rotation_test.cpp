#include <sluice/codebook/search/learned_rotation.hpp>

#include "../../support.hpp"

using namespace sluice;

namespace {

/// Vectors of which the first numbers vary most, and together.
matrix<double> unevenly_varying(index_t count) {
  matrix<double> x = test::random_matrix<double>(count, 6, 1);
  for (index_t t = 0; t < count; ++t) {
    x(t, 0) *= 8;
    x(t, 1) = x(t, 0) + x(t, 1);
    x(t, 2) *= 3;
  }
  return x;
}

product_codes<double> rotated_codes() { return product_codes<double>{6, {.parts = 2, .codes = 8, .rotation = true}}; }

double lost(const product_codes<double>& codes, const matrix<double>& x) {
  product_codes<double>::workspace ws;
  matrix<index_t> ids(x.rows(), codes.parts());
  matrix<double> restored(x.rows(), x.cols());
  codes.encode(x, ids, ws);
  codes.decode(ids, restored, ws);
  return (x - restored).rowwise().squaredNorm().mean();
}

}  // namespace

TEST_CASE("learn_rotation: parts of uneven vectors lose less, the error of no round grows, and it is what search loses",
          "[codebook][search]") {
  const matrix<double> x = unevenly_varying(300);
  double before = 1e300, first = 0;
  for (const index_t rounds : {0, 1, 2, 4, 8, 16}) {
    auto codes = rotated_codes();
    const double error = learn_rotation<double>(codes, x, random_source{3}, {.rounds = rounds});
    CAPTURE(rounds, error, before);
    CHECK(error <= before * (1 + 1e-12));
    CHECK(error == Approx(lost(codes, x)).epsilon(1e-10));
    const auto rotation = codes.rotation().to_matrix();
    CHECK(test::largest_difference(matrix<double>(rotation.transpose() * rotation),
                                   matrix<double>(matrix<double>::Identity(6, 6))) < 1e-12);
    if (rounds == 0) first = error;
    before = error;
  }
  CHECK(before < 0.8 * first);
}

TEST_CASE("learn_rotation: widths that parts do not divide, directions without variance, NaN", "[codebook][search]") {
  matrix<double> x = unevenly_varying(60).leftCols(5);
  x.col(3).setZero();
  x.col(4).setZero();
  const product_codes<double> start{5, {.parts = 2, .codes = 4, .rotation = true}};  // P = 6
  auto codes = start;
  const double error = learn_rotation<double>(codes, x, random_source{3}, {.rounds = 5});
  const auto rotation = codes.rotation().to_matrix();
  CHECK(rotation.rows() == 6);
  CHECK(test::largest_difference(matrix<double>(rotation.transpose() * rotation),
                                 matrix<double>(matrix<double>::Identity(5, 5))) < 1e-12);
  CHECK(error == Approx(lost(codes, x)).epsilon(1e-10));

  matrix<double> dirty(61, 5);
  dirty.topRows(60) = x;
  dirty.row(60).setConstant(quiet_nan<double>());
  auto with_nan = start;
  CHECK_FALSE(is_nan(learn_rotation<double>(with_nan, dirty, random_source{3}, {.rounds = 5})));
  CHECK(with_nan.rotation().to_matrix().allFinite());
  product_codes<double> plain{5, {.parts = 2, .codes = 4}};
  CHECK_THROWS_AS(learn_rotation<double>(plain, x, random_source{3}), std::invalid_argument);
}

TEST_CASE("learn_rotation: equal bits for any number of threads", "[codebook][search][determinism]") {
  const matrix<double> x = unevenly_varying(100);
  auto one = rotated_codes(), many = rotated_codes();
  test::shuffled_threads pool(3);
  learn_rotation<double>(one, x, random_source{3}, {.rounds = 3});
  learn_rotation<double>(many, x, random_source{3}, {.rounds = 3}, pool);
  CHECK(test::same_bits(one.rotation().to_matrix(), many.rotation().to_matrix()));
  CHECK(test::same_bits(one.table().to_matrix(), many.table().to_matrix()));
}
