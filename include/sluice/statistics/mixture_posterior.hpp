/// The mixture-of-experts posterior of a multimodal autoencoder: every modality's encoder is one expert of it.
///
///   q(z | x_1 .. x_M) = 1/M sum over m of q_m(z | x_m)      q_m and the prior p are products of normals or Laplaces
///   z_m[s,b] = loc_m[b] + scale_m[b] noise_m[s,b]           as many samples of every modality (stratified)
///   log w_m  = log p(z_m) + fit_m - log q(z_m)              fit_m = sum over j of log p(x_j | z_m), the caller's decoders
///
/// Bounds of the log-likelihood, summed over the batch, to be maximised:
///   importance_weighted         log of the mean of w over modalities and samples
///   importance_weighted_apart   the same over samples alone, then the mean over modalities (looser)
///   closed_divergence           mean over m of (mean over s of fit_m - KL(q_m || p)); with M = 1 the usual ELBO
///
///   const auto z = posterior.sample(components);             // [S B, Z] a modality, a sample after the other
///   const auto r = posterior.evaluate(components, z, fit, posterior_bound::importance_weighted);
///   ... dz = r.dz + what the decoders make of r.dfit ...
///   const auto gradients = posterior.sample_backward(components, dz, r);      // of loc and scale, through samples too
///
/// Every modality's decoder has to explain samples of every modality's encoder: what a modality does not know of
/// another (all pictures of a label) is averaged away there. Throws std::invalid_argument where shapes do not fit or a
/// scale is not above 0. Everything is in double.
/// Shi, Siddharth, Paige, Torr 2019, arXiv:1911.03393; the blindness: "Mixture-of-experts VAEs can disregard variation
/// in surjective multimodal data", 2022.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace sluice::inline SLUICE_ISA {

enum class posterior_family { normal, laplace };
enum class posterior_bound { importance_weighted, importance_weighted_apart, closed_divergence };

/// Of one modality: loc and scale [B,Z], noise [S B, Z], standard draws of the family.
struct posterior_component {
  matrix<double> loc, scale, noise;
};

class mixture_posterior {
public:
  explicit mixture_posterior(posterior_family family, double prior_scale = 1)
      : family_(family), prior_scale_(prior_scale) {
    if (!(prior_scale > 0) || !is_finite(prior_scale))
      throw_invalid("mixture_posterior needs a prior of finite scale > 0, not ", prior_scale);
  }

  struct evaluation {
    double value = 0;
    std::vector<Eigen::VectorXd> dfit;         ///< [S B] a modality
    std::vector<matrix<double>> dz;            ///< of the densities alone
    std::vector<matrix<double>> dloc, dscale;  ///< of the densities alone
  };
  struct component_gradient {
    matrix<double> loc, scale;
  };

  std::vector<matrix<double>> sample(const std::vector<posterior_component>& components) const {
    check_components(components);
    std::vector<matrix<double>> z;
    for (const posterior_component& c : components) {
      z.push_back(c.noise);
      for_each_sample(c, [&](auto rows) {
        z.back().middleRows(rows, c.loc.rows()) = c.loc + c.scale.cwiseProduct(c.noise.middleRows(rows, c.loc.rows()));
      });
    }
    return z;
  }

  /// fit [S B] a modality: the log-likelihood of all that was seen, at its samples.
  evaluation evaluate(const std::vector<posterior_component>& components, const std::vector<matrix<double>>& z,
                      const std::vector<Eigen::VectorXd>& fit, posterior_bound bound) const {
    check_components(components);
    const std::size_t M = components.size();
    if (z.size() != M || fit.size() != M)
      throw_invalid("mixture_posterior of ", M, " modalities got ", z.size(), " samples and ", fit.size(), " fits");
    for (std::size_t m = 0; m < M; ++m)
      if (z[m].rows() != components[m].noise.rows() || z[m].cols() != components[m].loc.cols() ||
          fit[m].size() != z[m].rows())
        throw_invalid("mixture_posterior: modality ", m, " has ", components[m].noise.rows(), " samples of width ",
                      components[m].loc.cols(), ", z is [", z[m].rows(), ", ", z[m].cols(), "], fit [", fit[m].size(),
                      "]");
    evaluation r;
    for (std::size_t m = 0; m < M; ++m) {
      r.dfit.push_back(Eigen::VectorXd::Zero(z[m].rows()));
      r.dz.push_back(matrix<double>::Zero(z[m].rows(), z[m].cols()));
      r.dloc.push_back(matrix<double>::Zero(components[m].loc.rows(), z[m].cols()));
      r.dscale.push_back(r.dloc.back());
    }
    if (bound == posterior_bound::closed_divergence)
      with_divergence(components, fit, r);
    else
      with_weights(components, z, fit, bound, r);
    return r;
  }

