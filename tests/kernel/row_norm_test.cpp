#include <sluice/kernel/row_norm.hpp>

#include <sluice/train/gradient_check.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

template <typename Norm>
matrix<typename Norm::scalar> apply(const Norm& norm, const matrix<typename Norm::scalar>& x) {
  typename Norm::tape tape;
  matrix<typename Norm::scalar> y(x.rows(), x.cols());
  norm.forward(x, y, tape, {});
  return y;
}

/// Gradients of sum(y * dy); backward is called on two blocks of rows, and adds.
template <typename Norm>
gradient_report check_norm(Norm norm, matrix<double> x) {
  const matrix<double> dy = test::random_matrix<double>(x.rows(), x.cols(), 5);
  matrix<double> y(x.rows(), x.cols());
  typename Norm::tape tape;
  norm.forward(x, y, tape, {});
  matrix<double> dx = matrix<double>::Constant(x.rows(), x.cols(), 3);
  const index_t half = x.rows() / 2;
  norm.backward(x.topRows(half), dy.topRows(half), tape, dx.topRows(half), {}, 0);
  norm.backward(x.bottomRows(x.rows() - half), dy.bottomRows(x.rows() - half), tape, dx.bottomRows(x.rows() - half), {},
                half);
  dx.array() -= 3;
  return check_gradients(norm, {{"x", test::span_of(x), test::span_of(std::as_const(dx))}},
                         [&] { return (apply(norm, x).array() * dy.array()).sum(); });
}

template <typename Norm>
void with_random_gains(Norm& norm) {
  std::uint64_t seed = 7;
  for_each_parameter(norm, [&](const std::string&, auto& p) {
    using scalar = std::remove_cvref_t<decltype(*p.data())>;
    const matrix<double> numbers = test::random_matrix<double>(1, p.size(), seed++);
    for (index_t i = 0; i < p.size(); ++i) p.data()[i] = static_cast<scalar>(numbers(0, i));
  });
}

}  // namespace

TEMPLATE_TEST_CASE("row_norm: values by the definitions", "[kernel][row_norm]", float, double) {
  using S = TestType;
  matrix<S> x(2, 4);
  x << 1, 2, -2, 4, 0, 0, 0, 0;  // length 5, mean 1.25, variance 25/4 - 1.5625 = 4.6875
  const S eps = test::bound<S>(4);
  CHECK(test::same_bits(apply(no_norm<S>(), x), x));
  const matrix<S> unit = apply(unit_norm<S>(), x);
  CHECK(std::abs(unit(0, 3) - S(4 / std::sqrt(25 + 1e-6))) <= eps);
  CHECK(unit.row(1).isZero(0));
  const matrix<S> far = apply(unit_norm<S>(4, S(11)), x);
  CHECK(std::abs(far(0, 0) - S(1.0 / 6)) <= eps);
  const matrix<S> floored = apply(unit_norm<S>(4, 0, S(10)), x);
  CHECK(std::abs(floored(0, 3) - S(0.4)) <= eps);
  CHECK(floored.row(1).isZero(0));
  const matrix<S> shortened = apply(unit_norm<S>(4, 0, 0, S(3)), x);
  CHECK(std::abs(shortened(0, 3) - S(0.5)) <= eps);  // 4 / (5 + 3)
  CHECK(shortened.row(1).isZero(0));
  CHECK(std::abs(apply(rms_norm<S>(4), x)(0, 1) - S(0.8)) <= eps);                            // 2 / 5 * sqrt(4)
  CHECK(std::abs(apply(rms_norm<S>(4, {.epsilon = S(2.75)}), x)(0, 1) - S(2 / 3.0)) <= eps);  // sqrt(25/4 + 2.75) = 3
  CHECK(apply(rms_norm<S>(4), x).row(1).isZero(0));
  CHECK(std::abs(apply(layer_norm<S>(4), x)(0, 3) - S(2.75 / std::sqrt(4.6875 + 1e-5))) <= eps);
  CHECK(apply(layer_norm<S>(4), x).row(1).isZero(0));
}

