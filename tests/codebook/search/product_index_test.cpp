#include <sluice/codebook/search/product_index.hpp>

#include <sluice/codebook/search/rerank.hpp>

#include "../../support.hpp"

using namespace sluice;

namespace {

/// Vectors around a few points: what inverted lists are for.
template <typename Scalar>
matrix<Scalar> clustered_vectors(index_t count, index_t width, std::uint64_t seed) {
  const matrix<Scalar> points = test::random_matrix<Scalar>(7, width, 99);
  matrix<Scalar> x = test::random_matrix<Scalar>(count, width, seed) * Scalar(0.3);
  for (index_t t = 0; t < count; ++t) x.row(t) += points.row(t % 7) * Scalar(2);
  return x;
}

/// What an index must find: costs of all items in the lists that a query looks into, from restored vectors, in double.
template <typename Scalar>
std::vector<std::pair<double, index_t>> found_by_hand(const product_index<Scalar>& index, const matrix<Scalar>& query,
                                                      index_t probes) {
  const auto& o = index.options();
  matrix<index_t> items(index.size(), index.item_columns());
  index.items(items);
  const bool has_lists = o.lists > 0;
  matrix<Scalar> restored(items.rows(), index.codes().rotated_width());
  index.codes().decode_rotated(items.rightCols(o.parts), restored);
  std::vector<std::pair<double, index_t>> lists;
  for (index_t l = 0; l < o.lists; ++l) {
    const auto center = index.centers().map().row(l).template cast<double>();
    const auto q = query.row(0).template cast<double>();
    lists.emplace_back(o.wanted == closeness::distance ? (q - center).squaredNorm() : -q.dot(center), l);
  }
  std::sort(lists.begin(), lists.end());
  lists.resize(as_size(std::min(probes, o.lists)));
  std::vector<std::pair<double, index_t>> costs;
  for (index_t i = 0; i < items.rows(); ++i) {
    if (has_lists && std::none_of(lists.begin(), lists.end(), [&](const auto& l) { return l.second == items(i, 0); }))
      continue;
    matrix<double> item = restored.row(i).template cast<double>();
    if (has_lists && o.by_residual) item += index.centers().map().row(items(i, 0)).template cast<double>();
    const matrix<double> q = query.row(0).template cast<double>();
    costs.emplace_back(o.wanted == closeness::distance ? (q - item).squaredNorm() : -q.cwiseProduct(item).sum(), i);
  }
  std::sort(costs.begin(), costs.end());
  return costs;
}

}  // namespace

TEMPLATE_TEST_CASE("product_index: what is found is what the codes say, in the lists looked into", "[codebook][search]",
                   float, double) {
  using S = TestType;
  const auto wanted = GENERATE(closeness::distance, closeness::product);
  const index_t lists = GENERATE(0, 5);
  const bool by_residual = GENERATE(true, false);
  if (lists == 0 && !by_residual) return;
  const index_t N = 300, D = 8, Q = 6, k = 12, probes = 2;
  const matrix<S> x = clustered_vectors<S>(N, D, 1), queries = clustered_vectors<S>(Q, D, 2);
  const product_index<S> index(x, {.parts = 4,
                                   .codes = 16,
                                   .lists = lists,
                                   .wanted = wanted,
                                   .by_residual = by_residual,
                                   .learning = {.rounds = 4}});
  REQUIRE(index.size() == N);
  matrix<index_t> ids(Q, k), others(Q, k);
  matrix<S> scores(Q, k), other_scores(Q, k);
  typename product_index<S>::workspace ws;
  index.search(queries, ids, scores, ws, {.probes = probes});
  const double bound = 200 * double(std::numeric_limits<S>::epsilon()) * 60;
  for (index_t q = 0; q < Q; ++q) {
    const auto costs = found_by_hand<S>(index, queries.row(q), probes);
    REQUIRE(index_t(costs.size()) >= k);
    for (index_t j = 0; j < k; ++j) {
      CAPTURE(lists, by_residual, q, j);
      const double cost = (wanted == closeness::distance ? 1 : -1) * double(scores(q, j));
      CHECK(std::abs(cost - costs[as_size(j)].first) < bound);
      const auto same = std::find_if(costs.begin(), costs.end(), [&](const auto& c) { return c.second == ids(q, j); });
      REQUIRE(same != costs.end());
      CHECK(std::abs(cost - same->first) < bound);
      if (j > 0)
        CHECK(
            (cost > (wanted == closeness::distance ? 1 : -1) * double(scores(q, j - 1)) || ids(q, j) > ids(q, j - 1)));
    }
  }
  for (const int threads : {2, 3, 8}) {
    test::shuffled_threads executor(threads);
    index.search(queries, others, other_scores, ws, {.probes = probes}, executor);
    CHECK(ids == others);
    CHECK(test::same_bits(scores, other_scores));
  }

  // Into another index, as plain numbers.
  product_index<S> copy(D, index.options());
  copy.codes().table().assign(index.codes().table().to_matrix());
  if (lists > 0) copy.centers().assign(index.centers().to_matrix());
  matrix<index_t> items(N, index.item_columns());
  index.items(items);
  copy.add_items(items);
  copy.search(queries, others, other_scores, ws, {.probes = probes});
  CHECK(ids == others);
  CHECK(test::same_bits(scores, other_scores));
}

