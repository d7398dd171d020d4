/// A softmax-gated mixture of linear regressions with normal errors, fitted by EM with the Lasso.
///
///   density of y at x = sum over k of g_k(x) N(y; b_k0 + b_k . x, s2_k)     g = softmax(w_k0 + w_k . x), w_K = 0
///   fit    max of the log-likelihood - lambda sum |b_kj| - gamma sum |w_kj|             intercepts are free
///
///   regression_mixture model(2, 3);                      // 2 inputs, 3 experts
///   const em_report report = model.fit(x, y, {.expert_penalty = 5, .gate_penalty = 5});
///   const Eigen::VectorXd mean = model.predict(x);
///
/// s2_k is one for all experts, or each expert's own. An iteration: responsibilities r; b_k by weighted least squares
/// with threshold s2_k lambda; w by Newton; then r again with those, and s2 = sum of r (y - b_k . x)^2 / n; of its own
/// an expert has sum over i of r_ik (y_i - b_k . x_i)^2 / sum of r_ik, by the r that b_k has. None of these lowers the
/// penalised log-likelihood; s2 never falls below a floor, for the likelihood has no bound at 0. fit begins at the best
/// of some starts, each with experts that fit a few rows drawn by the seed; improve begins where the model stands (a
/// path of penalties). Labels are free: experts come in any order. Throws std::invalid_argument where widths or counts
/// of x and y do not fit or an option is below 0 or not finite, and in step, fit and improve where x or y hold NaN or
/// have fewer rows than experts. Everything is in double.
/// Nguyen, Nguyen, Chamroukhi, McLachlan 2020, arXiv:2009.10622; the algorithm is that of Huynh and Chamroukhi's HDME
/// (Chamroukhi and Huynh 2019, "Regularized Maximum Likelihood Estimation and Feature Selection in Mixtures-of-Experts
/// Models").
#pragma once

#include <sluice/core/random.hpp>
#include <sluice/statistics/softmax_regression.hpp>

#include <algorithm>
#include <limits>
#include <optional>

namespace sluice::inline SLUICE_ISA {

struct regression_mixture_options {
  double expert_penalty = 0;  ///< lambda
  double gate_penalty = 0;    ///< gamma
  em_options em{};
  index_t starts = 8;
  std::uint64_t seed = 1;
  double least_variance = 1e-9;  ///< of s2, times the variance of y
};

/// Whose s2 is.
enum class error_variance { of_all, of_each };

class regression_mixture {
public:
  regression_mixture(index_t inputs, index_t experts, error_variance variance = error_variance::of_all) {
    if (inputs < 1 || experts < 1)
      throw_invalid("regression_mixture needs inputs and experts >= 1, not ", inputs, " and ", experts);
    gate_ = matrix<double>::Zero(experts - 1, inputs + 1);
    coefficients_ = matrix<double>::Zero(experts, inputs + 1);
    variances_.setOnes(variance == error_variance::of_each ? experts : 1);
  }

  index_t inputs() const noexcept { return coefficients_.cols() - 1; }
  index_t experts() const noexcept { return coefficients_.rows(); }
  matrix<double>& gate() noexcept { return gate_; }  ///< [K-1, 1+D], intercepts first
  const matrix<double>& gate() const noexcept { return gate_; }
  matrix<double>& coefficients() noexcept { return coefficients_; }  ///< [K, 1+D]
  const matrix<double>& coefficients() const noexcept { return coefficients_; }
  double& variance(index_t k = 0) noexcept { return variances_[place_of(k)]; }
  double variance(index_t k = 0) const noexcept { return variances_[place_of(k)]; }

