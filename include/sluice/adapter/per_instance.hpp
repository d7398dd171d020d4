/// Low-rank experts that a whole sample shares: the sample's instruction chooses them, or the cluster it belongs to.
///
///   instance_adapters   G = softmax(W_g q) over E, of the 2 best, over their sum + 1e-9                      Octavius
///                       y[t] = sum over the chosen e of G[e] s B_e A_e x[t]
///   cluster_adapters    G = the largest of softmax((W_g V[c] + b + noise) / temperature), e its expert       MoCLE
///                       y[t] = G s B_e A_e x[t] + (1 - G) s B_u A_u x[t]      by_best: G^2 in the place of G
///
///   adapted_layer layer{dense_layer{linear_expert<float>{64, 64}}, instance_adapters<float>{64, 32, 4, 8}};
///   mean_of_each(question_borders, question, q);
///   context.groups = borders of the samples;      context.group_features = q;
///
///   adapted_layer layer{..., cluster_adapters<float>{64, 4, 8, {.scale = 4}}};
///   context.groups = borders of the samples;      context.cluster_ids = each token's, its sample's, from k-means
///
/// Samples are the groups of the context (router/masked/per_sample.hpp); one decision may serve all layers of a model,
/// through router/fixed/given.hpp. q is the mean of the instruction's tokens; its gradient is in the gate's tape, and
/// mean_of_each_backward brings it to the tokens. The universal expert u is the bank's last, expert E. Without it, a
/// moe_layer of mocle_router and a bank of E is the layer. Experts run on the grouped kernels. Ties, NaN, padding and
/// T = 0 are those of the routers.
///
/// Released code of Octavius draws whether a sample's second expert stays, with probability min(1, G / 0.2), but weighs
/// with both in either case. Here both stay unless options.training says otherwise:
///   {.training = {.policy = further_choices::random, .threshold = {0.2f}}}
/// draws once a sample, and the first expert keeps its G (router/tokens_choose/gshard_top2.hpp). That code has no s,
/// which is 1 here unless it is told. Released code of MoCLE multiplies the chosen expert by G twice, which is by_best,
/// and rounds G to sixteen bits, which is not done. Chen et al. 2023, arXiv:2311.02684 (Octavius); Gou et al. 2023,
/// arXiv:2312.12379 (MoCLE).
#pragma once

#include <sluice/adapter/low_rank.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/masked/per_sample.hpp>

#include <span>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class instance_adapters : public moe_layer<thinned_instance_router<Scalar>, expert_bank<low_rank_expert<Scalar>>> {
  using bank_type = expert_bank<low_rank_expert<Scalar>>;
  using gate_type = per_group_gate<linear_gate<Scalar>, group_source::group_vector>;
  using router_type = thinned_instance_router<Scalar>;
  using base = moe_layer<router_type, bank_type>;

public:
  struct options {
    index_t outputs = 0;  ///< D'; 0 means D
    index_t top_k = 2;
    Scalar scale = 1;  ///< s
    /// Which of a sample's further experts stay in training; draws are the sample's.
    choice_policy<Scalar> training{.policy = further_choices::all};
  };

  /// Tokens have width D, instructions width F. Throws std::invalid_argument unless all sizes are at least 1 and 2 <= k
  /// <= E.
  instance_adapters(index_t inputs, index_t features, index_t experts, index_t rank, options o = {})
      : base(router_type(gate_type(inputs, linear_gate<Scalar>(features, experts)), rule_of(o)),
             bank_type(experts, low_rank_expert<Scalar>(inputs, rank, {.outputs = o.outputs, .scale = o.scale}))) {}

private:
  static typename router_type::options rule_of(const options& o) {
    typename router_type::options rule{.top_k = o.top_k, .training = o.training, .smallest_sum = 0};
    rule.training.one_draw_a_group = true;
    rule.added_to_sum = Scalar(1e-9);
    return rule;
  }
};

