#include <sluice/expert/constant.hpp>

#include <sluice/core/numeric.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
struct run {
  matrix<Scalar> y, saved, dx;

  run(constant_expert<Scalar>& expert, const matrix<Scalar>& x, const matrix<Scalar>& dy)
      : y(x.rows(), x.cols()), saved(x.rows(), expert.saved_columns()), dx(x.rows(), x.cols()) {
    zero_gradients(expert);
    expert.forward(x, y, saved);
    expert.backward(x, dy, saved, dx);
  }
};

}  // namespace

TEST_CASE("constant_expert: the worked example", "[expert]") {
  constant_expert<double> expert(2);
  expert.weight().map().setIdentity();
  expert.value().value()[0] = 0.5;
  expert.value().value()[1] = 0.25;
  matrix<double> x(1, 2), dy(1, 2);
  x << 2, 1;
  dy << 1, -1;
  const run<double> r(expert, x, dy);
  const auto near = [](double a, double b) { return std::abs(a - b) < 5e-7; };
  CHECK(near(r.saved(0, 0), 0.731059));
  CHECK(near(r.saved(0, 1), 0.268941));
  CHECK(near(r.y(0, 0), 1.596588));
  CHECK(near(r.y(0, 1), 0.798294));
  CHECK(near(r.dx(0, 0), 0.878518));
  CHECK(near(r.dx(0, 1), -0.878518));
  CHECK(near(expert.value().gradient()[0], 0.268941));
  CHECK(near(expert.value().gradient()[1], -0.268941));
  CHECK(near(expert.weight().gradient_map()(0, 0), 0.294918));
  CHECK(near(expert.weight().gradient_map()(0, 1), 0.147459));
  CHECK(near(expert.weight().gradient_map()(1, 0), -0.294918));
  CHECK(near(expert.weight().gradient_map()(1, 1), -0.147459));
}

TEST_CASE("constant_expert: gradients equal central differences", "[expert][gradient]") {
  constant_expert<double> expert(7);
  initialize(expert, 3);
  matrix<double> x = test::random_matrix<double>(5, 7, 4);
  const matrix<double> dy = test::random_matrix<double>(5, 7, 5);
  const run<double> r(expert, x, dy);
  const auto report = check_gradients(expert, {{"x", test::span_of(x), test::span_of(r.dx)}}, [&] {
    matrix<double> y(5, 7), saved(5, 2);
    expert.forward(x, y, saved);
    return (y.array() * dy.array()).sum();
  });
  INFO(report.describe());
  CHECK(report.checked == 35 + 14 + 7);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("constant_expert: a second backward call adds", "[expert]") {
  constant_expert<double> expert(3);
  initialize(expert, 7);
  const matrix<double> x = test::random_matrix<double>(4, 3, 8);
  const matrix<double> dy = test::random_matrix<double>(4, 3, 9);
  run<double> r(expert, x, dy);
  const matrix<double> once = expert.weight().gradient_map();
  expert.backward(x, dy, r.saved, r.dx);
  CHECK(test::largest_difference(matrix<double>(expert.weight().gradient_map()), 2 * once) <
        test::bound<double>(4 * 3, 10));
}

TEST_CASE("constant_expert: rows do not see each other, NaN stays in its row, no rows are fine", "[expert]") {
  constant_expert<float> expert(9);
  initialize(expert, 11);
  matrix<float> x = test::random_matrix<float>(6, 9, 12);
  const matrix<float> dy = test::random_matrix<float>(6, 9, 13);
  const run<float> all(expert, x, dy);
  const run<float> alone(expert, x.row(4), dy.row(4));
  CHECK(test::same_bits(matrix<float>(all.y.row(4)), alone.y));
  CHECK(test::same_bits(matrix<float>(all.dx.row(4)), alone.dx));
  x(2, 5) = quiet_nan<float>();
  run<float> broken(expert, x, dy);
  for (index_t d = 0; d < 9; ++d) CHECK(is_nan(broken.y(2, d)));
  broken.y.row(2) = all.y.row(2);
  CHECK(test::same_bits(broken.y, all.y));
  const matrix<float> none(0, 9);
  run<float>(expert, none, none);
  CHECK(expert.weight().gradient_map().isZero(0));
}

TEST_CASE("constant_expert: costs 3D parameters and refuses D = 0", "[expert]") {
  CHECK(parameter_count(constant_expert<float>(16)) == 48);
  CHECK_THROWS_AS(constant_expert<float>(0), std::invalid_argument);
}
