// Searching with codebooks: product codes, inverted lists of them, codes that add up, codes that imitate scores.
#include "replays.hpp"

#include <sluice/codebook/codes/learned.hpp>
#include <sluice/codebook/gradient/index_propagation.hpp>
#include <sluice/codebook/search/beam_encoder.hpp>
#include <sluice/codebook/search/code_packing.hpp>
#include <sluice/codebook/search/product_index.hpp>
#include <sluice/codebook/search/score_distillation.hpp>
#include <sluice/codebook/structure/product.hpp>
#include <sluice/codebook/vector_quantizer.hpp>
#include <sluice/train/cross_entropy.hpp>

#include <numeric>

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

template <typename Scalar>
void ivf_pq(oracle_case<Scalar>& c) {
  const auto metric = c.template setting<std::string>("metric");
  if (metric != "l2" && metric != "ip") throw unsupported("metric " + metric);
  const matrix<Scalar> x = c.rows("x"), queries = c.rows("query");
  const index_t T = x.rows(), Q = queries.rows(), M = c.axis("codebook", 0), probes = c.template setting<index_t>("nprobe");
  product_index<Scalar> index(x.cols(), {.parts = M,
                                         .codes = c.axis("codebook", 1),
                                         .lists = c.template setting<index_t>("lists"),
                                         .wanted = metric == "l2" ? closeness::distance : closeness::product,
                                         .by_residual = c.template setting<bool>("by_residual")});
  std::ranges::copy(c.numbers("codebook"), index.codes().table().data());
  index.centers().assign(c.rows("centers"));
  typename product_index<Scalar>::workspace ws;
  index.add(x, ws);
  matrix<index_t> items(T, M + 1);
  index.items(items);
  c.check_integers("list", listed(items.leftCols(1)));
  c.check_integers("indices", listed(items.rightCols(M)));
  matrix<Scalar> decoded(T, x.cols());
  index.codes().decode_rotated(items.rightCols(M), decoded);
  for (index_t t = 0; t < T && index.options().by_residual; ++t) decoded.row(t) += index.centers().map().row(items(t, 0));
  c.check("decoded", decoded);

  matrix<index_t> ids(Q, T), visited = matrix<index_t>::Zero(Q, T), lists(Q, probes);
  matrix<Scalar> found(Q, T), scores = matrix<Scalar>::Zero(Q, T), of_centers(Q, index.lists());
  index.search(queries, ids, found, ws, {.probes = probes});
  for (index_t q = 0; q < Q; ++q)
    for (index_t j = 0; j < T; ++j)
      if (ids(q, j) != no_code) visited(q, ids(q, j)) = 1, scores(q, ids(q, j)) = found(q, j);
  closest_lists<Scalar>(queries.data(), queries.cols(), Q, ws.centers, of_centers.data(), lists.data(), probes);
  c.check_integers("probes", listed(lists));
  c.check_integers("visited", listed(visited));
  c.check("scores", scores);
}

template <typename Scalar>
void additive_rq(oracle_case<Scalar>& c) {
  const auto bits = c.config().at("nbits").template get<std::vector<index_t>>();
  std::vector<matrix<Scalar>> tables;
  for (std::size_t m = 0; m < bits.size(); ++m) tables.push_back(c.rows("codebook." + std::to_string(m)));
  std::vector<const_matrix_map<Scalar>> stages;
  for (const auto& table : tables) stages.emplace_back(table.data(), table.rows(), table.cols());
  const beam_encoder<Scalar> encoder(stages, c.template setting<index_t>("beam"));
  const matrix<Scalar> x = c.rows("x");
  matrix<index_t> ids(x.rows(), encoder.columns());
  typename beam_encoder<Scalar>::workspace ws;
  encoder.encode(x, ids, ws);
  c.check_integers("indices", listed(ids));
  check_packing(c, code_packing(bits), ids);
  matrix<Scalar> decoded(x.rows(), x.cols());
  encoder.decode(ids, decoded);
  c.check("decoded", decoded);
  c.check("error", matrix<Scalar>((x - decoded).rowwise().squaredNorm()));
  c.check("norm", matrix<Scalar>(decoded.rowwise().squaredNorm()));
}

/// The loss between scores that the case asks for; document i is the right one for query i.
template <typename Scalar>
double loss_of(const oracle_case<Scalar>& c, const matrix<Scalar>& teacher, const matrix<Scalar>& student, matrix<Scalar>& dstudent) {
  const auto method = c.template setting<std::string>("loss_method");
  if (method == "distill") return score_distillation{}(teacher, student, dstudent);
  if (method != "contras") throw unsupported("loss_method " + method);
  std::vector<index_t> labels(as_size(student.rows()));
  std::iota(labels.begin(), labels.end(), index_t{0});
  return softmax_cross_entropy<Scalar>{}(student, labels, dstudent).loss;
}

