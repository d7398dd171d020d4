#include <sluice/train/distill_teachers.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

struct distillation_case {
  std::vector<index_t> images{0, 2, 5};
  matrix<double> student = test::random_matrix<double>(5, 3, 1);
  std::vector<matrix<double>> teachers{test::random_matrix<double>(5, 3, 2), test::random_matrix<double>(5, 3, 3),
                                       test::random_matrix<double>(5, 3, 4)};
  std::vector<double> attention{0.25, 0.75, 0.5, 0.3, 0.2};
  matrix<double> classes = test::random_matrix<double>(2, 3, 5);

  distillation_batch<double> batch() const {
    return {.images = images, .token_weights = attention, .class_tokens = classes};
  }
  double loss(const distill_teachers<double>& distil) const {
    matrix<double> unused = matrix<double>::Zero(5, 3);
    return distil(student, teachers, batch(), unused);
  }
};

}  // namespace

TEST_CASE("distill_teachers: numbers worked out by hand", "[train][distillation]") {
  // One image of two tokens of one number; the second teacher's score is (1 * 3 + 1 * 1) / 2 = 2, the third's 1.
  matrix<double> student(2, 1), gradient = matrix<double>::Zero(2, 1), classes(1, 1);
  student << 1, 2;
  classes << 1;
  std::vector<matrix<double>> teachers(3, matrix<double>(2, 1));
  teachers[0] << 0, 0;
  teachers[1] << 3, 1;
  teachers[2] << 1, 1;
  const std::vector<double> attention{0.5, 0.5};
  const double u = std::exp(2.0) / (std::exp(2.0) + std::exp(1.0));
  const distill_teachers<double> distil{.first_weight = 0.6};
  const double loss = distil(student, teachers, {.token_weights = attention, .class_tokens = classes}, gradient);
  // mean + attended sum of squares: 2.5 + 2.5, 2.5 + 2.5, 0.5 + 0.5
  const double expected = 0.6 * 5 + 0.4 * (u * 5 + (1 - u) * 1);
  CHECK(std::abs(loss - expected) <= test::bound<double>(4, 16.0));
  const double of_first = 2 * (0.5 + 0.5) * (0.6 * 1 + 0.4 * (u * (1 - 3) + (1 - u) * 0));
  CHECK(std::abs(gradient(0, 0) - of_first) <= test::bound<double>(4, 16.0));
}

TEST_CASE("distill_teachers: one teacher of weight 1 is plain distillation, and even teachers share the rest",
          "[train][distillation]") {
  const distillation_case c;
  matrix<double> gradient = matrix<double>::Zero(5, 3);
  const std::vector<matrix<double>> one{c.teachers[0]};
  const double plain = distill_teachers<double>{.first_weight = 1}(c.student, one, {}, gradient);
  CHECK(std::abs(plain - (c.student - one[0]).squaredNorm() / 15) <= test::bound<double>(15, 16.0));
  CHECK(test::largest_difference(gradient, matrix<double>(2 * (c.student - one[0]) / 15)) <=
        test::bound<double>(4, 4.0));
  const double even = distill_teachers<double>{.first_weight = 0.5}(c.student, c.teachers, {}, gradient);
  double sum = 0.5 * plain;
  for (const std::size_t m : {1u, 2u}) sum += 0.25 * (c.student - c.teachers[m]).squaredNorm() / 15;
  CHECK(std::abs(even - sum) <= test::bound<double>(30, 16.0));
}

TEST_CASE("distill_teachers: gradients equal central differences, flattened or not",
          "[train][distillation][gradient]") {
  distillation_case c;
  c.classes *= 0.3;
  for (const double above : {1.0, 0.0}) {
    const distill_teachers<double> distil{.first_weight = 0.7, .flattened_above = above, .coefficient = 1.5};
    matrix<double> gradient = matrix<double>::Zero(5, 3);
    std::vector<matrix<double>> of_teachers(3, gradient);
    distil(c.student, c.teachers, c.batch(), gradient, of_teachers);
    double largest = 0;
    const auto compare = [&](matrix<double>& at, const matrix<double>& slope) {
      for (index_t i = 0; i < at.size(); ++i)
        largest =
            std::max(largest, std::abs(test::slope_at(at.data()[i], [&] { return c.loss(distil); }) - slope.data()[i]));
    };
    compare(c.student, gradient);
    for (std::size_t m = 0; m < 3; ++m) compare(c.teachers[m], of_teachers[m]);
    CHECK(largest < 1e-7);
  }
  // Teachers of the same score are even, flattened or not, and the threshold is a mean over images.
  CHECK(c.loss({.flattened_above = 0}) != c.loss({.flattened_above = 1}));
}

TEST_CASE("distill_teachers: what does not fit is refused with its numbers", "[train][distillation]") {
  const distillation_case c;
  matrix<double> gradient = matrix<double>::Zero(5, 3), narrow = matrix<double>::Zero(5, 2);
  const distill_teachers<double> distil;
  CHECK_THROWS_AS(distil(c.student, {}, c.batch(), gradient), std::invalid_argument);
  CHECK_THROWS_AS(distil(c.student, c.teachers, c.batch(), narrow), std::invalid_argument);
  CHECK_THROWS_WITH((distill_teachers<double>{.coefficient = std::numeric_limits<double>::quiet_NaN()})(
                        c.student, c.teachers, c.batch(), gradient),
                    Catch::Matchers::Contains("not nan and 0.8"));
  CHECK_THROWS_AS((distill_teachers<double>{.first_weight = 1.5})(c.student, c.teachers, c.batch(), gradient),
                  std::invalid_argument);
  auto batch = c.batch();
  const std::vector<index_t> empty_image{0, 2, 2, 5};
  batch.images = empty_image;
  CHECK_THROWS_AS(distil(c.student, c.teachers, batch, gradient), std::invalid_argument);
}
