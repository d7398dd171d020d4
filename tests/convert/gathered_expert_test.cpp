#include <sluice/convert/gathered_expert.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

using gathered = std::vector<expert_matrices<double>>;

gathered experts_to_gather(index_t count, index_t hidden) {
  gathered experts;
  for (index_t e = 0; e < count; ++e)
    experts.push_back({test::random_matrix<double>(hidden, 4, static_cast<std::uint64_t>(2 * e + 1)),
                       test::random_matrix<double>(5, hidden, static_cast<std::uint64_t>(2 * e + 2))});
  return experts;
}

matrix<double> through(const expert_matrices<double>& e, const matrix<double>& x) {
  return (x * e.first.transpose()).cwiseMax(0.0) * e.last.transpose();
}

}  // namespace

TEST_CASE("gathered_expert: experts that are alike", "[convert][gathered]") {
  const gathered alike(3, experts_to_gather(1, 6)[0]);
  const matrix<double> x = test::random_matrix<double>(7, 4, 9), y = through(alike[0], x);
  CHECK(test::largest_difference(gathered_mean<double>(alike).first, alike[0].first) < 1e-15);
  CHECK(test::largest_difference(through(gathered_mean<double>(alike), x), y) < 1e-12);
  CHECK(test::largest_difference(through(gathered_sum<double>(alike), x), matrix<double>(9 * y)) < 1e-12);
}

TEST_CASE("gathered_expert: one expert is itself, directions are the best of their rank", "[convert][gathered]") {
  const gathered one = experts_to_gather(1, 6);
  CHECK(gathered_units<double>(one).first == one[0].first);
  CHECK(gathered_units<double>(one).last == one[0].last);
  CHECK(test::largest_difference(gathered_directions<double>(one, 6).first, one[0].first) < 1e-12);
  CHECK(test::largest_difference(gathered_directions<double>(one, 6).last, one[0].last) < 1e-12);
  const kernel::small_svd svd(one[0].first);
  for (const index_t rank : {1, 2, 3}) {
    const double left_out = (gathered_directions<double>(one, rank).first - one[0].first).squaredNorm();
    CHECK(std::abs(left_out - svd.s.bottomRows(4 - rank).squaredNorm()) < 1e-10);
  }
}

TEST_CASE("gathered_expert: the largest units, ties to the lower, rows and columns together", "[convert][gathered]") {
  gathered two = experts_to_gather(2, 5);
  two[0].first.row(4) *= 100;
  two[0].last.col(1) *= 100;
  two[0].first.row(2) *= 50;
  two[1].first.setOnes();
  two[1].last.setOnes();
  const auto units = largest_units<double>(two);
  CHECK(units[0] == std::vector<index_t>{1, 2, 4});  // five units: the first expert gives three
  CHECK(units[1] == std::vector<index_t>{0, 1});
  const auto made = gathered_units<double>(two);
  CHECK(made.first.row(2) == two[0].first.row(4));
  CHECK(made.last.col(0) == two[0].last.col(1));
  CHECK(made.last.col(4) == two[1].last.col(1));
}

TEST_CASE("gathered_expert: what it needs", "[convert][gathered]") {
  CHECK_THROWS_AS(gathered_sum<double>(gathered{}), std::invalid_argument);
  CHECK_THROWS_AS(gathered_directions<double>(experts_to_gather(2, 4), 0), std::invalid_argument);
  gathered unlike = experts_to_gather(2, 4);
  unlike[1].last = matrix<double>::Zero(5, 3);
  CHECK_THROWS_WITH(gathered_mean<double>(unlike),
                    Catch::Matchers::Contains("expert 1 has the matrices [4, 4] and [5, 3]"));
}
