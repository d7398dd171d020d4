// Searching with codebooks: product codes, their tables and packing.
#include "replays.hpp"

#include <sluice/codebook/search/code_packing.hpp>
#include <sluice/codebook/search/cost_tables.hpp>
#include <sluice/codebook/search/product_codes.hpp>

namespace oracle {
namespace {

using namespace sluice;

template <typename Scalar>
product_codes<Scalar> product_of(const oracle_case<Scalar>& c, index_t codes, bool rotation) {
  product_codes<Scalar> product(c.axis("codebook", 0) * c.axis("codebook", 2),
                                {.parts = c.axis("codebook", 0), .codes = codes, .rotation = rotation});
  std::ranges::copy(c.numbers("codebook"), product.table().data());
  if (rotation) std::ranges::copy(c.numbers("rotate"), product.rotation().data());
  return product;
}

std::vector<index_t> listed(const matrix<index_t>& ids) { return {ids.data(), ids.data() + ids.size()}; }

void check_packing(auto& c, const code_packing& packing, const matrix<index_t>& ids) {
  matrix<std::uint8_t> packed(ids.rows(), packing.bytes());
  packing.pack(ids, packed);
  c.check_integers("packed_codes", std::vector<index_t>(packed.data(), packed.data() + packed.size()));
  matrix<index_t> back(ids.rows(), ids.cols());
  packing.unpack(packed, back);
  if (ids != back) c.fail("what is unpacked is not what was packed");
}

template <typename Scalar>
void pq(oracle_case<Scalar>& c) {
  const index_t bits = c.template setting<index_t>("nbits"), K = c.template setting<index_t>("K");
  if (K != index_t{1} << bits) throw unsupported("a number of codes that is not that of its bits");
  const auto product = product_of(c, K, c.template setting<bool>("rotate"));
  const matrix<Scalar> x = c.rows("x"), queries = c.rows("query");
  const index_t M = product.parts(), Q = queries.rows(), T = x.rows();
  typename product_codes<Scalar>::workspace ws;
  matrix<index_t> ids(T, M), query_ids(Q, M);
  product.encode(x, ids, ws);
  product.encode(queries, query_ids, ws);
  c.check_integers("indices", listed(ids));
  c.check_integers("query_indices", listed(query_ids));
  check_packing(c, code_packing(M, bits), ids);
  matrix<Scalar> decoded(T, product.rotated_width());
  product.decode_rotated(ids, decoded);
  c.check("decoded", decoded);

  cost_tables<Scalar> tables;
  tables.prepare(product);
  const matrix<Scalar> rotated = product.rotate(queries, ws);
  matrix<Scalar> distances(Q, tables.size()), products(Q, tables.size()), between(M * K, K);
  matrix<Scalar> by_distance(Q, T), by_product(Q, T), by_codes(Q, T);
  for (index_t q = 0; q < Q; ++q) {
    tables.make(closeness::distance, rotated.data() + q * rotated.cols(), distances.data() + q * tables.size());
    tables.make(closeness::product, rotated.data() + q * rotated.cols(), products.data() + q * tables.size());
  }
  tables.between_codes(between.data());
  products *= -1;
  for (index_t q = 0; q < Q; ++q)
    for (index_t t = 0; t < T; ++t) {
      by_distance(q, t) = by_product(q, t) = by_codes(q, t) = 0;
      for (index_t m = 0; m < M; ++m) {
        by_distance(q, t) += distances(q, m * K + ids(t, m));
        by_product(q, t) += products(q, m * K + ids(t, m));
        by_codes(q, t) += between(m * K + query_ids(q, m), ids(t, m));
      }
    }
  c.check("table_l2", distances);
  c.check("table_ip", products);
  c.check("sdc_table", between);
  c.check("adc_l2", by_distance);
  c.check("adc_ip", by_product);
  c.check("sdc", by_codes);
}

}  // namespace

std::vector<replayer> code_search_systems() { return {{"pq", pq<float>, pq<double>}}; }

}  // namespace oracle
