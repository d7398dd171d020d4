/// R2-T2: re-routing at test time. The routing weights of one sample move to where those of its neighbours do well.
///
/// There are references: samples that the model answered correctly, each with an embedding [F], routing weights [E] and
/// an answer. The neighbourhood of a test sample are the N references whose embeddings are the most similar to its own
/// (cosine), s_i the similarities. Then the weights r [E] of the test sample change, in one of three ways:
///
///   descend_reroute      steps times r -= Adam of the gradient of  L(r) = sum of s_i loss_i(r) / sum of s_i,  at a
///                        cosine rate. loss_i(r): of reference i under the weights r, neither clipped nor normalised
///   kernel_reroute       m = sum of s_i r_i / sum of s_i;   r = (1 - a) r + a m with the a of 0, 1/n, ... 1 whose L is
///                        the least
///   mode_reroute         steps times r = (1 - a) r + a m,   m the mean of the r_i weighed by exp(-|r - r_i|² / 2 h²)
///
/// The second needs no gradient, the third not even a loss; both keep r on the simplex if it and all r_i are. The
/// weights of a layer are plan.weights(); layer.forward_planned runs it with others, and its training form, followed by
/// backward, leaves their gradient in tape.dplan.weight.
///
///   const auto nearest = nearest_references(embeddings, embedding, 5);
///   descend_reroute(weights, nearest, [&](index_t reference, auto r, auto dr) { ...dr += dloss/dr; return loss; });
///
/// Equal similarities: the lower reference; equal L: the smaller a. A similarity that is negative or NaN counts as 0;
/// if all do, the neighbours count alike. The second and third form are as the paper's text has them: their grids are
/// ours. Li, Li, Zhou 2025, "R2-T2: Re-Routing in Test-Time for Multimodal Mixture-of-Experts", arXiv:2502.20395.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/schedule.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <span>
#include <vector>

namespace sluice::inline SLUICE_ISA {

/// References, the most similar first, and how similar they are.
template <FloatOrDouble Scalar>
struct neighbourhood {
  std::vector<index_t> reference;
  std::vector<Scalar> similarity;

