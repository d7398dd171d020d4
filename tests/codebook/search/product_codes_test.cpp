#include <sluice/codebook/search/product_codes.hpp>

#include "../codebook_checks.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
product_codes<Scalar> drawn_product(index_t width, product_codes_options o, std::uint64_t seed) {
  product_codes<Scalar> codes(width, o);
  const matrix<Scalar> numbers = test::random_matrix<Scalar>(codes.parts(), codes.codes() * codes.part_width(), seed);
  codes.table().assign(numbers);
  return codes;
}

}  // namespace

TEMPLATE_TEST_CASE("product_codes: every part has its nearest code, the last one may be short", "[codebook][search]",
                   float, double) {
  using S = TestType;
  const index_t D = GENERATE(12, 11, 10), T = 33;
  const auto codes = drawn_product<S>(D, {.parts = 4, .codes = 9}, 1);
  REQUIRE(codes.part_width() == 3);
  const matrix<S> x = test::random_matrix<S>(T, D, 2);
  matrix<index_t> ids(T, 4);
  typename product_codes<S>::workspace ws;
  codes.encode(x, ids, ws);
  matrix<S> restored(T, D);
  codes.decode(ids, restored, ws);
  for (index_t t = 0; t < T; ++t)
    for (index_t m = 0; m < 4; ++m) {
      index_t best = 0;
      double least = 1e300;
      for (index_t k = 0; k < 9; ++k) {
        double distance = 0;
        for (index_t d = 0; d < 3; ++d) {
          const double number = m * 3 + d < D ? double(x(t, m * 3 + d)) : 0;
          distance += std::pow(number - double(codes.code(m, k)[d]), 2);
        }
        if (distance < least) least = distance, best = k;
      }
      CHECK(ids(t, m) == best);
      for (index_t d = 0; d < 3 && m * 3 + d < D; ++d) CHECK(restored(t, m * 3 + d) == codes.code(m, best)[d]);
    }
  // Idempotent where no number of a code lies outside of the vector.
  if (D == 12) {
    matrix<index_t> again(T, 4);
    codes.encode(restored, again, ws);
    CHECK(ids == again);
  }
}

TEST_CASE("product_codes: a rotation turns vectors before they are cut, and back", "[codebook][search]") {
  const index_t D = 6, T = 20;
  const auto plain = drawn_product<double>(D, {.parts = 3, .codes = 7}, 1);
  product_codes<double> turned(D, {.parts = 3, .codes = 7, .rotation = true});
  turned.table().assign(plain.table().to_matrix());
  const matrix<double> x = test::random_matrix<double>(T, D, 2);
  matrix<index_t> ids(T, 3), others(T, 3);
  product_codes<double>::workspace ws;
  plain.encode(x, ids, ws);
  turned.encode(x, others, ws);  // the rotation is none at first
  CHECK(ids == others);
  const matrix<double> normal = test::random_matrix<double>(D, 1, 3);
  const matrix<double> r = matrix<double>::Identity(D, D) - 2 / normal.squaredNorm() * normal * normal.transpose();
  turned.rotation().assign(r);
  plain.encode(matrix<double>(x * r.transpose()), ids, ws);
  turned.encode(x, others, ws);
  CHECK(ids == others);
  matrix<double> y(T, D), z(T, D);
  plain.decode(ids, y, ws);
  turned.decode(ids, z, ws);
  CHECK(test::largest_difference(matrix<double>(y * r), z) < 1e-14);
}

TEST_CASE("product_codes: NaN has no code, equal codes go to the lowest, options are checked", "[codebook][search]") {
  auto codes = drawn_product<float>(8, {.parts = 2, .codes = 5}, 1);
  for (index_t d = 0; d < 4; ++d) codes.table().data()[(3 * 4) + d] = codes.code(0, 1)[d];
  matrix<float> x = test::random_matrix<float>(4, 8, 2);
  for (index_t d = 0; d < 4; ++d) x(0, d) = codes.code(0, 1)[d];
  x(2, 7) = quiet_nan<float>();
  matrix<index_t> ids(4, 2);
  product_codes<float>::workspace ws;
  codes.encode(x, ids, ws);
  CHECK(ids(0, 0) == 1);
  CHECK(ids(2, 0) == no_code);
  CHECK(ids(2, 1) == no_code);
  CHECK(ids(3, 0) != no_code);
  matrix<float> y(4, 8);
  codes.decode(ids, y, ws);
  CHECK(y.row(2).isZero(0));
  ids(1, 1) = 5;
  CHECK_THROWS_AS(codes.decode(ids, y, ws), std::invalid_argument);
  CHECK_THROWS_AS(codes.encode(x.leftCols(7), ids, ws), std::invalid_argument);
  CHECK_THROWS_AS(codes.encode(x, ids.leftCols(1), ws), std::invalid_argument);
  codes.encode(x.topRows(0), ids.topRows(0), ws);
  CHECK_THROWS_AS(product_codes<float>(8, {.parts = 0}), std::invalid_argument);
  CHECK_THROWS_AS(product_codes<float>(8, {.codes = 0}), std::invalid_argument);
  CHECK_THROWS_AS(product_codes<float>(8, {.parts = (std::numeric_limits<index_t>::max)()}), std::invalid_argument);
  CHECK_THROWS_AS(product_codes<float>(0, {.parts = 1}), std::invalid_argument);
  CHECK_THROWS_AS(product_codes<float>(9, {.parts = 8}),
                  std::invalid_argument);  // 2 2 2 2 1 and three without a number
}

TEST_CASE("product_codes: equal bits for any thread count", "[codebook][search][threads]") {
  const auto codes = drawn_product<float>(24, {.parts = 4, .codes = 64}, 1);
  const matrix<float> x = test::random_matrix<float>(500, 24, 2);
  matrix<index_t> ids(500, 4), others(500, 4);
  product_codes<float>::workspace ws;
  codes.encode(x, ids, ws);
  for (const int threads : {2, 3, 8}) {
    test::shuffled_threads executor(threads);
    codes.encode(x, others, ws, executor);
    CHECK(ids == others);
  }
}
