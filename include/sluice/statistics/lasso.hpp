/// Minima with an l1 penalty: of a quadratic form by coordinates, and of any smooth convex function by Newton's steps.
///
///   minimize_quadratic_lasso   min over x of 1/2 x^T A x - b^T x + sum_j penalty_j |x_j|         A [q,q] semidefinite
///   maximize_by_newton         max over x of f(x) - sum_j penalty_j |x_j|                        f concave, twice smooth
///
/// A coordinate with a penalty of 0 is free; all of them 0 gives the plain minimum. Coordinates whose row of A is zero
/// stay as they are. Everything is in double. Friedman, Hastie, Tibshirani 2010, "Regularization Paths for Generalized
/// Linear Models via Coordinate Descent"; Lee, Sun, Saunders 2014, arXiv:1206.1623 (Newton with l1).
#pragma once

#include <sluice/core/types.hpp>

SLUICE_BEGIN_VECTOR_LIBRARY
#include <Eigen/Cholesky>
SLUICE_END_VECTOR_LIBRARY

#include <algorithm>
#include <cmath>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// x becomes the minimum among those with its signs, if that has its signs and no coordinate at 0 would leave it.
inline bool solve_with_signs(const matrix<double>& a, const Eigen::VectorXd& b, const Eigen::VectorXd& penalty,
                             Eigen::VectorXd& x) {
  std::vector<index_t> active;
  for (index_t j = 0; j < x.size(); ++j)
    if (a(j, j) > 0 && (x[j] != 0 || !(penalty[j] > 0))) active.push_back(j);
  const auto count = static_cast<index_t>(active.size());
  matrix<double> part(count, count);
  Eigen::VectorXd pull(count);
  for (index_t i = 0; i < count; ++i) {
    const index_t j = active[as_size(i)];
    pull[i] = b[j] - (x[j] < 0 ? -penalty[j] : penalty[j]);
    for (index_t k = 0; k < count; ++k) part(i, k) = a(j, active[as_size(k)]);
  }
  const Eigen::VectorXd solved = part.ldlt().solve(pull);
  if (!((part * solved - pull).cwiseAbs().maxCoeff() <= 1e-9 * (1 + pull.cwiseAbs().maxCoeff()))) return false;
  Eigen::VectorXd to = x;
  for (index_t i = 0; i < count; ++i) {
    const index_t j = active[as_size(i)];
    if (penalty[j] > 0 && !(solved[i] * x[j] > 0)) return false;
    to[j] = solved[i];
  }
  const Eigen::VectorXd rest = b - a * to;
  for (index_t j = 0; j < x.size(); ++j)
    if (a(j, j) > 0 && to[j] == 0 && (std::abs)(rest[j]) > penalty[j]) return false;
  x = to;
  return true;
}

}  // namespace detail

/// x is where the search begins and what it finds: rounds over the coordinates, until their signs are those of the
/// minimum, which then is the solution of linear equations.
inline void minimize_quadratic_lasso(const matrix<double>& a, const Eigen::VectorXd& b, const Eigen::VectorXd& penalty,
                                     Eigen::VectorXd& x) {
  constexpr index_t most_rounds = 10'000;
  if (x.size() == 0 || (!(penalty.maxCoeff() > 0) && detail::solve_with_signs(a, b, penalty, x))) return;
  Eigen::VectorXd rest = b - a * x;
  for (index_t round = 0; round < most_rounds; ++round) {
    double change = 0;
    bool signs_moved = false;
    for (index_t j = 0; j < x.size(); ++j) {
      if (!(a(j, j) > 0)) continue;
      const double pull = rest[j] + a(j, j) * x[j];
      const double size = (std::max)((std::abs)(pull)-penalty[j], 0.0);
      const double to = (pull < 0 ? -size : size) / a(j, j), moved = to - x[j];
      if (moved != 0) rest -= moved * a.col(j);
      signs_moved |= (to > 0) != (x[j] > 0) || (to < 0) != (x[j] < 0);
      x[j] = to;
      change = (std::max)(change, (std::abs)(moved));
    }
    if (change <= 1e-14 * x.cwiseAbs().maxCoeff()) return;
    if (!signs_moved && detail::solve_with_signs(a, b, penalty, x)) return;
  }
}

/// f(x) is the value, slopes(x, gradient, curvature) writes the gradient and minus the second derivatives. Steps are
/// halved until they do not lose, so that the value never falls; it ends where a step promises nothing.
template <typename Value, typename Slopes>
void maximize_by_newton(const Value& f, const Slopes& slopes, const Eigen::VectorXd& penalty, Eigen::VectorXd& x,
                        index_t rounds = 100) {
  const auto penalised = [&](const Eigen::VectorXd& at) { return f(at) - penalty.dot(at.cwiseAbs()); };
  const index_t q = x.size();
  Eigen::VectorXd gradient(q);
  matrix<double> curvature(q, q);
  double value = penalised(x);
  for (index_t round = 0; round < rounds; ++round) {
    gradient.setZero();
    curvature.setZero();
    slopes(x, gradient, curvature);
    // Directions that change nothing, and classes that part without end, would make the step endless.
    curvature.diagonal().array() += 1e-12 * (1 + curvature.trace() / static_cast<double>((std::max<index_t>)(q, 1)));
    Eigen::VectorXd to = x;
    minimize_quadratic_lasso(curvature, gradient + curvature * x, penalty, to);
    const Eigen::VectorXd step = to - x;
    // Twice what the step gains. Where that is less than the value's rounding, the step is taken unseen, and is the
    // last.
    const double promise = gradient.dot(step) - penalty.dot(to.cwiseAbs() - x.cwiseAbs());
    if (!(promise > 1e-14 * (1 + (std::abs)(value)))) {
      if (promise > 0) x = to;
      return;
    }
    double length = 1, gain = penalised(x + step) - value;
    for (int halvings = 0; !(gain >= 0) && halvings < 40; ++halvings) {
      length /= 2;
      gain = penalised(x + length * step) - value;
    }
    if (!(gain >= 0)) return;
    x += length * step;
    value += gain;
  }
}

}  // namespace sluice::inline SLUICE_ISA
