#include <sluice/inspect/unit_matching.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("unit_matching: an expert and its copy with units in another order", "[inspect]") {
  const matrix<double> a = test::random_matrix<double>(7, 4, 5);
  const std::vector<index_t> order{3, 0, 6, 2, 5, 1, 4};
  matrix<double> copy(7, 4);  // unit i of a is unit order[i] of the copy
  for (index_t i = 0; i < 7; ++i) copy.row(order[as_size(i)]) = 3 * a.row(i);
  const unit_matching found = match_units(a, copy);
  CHECK(found.order == order);
  CHECK_THAT(found.cosine, Catch::WithinAbs(1, 1e-14));
  CHECK(matrix_similarity(std::vector<matrix<double>>{a, copy})(0, 1) < 0.9);
  CHECK(found.kendall == kendall_tau(order));

  const matched_similarity all = match_experts(std::vector<matrix<double>>{copy, a, a});
  CHECK_THAT(all.cosine(0, 2), Catch::WithinAbs(1, 1e-14));
  CHECK(all.kendall(1, 2) == 1);
  CHECK(all.kendall(2, 0) == all.kendall(0, 1));
  CHECK(all.cosine(1, 1) == 1);
}

TEST_CASE("unit_matching: no order is better", "[inspect]") {
  const matrix<float> a = test::random_matrix<float>(5, 3, 11), b = test::random_matrix<float>(5, 3, 12);
  const matrix<double> c = row_cosines(a, b);
  const auto value = [&](const std::vector<index_t>& order) {
    double sum = 0;
    for (index_t i = 0; i < 5; ++i) sum += c(i, order[as_size(i)]);
    return sum;
  };
  std::vector<index_t> all{0, 1, 2, 3, 4};
  double most = value(all);
  while (std::next_permutation(all.begin(), all.end())) most = std::max(most, value(all));
  const unit_matching found = match_units(a, b);
  CHECK_THAT(value(found.order), Catch::WithinAbs(most, 1e-12));
  matrix<float> moved(5, 3);
  for (index_t i = 0; i < 5; ++i) moved.row(i) = b.row(found.order[as_size(i)]);
  CHECK_THAT(found.cosine, Catch::WithinAbs(a.cwiseProduct(moved).sum() / (a.norm() * b.norm()), 1e-6));
}

TEST_CASE("unit_matching: Kendall's tau by hand", "[inspect]") {
  CHECK(kendall_tau(std::vector<index_t>{0, 1, 2, 3}) == 1);
  CHECK_THAT(kendall_tau(std::vector<index_t>{3, 2, 1, 0}), Catch::WithinAbs(-1, 1e-15));
  CHECK_THAT(kendall_tau(std::vector<index_t>{2, 0, 1}), Catch::WithinAbs(-1.0 / 3, 1e-15));  // two inversions of three
  CHECK(kendall_tau(std::vector<index_t>{0}) == 1);
  CHECK(kendall_tau(std::vector<index_t>{}) == 1);
  CHECK_THROWS_WITH(kendall_tau(std::vector<index_t>{1, 1}), Catch::Contains("no place 1"));
  CHECK_THROWS_AS(kendall_tau(std::vector<index_t>{0, 2}), std::invalid_argument);
}

TEST_CASE("unit_matching: one unit, units of zeros, what it refuses", "[inspect]") {
  const matrix<double> one = matrix<double>::Ones(1, 3);
  CHECK(match_units(one, matrix<double>(-one)).cosine == Approx(-1));
  CHECK(match_units(one, one).kendall == 1);
  const unit_matching nothing =
      match_units(matrix<double>(matrix<double>::Zero(3, 2)), test::random_matrix<double>(3, 2, 1));
  CHECK(nothing.cosine == 0);
  CHECK_NOTHROW(kendall_tau(nothing.order));  // a permutation all the same
  CHECK_THROWS_WITH(match_units(one, matrix<double>(2, 3)),
                    Catch::Contains("[1, 3] cannot be matched with those of [2, 3]"));
  CHECK_THROWS_AS(match_units(matrix<double>(0, 3), matrix<double>(0, 3)), std::invalid_argument);
  CHECK_THROWS_AS(match_units(one, matrix<double>::Constant(1, 3, quiet_nan<double>()).eval()), std::invalid_argument);
}
