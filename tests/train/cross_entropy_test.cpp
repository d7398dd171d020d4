#include <sluice/train/cross_entropy.hpp>

#include <sluice/train/gradient_check.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

/// From the definition, in long double; no row is ignored and none holds NaN.
long double reference_loss(const matrix<double>& logits, const std::vector<index_t>& labels, double smoothing) {
  long double loss = 0;
  for (index_t t = 0; t < logits.rows(); ++t) {
    long double sum = 0;
    for (index_t c = 0; c < logits.cols(); ++c) sum += std::exp(static_cast<long double>(logits(t, c)));
    for (index_t c = 0; c < logits.cols(); ++c) {
      const long double target = (c == labels[static_cast<std::size_t>(t)] ? 1.0L - smoothing : 0.0L) +
                                 static_cast<long double>(smoothing) / logits.cols();
      loss -= target * (static_cast<long double>(logits(t, c)) - std::log(sum));
    }
  }
  return loss / logits.rows();
}

constexpr double infinity = std::numeric_limits<double>::infinity();

}  // namespace

TEST_CASE("cross_entropy: value, gradient and right answers of two rows by hand", "[train][cross_entropy]") {
  matrix<double> logits(2, 2), gradient(2, 2), expected(2, 2);
  logits << 0, 0, std::log(3.0), 0;
  const std::vector<index_t> labels{1, 0};
  const auto plain = softmax_cross_entropy<double>{}(logits, labels, gradient);
  // Probabilities 1/2, 1/2 and 3/4, 1/4; equal logits count as class 0.
  CHECK(plain.loss == Approx((std::log(2.0) + std::log(4.0 / 3.0)) / 2).epsilon(1e-14));
  expected << 0.25, -0.25, -0.125, 0.125;
  CHECK(test::largest_difference(gradient, expected) < 1e-15);
  CHECK(plain.labelled == 2);
  CHECK(plain.correct == 1);
  CHECK(plain.accuracy() == 0.5);

  softmax_cross_entropy<double>{.label_smoothing = 0.2}(logits, labels, gradient);  // targets 0.1, 0.9 and 0.9, 0.1
  expected << 0.2, -0.2, -0.075, 0.075;
  CHECK(test::largest_difference(gradient, expected) < 1e-15);

  const auto sum = softmax_cross_entropy<double>{.over_rows = reduction::sum}(logits, labels, gradient);
  CHECK(sum.loss == Approx(2 * plain.loss).epsilon(1e-14));
  expected << 0.5, -0.5, -0.25, 0.25;
  CHECK(test::largest_difference(gradient, expected) < 1e-15);
}

TEMPLATE_TEST_CASE("cross_entropy: equals the definition, and the gradient its central differences",
                   "[train][cross_entropy][gradient]", float, double) {
  const double smoothing = GENERATE(0.0, 0.1);
  const matrix<TestType> logits = test::random_matrix<TestType>(7, 19, 1);  // 19: whole vectors and a tail
  const std::vector<index_t> labels{0, 18, 3, 3, 7, 11, 16};
  matrix<TestType> gradient(7, 19);
  const softmax_cross_entropy<TestType> objective{.label_smoothing = smoothing};
  const auto result = objective(logits, labels, gradient);
  matrix<double> exact = logits.template cast<double>();
  CHECK(std::abs(result.loss - static_cast<double>(reference_loss(exact, labels, smoothing))) <
        test::bound<TestType>(19, 4));
  matrix<double> dexact = gradient.template cast<double>();
  parameter<double> nothing;
  const auto report = check_gradients(nothing, {{"logits", test::span_of(exact), test::span_of(std::as_const(dexact))}},
                                      [&] { return static_cast<double>(reference_loss(exact, labels, smoothing)); });
  INFO(report.describe());
  CHECK(report.checked == 7 * 19);
  // The differences are good to 1e-6; gradients of at most 1/7 carry the rounding of a sum of 19, relative to 0.01.
  CHECK(report.largest_error < std::max(1e-6, static_cast<double>(test::bound<TestType>(19)) / 7 / 0.01));
}