  /// g [n,K].
  matrix<double> gate_probabilities(const matrix<double>& x) const {
    detail::check_inputs(name, x, inputs());
    return softmax_log_probabilities(detail::with_ones(x), gate_).array().exp().matrix();
  }
  /// The mean of y at every row of x.
  Eigen::VectorXd predict(const matrix<double>& x) const {
    return gate_probabilities(x).cwiseProduct(detail::with_ones(x) * coefficients_.transpose()).rowwise().sum();
  }
  /// [n,K]; adds up to 1 in every row.
  matrix<double> responsibilities(const matrix<double>& x, const Eigen::VectorXd& y) const {
    detail::check_answers(name, x, inputs(), y.size());
    return expectations(detail::with_ones(x), y);
  }
  double log_likelihood(const matrix<double>& x, const Eigen::VectorXd& y) const {
    detail::check_answers(name, x, inputs(), y.size());
    matrix<double> r = log_joint(detail::with_ones(x), y);
    return detail::normalize_log_rows(r);
  }
  double penalty(const regression_mixture_options& o) const {
    return o.expert_penalty * coefficients_.rightCols(inputs()).cwiseAbs().sum() +
           o.gate_penalty * gate_.rightCols(inputs()).cwiseAbs().sum();
  }
  /// What is not zero, s2 counted.
  index_t parameters() const {
    return variances_.size() + (coefficients_.array() != 0).count() + (gate_.array() != 0).count();
  }
  /// Bayes' criterion, the higher the better: log-likelihood - parameters log(n) / 2.
  double bayes_criterion(const matrix<double>& x, const Eigen::VectorXd& y) const {
    return log_likelihood(x, y) - static_cast<double>(parameters()) * std::log(static_cast<double>(x.rows())) / 2;
  }

  struct gradient {
    matrix<double> gate, coefficients;
    Eigen::VectorXd variance;  ///< [1] or [K]
  };
  gradient log_likelihood_gradient(const matrix<double>& x, const Eigen::VectorXd& y) const {
    detail::check_answers(name, x, inputs(), y.size());
    const matrix<double> design = detail::with_ones(x), r = expectations(design, y), e = errors(design, y);
    const matrix<double> g = softmax_log_probabilities(design, gate_).array().exp().matrix();
    gradient result{.gate = (r - g).leftCols(experts() - 1).transpose() * design,
                    .coefficients = r.cwiseProduct(e).transpose() * design,
                    .variance = Eigen::VectorXd::Zero(variances_.size())};
    for (index_t k = 0; k < experts(); ++k) {
      const double square = r.col(k).dot(e.col(k).cwiseAbs2());
      result.coefficients.row(k) /= variance(k);
      result.variance[place_of(k)] += (square / variance(k) - r.col(k).sum()) / (2 * variance(k));
    }
    return result;
  }

  /// One iteration from where the model stands.
  void step(const matrix<double>& x, const Eigen::VectorXd& y, const regression_mixture_options& o = {}) {
    validate(x, y, o);
    iterate(x, y, o);
  }

  /// EM from where the model stands.
  em_report improve(const matrix<double>& x, const Eigen::VectorXd& y, const regression_mixture_options& o = {}) {
    validate(x, y, o);
    return climb(x, y, o);
  }

  /// EM from the best of o.starts starts after a few iterations of each.
  em_report fit(const matrix<double>& x, const Eigen::VectorXd& y, const regression_mixture_options& o = {}) {
    validate(x, y, o);
    if (o.starts < 1) throw_invalid("regression_mixture needs a start, not ", o.starts);
    regression_mixture_options brief = o;
    brief.em.iterations = (std::min)(o.em.iterations, index_t{20});
    std::optional<regression_mixture> best;
    double best_value = std::numeric_limits<double>::lowest();
    for (index_t s = 0; s < o.starts; ++s) {
      regression_mixture one = *this;
      one.start(x, y, random_source(o.seed), s, o);
      const double value = one.climb(x, y, brief).objective.back();
      if (best && value <= best_value) continue;
      best = one;
      best_value = value;
    }
    *this = *best;
    return climb(x, y, o);
  }

private:
  static constexpr const char* name = "regression_mixture";

