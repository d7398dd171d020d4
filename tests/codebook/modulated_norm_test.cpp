#include <sluice/codebook/modulated_norm.hpp>

#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

modulated_norm<double> modulated_case(bool convolution) {
  modulated_norm<double> norm{{.channels = 4, .code_width = 3, .groups = 2, .height = 4, .width = 3, .code_height = 2, .code_columns = 3,
                               .convolution = convolution}};
  initialize(norm, 3);
  norm.gain().fill([](index_t i) { return 1 + 0.1 * static_cast<double>(i); });
  norm.bias().fill([](index_t i) { return 0.2 - 0.1 * static_cast<double>(i); });
  return norm;
}

}  // namespace

TEST_CASE("modulated_norm: exact gradients to features, codes and parameters", "[codebook][gradient]") {
  const bool convolution = GENERATE(false, true);
  auto norm = modulated_case(convolution);
  matrix<double> x = test::random_matrix<double>(24, 4, 1), q = test::random_matrix<double>(12, 3, 2);
  const matrix<double> dy = test::random_matrix<double>(24, 4, 3);
  matrix<double> y(24, 4), dx(24, 4), dq(12, 3);
  modulated_norm<double>::tape tape, again;
  norm.forward(x, q, y, tape);
  norm.backward(dy, dx, dq, tape);
  const auto objective = [&] {
    norm.forward(x, q, y, again);
    return std::optional<double>((y.array() * dy.array()).sum());
  };
  const auto report = check_gradients(norm, {{"x", test::span_of(x), test::span_of(dx)}, {"q", test::span_of(q), test::span_of(dq)}}, objective, {});
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("modulated_norm: a code speaks for the pixels above it, images do not meet", "[codebook]") {
  auto norm = modulated_case(false);
  const matrix<double> x = test::random_matrix<double>(24, 4, 1), q = test::random_matrix<double>(12, 3, 2);
  matrix<double> y(24, 4), one(12, 4), changed(24, 4);
  modulated_norm<double>::tape tape;
  norm.forward(x, q, y, tape);
  norm.forward(x.bottomRows(12), q.bottomRows(6), one, tape);
  CHECK(test::same_bits(y.bottomRows(12), one));
  matrix<double> other = q;
  other.row(1).array() += 1;  // rows 0 and 1 of the first image, column 1
  norm.forward(x, other, changed, tape);
  for (index_t p = 0; p < 24; ++p) CHECK(test::same_bits(y.row(p), changed.row(p)) == !(p == 1 || p == 4));
}

TEST_CASE("modulated_norm: no images, and what does not fit", "[codebook]") {
  auto norm = modulated_case(true);
  matrix<double> none(0, 4), codes(0, 3);
  modulated_norm<double>::tape tape;
  norm.forward(none, codes, none, tape);
  CHECK_THROWS_AS(norm.forward(matrix<double>(11, 4), matrix<double>(6, 3), none, tape), std::invalid_argument);
  CHECK_THROWS_AS((modulated_norm<double>{{.channels = 5, .code_width = 3, .groups = 2}}), std::invalid_argument);
}
