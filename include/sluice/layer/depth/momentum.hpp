/// Steps that link mixtures of different depth: the stack is an optimiser, and what a mixture puts out is its gradient.
///
///   momentum_step   m' = decay m + rate u;   x' = x - m';   the layer reads x - look_ahead m          states: m
///   adam_step       p' = b1 p + (1 - b1) u;   v' = b2 v + (1 - b2) u^2
///                   x' = (1 - decay) x - rate p' / sqrt(v' + epsilon)
///                   and m as in momentum_step, for links that follow                                  states: m, p, v
///
///   state_chain{sequence{linked_layer{normalized_layer{moe, norm}, momentum_step<float>{}},
///                        linked_layer{normalized_layer{moe, norm}, momentum_step<float>{}}}, 64}
///
/// The mixture's output is subtracted: with decay 0 and rate -1 a link is x + layer(x), and a trained residual stack is
/// converted with rate -1. As released, AdamSMoE's first mixture alone takes the step of Adam, without a correction for
/// the first steps, and with decay 1 it drops x; the others go on by momentum: give them as many blocks of state (3).
/// look_ahead is that of the robust form, robust_momentum(); its constants are from the general method, not from the
/// released code. Post-norm and outer-norm forms are wrappers around a link (layer/residual.hpp with a width, and
/// layer/split/columns.hpp). Nothing is learned. For backward see layer/depth/linked.hpp; all sums are over one token.
/// Teo, Nguyen 2024 (MomentumSMoE), arXiv:2410.14574; robust momentum: Cyrus et al. 2018, arXiv:1710.04753.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/layer/depth/linked.hpp>

#include <algorithm>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
struct momentum_step {
  static constexpr index_t states = 1;

  Scalar decay = Scalar(0.7);
  Scalar rate = 1;
  Scalar look_ahead = 0;

  /// Throws std::invalid_argument unless all are finite.
  void validate() const {
    if (!is_finite(decay) || !is_finite(rate) || !is_finite(look_ahead))
      throw_invalid("momentum_step needs a finite decay, rate and look_ahead, not ", decay, ", ", rate, " and ",
                    look_ahead);
  }
  void point(index_t width, const Scalar* x, const Scalar* m, Scalar* p) const {
    for (index_t d = 0; d < width; ++d) p[d] = x[d] - look_ahead * m[d];
  }
  void forward(index_t width, const Scalar* x, const Scalar* u, const Scalar* m, Scalar* x_next, Scalar* m_next) const {
    for (index_t d = 0; d < width; ++d) {
      m_next[d] = decay * m[d] + rate * u[d];
      x_next[d] = x[d] - m_next[d];
    }
  }
  void backward(index_t width, const Scalar*, const Scalar*, const Scalar*, const Scalar* dx_next,
                const Scalar* dm_next, Scalar* du, Scalar* dx, Scalar* dm) const {
    for (index_t d = 0; d < width; ++d) {
      const Scalar change = dm_next[d] - dx_next[d];
      du[d] = rate * change;
      dm[d] = decay * change;
      dx[d] = dx_next[d];
    }
  }
  void point_backward(index_t width, const Scalar* dp, Scalar* dx, Scalar* dm) const {
    for (index_t d = 0; d < width; ++d) {
      dx[d] += dp[d];
      dm[d] -= look_ahead * dp[d];
    }
  }
};

/// Momentum that is robust to noise in its gradients: y = x + eta (x - x_before), x' = x + beta (x - x_before) - alpha
/// u(y) with alpha = c (1 - rho)^2 (1 + rho) / L, beta = c rho^3 / (c - 1), eta = rho^3 / ((c - 1) (1 - rho)^2 (1 +
/// rho)), for conditioning c > 1, smoothness L > 0 and 0 < rho < 1: -m is x - x_before. Throws std::invalid_argument
/// for others.
template <FloatOrDouble Scalar>
momentum_step<Scalar> robust_momentum(Scalar conditioning, Scalar smoothness, Scalar rho) {
  if (!is_above(conditioning, 1) || !is_above(smoothness, 0) || !is_above(rho, 0) || !(rho < 1))
    throw_invalid("robust momentum needs c > 1, L > 0 and 0 < rho < 1, not ", conditioning, ", ", smoothness, " and ",
                  rho);
  const Scalar slowing = (1 - rho) * (1 - rho) * (1 + rho), cube = rho * rho * rho;
  return {.decay = conditioning * cube / (conditioning - 1),
          .rate = conditioning * slowing / smoothness,
          .look_ahead = cube / ((conditioning - 1) * slowing)};
}

template <FloatOrDouble Scalar>
struct adam_step {
  static constexpr index_t states = 3;

  momentum_step<Scalar> momentum{};  ///< of m; its look_ahead is not used
  Scalar first = Scalar(0.9);        ///< b1
  Scalar second = Scalar(0.999);     ///< b2
  Scalar rate = 1;
  Scalar decay = 1;
  Scalar epsilon = Scalar(1e-8);

  /// Throws std::invalid_argument unless all are finite, means decay by less than 1 and epsilon is above 0.
  void validate() const {
    momentum.validate();
    if (!is_between(first, 0, 1) || !is_between(second, 0, 1) || first == 1 || second == 1 || !is_finite(rate) ||
        !is_finite(decay) || !is_above(epsilon, 0))
      throw_invalid("adam_step needs first and second in [0, 1), a finite rate and decay and epsilon > 0, not ", first,
                    ", ", second, ", ", rate, ", ", decay, " and ", epsilon);
  }
  void point(index_t width, const Scalar* x, const Scalar*, Scalar* p) const { std::copy_n(x, width, p); }
  void forward(index_t width, const Scalar* x, const Scalar* u, const Scalar* s, Scalar* x_next, Scalar* s_next) const {
    for (index_t d = 0; d < width; ++d) {
      const Scalar p = first * s[width + d] + (1 - first) * u[d];
      const Scalar v = second * s[2 * width + d] + (1 - second) * u[d] * u[d];
      s_next[d] = momentum.decay * s[d] + momentum.rate * u[d];
      s_next[width + d] = p;
      s_next[2 * width + d] = v;
      x_next[d] = (1 - decay) * x[d] - rate * p / std::sqrt(v + epsilon);
    }
  }
  void backward(index_t width, const Scalar*, const Scalar* u, const Scalar* s, const Scalar* dx_next,
                const Scalar* ds_next, Scalar* du, Scalar* dx, Scalar* ds) const {
    for (index_t d = 0; d < width; ++d) {
      const Scalar p = first * s[width + d] + (1 - first) * u[d];
      const Scalar v = second * s[2 * width + d] + (1 - second) * u[d] * u[d];
      const Scalar step = rate * dx_next[d] / std::sqrt(v + epsilon);  // -dp of the quotient
      const Scalar dp = ds_next[width + d] - step;
      const Scalar dv = ds_next[2 * width + d] + step * p / (2 * (v + epsilon));
      du[d] = momentum.rate * ds_next[d] + (1 - first) * dp + 2 * (1 - second) * u[d] * dv;
      ds[d] = momentum.decay * ds_next[d];
      ds[width + d] = first * dp;
      ds[2 * width + d] = second * dv;
      dx[d] = (1 - decay) * dx_next[d];
    }
  }
  void point_backward(index_t width, const Scalar* dp, Scalar* dx, Scalar*) const {
    for (index_t d = 0; d < width; ++d) dx[d] += dp[d];
  }
};

static_assert(LinkingStep<momentum_step<float>, float> && LinkingStep<adam_step<double>, double>);

}  // namespace sluice::inline SLUICE_ISA
