/// How alike two samples are, by the codes that their tokens take: MAUVE's divergence frontier over two histograms.
///
///   P, Q = shares of the codes in each sample (+ smoothing, added to every count before)
///   R_w = w P + (1 - w) Q       w on a grid from 1e-6 to 1 - 1e-6
///   frontier: the points (exp(-s KL(Q | R_w)), exp(-s KL(P | R_w))), with (1, 0) before and (0, 1) after
///   score = mean of the areas under it, by trapezoids over x and over y      1: the same histogram;  near 0: nothing shared
///   integral = 2 sum over codes of [ (p + q) / 4 - p q (log p - log q) / (2 (p - q)) ]     0: the same;  1: nothing shared
///
/// The codes come from k-means over both samples together (codebook/kmeans.hpp), a tenth as many as tokens. KL sums run
/// over codes whose first share is not 0. All in double. Throws std::invalid_argument for samples of other codes or
/// without a token. Pillutla et al. 2021, "MAUVE: Measuring the Gap Between Neural Text and Human Text using Divergence
/// Frontiers", and 2023, "MAUVE Scores for Generative Models: Theory and Practice"; integral: Liu et al. 2021,
/// "Divergence Frontiers for Generative Models".
#pragma once

#include <sluice/codebook/code_usage.hpp>
#include <sluice/core/numeric.hpp>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct divergence_frontier_options {
  index_t grid = 25;     ///< points on the curve beside its ends
  double scale = 5;      ///< s
  double smoothing = 0;  ///< added to every count; 0.5 is Krichevsky and Trofimov's
};

struct divergence_frontier {
  std::vector<std::pair<double, double>> curve;
  double score = 0;
  double integral = 0;
};

namespace detail {

inline std::vector<double> shares_of(const code_usage& usage, double smoothing) {
  std::vector<double> shares;
  const double total = static_cast<double>(usage.total()) + smoothing * static_cast<double>(usage.codes());
  for (const index_t count : usage.counts()) shares.push_back((static_cast<double>(count) + smoothing) / total);
  return shares;
}

/// KL(p | w p + (1 - w) q).
inline double divergence_from_mixture(const std::vector<double>& p, const std::vector<double>& q, double w) {
  double sum = 0;
  for (std::size_t c = 0; c < p.size(); ++c)
    if (p[c] != 0) sum += p[c] * std::log(p[c] / (w * p[c] + (1 - w) * q[c]));
  return sum;
}

/// The area under a falling curve: points are sorted by x, and of equal x the highest comes first.
inline double area_under(std::vector<std::pair<double, double>> points) {
  std::sort(points.begin(), points.end(), [](const auto& a, const auto& b) {
    return a.first < b.first || (a.first == b.first && a.second > b.second);
  });
  double sum = 0;
  for (std::size_t i = 1; i < points.size(); ++i)
    sum += (points[i].first - points[i - 1].first) * (points[i].second + points[i - 1].second) / 2;
  return sum;
}

/// One code's part of the integral; both limits, q -> p and q -> 0, are met.
inline double frontier_part(double p, double q) {
  if (p == 0 || q == 0) return (p + q) / 4;
  if ((std::abs)(p - q) <= 1e-8) return 0;
  return (p + q) / 4 - p * q * (std::log(p) - std::log(q)) / (2 * (p - q));
}

}  // namespace detail

inline divergence_frontier make_divergence_frontier(const code_usage& p_usage, const code_usage& q_usage,
                                                    const divergence_frontier_options& o = {}) {
  if (p_usage.codes() != q_usage.codes() || p_usage.total() == 0 || q_usage.total() == 0)
    throw_invalid("a divergence frontier needs two samples of the same codes, not ", p_usage.total(), " tokens of ",
                  p_usage.codes(), " codes and ", q_usage.total(), " of ", q_usage.codes());
  if (o.grid < 2 || !is_above(o.scale, 0.0) || !is_at_least(o.smoothing, 0.0))
    throw_invalid("a divergence frontier needs grid >= 2, scale > 0 and smoothing >= 0, not ", o.grid, ", ", o.scale,
                  " and ", o.smoothing);
  const auto p = detail::shares_of(p_usage, o.smoothing), q = detail::shares_of(q_usage, o.smoothing);
  divergence_frontier f;
  f.curve.emplace_back(1.0, 0.0);
  for (index_t i = 0; i < o.grid; ++i) {
    constexpr double least = 1e-6;
    const double w = least + (1 - 2 * least) * static_cast<double>(i) / static_cast<double>(o.grid - 1);
    f.curve.emplace_back(std::exp(-o.scale * detail::divergence_from_mixture(q, p, 1 - w)),
                         std::exp(-o.scale * detail::divergence_from_mixture(p, q, w)));
  }
  f.curve.emplace_back(0.0, 1.0);
  auto turned = f.curve;
  for (auto& [x, y] : turned) std::swap(x, y);
  f.score = (detail::area_under(f.curve) + detail::area_under(std::move(turned))) / 2;
  for (std::size_t c = 0; c < p.size(); ++c) f.integral += 2 * detail::frontier_part(p[c], q[c]);
  return f;
}

}  // namespace sluice::inline SLUICE_ISA
