#include <sluice/inspect/norm_ranks.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("norm_ranks: by hand, ties to the lower expert, NaN left out", "[inspect]") {
  matrix<double> norms(4, 3);
  matrix<float> scores(4, 3);
  norms << 3, 1, 2,  // ranks 0 2 1
      5, 5, 5,       // ranks 0 1 2
      1, 2, quiet_nan<double>(), 1, 2, 3;
  scores << 9, 1, 5,  // ranks 0 2 1: all on the diagonal
      1, 2, 2,        // ranks 2 0 1: expert 1 is (0, 1), 2 is (1, 2), 0 is (2, 0)
      1, 2, 3, quiet_nan<float>(), 2, 3;
  matrix<double> expected(3, 3);
  expected << 1, 1, 0, 0, 1, 1, 1, 0, 1;
  const matrix<double> table = norm_ranks(norms, scores);
  CHECK(table == expected);
  CHECK(diagonal_share(table) == 0.5);
}

TEST_CASE("norm_ranks: scores that are lengths, chance, nothing", "[inspect]") {
  const matrix<double> norms = test::random_matrix<double>(600, 4, 1).cwiseAbs();
  CHECK(norm_ranks(norms, norms) == matrix<double>(600 * matrix<double>::Identity(4, 4)));
  const matrix<double> table = norm_ranks(norms, test::random_matrix<double>(600, 4, 2));
  CHECK(table.rowwise().sum() == Eigen::VectorXd::Constant(4, 600));
  CHECK(table.colwise().sum() == Eigen::RowVectorXd::Constant(4, 600));
  // 1/4, and four deviations of a mean of 600 tokens whose own share deviates by no more than 1/2.
  CHECK_THAT(diagonal_share(table), Catch::WithinAbs(0.25, 4 * 0.5 / std::sqrt(600.0)));
  CHECK(norm_ranks(matrix<double>(0, 4), matrix<float>(0, 4)) == matrix<double>::Zero(4, 4));
  CHECK(is_nan(diagonal_share(matrix<double>::Zero(4, 4))));
  CHECK(norm_ranks(matrix<double>::Ones(3, 1), matrix<float>::Ones(3, 1).eval())(0, 0) == 3);
  CHECK_THROWS_WITH(norm_ranks(norms, matrix<double>::Zero(600, 3).eval()),
                    Catch::Contains("[600, 4] and scores [600, 3]"));
}
