/// Twin: a loop over experts around Eigen's matrix products, as a user of Eigen writes it.
///
///   rows = x[tokens of e];  h = silu(rows Wg^T) * (rows Wu^T);  y[tokens of e] += weight * (h Wd^T)
///
/// Threads are Eigen's own, inside each product, or the loop over experts is shared out; the caller takes what is faster.
#pragma once

#include <sluice/core/types.hpp>

#include <Eigen/Core>

#include <vector>

#include "routing.hpp"
#include "weights.hpp"

namespace bench::peers {

class eigen_loop {
public:
  eigen_loop(const layer_weights& weights, int threads, parallelism mode)
      : weights_(&weights), threads_(threads), mode_(mode), scratch_(weights.experts.size()) {}

  void route(const matrix& x, expert_lists& lists) {
    Eigen::setNbThreads(threads_);
    logits_.noalias() = x * weights_->router.transpose();
    choose_top_k(logits_, weights_->top_k, lists);
  }

  void run(const matrix& x, const expert_lists& lists, matrix& y) {
    Eigen::setNbThreads(threads_);
    const auto experts = static_cast<index_t>(lists.size());
    if (mode_ == parallelism::over_experts) {
      // Inside a parallel region Eigen's products keep to their thread.
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_)
      for (index_t e = 0; e < experts; ++e) run_expert(x, lists[static_cast<std::size_t>(e)], e);
    } else {
      for (index_t e = 0; e < experts; ++e) run_expert(x, lists[static_cast<std::size_t>(e)], e);
    }
    y.setZero();
    for (std::size_t e = 0; e < lists.size(); ++e)
      for (std::size_t i = 0; i < lists[e].size(); ++i)
        y.row(lists[e][i].token) += lists[e][i].weight * scratch_[e].out.row(static_cast<index_t>(i));
  }

private:
  struct scratch {
    matrix rows, gate, up, out;
  };

  void run_expert(const matrix& x, const std::vector<assignment>& list, index_t e) {
    if (list.empty()) return;
    const expert_weights& w = weights_->experts[static_cast<std::size_t>(e)];
    scratch& s = scratch_[static_cast<std::size_t>(e)];
    s.rows.resize(static_cast<index_t>(list.size()), x.cols());
    for (std::size_t i = 0; i < list.size(); ++i) s.rows.row(static_cast<index_t>(i)) = x.row(list[i].token);
    s.gate.noalias() = s.rows * w.gate.transpose();
    s.up.noalias() = s.rows * w.up.transpose();
    s.gate.array() *= s.up.array() / (1 + (-s.gate.array()).exp());
    s.out.noalias() = s.gate * w.down.transpose();
  }

  const layer_weights* weights_;
  int threads_;
  parallelism mode_;
  std::vector<scratch> scratch_;
  matrix logits_;
};

}  // namespace bench::peers