TEST_CASE("product_index: recall grows with lists looked into, and exact scores mend the order", "[codebook][search]") {
  const index_t N = 1000, D = 16, Q = 20;
  const matrix<float> x = clustered_vectors<float>(N, D, 1), queries = clustered_vectors<float>(Q, D, 2);
  const product_index<float> index(x, {.parts = 4, .codes = 32, .lists = 20, .learning = {.rounds = 5}});
  product_index<float>::workspace ws;
  matrix<index_t> all(Q, 1), best(Q, 1);
  matrix<float> score(Q, 1);
  buffer<costed_item<float>> room;
  matrix<index_t> everything(Q, N);
  for (index_t q = 0; q < Q; ++q)
    for (index_t i = 0; i < N; ++i) everything(q, i) = i;
  rerank<float>(queries, x, closeness::distance, everything, all, score, room);
  for (index_t q = 0; q < Q; ++q) {
    index_t nearest = 0;
    (x.rowwise() - queries.row(q)).rowwise().squaredNorm().minCoeff(&nearest);
    CHECK(all(q, 0) == nearest);
  }
  const auto recall = [&](index_t probes, index_t candidates) {
    matrix<index_t> ids(Q, candidates);
    matrix<float> scores(Q, candidates);
    index.search(queries, ids, scores, ws, {.probes = probes});
    rerank<float>(queries, x, closeness::distance, ids, best, score, room);
    return (best.array() == all.array()).count();
  };
  CHECK(recall(20, 1) <= recall(20, 100));
  CHECK(recall(20, N) == Q);  // nothing left out: exact
  CHECK(recall(1, 100) <= recall(20, 100));
  CHECK(recall(5, 100) >= Q * 9 / 10);
}

TEST_CASE("product_index: NaN is refused or finds nothing, few items, options are checked", "[codebook][search]") {
  const matrix<float> x = clustered_vectors<float>(40, 8, 1);
  product_index<float> index(x, {.parts = 2, .codes = 16, .lists = 3});
  product_index<float>::workspace ws;
  matrix<float> more = x.topRows(2);
  more(1, 7) = quiet_nan<float>();
  CHECK_THROWS_AS(index.add(more, ws), std::invalid_argument);
  CHECK(index.size() == 40);
  matrix<index_t> ids(2, 50);
  matrix<float> scores(2, 50);
  index.search(more, ids, scores, ws, {.probes = 100});
  CHECK(ids(0, 0) != no_code);
  CHECK(ids(0, 39) != no_code);
  CHECK(ids(0, 40) == no_code);
  CHECK(ids(1, 0) == no_code);
  CHECK(is_nan(scores(1, 0)));
  CHECK_THROWS_AS(index.search(more, ids, scores, ws, {.probes = 0}), std::invalid_argument);
  CHECK_THROWS_AS(index.search(more.leftCols(7), ids, scores, ws), std::invalid_argument);
  matrix<index_t> item(1, 3);
  item << 3, 0, 0;
  CHECK_THROWS_AS(index.add_items(item), std::invalid_argument);
  item << 0, 0, 16;
  CHECK_THROWS_AS(index.add_items(item), std::invalid_argument);
  CHECK_THROWS_AS(product_index<float>(8, {.codes = 257}), std::invalid_argument);
  CHECK_THROWS_AS(product_index<float>(8, {.lists = -1}), std::invalid_argument);
  CHECK_THROWS_AS(product_index<float>(4, {.parts = 8}), std::invalid_argument);
  buffer<costed_item<float>> room;
  matrix<index_t> candidates = matrix<index_t>::Constant(2, 3, no_code), best(2, 2);
  matrix<float> exact(2, 2);
  candidates(0, 1) = 5;
  rerank<float>(more, x, closeness::product, candidates, best, exact, room);
  CHECK(best(0, 0) == 5);
  CHECK(best(0, 1) == no_code);
  candidates(1, 0) = 40;
  CHECK_THROWS_AS(rerank<float>(more, x, closeness::product, candidates, best, exact, room), std::invalid_argument);
}
