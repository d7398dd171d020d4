#include <sluice/codebook/search/product_scan.hpp>

#include "../../support.hpp"

using namespace sluice;

namespace {

/// Items of random codes, a table of whole numbers: many costs are equal, and every sum is exact.
template <typename Scalar>
struct scanned_items {
  product_codes<Scalar> codes;
  matrix<index_t> ids;
  code_blocks items;
  cost_tables<Scalar> tables;

  scanned_items(index_t count, index_t parts, index_t per_part, bool whole)
      : codes(parts * 2, {.parts = parts, .codes = per_part}), ids(count, parts), items(parts) {
    matrix<Scalar> numbers = test::random_matrix<Scalar>(parts, per_part * 2, 1);
    if (whole) numbers = (numbers * Scalar(2)).array().round().matrix();
    codes.table().assign(numbers);
    const random_source random(3);
    for (index_t i = 0; i < ids.size(); ++i)
      ids.data()[i] = static_cast<index_t>(random.uniform(random_site::user_site, i) * static_cast<double>(per_part));
    for (index_t i = 0; i < count; ++i) items.add(ids.data() + i * parts);
    tables.prepare(codes);
  }

  std::vector<std::pair<double, index_t>> sorted_costs(closeness wanted, const Scalar* query) const {
    std::vector<Scalar> table(as_size(tables.size()));
    tables.make(wanted, query, table.data());
    std::vector<std::pair<double, index_t>> costs;
    for (index_t i = 0; i < ids.rows(); ++i) {
      Scalar sum = 0;
      for (index_t m = 0; m < ids.cols(); ++m) sum += table[as_size(m * tables.codes() + ids(i, m))];
      costs.emplace_back(static_cast<double>(sum), i);
    }
    std::sort(costs.begin(), costs.end());
    return costs;
  }
};

}  // namespace

TEMPLATE_TEST_CASE("scan_codes: the k best of a sorted list, equal costs by id", "[codebook][search][ties]", float,
                   double) {
  using S = TestType;
  const index_t N = GENERATE(0, 1, 63, 64, 65, 1000), k = GENERATE(1, 5, 70);
  const auto wanted = GENERATE(closeness::distance, closeness::product);
  const scanned_items<S> given(N, 3, 11, true);
  const index_t Q = 9;
  matrix<S> queries = test::random_matrix<S>(Q, 6, 4);
  queries = (queries * S(2)).array().round().matrix();
  matrix<index_t> ids(Q, k);
  matrix<S> scores(Q, k);
  scan_scratch<S> scratch;
  scan_codes<S>(queries, given.tables, wanted, given.items, ids, scores, scratch);
  for (index_t q = 0; q < Q; ++q) {
    const auto costs = given.sorted_costs(wanted, queries.data() + q * 6);
    for (index_t j = 0; j < k; ++j) {
      CAPTURE(N, k, q, j);
      if (j >= N) {
        CHECK(ids(q, j) == no_code);
        CHECK(is_nan(scores(q, j)));
        continue;
      }
      CHECK(ids(q, j) == costs[as_size(j)].second);
      CHECK((wanted == closeness::distance ? 1 : -1) * double(scores(q, j)) == costs[as_size(j)].first);
    }
  }
}

TEMPLATE_TEST_CASE("scan_codes: equal bits for any thread count, and warm it allocates nothing",
                   "[codebook][search][threads]", float, double) {
  using S = TestType;
  const scanned_items<S> given(70000, 8, 256, false);
  const index_t Q = GENERATE(1, 20), k = 10;
  matrix<S> queries = test::random_matrix<S>(Q, 16, 4);
  if (Q > 1) queries(1, 3) = quiet_nan<S>();
  matrix<index_t> ids(Q, k), others(Q, k);
  matrix<S> scores(Q, k), other_scores(Q, k);
  scan_scratch<S> scratch;
  scan_codes<S>(queries, given.tables, closeness::distance, given.items, ids, scores, scratch);
  const auto costs = given.sorted_costs(closeness::distance, queries.data());
  for (index_t j = 0; j < k; ++j) {
    CHECK(ids(0, j) == costs[as_size(j)].second);
    CHECK(double(scores(0, j)) == costs[as_size(j)].first);
  }
  if (Q > 1) {
    CHECK(ids(1, 0) == no_code);
    CHECK(is_nan(scores(1, 0)));
  }
  for (const int threads : {1, 2, 3, 8}) {
    test::shuffled_threads executor(threads);
    scan_codes<S>(queries, given.tables, closeness::distance, given.items, others, other_scores, scratch, executor);
    CHECK(ids == others);
    CHECK(test::same_bits(scores, other_scores));
  }
  matrix<index_t> wrong(Q + 1, k);
  CHECK_THROWS_AS(scan_codes<S>(queries, given.tables, closeness::distance, given.items, wrong, scores, scratch),
                  std::invalid_argument);
  CHECK_THROWS_AS(
      scan_codes<S>(queries.leftCols(15), given.tables, closeness::distance, given.items, ids, scores, scratch),
      std::invalid_argument);
  code_blocks one_part(1);
  const index_t too_large = 256;
  CHECK_THROWS_AS(one_part.add(&too_large), std::invalid_argument);
}
