/// The matrices of a bank's experts, as measures want them: by name, and a row a hidden unit in all of them.
///
///   a gated expert    gate [H,D]   up [H,D]   down^T [H,D']          another    up [H,D]   down^T [H,D']
///
///   for (const auto& weights : expert_weights(layer.bank())) show(weights.name, matrix_similarity(weights.of));
///
/// Row j of each belongs to unit j ("neuron" in the paper). Weights in any storage come out as numbers. What else is to
/// be compared, the dense network of a base model or a shared expert, is put behind: weights.of.push_back(...).
#pragma once

#include <sluice/expert/bank.hpp>
#include <sluice/kernel/mixed_map.hpp>

#include <string>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
struct named_weights {
  std::string name;
  std::vector<matrix<Scalar>> of;  ///< [E], a row a hidden unit
};

template <MadeOfLinearMaps Expert>
std::vector<named_weights<typename Expert::scalar>> expert_weights(const expert_bank<Expert>& bank) {
  using scalar = typename Expert::scalar;
  std::vector<named_weights<scalar>> all;
  const auto add = [&](const char* name, auto&& matrix_of) {
    all.push_back({name, {}});
    for (index_t e = 0; e < bank.experts(); ++e) all.back().of.push_back(matrix_of(bank.expert(e)));
  };
  const auto numbers_of = [](const LinearMap auto& any) {
    return visit_map(any, [](const auto& map) { return matrix<scalar>(map.weight().to_matrix()); });
  };
  for (int i = 0; i < Expert::first_maps; ++i)
    add(Expert::first_maps == 2 && i == 0 ? "gate" : "up",
        [&](const Expert& expert) { return numbers_of(expert.first_map(i)); });
  add("down", [&](const Expert& expert) { return matrix<scalar>(numbers_of(expert.last_map()).transpose()); });
  return all;
}

}  // namespace sluice::inline SLUICE_ISA
