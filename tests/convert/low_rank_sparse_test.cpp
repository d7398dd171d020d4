#include <sluice/convert/low_rank_sparse.hpp>

#include "support.hpp"

using namespace sluice;

TEST_CASE("low_rank_sparse: parts add up to the matrix, a full rank leaves nothing", "[convert][low_rank_sparse]") {
  for (const bool wide : {false, true}) {
    const matrix<double> m = test::random_matrix<double>(7, 4, 1), w = wide ? matrix<double>(m.transpose()) : m;
    const kernel::small_svd svd(m);
    for (const index_t rank : {1, 3, 4}) {
      const auto parts = split_low_rank<double>(w, rank);
      CHECK(parts.left.cols() == rank);
      CHECK(test::largest_difference(parts.to_matrix(), w) < 1e-14);
      CHECK(std::abs(parts.sparse.squaredNorm() - svd.s.bottomRows(4 - rank).squaredNorm()) < 1e-10);
      CHECK(test::largest_difference(matrix<double>(parts.left.transpose() * parts.left),
                                     matrix<double>(parts.right * parts.right.transpose())) < 1e-10);
    }
  }
  CHECK(rank_for(6, 10, 0.15) == 1);
  CHECK(rank_for(8, 6, 0.3) == 2);
  CHECK(rank_for(4, 4, 100) == 4);
  CHECK_THROWS_AS(split_low_rank<double>(matrix<double>::Zero(3, 2), 3), std::invalid_argument);
  CHECK_THROWS_AS(rank_for(3, 2, 0), std::invalid_argument);
}

TEST_CASE("row_pruning: rows whose gradients matter least go, in a cubic schedule, and only once it has begun",
          "[convert][low_rank_sparse]") {
  row_pruning<double> pruning({.keep = 0.5, .total = 10, .initial = 2, .final = 2});
  CHECK(pruning.share_at(2) == 1);
  CHECK(std::abs(pruning.share_at(5) - (0.5 + 0.5 * 0.125)) < 1e-15);
  CHECK(pruning.share_at(9) == 0.5);
  low_rank_sparse<double> parts{{}, {}, matrix<double>::Ones(8, 3)};
  parts.sparse.row(5) << 1, -1, 0;  // adds up to zero, and is none
  matrix<double> gradient(8, 3);
  for (index_t r = 0; r < 8; ++r) gradient.row(r).setConstant(1 + static_cast<double>(r));
  gradient.row(5).setConstant(9);
  for (int step = 0; step < 3; ++step) pruning.step({&parts.sparse}, {&gradient});
  CHECK(parts.alive_rows().size() == 8);
  for (int step = 3; step < 10; ++step) pruning.step({&parts.sparse}, {&gradient});
  const auto alive = parts.alive_rows();
  CHECK(alive.size() >= 4);
  CHECK(alive.size() <= 5);
  CHECK(alive.back() == 7);
  CHECK(std::find(alive.begin(), alive.end(), index_t{0}) == alive.end());
  const matrix<double> other = matrix<double>::Ones(3, 3);
  CHECK_THROWS_AS(pruning.step({&parts.sparse}, {&other}), std::invalid_argument);
  CHECK_THROWS_AS(row_pruning<double>({.keep = 0.5, .total = 4, .initial = 2, .final = 2}), std::invalid_argument);
}