  void iterate(const matrix<double>& x, const Eigen::VectorXd& y, const regression_mixture_options& o) {
    const matrix<double> design = detail::with_ones(x);
    const matrix<double> r = expectations(design, y);
    for (index_t k = 0; k < experts(); ++k) {
      Eigen::VectorXd thresholds = Eigen::VectorXd::Constant(design.cols(), variance(k) * o.expert_penalty);
      thresholds[0] = 0;
      const matrix<double> weighted = r.col(k).asDiagonal() * design;
      Eigen::VectorXd b = coefficients_.row(k);
      minimize_quadratic_lasso(weighted.transpose() * design, weighted.transpose() * y, thresholds, b);
      coefficients_.row(k) = b;
    }
    fit_softmax_regression(design, r, o.gate_penalty, gate_);
    const matrix<double> squares = errors(design, y).cwiseAbs2();
    const double floor = o.least_variance * variance_of(y);
    if (variances_.size() == 1)
      variances_[0] =
          (std::max)(expectations(design, y).cwiseProduct(squares).sum() / static_cast<double>(x.rows()), floor);
    else
      for (index_t k = 0; k < experts(); ++k)
        if (const double whole = r.col(k).sum(); whole > 0)
          variances_[k] = (std::max)(r.col(k).dot(squares.col(k)) / whole, floor);
  }
  em_report climb(const matrix<double>& x, const Eigen::VectorXd& y, const regression_mixture_options& o) {
    return detail::improve_until_it_stops(
        o.em, [&] { iterate(x, y, o); }, [&] { return log_likelihood(x, y) - penalty(o); });
  }

  matrix<double> errors(const matrix<double>& design, const Eigen::VectorXd& y) const {
    return (design * coefficients_.transpose() * -1.0).colwise() + y;
  }
  matrix<double> expectations(const matrix<double>& design, const Eigen::VectorXd& y) const {
    matrix<double> r = log_joint(design, y);
    detail::normalize_log_rows(r);
    return r;
  }
  matrix<double> log_joint(const matrix<double>& design, const Eigen::VectorXd& y) const {
    constexpr double log_two_pi = 1.8378770664093454836;
    matrix<double> logs = softmax_log_probabilities(design, gate_);
    const matrix<double> squares = errors(design, y).cwiseAbs2();
    for (index_t k = 0; k < experts(); ++k)
      logs.col(k).array() -= squares.col(k).array() / (2 * variance(k)) + (log_two_pi + std::log(variance(k))) / 2;
    return logs;
  }
  index_t place_of(index_t expert) const noexcept { return variances_.size() == 1 ? 0 : expert; }
  static double variance_of(const Eigen::VectorXd& y) {
    const double v = (y.array() - y.mean()).square().mean();
    return v > 0 ? v : 1.0;
  }
  void validate(const matrix<double>& x, const Eigen::VectorXd& y, const regression_mixture_options& o) const {
    detail::check_em(name, o.em);
    if (!is_at_least(o.expert_penalty, 0) || !is_at_least(o.gate_penalty, 0) || !is_at_least(o.least_variance, 0))
      throw_invalid(name, " needs finite penalties and a least variance >= 0, not ", o.expert_penalty, ", ",
                    o.gate_penalty, " and ", o.least_variance);
    detail::check_data(name, x, inputs(), y.size(), experts());
    for (index_t i = 0; i < y.size(); ++i)
      if (!is_finite(y[i])) throw_invalid(name, ": answer ", i, " is not finite");
  }

  /// Experts that fit a few rows each, drawn anew for every start, and a gate that knows nothing.
  void start(const matrix<double>& x, const Eigen::VectorXd& y, const random_source& random, index_t number,
             const regression_mixture_options& o) {
    const matrix<double> design = detail::with_ones(x);
    const index_t q = design.cols(), rows = q + 1;
    gate_.setZero();
    for (index_t k = 0; k < experts(); ++k) {
      matrix<double> a = 1e-3 * matrix<double>::Identity(q, q);
      Eigen::VectorXd b = Eigen::VectorXd::Zero(q);
      for (index_t j = 0; j < rows; ++j) {
        const index_t draw = (number * experts() + k) * rows + j;
        const auto i = static_cast<index_t>(random.uniform(random_site("regression_mixture"), draw) *
                                            static_cast<double>(x.rows()));
        a += design.row(i).transpose() * design.row(i);
        b += y[i] * design.row(i).transpose();
      }
      Eigen::VectorXd c = Eigen::VectorXd::Zero(q);
      minimize_quadratic_lasso(a, b, Eigen::VectorXd::Zero(q), c);
      coefficients_.row(k) = c;
    }
    // The variance around the nearest expert: with that of all of y every expert would take part in every row.
    variances_.setConstant(
        (std::max)(errors(design, y).cwiseAbs2().rowwise().minCoeff().mean(), o.least_variance * variance_of(y)));
  }

  matrix<double> gate_, coefficients_;
  Eigen::VectorXd variances_;  ///< one, or one an expert
};

}  // namespace sluice::inline SLUICE_ISA
