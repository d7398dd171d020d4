#include <sluice/kernel/best_matching.hpp>

#include <sluice/router/assigned/exact_assignment.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

double matching_value(const matrix<double>& scores, const std::vector<index_t>& column_of) {
  double sum = 0;
  for (index_t i = 0; i < scores.rows(); ++i) sum += scores(i, column_of[as_size(i)]);
  return sum;
}

}  // namespace

TEST_CASE("best_matching: no permutation has a larger sum", "[kernel]") {
  for (index_t n = 1; n <= 6; ++n)
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
      const matrix<double> scores = test::random_matrix<double>(n, n, seed);
      std::vector<index_t> all(as_size(n));
      for (index_t i = 0; i < n; ++i) all[as_size(i)] = i;
      double most = matching_value(scores, all);
      while (std::next_permutation(all.begin(), all.end())) most = std::max(most, matching_value(scores, all));
      CHECK_THAT(matching_value(scores, kernel::best_matching(scores)), Catch::WithinAbs(most, 1e-12));
    }
}

TEST_CASE("best_matching: as good as the solver for balanced assignment, at any scale and with ties", "[kernel]") {
  const index_t n = 40;
  for (const double scale : {1.0, 1e150, 1e-150, 0.0}) {
    matrix<double> scores = scale * test::random_matrix<double>(n, n, 9);
    scores.bottomRows(7).setConstant(scale);                           // rows of ties
    if (scale == 1.0) scores = (3 * scores).array().round().matrix();  // and many more
    const std::vector<index_t> found = kernel::best_matching(scores);
    std::vector<index_t> sorted = found;
    std::sort(sorted.begin(), sorted.end());
    for (index_t i = 0; i < n; ++i) REQUIRE(sorted[as_size(i)] == i);
    matrix_buffer<double> by_place(n, n);
    by_place.map() = scores;
    exact_assignment<double>::tape tape;
    buffer<index_t> row_of;
    exact_assignment<double>{}.assign(by_place, {}, tape, row_of);
    double most = 0;
    for (index_t j = 0; j < n; ++j) most += scores(row_of[j], j);
    CHECK_THAT(matching_value(scores, found), Catch::WithinRel(most, 1e-11));
  }
}

TEST_CASE("best_matching: equal scores keep their order, nothing and what is not square", "[kernel]") {
  CHECK(kernel::best_matching(matrix<double>::Zero(3, 3)) == std::vector<index_t>{0, 1, 2});
  CHECK(kernel::best_matching(matrix<double>(0, 0)).empty());
  CHECK_THROWS_WITH(kernel::best_matching(matrix<double>::Zero(2, 3)), Catch::Contains("2 rows and 3 columns"));
}
