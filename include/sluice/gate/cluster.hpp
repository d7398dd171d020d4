/// Cluster gate: scores by the cluster that a token belongs to, whatever the token holds.
///
///   embedding V [C,F]   weight W [E,F]   bias b [E]      c = context.cluster_ids[t]
///   logits[t] = W V[c] + b          dV[c] += W^T dlogits[t];  dW += dlogits[t] V[c]^T;  db += dlogits[t];  dx: none
///
/// Clusters are found elsewhere (k-means of sentence embeddings); tokens of a sample share one. A call without cluster
/// ids, or with one that is no row of V for a token that is no padding, throws std::invalid_argument. T = 0 is fine.
/// Initial values: V standard normal, W normal with deviation 1/sqrt(F), b zero. Gou et al. 2023, "Mixture of
/// Cluster-conditional LoRA Experts", arXiv:2312.12379; Liu et al. 2024 (MoCE), arXiv:2402.05382.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/kernel/linear.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class cluster_gate {
public:
  using scalar = Scalar;
  struct tape {
    matrix_buffer<Scalar> rows;  ///< [T,F] embeddings of the tokens' clusters
    matrix_buffer<Scalar> drows;
  };

  /// For tokens of width D. Throws std::invalid_argument unless all sizes are at least 1.
  cluster_gate(index_t inputs, index_t experts, index_t clusters, index_t width) : inputs_(inputs) {
    if (inputs < 1 || experts < 1 || clusters < 1 || width < 1)
      throw_invalid("cluster_gate needs D, E, clusters and width >= 1, not ", inputs, ", ", experts, ", ", clusters,
                    ", ", width);
    embedding_ = {{clusters, width}, parameter_role::weight, initial_values::normal(1)};
    weight_ = {
        {experts, width}, parameter_role::weight, initial_values::normal(1 / std::sqrt(static_cast<double>(width)))};
    bias_ = {{experts}, parameter_role::vector};
  }

  index_t inputs() const noexcept { return inputs_; }
  index_t experts() const noexcept { return weight_.rows(); }
  index_t clusters() const noexcept { return embedding_.rows(); }

  void forward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_out<Scalar> logits, tape& t) const {
    if (static_cast<index_t>(context.cluster_ids.size()) != x.rows())
      throw_invalid("cluster_gate needs routing_context.cluster_ids, one for each of ", x.rows(),
                    " decisions; there are ", context.cluster_ids.size());
    const index_t width = embedding_.cols();
    t.rows.resize(x.rows(), width);
    for (index_t row = 0; row < x.rows(); ++row) {
      const index_t id = context.cluster_ids[static_cast<std::size_t>(row)];
      if (context.is_padding(row)) {
        std::fill_n(t.rows.row(row), width, Scalar(0));
        continue;
      }
      if (id < 0 || id >= clusters())
        throw_invalid("token ", row, " is of cluster ", id, ", there are clusters 0 to ", clusters() - 1);
      std::copy_n(embedding_.data() + id * width, width, t.rows.row(row));
    }
    linear_forward<Scalar>(t.rows.map(), weight_, logits, context.executor);
    logits.rowwise() += bias_.map().col(0).transpose();
  }

  /// Adds into the gradients; x has none.
  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_in<Scalar> dlogits, tape& t,
                tokens_out<Scalar>) {
    t.drows.set_zero(x.rows(), embedding_.cols());
    linear_backward<Scalar>(t.rows.map(), weight_, dlogits, t.drows.map(), context.executor);
    add_column_sums(dlogits, bias_.gradient());
    for (index_t row = 0; row < x.rows(); ++row) {
      if (context.is_padding(row)) continue;
      const index_t id = context.cluster_ids[static_cast<std::size_t>(row)];
      kernel::add_scaled(Scalar(1), t.drows.row(row), embedding_.gradient().data() + id * embedding_.cols(),
                         embedding_.cols());
    }
  }

  parameter<Scalar>& embedding() noexcept { return embedding_; }
  parameter<Scalar>& weight() noexcept { return weight_; }
  parameter<Scalar>& bias() noexcept { return bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("embedding", self.embedding_);
    visit("weight", self.weight_);
    visit("bias", self.bias_);
  }

private:
  index_t inputs_;
  parameter<Scalar> embedding_, weight_, bias_;
};

static_assert(DifferentiableGate<cluster_gate<float>>);

}  // namespace sluice::inline SLUICE_ISA
