/// What every expert of a bank makes of every token, whoever would be routed where, and without weights.
///
///   outputs[e] [T,D'] = f_e(X)          output_norms [T,E] = |outputs[e][t]|
///
/// What measures of experts read: output_similarity.hpp, norm_ranks.hpp, expert_diversity.hpp. E times the work of one
/// expert and T E D' numbers; for many tokens go block by block. A token with NaN has NaN in every expert, and no other
/// token has. T = 0 is fine.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>

#include <algorithm>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// Throws std::invalid_argument if x does not have the bank's width.
template <ExpertBank Bank>
std::vector<matrix<typename Bank::scalar>> expert_outputs(const Bank& bank, tokens_in<typename Bank::scalar> x,
                                                          const executor_ref& executor = {}) {
  using scalar = typename Bank::scalar;
  if (x.cols() != bank.inputs())
    throw_invalid("the experts read tokens of width ", bank.inputs(), "; x is [", x.rows(), ", ", x.cols(), "]");
  const index_t T = x.rows(), E = bank.experts();
  std::vector<matrix<scalar>> outputs(as_size(E), matrix<scalar>::Zero(T, bank.outputs()));
  if (T == 0) return outputs;
  typename Bank::tape tape;
  std::vector<index_t> offsets(as_size(E + 1));
  for (index_t e = 0; e < E; ++e) {
    std::fill(offsets.begin(), offsets.begin() + e + 1, index_t{0});
    std::fill(offsets.begin() + e + 1, offsets.end(), T);
    if constexpr (requires { bank.prepare(tape, T, false); }) bank.prepare(tape, T, false);
    bank.forward(x, offsets, outputs[as_size(e)], tape, executor);
    for (index_t t = 0; t < T; ++t)
      if (any_nan(x.data() + t * x.outerStride(), x.cols()))
        outputs[as_size(e)].row(t).setConstant(quiet_nan<scalar>());  // a constant expert does not read x
  }
  return outputs;
}

/// [T,E], in double. Throws std::invalid_argument if numbers of tokens differ.
template <typename Scalar>
matrix<double> output_norms(const std::vector<matrix<Scalar>>& outputs) {
  const auto E = static_cast<index_t>(outputs.size());
  matrix<double> norms(E == 0 ? 0 : outputs[0].rows(), E);
  for (index_t e = 0; e < E; ++e) {
    if (outputs[as_size(e)].rows() != norms.rows())
      throw_invalid("expert ", e, " has outputs for ", outputs[as_size(e)].rows(), " tokens, the first for ",
                    norms.rows());
    norms.col(e) = outputs[as_size(e)].template cast<double>().rowwise().norm();
  }
  return norms;
}

}  // namespace sluice::inline SLUICE_ISA