  /// Gradients of loc and scale, dz whole: those of evaluate and of the decoders.
  std::vector<component_gradient> sample_backward(const std::vector<posterior_component>& components,
                                                  const std::vector<matrix<double>>& dz, const evaluation& r) const {
    std::vector<component_gradient> gradients;
    for (std::size_t m = 0; m < components.size(); ++m) {
      const posterior_component& c = components[m];
      const index_t B = c.loc.rows();
      gradients.push_back({r.dloc[m], r.dscale[m]});
      for_each_sample(c, [&](index_t rows) {
        gradients[m].loc += dz[m].middleRows(rows, B);
        gradients[m].scale += dz[m].middleRows(rows, B).cwiseProduct(c.noise.middleRows(rows, B));
      });
    }
    return gradients;
  }

private:
  template <typename F>
  static void for_each_sample(const posterior_component& c, F&& f) {
    for (index_t rows = 0; rows < c.noise.rows(); rows += c.loc.rows()) f(rows);
  }

  static void check_components(const std::vector<posterior_component>& components) {
    if (components.empty()) throw_invalid("mixture_posterior needs a modality");
    const posterior_component& first = components.front();
    for (std::size_t m = 0; m < components.size(); ++m) {
      const posterior_component& c = components[m];
      const index_t B = c.loc.rows();
      if (B < 1 || c.loc.cols() != first.loc.cols() || B != first.loc.rows() || c.scale.rows() != B ||
          c.scale.cols() != c.loc.cols() || c.noise.cols() != c.loc.cols() || c.noise.rows() != first.noise.rows() ||
          c.noise.rows() < B || c.noise.rows() % B != 0)
        throw_invalid("mixture_posterior: modality ", m, " has loc [", B, ", ", c.loc.cols(), "], scale [",
                      c.scale.rows(), ", ", c.scale.cols(), "] and noise [", c.noise.rows(), ", ", c.noise.cols(),
                      "], which has to be a whole number of batches, the same for all");
      if (!(c.scale.minCoeff() > 0)) throw_invalid("mixture_posterior: a scale of modality ", m, " is not above 0");
    }
  }

  /// log density of one coordinate around 0, and its derivative times the scale is slope.
  double log_density(double u, double scale) const {
    return family_ == posterior_family::normal ? -u * u / 2 - std::log(scale) - 0.91893853320467274178
                                               : -(std::abs)(u)-std::log(2 * scale);
  }
  double slope(double u) const { return family_ == posterior_family::normal ? -u : u < 0 ? 1 : u > 0 ? -1 : 0; }

