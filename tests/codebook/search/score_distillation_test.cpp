#include <sluice/codebook/search/score_distillation.hpp>

#include "../../support.hpp"

using namespace sluice;

TEST_CASE("score_distillation: gradients of scores and loss by differences", "[codebook][search][gradient]") {
  const closeness_scores score{.wanted = GENERATE(closeness::product, closeness::distance), .temperature = 1.7};
  const index_t Q = 3, N = 5, P = 4;
  matrix<double> queries = test::random_matrix<double>(Q, P, 1), items = test::random_matrix<double>(N, P, 2);
  const matrix<double> teacher = test::random_matrix<double>(Q, N, 3);
  matrix<double> student(Q, N), dstudent(Q, N);
  const auto loss = [&] {
    score(queries, items, student);
    return score_distillation{.epsilon = 0.01}(teacher, student, dstudent);
  };
  const double value = loss();
  double expected = 0;
  for (index_t q = 0; q < Q; ++q) {
    const matrix<double> e = teacher.row(q).array().exp(), f = student.row(q).array().exp();
    const auto t = e.array(), s = f.array();
    expected -= (t / t.sum() * (s / s.sum() + 0.01).log()).sum() / double(Q);
  }
  CHECK(std::abs(value - expected) < 1e-14);
  matrix<double> dqueries = matrix<double>::Ones(Q, P), ditems = matrix<double>::Ones(N, P);
  score.backward(queries, items, dstudent, dqueries, ditems);
  const auto check = [&](matrix<double>& numbers, const matrix<double>& gradient) {
    for (index_t i = 0; i < numbers.size(); ++i)
      CHECK(std::abs(test::slope_at(numbers.data()[i], loss) - (gradient.data()[i] - 1)) < 1e-8);
  };
  check(queries, dqueries);
  check(items, ditems);
  CHECK_THROWS_AS(score(queries, items, student.leftCols(4)), std::invalid_argument);
  CHECK_THROWS_AS((closeness_scores{.temperature = 0})(queries, items, student), std::invalid_argument);
  CHECK_THROWS_AS(score_distillation{}(teacher, student.leftCols(4), dstudent), std::invalid_argument);
  CHECK(score_distillation{}(matrix<double>(0, 5), student.topRows(0), dstudent.topRows(0)) == 0);
}