TEST_CASE("row_norm: gains and biases", "[kernel][row_norm]") {
  rms_norm<double> rms(2);
  rms.gain().data()[1] = -3;
  matrix<double> x(1, 2);
  x << 3, 4;
  const double root2 = std::sqrt(2.0);
  CHECK(std::abs(apply(rms, x)(0, 0) - 0.6 * root2) <= test::bound<double>(2));
  CHECK(std::abs(apply(rms, x)(0, 1) + 3 * 0.8 * root2) <= test::bound<double>(2, 4));
  layer_norm<double> centred(2, {.epsilon = 0.75, .bias = true});
  centred.gain().data()[0] = 5;
  centred.bias().data()[0] = 7;
  CHECK(std::abs(apply(centred, x)(0, 0) - (7 + 5 * -0.5)) <=
        test::bound<double>(2, 10));  // (3 - 3.5) / sqrt(1/4 + 3/4)
}

TEST_CASE("row_norm: gradients equal central differences", "[kernel][row_norm][gradient]") {
  const index_t rows = GENERATE(1, 2, 7, 33);
  const matrix<double> x = test::random_matrix<double>(rows, 5, 3);
  const auto check = [&](auto norm, double size = 1) {
    with_random_gains(norm);
    const auto report = check_norm(norm, x * size);
    INFO(report.describe());
    CHECK(report.largest_error < 1e-6);
  };
  check(no_norm<double>());
  check(unit_norm<double>());
  check(unit_norm<double>(5, 2.0));
  check(unit_norm<double>(5, 0.0, 1e-12));
  check(unit_norm<double>(5, 0.0, 1e3));  // every row is below the floor
  check(unit_norm<double>(5, 0.5, 0.0, 2.0));
  check(gain_only<double>(5));
  check(rms_norm<double>(5));
  check(rms_norm<double>(5, {.epsilon = 0.5}));
  check(rms_norm<double>(5, {.epsilon = 0.5, .bias = true}));
  check(layer_norm<double>(5));
  check(layer_norm<double>(5, {.epsilon = 0.5, .bias = true}));
  check(rms_norm<double>(5, {.smallest = 100}));  // all rows below the floor: linear in x
}

TEST_CASE("row_norm: NaN stays in its row, no rows", "[kernel][row_norm]") {
  matrix<float> x = test::random_matrix<float>(3, 4, 11);
  const auto check = [&](const auto& norm) {
    matrix<float> broken = x;
    broken(1, 2) = quiet_nan<float>();
    const matrix<float> clean = apply(norm, x);
    const matrix<float> y = apply(norm, broken);
    CHECK(test::same_bits(matrix<float>(y.row(0)), matrix<float>(clean.row(0))));
    CHECK(test::same_bits(matrix<float>(y.row(2)), matrix<float>(clean.row(2))));
    CHECK(is_nan(y(1, 2)));
    CHECK(apply(norm, matrix<float>(0, 4)).size() == 0);
  };
  check(no_norm<float>());
  check(unit_norm<float>());
  check(gain_only<float>(4));
  check(rms_norm<float>(4));
  check(layer_norm<float>(4));
}

TEMPLATE_TEST_CASE("row_norm: equal bits for every thread count", "[kernel][row_norm][determinism]", rms_norm<float>,
                   layer_norm<float>) {
  const matrix<float> x = test::random_matrix<float>(131, 150, 13);
  const matrix<float> dy = test::random_matrix<float>(131, 150, 14);
  const auto run = [&](executor_ref executor) {
    TestType norm(150, {.bias = true});
    with_random_gains(norm);
    typename TestType::tape tape;
    matrix<float> all = matrix<float>::Zero(264, 150);
    norm.forward(x, all.topRows(131), tape, executor);
    norm.backward(x, dy, tape, all.middleRows(131, 131), executor);
    std::copy_n(norm.gain().gradient().data(), 150, &all(262, 0));
    std::copy_n(norm.bias().gradient().data(), 150, &all(263, 0));
    return all;
  };
  const matrix<float> serial = run({});
  for (const int threads : {1, 2, 3, 8}) {
    test::shuffled_threads pool(threads);
    CHECK(test::same_bits(run(pool), serial));
  }
}

TEST_CASE("row_norm: refuses what makes no sense", "[kernel][row_norm]") {
  using Catch::Matchers::Contains;
  CHECK_THROWS_WITH((unit_norm<float>{4, -1.0F}), Contains("-1"));
  CHECK_THROWS_WITH((gain_only<float>{0}), Contains("D = 0"));
  CHECK_THROWS_WITH((rms_norm<float>{0}), Contains("D = 0"));
  CHECK_THROWS_WITH((rms_norm<float>{4, {.epsilon = 0, .smallest = 0}}), Contains("not both 0"));
  CHECK_THROWS_WITH((layer_norm<float>{4, {.epsilon = 0}}), Contains("epsilon = 0"));
}
