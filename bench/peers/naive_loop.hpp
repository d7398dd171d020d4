/// Twin: the layer as three nested loops, tokens shared out over the threads.
#pragma once

#include <sluice/core/types.hpp>

#include <cmath>
#include <utility>
#include <vector>

#include "routing.hpp"
#include "weights.hpp"

namespace bench::peers {

class naive_loop {
public:
  naive_loop(const layer_weights& weights, int threads) : weights_(&weights), threads_(threads) {}

  void route(const matrix& x, expert_lists& lists) {
    logits_.resize(x.rows(), weights_->router.rows());
    for (index_t t = 0; t < x.rows(); ++t) multiply(weights_->router, &x(t, 0), &logits_(t, 0));
    choose_top_k(logits_, weights_->top_k, lists);
  }

  void run(const matrix& x, const expert_lists& lists, matrix& y) {
    of_token_.resize(static_cast<std::size_t>(x.rows()));
    for (auto& list : of_token_) list.clear();
    for (std::size_t e = 0; e < lists.size(); ++e)
      for (const assignment& a : lists[e])
        of_token_[static_cast<std::size_t>(a.token)].emplace_back(&weights_->experts[e], a.weight);
    const index_t rows = x.rows();
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_)
    for (index_t t = 0; t < rows; ++t) {
      std::vector<float> gate, up, out(static_cast<std::size_t>(y.cols()));
      for (index_t d = 0; d < y.cols(); ++d) y(t, d) = 0;
      for (const auto& [expert, weight] : of_token_[static_cast<std::size_t>(t)]) {
        gate.resize(static_cast<std::size_t>(expert->gate.rows()));
        up.resize(gate.size());
        multiply(expert->gate, &x(t, 0), gate.data());
        multiply(expert->up, &x(t, 0), up.data());
        for (std::size_t h = 0; h < gate.size(); ++h) gate[h] *= up[h] / (1 + std::exp(-gate[h]));
        multiply(expert->down, gate.data(), out.data());
        for (index_t d = 0; d < y.cols(); ++d) y(t, d) += weight * out[static_cast<std::size_t>(d)];
      }
    }
  }

private:
  static void multiply(const matrix& w, const float* x, float* y) {
    for (index_t r = 0; r < w.rows(); ++r) {
      float sum = 0;
      for (index_t c = 0; c < w.cols(); ++c) sum += w(r, c) * x[c];
      y[r] = sum;
    }
  }

  const layer_weights* weights_;
  [[maybe_unused]] int threads_;
  matrix logits_;
  std::vector<std::vector<std::pair<const expert_weights*, float>>> of_token_;
};

}  // namespace bench::peers