template <FloatOrDouble Scalar>
using octavius_adapters = instance_adapters<Scalar>;

template <FloatOrDouble Scalar>
class cluster_adapters
    : public moe_layer<universal_expert_router<mocle_router<Scalar>>, expert_bank<low_rank_expert<Scalar>>> {
  using bank_type = expert_bank<low_rank_expert<Scalar>>;
  using router_type = universal_expert_router<mocle_router<Scalar>>;
  using base = moe_layer<router_type, bank_type>;

public:
  struct options {
    index_t outputs = 0;      ///< D'; 0 means D
    index_t clusters = 64;    ///< rows of V
    index_t embedding = 384;  ///< columns of V
    Scalar temperature = Scalar(0.05);
    Scalar noise_std = Scalar(0.1);  ///< in training
    Scalar scale = 1;                ///< s
    bool by_best = false;
  };

  /// E experts and the universal one. Throws std::invalid_argument unless all sizes are at least 1.
  cluster_adapters(index_t inputs, index_t experts, index_t rank, options o = {})
      : base(router_type(
                 mocle_router<Scalar>(mocle_gate<Scalar>(inputs, experts, o.clusters, o.embedding,
                                                         {.temperature = o.temperature, .noise_std = o.noise_std}),
                                      {.top_k = 1, .weights = weighting::pre}),
                 {.by_best = o.by_best}),
             bank_type(experts + 1, low_rank_expert<Scalar>(inputs, rank, {.outputs = o.outputs, .scale = o.scale}))) {}

  low_rank_expert<Scalar>& universal() noexcept { return this->bank().expert(this->experts() - 1); }
};

template <FloatOrDouble Scalar>
using mocle_adapters = cluster_adapters<Scalar>;

/// means[g] = mean of the rows borders[g] .. borders[g + 1]; 0 where there are none. Throws std::invalid_argument if
/// shapes do not fit.
template <FloatOrDouble Scalar>
void mean_of_each(std::span<const index_t> borders, std::type_identity_t<tokens_in<Scalar>> rows,
                  matrix_buffer<Scalar>& means) {
  if (borders.empty() || borders.front() != 0 || borders.back() != rows.rows())
    throw_invalid("borders of groups have to begin with 0 and end with the number of rows, ", rows.rows());
  means.set_zero(static_cast<index_t>(borders.size()) - 1, rows.cols());
  for (index_t g = 0; g < means.rows(); ++g)
    for (index_t r = borders[as_size(g)]; r < borders[as_size(g + 1)]; ++r)
      kernel::add_scaled(1 / static_cast<Scalar>(borders[as_size(g + 1)] - borders[as_size(g)]),
                         rows.data() + r * rows.outerStride(), means.row(g), means.cols());
}

/// drows[r] += dmeans[g] / n of the group g of n rows that r belongs to.
template <FloatOrDouble Scalar>
void mean_of_each_backward(std::span<const index_t> borders, const matrix_buffer<Scalar>& dmeans,
                           std::type_identity_t<tokens_out<Scalar>> drows) {
  if (static_cast<index_t>(borders.size()) != dmeans.rows() + 1 || borders.back() != drows.rows() ||
      dmeans.cols() != drows.cols())
    throw_invalid("gradients of the means of ", borders.size(), " - 1 groups are [", dmeans.rows(), ", ", dmeans.cols(),
                  "], those of the rows [", drows.rows(), ", ", drows.cols(), "]");
  for (index_t g = 0; g < dmeans.rows(); ++g)
    for (index_t r = borders[as_size(g)]; r < borders[as_size(g + 1)]; ++r)
      kernel::add_scaled(1 / static_cast<Scalar>(borders[as_size(g + 1)] - borders[as_size(g)]), dmeans.row(g),
                         drows.data() + r * drows.outerStride(), drows.cols());
}

}  // namespace sluice::inline SLUICE_ISA