  index_t size() const noexcept { return static_cast<index_t>(reference.size()); }
  /// What neighbour i counts, of all 1.
  Scalar share(index_t i) const noexcept {
    const auto part = [](Scalar s) { return s > 0 ? s : Scalar(0); };  // NaN is not above 0
    Scalar sum = 0;
    for (const Scalar s : similarity) sum += part(s);
    return sum > 0 ? part(similarity[as_size(i)]) / sum : Scalar(1) / static_cast<Scalar>(size());
  }
};

/// The `count` rows of references [R,F] whose cosine with the query [F] is the largest; of a zero vector it is 0.
/// Throws std::invalid_argument if the widths differ or there are fewer references.
template <FloatOrDouble Scalar>
neighbourhood<Scalar> nearest_references(const matrix<Scalar>& references, std::span<const Scalar> query,
                                         index_t count) {
  if (static_cast<index_t>(query.size()) != references.cols() || count < 1 || count > references.rows())
    throw_invalid("nearest_references needs an embedding of width ", references.cols(),
                  " and 1 <= N <= ", references.rows(), ", not a width of ", query.size(), " and N = ", count);
  const Eigen::Map<const Eigen::Matrix<Scalar, 1, Eigen::Dynamic>> q(query.data(), references.cols());
  std::vector<Scalar> cosine(as_size(references.rows()));
  for (index_t i = 0; i < references.rows(); ++i) {
    const Scalar norms = references.row(i).norm() * q.norm();
    cosine[as_size(i)] = norms == 0 ? Scalar(0) : references.row(i).dot(q) / norms;
  }
  neighbourhood<Scalar> nearest;
  nearest.reference.resize(as_size(count));
  kernel::top_k(cosine.data(), references.rows(), count, nearest.reference.data());
  for (const index_t i : nearest.reference) nearest.similarity.push_back(cosine[as_size(i)]);
  return nearest;
}

namespace detail {

template <typename Scalar>
void check_reroute(std::span<const Scalar> weights, const neighbourhood<Scalar>& nearest) {
  if (weights.empty() || nearest.size() < 1)
    throw_invalid("re-routing needs weights and neighbours; there are ", weights.size(), " and ", nearest.size());
}
template <typename Scalar>
void check_reroute(std::span<const Scalar> weights, const neighbourhood<Scalar>& nearest,
                   const matrix<Scalar>& of_references) {
  check_reroute(weights, nearest);
  const index_t last = *std::max_element(nearest.reference.begin(), nearest.reference.end());
  if (of_references.cols() != static_cast<index_t>(weights.size()) || of_references.rows() <= last)
    throw_invalid("re-routing needs a row of ", weights.size(), " weights for each reference up to ", last, ", not [",
                  of_references.rows(), ", ", of_references.cols(), "]");
}

/// r = (1 - a) r + a m
template <typename Scalar>
void move_weights(std::span<Scalar> weights, const std::vector<Scalar>& mean, Scalar a) {
  for (std::size_t e = 0; e < weights.size(); ++e) weights[e] = (1 - a) * weights[e] + a * mean[e];
}

}  // namespace detail

struct descend_options {
  index_t steps = 10;
  double first_rate = 1e-2;
  double last_rate = 1e-5;
};

/// loss(reference, weights, dweights) adds the gradient of the loss to dweights and returns the loss. Returns L before
/// every step.
template <FloatOrDouble Scalar, typename Loss>
std::vector<Scalar> descend_reroute(std::span<Scalar> weights, const neighbourhood<Scalar>& nearest, Loss&& loss,
                                    descend_options o = {}) {
  detail::check_reroute<Scalar>(weights, nearest);
  if (o.steps < 0) throw_invalid("re-routing cannot take ", o.steps, " steps");
  parameter<Scalar> moved({static_cast<index_t>(weights.size())}, parameter_role::vector);
  std::copy(weights.begin(), weights.end(), moved.data());
  const cosine_schedule rate{{.peak = o.first_rate, .floor = o.last_rate, .steps = o.steps}};
  adamw<Scalar> optimizer{{.weight_decay = 0, .clear_gradients = true}};
  std::vector<Scalar> losses, dloss(weights.size());
  for (index_t step = 0; step < o.steps; ++step) {
    Scalar sum = 0;
    for (index_t i = 0; i < nearest.size(); ++i) {
      std::fill(dloss.begin(), dloss.end(), Scalar(0));
      const Scalar share = nearest.share(i);
      sum += share * loss(nearest.reference[as_size(i)], std::span<const Scalar>(std::as_const(moved).value()),
                          std::span<Scalar>(dloss));
      for (std::size_t e = 0; e < dloss.size(); ++e) moved.gradient()[e] += share * dloss[e];
    }
    losses.push_back(sum);
    optimizer.set_learning_rate(rate(step));
    optimizer.step(moved);
  }
  std::copy(moved.value().begin(), moved.value().end(), weights.begin());
  return losses;
}

/// loss(reference, weights) returns the loss. `candidates` is n. Returns the a that was taken.
template <FloatOrDouble Scalar, typename Loss>
Scalar kernel_reroute(std::span<Scalar> weights, const neighbourhood<Scalar>& nearest,
                      const matrix<Scalar>& of_references, Loss&& loss, index_t candidates = 10) {
  detail::check_reroute<Scalar>(weights, nearest, of_references);
  if (candidates < 1) throw_invalid("re-routing needs a step to choose, not ", candidates);
  std::vector<Scalar> mean(weights.size(), 0), tried(weights.size());
  for (index_t i = 0; i < nearest.size(); ++i) {
    const Scalar share = nearest.share(i);
    for (std::size_t e = 0; e < mean.size(); ++e)
      mean[e] += share * of_references(nearest.reference[as_size(i)], static_cast<index_t>(e));
  }
  Scalar best = 0, least = 0;
  for (index_t c = 0; c <= candidates; ++c) {
    const Scalar a = static_cast<Scalar>(c) / static_cast<Scalar>(candidates);
    std::copy(weights.begin(), weights.end(), tried.begin());
    detail::move_weights<Scalar>(tried, mean, a);
    Scalar sum = 0;
    for (index_t i = 0; i < nearest.size(); ++i)
      sum += nearest.share(i) * loss(nearest.reference[as_size(i)], std::span<const Scalar>(tried));
    if (c == 0 || sum < least) best = a, least = sum;
  }
  detail::move_weights<Scalar>(weights, mean, best);
  return best;
}

struct mode_options {
  index_t steps = 10;
  double step = 0.1;       ///< a
  double bandwidth = 0.5;  ///< h
};

/// Towards the place where the weights of the neighbours are the densest.
template <FloatOrDouble Scalar>
void mode_reroute(std::span<Scalar> weights, const neighbourhood<Scalar>& nearest, const matrix<Scalar>& of_references,
                  mode_options o = {}) {
  detail::check_reroute<Scalar>(weights, nearest, of_references);
  if (o.steps < 0 || !is_between(o.step, 0, 1) || !is_above(o.bandwidth, 0))
    throw_invalid("mode_reroute needs steps >= 0, a step in 0..1 and a bandwidth above 0, not ", o.steps, ", ", o.step,
                  " and ", o.bandwidth);
  const auto row = [&](index_t i) {
    return std::span<const Scalar>(of_references.row(nearest.reference[as_size(i)]).data(), weights.size());
  };
  std::vector<double> distance(as_size(nearest.size()));
  std::vector<Scalar> mean(weights.size());
  for (index_t step = 0; step < o.steps; ++step) {
    for (index_t i = 0; i < nearest.size(); ++i) {
      distance[as_size(i)] = 0;
      for (std::size_t e = 0; e < weights.size(); ++e) {
        const double d = static_cast<double>(weights[e]) - static_cast<double>(row(i)[e]);
        distance[as_size(i)] += d * d;
      }
    }
    // Against the nearest: the sum cannot underflow to 0.
    const double least = *std::min_element(distance.begin(), distance.end());
    std::fill(mean.begin(), mean.end(), Scalar(0));
    double sum = 0;
    for (const double d : distance) sum += std::exp((least - d) / (2 * o.bandwidth * o.bandwidth));
    for (index_t i = 0; i < nearest.size(); ++i) {
      const double kernel = std::exp((least - distance[as_size(i)]) / (2 * o.bandwidth * o.bandwidth));
      for (std::size_t e = 0; e < mean.size(); ++e) mean[e] += static_cast<Scalar>(kernel / sum) * row(i)[e];
    }
    detail::move_weights<Scalar>(weights, mean, static_cast<Scalar>(o.step));
  }
}

}  // namespace sluice::inline SLUICE_ISA
