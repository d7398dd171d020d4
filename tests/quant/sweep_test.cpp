#include <sluice/quant/column_sweep.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

/// X^T X of inputs that depend on one another.
matrix<double> correlated_moments(index_t tokens, index_t inputs, std::uint64_t seed) {
  const matrix<double> x =
      test::random_matrix<double>(tokens, inputs, seed) * test::random_matrix<double>(inputs, inputs, seed + 1);
  return x.transpose() * x;
}

matrix<double> factor_matrix(const inverse_factor& f) {
  matrix<double> u(f.inputs(), f.inputs());
  for (index_t i = 0; i < f.inputs(); ++i)
    for (index_t j = 0; j < f.inputs(); ++j) u(i, j) = f.row(i)[j];
  return u;
}

struct round_to_whole {
  void round_columns(index_t, index_t rows, index_t, index_t count, const double* w, double* q, index_t pitch) const {
    for (index_t k = 0; k < count; ++k)
      for (index_t r = 0; r < rows; ++r) q[k * pitch + r] = std::nearbyint(w[k * pitch + r]);
  }
};

matrix<double> swept(const matrix<double>& w, const inverse_factor& factor, sweep_options o = {},
                     const executor_ref& executor = {}) {
  matrix_buffer<double> m(w.rows(), w.cols());
  m.map() = w;
  round_to_whole rounder;
  sweep_columns(m, factor, rounder, o, executor);
  return m.map();
}

}  // namespace

TEST_CASE("inverse_factor: U^T U is the inverse of the damped moments, in the order asked for", "[quant][factor]") {
  const index_t n = GENERATE(1, 5, 64, 150);
  const bool by_activity = GENERATE(false, true);
  CAPTURE(n, by_activity);
  const matrix<double> h = correlated_moments(2 * n, n, 1);
  const inverse_factor f(h, {.damping = 0.05, .order_by_activity = by_activity});
  REQUIRE_FALSE(f.is_neutral());
  matrix<double> damped(n, n);
  for (index_t i = 0; i < n; ++i) {
    const index_t input = f.order()[as_size(i)], before = f.order()[as_size(i > 0 ? i - 1 : 0)];
    CHECK((by_activity ? h(before, before) >= h(input, input) : input == i));
    for (index_t j = 0; j < n; ++j) damped(i, j) = h(input, f.order()[as_size(j)]);
    damped(i, i) += 0.05 * h.diagonal().mean();
  }
  const matrix<double> u = factor_matrix(f);
  CHECK(u.isUpperTriangular(0));
  CHECK(u.diagonal().minCoeff() > 0);
  const matrix<double> product = u.transpose() * u * damped;
  const double condition = damped.norm() * u.squaredNorm();
  CHECK(test::largest_difference(product, matrix<double>(matrix<double>::Identity(n, n))) <=
        test::bound<double>(n, condition));
}

TEST_CASE("inverse_factor: equal bits for any thread count", "[quant][factor]") {
  const matrix<double> h = correlated_moments(300, 200, 3);
  const matrix<double> serial = factor_matrix(inverse_factor(h));
  for (const int threads : {2, 3}) {
    test::shuffled_threads pool(threads);
    CHECK(test::same_bits(serial, factor_matrix(inverse_factor(h, {}, pool))));
  }
}

