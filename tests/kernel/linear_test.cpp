#include <sluice/kernel/linear.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
parameter<Scalar> random_weight(index_t out, index_t in, std::uint64_t seed) {
  parameter<Scalar> w({out, in}, parameter_role::weight);
  w.map() = test::random_matrix<Scalar>(out, in, seed);
  return w;
}

constexpr double normal_products = 16;  // products of two normal numbers below 4

}  // namespace

TEMPLATE_TEST_CASE("linear: forward and backward equal Eigen's products", "[kernel][linear]", float, double) {
  struct shape {
    index_t n, in, out;
  };
  const auto s = GENERATE(shape{1, 1, 1}, shape{70, 13, 35}, shape{33, 64, 7}, shape{100, 5, 70});
  const matrix<TestType> x = test::random_matrix<TestType>(s.n, s.in, 1);
  const matrix<TestType> dy = test::random_matrix<TestType>(s.n, s.out, 2);
  auto w = random_weight<TestType>(s.out, s.in, 3);
  const TestType size = static_cast<TestType>(normal_products);
  matrix<TestType> y(s.n, s.out);
  linear_forward<TestType>(x, w, y, {});
  CHECK(test::largest_difference(y, matrix<TestType>(x * w.map().transpose())) <= test::bound<TestType>(s.in, size));
  matrix<TestType> dx = matrix<TestType>::Ones(s.n, s.in);
  w.gradient_map().setOnes();
  linear_backward<TestType>(x, w, dy, dx, {});
  const matrix<TestType> dx_expected = (dy * w.map()).array() + 1;
  const matrix<TestType> dw_expected = (dy.transpose() * x).array() + 1;
  CHECK(test::largest_difference(dx, dx_expected) <= test::bound<TestType>(s.out, size));
  CHECK(test::largest_difference(matrix<TestType>(w.gradient_map()), dw_expected) <= test::bound<TestType>(s.n, size));
}

TEMPLATE_TEST_CASE("linear: equal bits for every thread count and every slice of the weight",
                   "[kernel][linear][determinism]", float, double) {
  const matrix<TestType> x = test::random_matrix<TestType>(100, 24, 1);
  const matrix<TestType> dy = test::random_matrix<TestType>(100, 70, 2);
  auto w = random_weight<TestType>(70, 24, 3);
  matrix<TestType> y(100, 70), dx = matrix<TestType>::Zero(100, 24);
  linear_forward<TestType>(x, w, y, {});
  linear_backward<TestType>(x, w, dy, dx, {});
  const matrix<TestType> dw = w.gradient_map();
  for (const int threads : {2, 3, 8}) {
    test::shuffled_threads pool(threads);
    matrix<TestType> y2(100, 70), dx2 = matrix<TestType>::Zero(100, 24);
    w.zero_gradient();
    linear_forward<TestType>(x, w, y2, pool);
    linear_backward<TestType>(x, w, dy, dx2, pool);
    CHECK(test::same_bits(y2, y));
    CHECK(test::same_bits(dx2, dx));
    CHECK(test::same_bits(w.gradient_map(), dw));
  }
  w.zero_gradient();
  for (const index_t cut : {0, 1, 33, 69}) {
    w.zero_gradient();
    linear_backward_weight<TestType>(x, w, dy, cut, 70);
    linear_backward_weight<TestType>(x, w, dy, 0, cut);
    CHECK(test::same_bits(w.gradient_map(), dw));
  }
}

TEST_CASE("linear: no rows leave gradients and outputs as they are", "[kernel][linear]") {
  auto w = random_weight<double>(4, 3, 1);
  w.gradient_map().setConstant(7);
  const matrix<double> x(0, 3), dy(0, 4);
  matrix<double> y(0, 4), dx(0, 3);
  linear_forward<double>(x, w, y, {});
  linear_backward<double>(x, w, dy, dx, {});
  CHECK((w.gradient_map().array() == 7).all());
}

TEST_CASE("linear: columns of a larger matrix as input and output", "[kernel][linear]") {
  const auto w = random_weight<double>(4, 3, 1);
  matrix<double> all = test::random_matrix<double>(5, 9, 2);
  const matrix<double> expected = all.leftCols(3) * w.map().transpose();
  const matrix<double> middle = all.middleCols(3, 2);
  linear_forward<double>(all.leftCols(3), w, all.rightCols(4), {});
  CHECK(test::largest_difference(matrix<double>(all.rightCols(4)), expected) <=
        test::bound<double>(3, normal_products));
  CHECK(all.middleCols(3, 2) == middle);
}

TEST_CASE("add_column_sums: adds every row", "[kernel][linear]") {
  const matrix<double> m = (matrix<double>(3, 2) << 1, 2, 3, 4, 5, 6).finished();
  std::vector<double> sums{100, 200};
  add_column_sums<double>(m, std::span<double>(sums));
  CHECK(sums == std::vector<double>{109, 212});
}

TEST_CASE("linear: a bias is added to every row, of a part of a wider matrix too", "[kernel][linear]") {
  parameter<double> bias({2}, parameter_role::vector);
  bias.fill([](index_t i) { return static_cast<double>(1 + i); });
  matrix<double> m = matrix<double>::Zero(3, 4);
  add_to_rows(m.middleCols(1, 2), bias);
  matrix<double> expected(3, 4);
  expected << 0, 1, 2, 0, 0, 1, 2, 0, 0, 1, 2, 0;
  CHECK(m == expected);
}
