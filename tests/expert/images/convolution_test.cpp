#include <sluice/expert/images/convolution.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/conformance.hpp>
#include <sluice/train/initialize.hpp>

#include "../../support.hpp"

using namespace sluice;

namespace {

/// The definition, pixel by pixel.
template <typename Scalar>
matrix<Scalar> plain_convolution(const convolution_expert<Scalar>& expert, const matrix<Scalar>& weight,
                                 const matrix<Scalar>& x) {
  const auto& [C, H, W] = expert.windows().image();
  const auto& [kh, kw, stride, padding] = expert.windows().window();
  const auto [O, rows, columns] = expert.output_image();
  matrix<Scalar> y = matrix<Scalar>::Zero(x.rows(), expert.outputs());
  for (index_t r = 0; r < x.rows(); ++r)
    for (index_t o = 0; o < O; ++o)
      for (index_t i = 0; i < rows; ++i)
        for (index_t j = 0; j < columns; ++j)
          for (index_t c = 0; c < C; ++c)
            for (index_t a = 0; a < kh; ++a)
              for (index_t b = 0; b < kw; ++b) {
                const index_t v = i * stride - padding + a, h = j * stride - padding + b;
                if (v < 0 || v >= H || h < 0 || h >= W) continue;
                y(r, (o * rows + i) * columns + j) += weight(o, (c * kh + a) * kw + b) * x(r, (c * H + v) * W + h);
              }
  return y;
}

}  // namespace

TEST_CASE("convolution: one window worked out by hand", "[expert][images]") {
  convolution_expert<double> expert({1, 2, 3}, 1, {2, 2, 1, 0}, {.bias = true});
  matrix<double> weight(1, 4), x(1, 6), y(1, 2), dy(1, 2), dx(1, 6), saved(1, expert.saved_columns());
  weight << 1, 2, 3, 4;
  x << 1, 0, 2, 0, 1, 1;
  dy << 1, -1;
  expert.weight().assign(weight);
  expert.bias().data()[0] = 0.5;
  expert.forward(x, y, saved);
  CHECK(y(0, 0) == 1 + 4 + 0.5);
  CHECK(y(0, 1) == 4 + 3 + 4 + 0.5);
  expert.backward(x, dy, saved, dx);
  matrix<double> dx_expected(1, 6), dweight(1, 4);
  dx_expected << 1, 1, -2, 3, 1, -4;
  dweight << 1, -2, -1, 0;
  CHECK(dx == dx_expected);
  CHECK(expert.weight().gradient_matrix() == dweight);
  CHECK(expert.bias().gradient()[0] == 0);
}

TEST_CASE("convolution: equals the definition for strides, paddings and oblong kernels", "[expert][images]") {
  struct form {
    image_shape image;
    index_t channels;
    window_shape window;
  };
  for (const form& f :
       {form{{1, 1, 1}, 1, {1, 1, 1, 0}}, form{{3, 9, 7}, 5, {3, 3, 1, 1}}, form{{2, 8, 8}, 4, {2, 2, 2, 0}},
        form{{2, 7, 5}, 3, {3, 2, 2, 1}}, form{{1, 4, 4}, 2, {5, 1, 3, 3}}, form{{4, 2, 2}, 1, {1, 1, 1, 2}}}) {
    convolution_expert<float> expert(f.image, f.channels, f.window);
    initialize(expert, 3);
    const matrix<float> x = test::random_matrix<float>(3, expert.inputs(), 4);
    matrix<float> y(3, expert.outputs()), saved(3, expert.saved_columns());
    y.setConstant(7);
    expert.forward(x, y, saved);
    const matrix<float> expected = plain_convolution<float>(expert, expert.weight().to_matrix(), x);
    CHECK(test::largest_difference(y, expected) < test::bound<float>(expert.windows().size(), 3));
  }
}

TEST_CASE("convolution: keeps the promises of experts and, as a dense layer, of layers", "[expert][images]") {
  // 49 positions: more than are gathered at a time.
  convolution_expert<double> expert({2, 7, 7}, 3, window_shape::square(3, 1, 1), {.bias = true});
  initialize(expert, 5);
  const auto report = check_expert(expert);
  INFO(report.describe());
  CHECK(report.passed());
  convolution_expert<double> small({2, 4, 3}, 2, {3, 2, 2, 1}, {.bias = true});
  initialize(small, 6);
  const auto layer_report = check_layer(dense_layer{small}, {.tokens = 9, .gradient_tokens = 3});
  INFO(layer_report.describe());
  CHECK(layer_report.passed());
}

TEST_CASE("convolution: a frozen weight gets no gradient", "[expert][images]") {
  convolution_expert<double> expert({1, 3, 3}, 2, window_shape::square(2));
  initialize(expert, 7);
  expert.weight().set_frozen(true);
  const matrix<double> x = test::random_matrix<double>(2, 9, 8), dy = test::random_matrix<double>(2, 8, 9);
  matrix<double> dx(2, 9), saved(2, expert.saved_columns());
  expert.backward(x, dy, saved, dx);
  CHECK((!expert.weight().has_gradient() || expert.weight().gradient_matrix().isZero(0)));
  CHECK(dx.norm() > 0);
}

TEST_CASE("image_windows: add_back is the adjoint of gather", "[expert][images]") {
  const image_windows windows({2, 5, 6}, {3, 2, 2, 1});
  const matrix<double> x = test::random_matrix<double>(1, windows.image().size(), 1);
  const matrix<double> d = test::random_matrix<double>(windows.count(), windows.size(), 2);
  matrix<double> gathered(windows.count(), windows.size()), added = matrix<double>::Zero(1, x.cols());
  windows.gather(x.data(), 0, windows.count(), gathered.data());
  windows.add_back(d.data(), 0, windows.count(), added.data());
  CHECK((gathered.array() * d.array()).sum() ==
        Approx((x.array() * added.array()).sum()).margin(test::bound<double>(d.size(), 10)));
}

TEST_CASE("convolution: refuses windows that do not fit", "[expert][images]") {
  CHECK_THROWS_WITH(convolution_expert<float>({1, 3, 3}, 1, window_shape::square(4)),
                    Catch::Contains("a window of 4 x 4 does not fit into an image of 3 x 3"));
  CHECK_THROWS_AS(convolution_expert<float>({1, 3, 3}, 0, window_shape::square(1)), std::invalid_argument);
  CHECK_THROWS_AS(convolution_expert<float>({0, 3, 3}, 1, window_shape::square(1)), std::invalid_argument);
  CHECK_THROWS_AS(convolution_expert<float>({1, 3, 3}, 1, window_shape::square(1, 0)), std::invalid_argument);
  CHECK_THROWS_AS(convolution_expert<float>({1, 3, 3}, 1, window_shape::square(1, 1, -1)), std::invalid_argument);
  CHECK_THROWS_AS(image_windows({index_t(1) << 40, index_t(1) << 40, 1}, {}), std::invalid_argument);
}
