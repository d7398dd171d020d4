/// Loss of the top-any router (DynMoE): representations unlike each other and short, tokens spread evenly, few experts
/// active.
///
///   diversity    || (Q Q^T - I) * M ||_F,   Q = rows of W at unit length, M = live live^T
///   simplicity   mean over all E rows of |W_e|, live or not
///   load         E * sum over e of A[e] B[e],   A = mean of active[t,e] / k_t,  B = mean of active[t,e], both over the
///                tokens that have an expert; 0 if there is none
///   efficiency   mean over t and e of active[t,e]
///
/// value = coefficient * (diversity's weight * diversity + ...). The published code uses weights 1 and coefficient
/// 0.01; its vision version has the first two only. Gradients of active go through the router's straight-through
/// estimator; in `load` through A, k_t included, while B is a constant: dactive[t,j] = (E/T') (B[j] / k_t - sum over
/// the token's e of B[e] / k_t^2). The gradient of diversity is 0 where its value is 0. Padding tokens are in no mean;
/// groups count together. Guo et al. 2024, arXiv:2405.14297, eq. 9-10.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/context.hpp>
#include <sluice/kernel/vector_math.hpp>
#include <sluice/loss/common.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

/// Signals of a router that activates any number of experts by their representations.
template <typename S>
concept TopAnySignals = requires(const S& s) {
  s.active, s.count, s.live, s.directions, s.lengths;
};

struct dynmoe_loss {
  double coefficient = 0.01;
  double diversity = 1;
  double simplicity = 1;
  double load = 1;
  double efficiency = 1;

  template <TopAnySignals Signals, typename Plan, std::floating_point Scalar, typename Gradients>
  Scalar operator()(const Signals& s, const Plan&, const routing_context<Scalar>& context, Gradients& d) const {
    for (const double weight : {coefficient, diversity, simplicity, load, efficiency})
      detail::check_coefficient(weight);
    if (coefficient == 0) return 0;
    double value = 0;
    if (diversity != 0) value += add_diversity<Scalar>(s, coefficient * diversity, d);
    if (simplicity != 0) value += add_simplicity<Scalar>(s, coefficient * simplicity, d);
    if (load != 0) value += add_load<Scalar>(s, coefficient * load, d);
    if (efficiency != 0) value += add_efficiency(s, context, coefficient * efficiency, d);
    return static_cast<Scalar>(value);
  }

private:
  /// Entry of Q Q^T - I. A row's product with itself is 1 unless the row is too short to be scaled; computing it would
  /// leave rounding noise, which the norm of an otherwise zero matrix turns into a gradient of full size.
  template <typename Scalar, typename Signals>
  static double residual(const Signals& s, index_t e, index_t f) {
    if (e == f && s.lengths[e] >= Scalar(1e-12)) return 0;
    return static_cast<double>(kernel::dot(s.directions.row(e), s.directions.row(f), s.directions.cols())) - (e == f);
  }

  /// f(e, f) for every pair of live experts, (f, e) being another pair.
  template <typename Signals, typename F>
  static void for_live_pairs(const Signals& s, F&& f) {
    for (index_t a = 0; a < s.live.size(); ++a)
      for (index_t b = 0; b < s.live.size(); ++b)
        if (s.live[a] != 0 && s.live[b] != 0) f(a, b);
  }

  template <typename Scalar, typename Signals, typename Gradients>
  static double add_diversity(const Signals& s, double scale, Gradients& d) {
    double squares = 0;
    for_live_pairs(s, [&](index_t e, index_t f) { squares += residual<Scalar>(s, e, f) * residual<Scalar>(s, e, f); });
    if (squares == 0) return 0;
    const double norm = std::sqrt(squares);
    for_live_pairs(s, [&](index_t e, index_t f) {
      kernel::add_scaled(static_cast<Scalar>(2 * scale * residual<Scalar>(s, e, f) / norm), s.directions.row(f),
                         d.directions.row(e), s.directions.cols());
    });
    return scale * norm;
  }

  template <typename Scalar, typename Signals, typename Gradients>
  static double add_simplicity(const Signals& s, double scale, Gradients& d) {
    const double share = scale / static_cast<double>(s.lengths.size());
    double sum = 0;
    for (index_t e = 0; e < s.lengths.size(); ++e) {
      sum += static_cast<double>(s.lengths[e]);
      d.lengths[e] += static_cast<Scalar>(share);
    }
    return share * sum;
  }

  template <typename Scalar, typename Signals, typename Gradients>
  static double add_load(const Signals& s, double scale, Gradients& d) {
    const index_t experts = s.active.cols();
    buffer<double>& b = d.sum_scratch;
    b.assign(experts, 0);
    double served = 0;
    for (index_t t = 0; t < s.active.rows(); ++t) {
      served += s.count[t] > 0;
      for (index_t e = 0; e < experts; ++e) b[e] += static_cast<double>(s.active(t, e));
    }
    if (served == 0) return 0;
    for (double& share : b) share /= served;
    const double factor = scale * static_cast<double>(experts) / served;
    double sum = 0;
    for (index_t t = 0; t < s.active.rows(); ++t) {
      if (s.count[t] == 0) continue;
      double mean = 0;
      for (index_t e = 0; e < experts; ++e) mean += static_cast<double>(s.active(t, e)) * b[e];
      mean /= static_cast<double>(s.count[t]);
      sum += mean;
      for (index_t e = 0; e < experts; ++e)
        d.active(t, e) += static_cast<Scalar>(factor * (b[e] - mean) / static_cast<double>(s.count[t]));
    }
    return factor * sum;
  }

  template <typename Scalar, typename Signals, typename Gradients>
  static double add_efficiency(const Signals& s, const routing_context<Scalar>& context, double scale, Gradients& d) {
    const index_t experts = s.active.cols();
    index_t tokens = 0;
    double sum = 0;
    for (index_t t = 0; t < s.active.rows(); ++t) tokens += !context.is_padding(t);
    if (tokens == 0) return 0;
    const double share = scale / (static_cast<double>(tokens) * static_cast<double>(experts));
    for (index_t t = 0; t < s.active.rows(); ++t) {
      if (context.is_padding(t)) continue;
      for (index_t e = 0; e < experts; ++e) {
        sum += static_cast<double>(s.active(t, e));
        d.active(t, e) += static_cast<Scalar>(share);
      }
    }
    return share * sum;
  }
};

}  // namespace sluice::inline SLUICE_ISA
