/// Experts of rank one, weighed by what the token says and by what its instance is like.
///
///   c[g,k] = cosine of the instance's embedding and centre k [C]           cluster_similarities, before the call
///   G[t] = softmax(W x[t] + U c[g(t)] + b) [E];   y[t] = s sum over e of G[t,e] b_e (a_e^T x[t]) = s B diag(G) A x
///
///   cluster_similarities(embeddings, centres, borders, c);      context.features = c;
///   adapted_layer layer{dense_layer{linear_expert<float>{64, 64}}, rank_one_adapters<float>{64, 8, 16}};
///
/// It is a LoRA of rank E whose directions are weighed one by one, two thin products with a diagonal between them
/// (adapter/joined_low_rank.hpp). W and U are one matrix that reads [c, x] (gate/joined.hpp), whose tape has the
/// gradient of c. Centres are found beforehand, by k-means of the embeddings of training instances.
///
/// A reading: of the paper only the abstract was at hand, which says that instances' semantic clusters guide the router
/// of rank-one experts. How similarity enters the gate, cosine and the addition to the logits, is this library's
/// choice. Liu et al. 2024, "Intuition-aware Mixture-of-Rank-1-Experts for Parameter Efficient Finetuning",
/// arXiv:2404.08985.
#pragma once

#include <sluice/adapter/joined_low_rank.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/gate/joined.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>

#include <algorithm>
#include <cmath>
#include <span>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class rank_one_adapters
    : public moe_layer<dense_softmax_router<Scalar, joined_gate<linear_gate<Scalar>>>, joined_low_rank_bank<Scalar>> {
  using gate_type = joined_gate<linear_gate<Scalar>>;
  using router_type = dense_softmax_router<Scalar, gate_type>;
  using base = moe_layer<router_type, joined_low_rank_bank<Scalar>>;

public:
  using options = typename joined_low_rank_bank<Scalar>::options;

  /// Throws std::invalid_argument unless D, E and C are at least 1.
  rank_one_adapters(index_t inputs, index_t experts, index_t centres, options o = {})
      : base(router_type(gate_type(linear_gate<Scalar>(centres + inputs, experts, {.bias = true}), centres)),
             joined_low_rank_bank<Scalar>(experts, inputs, 1, o)) {}
};

/// features[t] [C] = cosines of the embedding of t's instance and every centre; tokens borders[g] to borders[g + 1] - 1
/// are instance g. A vector of length zero has cosine 0 with all. Throws std::invalid_argument if shapes do not fit.
template <FloatOrDouble Scalar>
void cluster_similarities(std::type_identity_t<tokens_in<Scalar>> embeddings,
                          std::type_identity_t<tokens_in<Scalar>> centres, std::span<const index_t> borders,
                          matrix_buffer<Scalar>& features) {
  const index_t instances = embeddings.rows(), width = embeddings.cols();
  if (static_cast<index_t>(borders.size()) != instances + 1 || borders.front() != 0 || centres.cols() != width)
    throw_invalid("cluster_similarities needs G + 1 borders and centres of width F, for embeddings [G, F] = [",
                  instances, ", ", width, "] not ", borders.size(), " and [", centres.rows(), ", ", centres.cols(),
                  "]");
  features.resize(borders.back(), centres.rows());
  const auto row = [](const auto& m, index_t r) { return m.data() + r * m.outerStride(); };
  const auto length = [&](const Scalar* v) { return std::sqrt(kernel::dot(v, v, width)); };
  for (index_t g = 0; g < instances; ++g) {
    const index_t begin = borders[as_size(g)], end = borders[as_size(g + 1)];
    if (begin == end) continue;
    for (index_t k = 0; k < centres.rows(); ++k) {
      const Scalar* const own = row(embeddings, g);
      const Scalar* const centre = row(centres, k);
      const Scalar lengths = length(own) * length(centre);
      features(begin, k) = lengths == 0 ? Scalar(0) : kernel::dot(own, centre, width) / lengths;
    }
    for (index_t t = begin + 1; t < end; ++t) std::copy_n(features.row(begin), features.cols(), features.row(t));
  }
}

}  // namespace sluice::inline SLUICE_ISA