  void with_weights(const std::vector<posterior_component>& components, const std::vector<matrix<double>>& z,
                    const std::vector<Eigen::VectorXd>& fit, posterior_bound bound, evaluation& r) const {
    const auto M = static_cast<index_t>(components.size());
    const index_t B = components.front().loc.rows(), Z = components.front().loc.cols();
    const index_t S = components.front().noise.rows() / B;
    const bool apart = bound == posterior_bound::importance_weighted_apart;
    matrix<double> logs(M, S), of_each(M * S, M);  // log w, and log q_j
    for (index_t b = 0; b < B; ++b) {
      for (index_t m = 0; m < M; ++m)
        for (index_t s = 0; s < S; ++s) {
          const auto at = z[as_size(m)].row(s * B + b);
          double prior = 0;
          for (index_t c = 0; c < Z; ++c) prior += log_density(at[c] / prior_scale_, prior_scale_);
          for (index_t j = 0; j < M; ++j) {
            const posterior_component& q = components[as_size(j)];
            double log_q = 0;
            for (index_t c = 0; c < Z; ++c) log_q += log_density((at[c] - q.loc(b, c)) / q.scale(b, c), q.scale(b, c));
            of_each(m * S + s, j) = log_q;
          }
          logs(m, s) = prior + fit[as_size(m)][s * B + b] - (log_sum(of_each.row(m * S + s)) - log_of(M));
        }
      double whole = 0;
      if (!apart) whole = log_sum(Eigen::Map<const Eigen::RowVectorXd>(logs.data(), M * S));
      for (index_t m = 0; m < M; ++m) {
        const double own = apart ? log_sum(logs.row(m)) : whole;
        if (apart) r.value += (own - log_of(S)) / static_cast<double>(M);
        for (index_t s = 0; s < S; ++s)
          add_weight(components, z[as_size(m)], m, s, b,
                     std::exp(logs(m, s) - own) / (apart ? static_cast<double>(M) : 1.0), of_each.row(m * S + s), r);
      }
      if (!apart) r.value += whole - log_of(M * S);
    }
  }

  /// What log w of this sample, with this weight, gives to all gradients.
  void add_weight(const std::vector<posterior_component>& components, const matrix<double>& z, index_t m, index_t s,
                  index_t b, double weight, const Eigen::RowVectorXd& log_q, evaluation& r) const {
    const index_t row = s * components.front().loc.rows() + b;
    r.dfit[as_size(m)][row] += weight;
    auto dz = r.dz[as_size(m)].row(row);
    for (index_t c = 0; c < z.cols(); ++c) dz[c] += weight * slope(z(row, c) / prior_scale_) / prior_scale_;
    const double total = log_sum(log_q);
    for (std::size_t j = 0; j < components.size(); ++j) {
      const posterior_component& q = components[j];
      const double share = weight * std::exp(log_q[static_cast<index_t>(j)] - total);
      for (index_t c = 0; c < z.cols(); ++c) {
        const double u = (z(row, c) - q.loc(b, c)) / q.scale(b, c), d = slope(u) / q.scale(b, c);
        dz[c] -= share * d;
        r.dloc[j](b, c) += share * d;
        r.dscale[j](b, c) += share * (d * u + 1 / q.scale(b, c));
      }
    }
  }

  void with_divergence(const std::vector<posterior_component>& components, const std::vector<Eigen::VectorXd>& fit,
                       evaluation& r) const {
    const auto M = static_cast<double>(components.size());
    for (std::size_t m = 0; m < components.size(); ++m) {
      const posterior_component& q = components[m];
      const double samples = static_cast<double>(q.noise.rows() / q.loc.rows());
      r.value += fit[m].sum() / (M * samples);
      r.dfit[m].setConstant(1 / (M * samples));
      for (index_t i = 0; i < q.loc.size(); ++i) {
        const double loc = q.loc.data()[i], scale = q.scale.data()[i], p = prior_scale_;
        double divergence, by_loc, by_scale;
        if (family_ == posterior_family::normal) {
          divergence = std::log(p / scale) + (scale * scale + loc * loc) / (2 * p * p) - 0.5;
          by_loc = loc / (p * p);
          by_scale = scale / (p * p) - 1 / scale;
        } else {
          const double size = (std::abs)(loc), decay = std::exp(-size / scale);
          divergence = std::log(p / scale) + size / p + scale / p * decay - 1;
          by_loc = (loc < 0 ? -1 : 1) * (1 - decay) / p;
          by_scale = decay * (1 + size / scale) / p - 1 / scale;
        }
        r.value -= divergence / M;
        r.dloc[m].data()[i] -= by_loc / M;
        r.dscale[m].data()[i] -= by_scale / M;
      }
    }
  }

  static double log_of(index_t count) { return std::log(static_cast<double>(count)); }
  template <typename Row>
  static double log_sum(const Row& logs) {
    const double top = logs.maxCoeff();
    return top + std::log((logs.array() - top).exp().sum());
  }

  posterior_family family_;
  double prior_scale_;
};

}  // namespace sluice::inline SLUICE_ISA
