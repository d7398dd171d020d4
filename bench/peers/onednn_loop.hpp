/// Twin: the same loop over experts around oneDNN's sgemm (row-major, C = A B^T).
#pragma once

#if defined(SLUICE_BENCH_WITH_ONEDNN)

#include <sluice/core/types.hpp>

#include <dnnl.h>
#if defined(_OPENMP)
#include <omp.h>
#endif

#include <cmath>
#include <stdexcept>
#include <vector>

#include "routing.hpp"
#include "weights.hpp"

namespace bench::peers {

class onednn_loop {
public:
  onednn_loop(const layer_weights& weights, int threads, parallelism mode)
      : weights_(&weights), threads_(threads), mode_(mode), scratch_(weights.experts.size()) {}

  void route(const matrix& x, expert_lists& lists) {
    set_threads();
    logits_.resize(x.rows(), weights_->router.rows());
    multiply(x, weights_->router, logits_);
    choose_top_k(logits_, weights_->top_k, lists);
  }

  void run(const matrix& x, const expert_lists& lists, matrix& y) {
    set_threads();
    const auto experts = static_cast<index_t>(lists.size());
    if (mode_ == parallelism::over_experts) {
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

  void set_threads() const {
#if defined(_OPENMP)
    omp_set_num_threads(threads_);  // oneDNN takes OpenMP's number
#endif
  }

  static void multiply(const matrix& a, const matrix& b, matrix& c) {
    if (dnnl_sgemm('N', 'T', a.rows(), b.rows(), a.cols(), 1.0f, a.data(), a.cols(), b.data(), b.cols(), 0.0f, c.data(),
                   c.cols()) != dnnl_success)
      throw std::runtime_error("dnnl_sgemm failed");
  }

  void run_expert(const matrix& x, const std::vector<assignment>& list, index_t e) {
    if (list.empty()) return;
    const auto n = static_cast<index_t>(list.size());
    const expert_weights& w = weights_->experts[static_cast<std::size_t>(e)];
    scratch& s = scratch_[static_cast<std::size_t>(e)];
    s.rows.resize(n, x.cols());
    s.gate.resize(n, w.gate.rows());
    s.up.resize(n, w.up.rows());
    s.out.resize(n, w.down.rows());
    for (index_t i = 0; i < n; ++i) s.rows.row(i) = x.row(list[static_cast<std::size_t>(i)].token);
    multiply(s.rows, w.gate, s.gate);
    multiply(s.rows, w.up, s.up);
    s.gate.array() *= s.up.array() / (1 + (-s.gate.array()).exp());
    multiply(s.gate, w.down, s.out);
  }

  const layer_weights* weights_;
  int threads_;
  parallelism mode_;
  std::vector<scratch> scratch_;
  matrix logits_;
};

}  // namespace bench::peers

#endif
