#include <sluice/codebook/search/cost_tables.hpp>

#include "../../support.hpp"

using namespace sluice;

TEMPLATE_TEST_CASE("cost_tables: sums of entries are distances and products of the restored vector",
                   "[codebook][search]", float, double) {
  using S = TestType;
  const index_t K = GENERATE(5, 16, 37), D = 10, T = 6;
  product_codes<S> codes(D, {.parts = 3, .codes = K});
  codes.table().assign(test::random_matrix<S>(3, K * 4, 1));
  const matrix<S> x = test::random_matrix<S>(T, D, 2), queries = test::random_matrix<S>(4, D, 3);
  matrix<index_t> ids(T, 3), query_ids(4, 3);
  typename product_codes<S>::workspace ws;
  codes.encode(x, ids, ws);
  codes.encode(queries, query_ids, ws);
  matrix<S> restored(T, 12), restored_queries(4, 12);
  codes.decode_rotated(ids, restored);
  codes.decode_rotated(query_ids, restored_queries);
  cost_tables<S> tables;
  tables.prepare(codes);
  REQUIRE(tables.size() == 3 * K);
  std::vector<S> distances(as_size(3 * K)), products(as_size(3 * K)), between(as_size(3 * K * K));
  tables.between_codes(between.data());
  const matrix<S> rotated = codes.rotate(queries, ws);
  const double bound = 40 * double(std::numeric_limits<S>::epsilon());
  for (index_t q = 0; q < 4; ++q) {
    tables.make(closeness::distance, rotated.data() + q * 12, distances.data());
    tables.make(closeness::product, rotated.data() + q * 12, products.data());
    for (index_t t = 0; t < T; ++t) {
      double distance = 0, product = 0, symmetric = 0;
      for (index_t m = 0; m < 3; ++m) {
        distance += double(distances[as_size(m * K + ids(t, m))]);
        product += double(products[as_size(m * K + ids(t, m))]);
        symmetric += double(between[as_size((m * K + query_ids(q, m)) * K + ids(t, m))]);
      }
      const auto query = rotated.row(q).template cast<double>();
      const auto item = restored.row(t).template cast<double>();
      const double scale = 1 + query.squaredNorm() + item.squaredNorm();
      CHECK(std::abs(distance - (query - item).squaredNorm()) < bound * scale);
      CHECK(std::abs(product + query.dot(item)) < bound * scale);
      const double apart = (restored_queries.row(q) - restored.row(t)).template cast<double>().squaredNorm();
      CHECK(std::abs(symmetric - apart) < 4 * bound * (1 + apart + scale));
    }
  }
}
