/// The weights of a layer's experts as plain row-major matrices: one copy that all twins share.
#pragma once

#include <sluice/core/huge_pages.hpp>
#include <sluice/core/types.hpp>

#include <vector>

namespace bench::peers {

using sluice::index_t;
using matrix = sluice::matrix<float>;

struct expert_weights {
  matrix gate;  ///< [H,D]
  matrix up;    ///< [H,D]
  matrix down;  ///< [D,H]
};

struct layer_weights {
  matrix router;  ///< [E,D]
  std::vector<expert_weights> experts;
  index_t top_k = 0;
};

/// A copy in huge pages, as sluice's own weights are: the twins' memory is no slower.
inline matrix in_huge_pages(const matrix& m) {
  matrix copy(m.rows(), m.cols());
  sluice::detail::ask_for_huge_pages(copy.data(), static_cast<std::size_t>(copy.size()) * sizeof(float));
  copy = m;
  return copy;
}

/// The only place that knows how sluice's experts hold their weights.
template <typename Expert>
expert_weights weights_of(Expert& expert) {
  return {in_huge_pages(expert.gate().to_matrix()), in_huge_pages(expert.up().to_matrix()),
          in_huge_pages(expert.down().to_matrix())};
}

template <typename Layer>
layer_weights weights_of_layer(Layer& layer, index_t top_k) {
  layer_weights all;
  all.router = layer.router().gate().weight().map();
  all.top_k = top_k;
  for (index_t e = 0; e < layer.experts(); ++e) all.experts.push_back(weights_of(layer.bank().expert(e)));
  return all;
}

}  // namespace bench::peers