TEST_CASE("cross_entropy: ignored rows are not read, count nowhere and have gradient zero", "[train][cross_entropy]") {
  matrix<double> logits = test::random_matrix<double>(3, 5, 2);
  const std::vector<index_t> labels{2, -100, 4}, kept{2, 4};
  matrix<double> two(2, 5), dtwo(2, 5), gradient(3, 5);
  two << logits.row(0), logits.row(2);
  logits.row(1).setConstant(quiet_nan<double>());
  const softmax_cross_entropy<double> objective{.label_smoothing = 0.1, .ignored = -100};
  const auto result = objective(logits, labels, gradient);
  const auto expected = objective(two, kept, dtwo);
  CHECK(result.loss == expected.loss);
  CHECK(result.labelled == 2);
  CHECK(result.invalid == 0);
  CHECK(test::same_bits(gradient.row(0), dtwo.row(0)));
  CHECK(test::same_bits(gradient.row(2), dtwo.row(1)));
  CHECK(gradient.row(1).isZero(0));

  const std::vector<index_t> none{-100, -100, -100};
  CHECK(objective(logits, none, gradient).loss == 0);
  CHECK(gradient.isZero(0));
  matrix<double> no_rows(0, 5);
  CHECK(objective(no_rows, {}, no_rows).loss == 0);
  CHECK(objective(no_rows, {}, no_rows).accuracy() == 0);
}

TEST_CASE("cross_entropy: NaN in one row shows in the loss and changes no other row's gradient",
          "[train][cross_entropy][nan]") {
  matrix<float> logits = test::random_matrix<float>(4, 9, 3), clean(4, 9), gradient(4, 9);
  const std::vector<index_t> labels{1, 2, 3, 4};
  const softmax_cross_entropy<float> objective;
  objective(logits, labels, clean);
  logits(2, 8) = quiet_nan<float>();
  const auto result = objective(logits, labels, gradient);
  CHECK(is_nan(result.loss));
  CHECK(result.invalid == 1);
  CHECK(result.labelled == 4);
  for (const index_t t : {0, 1, 3}) CHECK(test::same_bits(gradient.row(t), clean.row(t)));
  CHECK(gradient.row(2).isZero(0));
}

TEST_CASE("cross_entropy: infinite and huge logits are values", "[train][cross_entropy]") {
  matrix<double> logits(3, 3), gradient(3, 3), expected(3, 3);
  logits << infinity, 0, infinity,  // the two share the probability
      -infinity, 0, 0,              // a masked class
      1e300, 0, -1e300;
  const auto result =
      softmax_cross_entropy<double>{.over_rows = reduction::sum}(logits, std::vector<index_t>{2, 1, 0}, gradient);
  CHECK(result.loss == Approx(2 * std::log(2.0)).epsilon(1e-14));
  expected << 0.5, 0, -0.5, 0, -0.5, 0.5, 0, 0, 0;
  CHECK(test::largest_difference(gradient, expected) < 1e-15);
  const double loss = softmax_cross_entropy<double>{}(logits, std::vector<index_t>{2, 0, 0}, gradient).loss;
  CHECK(order_key(loss) == order_key(infinity));  // the right class is impossible
}

TEST_CASE("cross_entropy: the gradient may take the place of the logits", "[train][cross_entropy]") {
  matrix<float> logits = test::random_matrix<float>(5, 10, 4), gradient(5, 10);
  const std::vector<index_t> labels{9, 0, -1, 5, 5};
  const softmax_cross_entropy<float> objective{.label_smoothing = 0.3};
  const auto expected = objective(logits, labels, gradient);
  const auto result = objective(logits, labels, logits);
  CHECK(result.loss == expected.loss);
  CHECK(test::same_bits(logits, gradient));
}

TEST_CASE("cross_entropy: labels and shapes that do not fit throw before anything is written",
          "[train][cross_entropy]") {
  const matrix<float> logits = test::random_matrix<float>(2, 3, 5);
  matrix<float> gradient = matrix<float>::Constant(2, 3, 99);
  const softmax_cross_entropy<float> objective;
  CHECK_THROWS_WITH(objective(logits, std::vector<index_t>{0, 3}, gradient),
                    "sluice: label 3 of row 1 is not one of the 3 classes");
  CHECK_THROWS_AS(objective(logits, std::vector<index_t>{0, -2}, gradient), std::invalid_argument);
  CHECK_THROWS_AS(objective(logits, std::vector<index_t>{0}, gradient), std::invalid_argument);
  CHECK_THROWS_AS((softmax_cross_entropy<float>{.label_smoothing = 1.5}(logits, std::vector<index_t>{0, 0}, gradient)),
                  std::invalid_argument);
  matrix<float> narrow(2, 2);
  CHECK_THROWS_AS(objective(logits, std::vector<index_t>{0, 0}, narrow), std::invalid_argument);
  CHECK((gradient.array() == 99).all());
}
