/// Exact scores for what a search by codes has found: candidates are compared with the query as they are.
///
///   queries [Q,D], vectors [N,D], candidates [Q,m]  ->  ids [Q,k], scores [Q,k]
///
/// Best first: squared distances or inner products, computed in full; equal scores, the lower id first. A candidate of
/// no_code is left out, one whose score is NaN too; where fewer than k are left ids are no_code and scores NaN. A
/// candidate that is named twice is found twice. Queries go to an executor; equal bits for every one.
#pragma once

#include <sluice/codebook/search/product_scan.hpp>
#include <sluice/kernel/vector_math.hpp>

namespace sluice::inline SLUICE_ISA {

/// ids may be candidates. Throws std::invalid_argument if shapes do not fit or a candidate is none of the vectors.
template <FloatOrDouble Scalar>
void rerank(tokens_in<Scalar> queries, tokens_in<Scalar> vectors, closeness wanted, tokens_in<index_t> candidates,
            tokens_out<index_t> ids, tokens_out<Scalar> scores, buffer<costed_item<Scalar>>& room,
            const executor_ref& executor = {}) {
  const index_t k = ids.cols(), width = vectors.cols();
  if (queries.cols() != width || candidates.rows() != queries.rows() || ids.rows() != queries.rows() ||
      scores.rows() != queries.rows() || scores.cols() != k)
    throw_invalid("ranking by vectors of ", width, " needs queries [Q, ", width,
                  "], candidates [Q, m] and ids and scores [Q, k]; [", queries.rows(), ", ", queries.cols(), "], [",
                  candidates.rows(), ", ", candidates.cols(), "], [", ids.rows(), ", ", k, "], [", scores.rows(), ", ",
                  scores.cols(), "]");
  for (index_t q = 0; q < candidates.rows(); ++q)
    for (index_t c = 0; c < candidates.cols(); ++c)
      if (candidates(q, c) != no_code && (candidates(q, c) < 0 || candidates(q, c) >= vectors.rows()))
        throw_invalid("query ", q, " has the candidate ", candidates(q, c), ", there are ", vectors.rows(), " vectors");
  room.resize(queries.rows() * k);
  executor.parallel_blocks(queries.rows(), 1, candidates.cols() * width, [&](index_t q, index_t) {
    const Scalar* const query = queries.data() + q * queries.outerStride();
    best_items<Scalar> best(room.span().subspan(as_size(q * k), as_size(k)));
    for (index_t c = 0; c < candidates.cols(); ++c) {
      const index_t id = candidates(q, c);
      if (id == no_code) continue;
      const Scalar* const vector = vectors.data() + id * vectors.outerStride();
      best.offer(wanted == closeness::distance ? kernel::squared_difference(query, vector, width)
                                               : -kernel::dot(query, vector, width),
                 id);
    }
    write_found<Scalar>(best.sorted(), wanted, ids, scores, q);
  });
}

}  // namespace sluice::inline SLUICE_ISA
