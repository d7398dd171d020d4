/// What estimators of mixtures share: responsibilities, checks of data, and the loop that improves until it stops.
///
///   E-step   r_ik = exp(l_ik) / sum_j exp(l_ij)      l_ik = log gate_k(x_i) + log density of y_i under expert k
///   M-step   the model's own; it never lowers the (penalised) log-likelihood, which is what the loop looks at
///
/// Dempster, Laird, Rubin 1977; Jordan and Jacobs 1994, "Hierarchical Mixtures of Experts and the EM Algorithm".
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/types.hpp>

#include <cmath>
#include <vector>

namespace sluice::inline SLUICE_ISA {

struct em_options {
  index_t iterations = 1000;  ///< at most
  double tolerance = 1e-9;    ///< it stops where an iteration gains less, relative to 1 + |objective|
};

struct em_report {
  std::vector<double> objective;  ///< penalised log-likelihood at the start and after every iteration
  bool converged = false;

  index_t iterations() const noexcept { return static_cast<index_t>(objective.size()) - 1; }
};

namespace detail {

/// Throws std::invalid_argument unless iterations and tolerance are at least 0.
inline void check_em(const char* who, const em_options& o) {
  if (o.iterations < 0 || !is_at_least(o.tolerance, 0))
    throw_invalid(who, " needs iterations >= 0 and a finite tolerance >= 0, not ", o.iterations, " and ", o.tolerance);
}

/// Rows of logarithms become rows that sum to 1; returns the sum of their log-sums.
inline double normalize_log_rows(matrix<double>& logs) {
  double sum = 0;
  for (index_t i = 0; i < logs.rows(); ++i) {
    const double top = logs.row(i).maxCoeff();
    logs.row(i) = (logs.row(i).array() - top).exp().matrix();
    const double total = logs.row(i).sum();
    logs.row(i) /= total;
    sum += top + std::log(total);
  }
  return sum;
}

/// step() improves the model once, objective() values it.
template <typename Step, typename Objective>
em_report improve_until_it_stops(const em_options& o, const Step& step, const Objective& objective) {
  em_report report;
  report.objective.push_back(objective());
  while (report.iterations() < o.iterations && !report.converged) {
    const double before = report.objective.back();
    step();
    report.objective.push_back(objective());
    report.converged = report.objective.back() - before <= o.tolerance * (1 + (std::abs)(before));
  }
  return report;
}

/// [1, x]: a design with an intercept.
inline matrix<double> with_ones(const matrix<double>& x) {
  matrix<double> design(x.rows(), x.cols() + 1);
  design << Eigen::VectorXd::Ones(x.rows()), x;
  return design;
}

inline void check_inputs(const char* who, const matrix<double>& x, index_t inputs) {
  if (x.cols() != inputs) throw_invalid(who, " has ", inputs, " inputs, x has ", x.cols(), " columns");
}
inline void check_answers(const char* who, const matrix<double>& x, index_t inputs, index_t answers) {
  check_inputs(who, x, inputs);
  if (answers != x.rows()) throw_invalid(who, " needs an answer a row: ", x.rows(), " rows, ", answers, " answers");
}
/// What is fitted to.
inline void check_data(const char* who, const matrix<double>& x, index_t inputs, index_t answers, index_t experts) {
  check_answers(who, x, inputs, answers);
  if (x.rows() < experts) throw_invalid(who, " of ", experts, " experts needs as many rows, not ", x.rows());
  for (index_t i = 0; i < x.size(); ++i)
    if (!is_finite(x.data()[i])) throw_invalid(who, ": row ", i / x.cols(), " of x holds a number that is not finite");
}

}  // namespace detail

}  // namespace sluice::inline SLUICE_ISA
