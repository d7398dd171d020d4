#include <sluice/inspect/weight_similarity.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("weight_similarity: equal places or equal means", "[inspect]") {
  const matrix<double> a = test::random_matrix<double>(6, 5, 3);
  matrix<double> shuffled(6, 5);
  for (index_t i = 0; i < 6; ++i) shuffled.row(i) = a.row((i + 2) % 6);
  const std::vector<matrix<double>> of{a, shuffled, matrix<double>(-2 * a), matrix<double>::Zero(6, 5)};
  const matrix<double> whole = matrix_similarity(of), mean = mean_unit_similarity(of);
  CHECK(whole(0, 1) < 0.9);
  CHECK_THAT(whole(0, 1), Catch::WithinAbs(a.cwiseProduct(shuffled).sum() / a.squaredNorm(), 1e-14));
  CHECK_THAT(whole(0, 2), Catch::WithinAbs(-1, 1e-14));
  CHECK_THAT(mean(0, 1), Catch::WithinAbs(1, 1e-14));
  CHECK_THAT(mean(0, 2), Catch::WithinAbs(-1, 1e-14));
  for (index_t e = 0; e < 4; ++e) CHECK((whole(e, 3) == 0 && mean(3, e) == 0));
  CHECK(whole == whole.transpose());
}

TEST_CASE("weight_similarity: one expert, none, other shapes", "[inspect]") {
  using many = std::vector<matrix<float>>;
  CHECK(matrix_similarity(many{matrix<float>::Ones(2, 3)}) == matrix<double>::Ones(1, 1));
  CHECK(matrix_similarity(many{}).size() == 0);
  CHECK(mean_unit_similarity(many{}).size() == 0);
  const many narrow{matrix<float>::Ones(4, 3), matrix<float>::Ones(2, 3)};
  CHECK_THAT(mean_unit_similarity(narrow)(0, 1), Catch::WithinAbs(1, 1e-15));
  CHECK_THROWS_WITH(matrix_similarity(narrow), Catch::Contains("matrix 1 is [2, 3] beside a first one of [4, 3]"));
  CHECK_THROWS_AS(mean_unit_similarity(many{matrix<float>::Ones(4, 3), matrix<float>::Ones(4, 2)}),
                  std::invalid_argument);
  CHECK_THROWS_WITH(mean_unit_similarity(many{matrix<float>(0, 3)}), Catch::Contains("no units"));
}
