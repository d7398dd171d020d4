// Statistical mixtures: one iteration of the Gaussian mixture with the Lasso, and objectives of multimodal posteriors. They compute in
// double; the replay in float reads and compares floats.
#include "replays.hpp"

#include <sluice/statistics/mixture_posterior.hpp>
#include <sluice/statistics/regression_mixture.hpp>

namespace oracle {

namespace {

using namespace sluice;

template <typename Scalar>
matrix<double> in_double(const oracle_case<Scalar>& c, const std::string& name) {
  return c.rows(name).template cast<double>();
}
template <typename Scalar>
void compare(oracle_case<Scalar>& c, const std::string& name, const matrix<double>& ours) {
  c.check(name, matrix<Scalar>(ours.template cast<Scalar>()));
}
template <typename Scalar>
void compare(oracle_case<Scalar>& c, const std::string& name, double ours) {
  c.check(name, static_cast<Scalar>(ours));
}

template <typename Scalar>
void gauss_lasso_moe(oracle_case<Scalar>& c) {
  const auto p = c.template setting<index_t>("p"), K = c.template setting<index_t>("K");
  const matrix<double> x = in_double(c, "X").rightCols(p);
  const Eigen::VectorXd y = in_double(c, "Y").transpose();
  const regression_mixture_options options{.expert_penalty = c.template setting<double>("lambda_"),
                                           .gate_penalty = c.template setting<double>("gamma")};
  regression_mixture model(p, K);
  model.gate() = in_double(c, "w");
  model.coefficients() = in_double(c, "beta").transpose();
  model.variance() = in_double(c, "sigma2")(0, 0);
  const auto gradient = model.log_likelihood_gradient(x, y);
  compare(c, "grad_loglik.w", gradient.gate);
  compare(c, "grad_loglik.beta", matrix<double>(gradient.coefficients.transpose()));
  compare(c, "grad_loglik.sigma2", gradient.variance[0]);
  compare(c, "loglik", model.log_likelihood(x, y));
  compare(c, "penalised", model.log_likelihood(x, y) - model.penalty(options));
  compare(c, "tau", model.responsibilities(x, y));

  const double before = model.variance();
  model.step(x, y, options);
  compare(c, "beta_new", matrix<double>(model.coefficients().transpose()));
  compare(c, "w_new", model.gate());
  compare(c, "sigma2_new", model.variance());
  compare(c, "penalised_new", model.log_likelihood(x, y) - model.penalty(options));
  model.variance() = before;
  compare(c, "tau_new", model.responsibilities(x, y));
}

template <typename Scalar>
void mmvae(oracle_case<Scalar>& c) {
  const auto M = c.template setting<index_t>("modalities"), S = c.template setting<index_t>("samples");
  const auto B = c.template setting<index_t>("batch");
  const auto widths = c.template setting<std::vector<index_t>>("widths");
  const auto scaling = c.template setting<std::vector<double>>("llik_scaling");
  const double spread = c.template setting<double>("likelihood_scale");
  const auto number = [](const char* name, index_t m) { return name + std::to_string(m); };
  mixture_posterior posterior(
      c.template setting<std::string>("family") == "normal" ? posterior_family::normal : posterior_family::laplace,
      c.template setting<double>("prior_scale"));
  std::vector<posterior_component> components;
  for (index_t m = 0; m < M; ++m)
    components.push_back({in_double(c, number("posterior.", m) + ".loc"),
                          in_double(c, number("posterior.", m) + ".scale"), in_double(c, number("noise.", m))});
  const std::vector<matrix<double>> z = posterior.sample(components);

  // The file's decoders: normal around one affine map each.
  struct decoder {
    matrix<double> weight;
    Eigen::VectorXd bias;
    matrix<double> x;
  };
  std::vector<decoder> decoders;
  for (index_t m = 0; m < M; ++m)
    decoders.push_back({in_double(c, number("decoder.", m) + ".weight"),
                        in_double(c, number("decoder.", m) + ".bias").transpose(), in_double(c, number("x.", m))});
  const auto errors = [&](const decoder& d, const matrix<double>& at) {
    matrix<double> e = (at * d.weight.transpose()).rowwise() + d.bias.transpose();
    for (index_t s = 0; s < S; ++s) e.middleRows(s * B, B) = d.x - e.middleRows(s * B, B);
    return e;
  };
  std::vector<Eigen::VectorXd> fit(as_size(M));
  for (index_t m = 0; m < M; ++m) {
    fit[as_size(m)] = Eigen::VectorXd::Zero(S * B);
    for (index_t j = 0; j < M; ++j) {
      const double norm = std::log(spread) + 0.91893853320467274178;
      fit[as_size(m)] += scaling[as_size(j)] *
                         (errors(decoders[as_size(j)], z[as_size(m)]).rowwise().squaredNorm() / (-2 * spread * spread) -
                          Eigen::VectorXd::Constant(S * B, static_cast<double>(widths[as_size(j)]) * norm));
    }
  }
  for (const auto& [name, bound] : {std::pair{"m_iwae", posterior_bound::importance_weighted},
                                    std::pair{"m_iwae_looser", posterior_bound::importance_weighted_apart},
                                    std::pair{"m_elbo_naive", posterior_bound::closed_divergence}}) {
    const auto result = posterior.evaluate(components, z, fit, bound);
    compare(c, name, result.value);
    std::vector<matrix<double>> dz = result.dz, dx, dweight;
    std::vector<Eigen::VectorXd> dbias;
    for (const decoder& d : decoders) {
      dx.push_back(matrix<double>::Zero(d.x.rows(), d.x.cols()));
      dweight.push_back(matrix<double>::Zero(d.weight.rows(), d.weight.cols()));
      dbias.push_back(Eigen::VectorXd::Zero(d.bias.size()));
    }
    for (std::size_t m = 0; m < z.size(); ++m)
      for (std::size_t j = 0; j < decoders.size(); ++j) {
        const matrix<double> pull =
            (scaling[j] / (spread * spread) * result.dfit[m]).asDiagonal() * errors(decoders[j], z[m]);
        dz[m] += pull * decoders[j].weight;
        dweight[j] += pull.transpose() * z[m];
        dbias[j] += pull.colwise().sum().transpose();
        for (index_t s = 0; s < S; ++s) dx[j] -= pull.middleRows(s * B, B);
      }
    const auto gradients = posterior.sample_backward(components, dz, result);
    const std::string prefix = std::string("grad_") + name + ".";
    for (index_t m = 0; m < M; ++m) {
      const auto at = as_size(m);
      compare(c, prefix + number("posterior.", m) + ".loc", gradients[at].loc);
      compare(c, prefix + number("posterior.", m) + ".scale", gradients[at].scale);
      compare(c, prefix + number("x.", m), dx[at]);
      compare(c, prefix + number("decoder.", m) + ".weight", dweight[at]);
      compare(c, prefix + number("decoder.", m) + ".bias", matrix<double>(dbias[at].transpose()));
    }
  }
}

}  // namespace

std::vector<replayer> statistical_mixtures() {
  return {{"gauss_lasso_moe", gauss_lasso_moe<float>, gauss_lasso_moe<double>}, {"mmvae", mmvae<float>, mmvae<double>}};
}

}  // namespace oracle