template <typename Scalar>
void distill_vq(oracle_case<Scalar>& c) {
  const auto mode = c.template setting<std::string>("dist_mode");
  if (mode != "ip" && mode != "l2") throw unsupported("dist_mode " + mode);
  const closeness_scores score{mode == "ip" ? closeness::product : closeness::distance,
                               c.template setting<double>("temperature")};
  const matrix<Scalar> query = c.rows("query"), doc = c.rows("doc"), neg = c.rows("neg");
  const index_t D = query.cols(), Q = query.rows(), docs = doc.rows(), negs = neg.rows(), N = docs + negs;
  const index_t M = c.axis("codebook", 0), K = c.axis("codebook", 1), part_width = c.axis("codebook", 2);
  matrix<Scalar> items(N, D);
  items << doc, neg;
  const matrix<Scalar> turn = c.template setting<bool>("rotate") ? c.rows("rotate") : matrix<Scalar>(matrix<Scalar>::Identity(D, D));
  const matrix<Scalar> queries = query * turn.transpose(), turned = items * turn.transpose();
  const bool has_lists = c.template setting<index_t>("ivf_centers") > 0;
  std::vector<index_t> lists;
  matrix<Scalar> centers, center_of = matrix<Scalar>::Zero(N, D);
  if (has_lists) {
    centers = c.rows("centers");
    for (const char* const name : {"doc_center", "neg_center"})
      for (const index_t list : c.integers(name)) lists.push_back(list);
    for (index_t i = 0; i < N; ++i) center_of.row(i) = centers.row(lists[as_size(i)]);
  }
  const auto sums_by_list = [&](const matrix<Scalar>& rows) {
    matrix<Scalar> sums = matrix<Scalar>::Zero(centers.rows(), D);
    for (index_t i = 0; has_lists && i < N; ++i) sums.row(lists[as_size(i)]) += rows.row(i);
    return sums;
  };

  const vector_quantizer part{learned_codes<Scalar>{K, part_width}, index_propagation{.by_distance = true},
                              commitment_loss{.encoder = 0, .codebook = 0}};
  product_quantizer codes{std::vector(as_size(M), part)};
  const auto numbers = c.numbers("codebook");
  for (index_t m = 0; m < M; ++m)
    std::copy_n(numbers.data() + m * K * part_width, K * part_width, codes.part(m).codebook().table().data());
  typename decltype(codes)::tape tape;
  matrix<Scalar> restored(N, D);
  codes.forward(matrix<Scalar>(turned - center_of), restored, tape);
  restored += center_of;
  const matrix<index_t> ids = tape.ids.map();
  c.check_integers("codes.doc", listed(ids.topRows(docs)));
  c.check_integers("codes.neg", listed(ids.bottomRows(negs)));
  c.check("quantised.doc", matrix<Scalar>(restored.topRows(docs)));
  c.check("quantised.neg", matrix<Scalar>(restored.bottomRows(negs)));
  const matrix<Scalar> error = turned.topRows(docs) - restored.topRows(docs);
  c.check("reconstruction_loss", static_cast<Scalar>(error.squaredNorm() / static_cast<Scalar>(docs)));

  matrix<Scalar> teacher(Q, N), student(Q, N), dstudent(Q, N);
  score(query, items, teacher);
  c.check("origin_score", teacher);
  score(queries, turned, student);
  c.check("dense_loss", static_cast<Scalar>(loss_of(c, teacher, student, dstudent)));

  score(queries, restored, student);
  c.check("pq_score", student);
  c.check("pq_loss", static_cast<Scalar>(loss_of(c, teacher, student, dstudent)));
  matrix<Scalar> dqueries = matrix<Scalar>::Zero(Q, D), drestored = matrix<Scalar>::Zero(N, D), dturned(N, D);
  score.backward(queries, restored, dstudent, dqueries, drestored);
  zero_gradients(codes);
  codes.backward(drestored, dturned, tape);
  std::vector<Scalar> dcodes;
  for (index_t m = 0; m < M; ++m) {
    const auto gradient = codes.part(m).codebook().table().gradient();
    dcodes.insert(dcodes.end(), gradient.begin(), gradient.end());
  }
  const matrix<Scalar> ditems = dturned * turn;
  c.check("grad_pq_loss.codebook", dcodes);
  c.check("grad_pq_loss.query", matrix<Scalar>(dqueries * turn));
  c.check("grad_pq_loss.doc", matrix<Scalar>(ditems.topRows(docs)));
  c.check("grad_pq_loss.neg", matrix<Scalar>(ditems.bottomRows(negs)));
  c.check("grad_pq_loss.centers", sums_by_list(drestored - dturned));
  if (!has_lists) return;

  score(queries, center_of, student);
  c.check("ivf_score", student);
  c.check("ivf_loss", static_cast<Scalar>(loss_of(c, teacher, student, dstudent)));
  dqueries.setZero();
  drestored.setZero();
  score.backward(queries, center_of, dstudent, dqueries, drestored);
  c.check("grad_ivf_loss.query", matrix<Scalar>(dqueries * turn));
  c.check("grad_ivf_loss.centers", sums_by_list(drestored));
}

}  // namespace

std::vector<replayer> code_search_systems() {
  return {{"pq", pq<float>, pq<double>}, {"ivf_pq", ivf_pq<float>, ivf_pq<double>}, {"additive_rq", additive_rq<float>, additive_rq<double>},
          {"distill_vq", distill_vq<float>, distill_vq<double>}};
}

}  // namespace oracle