TEST_CASE("inverse_factor: dead inputs, nothing seen, no factor, bad moments", "[quant][factor]") {
  matrix<double> h = correlated_moments(20, 6, 5);
  h.row(2).setZero();
  h.col(2).setZero();
  const inverse_factor f(h);
  CHECK(f.is_dead(2));
  CHECK_FALSE(f.is_dead(1));
  CHECK_FALSE(f.is_neutral());

  for (const double sign : {0.0, -1.0}) {
    const inverse_factor neutral(sign * correlated_moments(20, 6, 5));
    CHECK(neutral.is_neutral());
    CHECK_FALSE(neutral.is_dead(0));
    CHECK(factor_matrix(neutral) == matrix<double>(matrix<double>::Identity(6, 6)));
  }
  matrix<double> indefinite = matrix<double>::Identity(3, 3);
  indefinite(0, 2) = indefinite(2, 0) = 5;
  CHECK(inverse_factor(indefinite, {.damping = 0}).is_neutral());

  CHECK(inverse_factor(matrix<double>(0, 0)).inputs() == 0);
  CHECK_THROWS_WITH(inverse_factor(matrix<double>(2, 3)), "sluice: second moments are square, not [2, 3]");
  const matrix<double> unit = matrix<double>::Identity(2, 2);
  CHECK_THROWS_AS(inverse_factor(unit, {.damping = -1}), std::invalid_argument);
  matrix<double> broken = matrix<double>::Identity(3, 3);
  broken(1, 2) = quiet_nan<double>();
  CHECK_THROWS_WITH(inverse_factor(broken),
                    Catch::Matchers::StartsWith("sluice: the second moment of inputs 1 and 2 is "));
}

TEST_CASE("column_sweep: the plain loop, whatever the blocks and threads", "[quant][sweep]") {
  const index_t n = 40, rows = 70;
  const matrix<double> h = correlated_moments(60, n, 7);
  const inverse_factor factor(h);
  const matrix<double> w = 3 * test::random_matrix<double>(rows, n, 8), u = factor_matrix(factor);
  matrix<double> expected = w;
  for (index_t i = 0; i < n; ++i)
    for (index_t r = 0; r < rows; ++r) {
      const double q = std::nearbyint(expected(r, i)), e = (expected(r, i) - q) / u(i, i);
      for (index_t j = i + 1; j < n; ++j) expected(r, j) -= e * u(i, j);
      expected(r, i) = q;
    }
  for (const index_t block : {1, 7, 16, 128}) CHECK(swept(w, factor, {.block = block}) == expected);
  test::shuffled_threads threads(3);
  CHECK(swept(w, factor, {.rows_together = 8}, threads) == expected);
  // It pays: outputs of the inputs that were seen are nearer.
  const matrix<double> plain = w.array().rint().matrix();
  CHECK(((w - expected) * h * (w - expected).transpose()).trace() <
        0.5 * ((w - plain) * h * (w - plain).transpose()).trace());
}

TEST_CASE("column_sweep: columns that are rounded together do not make up for each other", "[quant][sweep]") {
  const inverse_factor factor(correlated_moments(30, 12, 9));
  const matrix<double> w = 3 * test::random_matrix<double>(5, 12, 10), u = factor_matrix(factor);
  matrix<double> expected = w;
  for (index_t i = 0; i < 12; i += 3)
    for (index_t r = 0; r < 5; ++r) {
      const matrix<double> before = expected.block(r, i, 1, 3);
      for (index_t k = 0; k < 3; ++k) expected(r, i + k) = std::nearbyint(before(0, k));
      for (index_t k = 0; k < 3; ++k)
        for (index_t j = i + 3; j < 12; ++j)
          expected(r, j) -= (before(0, k) - expected(r, i + k)) / u(i + k, i + k) * u(i + k, j);
    }
  CHECK(swept(w, factor, {.block = 6, .step = 3}) == expected);
  CHECK(swept(w, factor, {.block = 12, .step = 3}) == expected);
}

TEST_CASE("column_sweep: a neutral factor rounds plainly, empty matrices, what does not fit", "[quant][sweep]") {
  const matrix<double> w = 3 * test::random_matrix<double>(9, 20, 11);
  CHECK(swept(w, inverse_factor(20), {.block = 8}) == matrix<double>(w.array().rint().matrix()));
  CHECK(swept(matrix<double>(0, 20), inverse_factor(20)).rows() == 0);
  CHECK(swept(matrix<double>(4, 0), inverse_factor(0)).cols() == 0);
  CHECK_THROWS_WITH(swept(w, inverse_factor(19)), "sluice: a matrix [9, 20] cannot be swept by a factor of 19 inputs");
  CHECK_THROWS_AS(swept(w, inverse_factor(20), {.block = 8, .step = 3}), std::invalid_argument);
}
