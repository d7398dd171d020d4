/// Multinomial logistic regression with weighted answers: what gates of mixtures and classifying experts are fitted by.
///
///   p_ik = softmax over k of design_i . c_k        the last class has c = 0, so that coefficients are determined
///   fit    max over c of sum_ik answers_ik log p_ik - penalty sum of |c|, first column (the intercept) left out
///   gradient of c_k: sum over i of (answers_ik - s_i p_ik) design_i,   s_i = sum over k of answers_ik
///
/// design [n,q] with ones in the first column, answers [n,K] at least 0 (responsibilities, or classes times a weight),
/// coefficients [K-1,q]. Concave: Newton's steps (statistics/lasso.hpp) find the maximum. Separable data without a
/// penalty have none; coefficients then grow until a step gains nothing that a double shows.
#pragma once

#include <sluice/statistics/expectation_maximization.hpp>
#include <sluice/statistics/lasso.hpp>

namespace sluice::inline SLUICE_ISA {

/// log p [n,K].
inline matrix<double> softmax_log_probabilities(const matrix<double>& design, const matrix<double>& coefficients) {
  matrix<double> logs = matrix<double>::Zero(design.rows(), coefficients.rows() + 1);
  logs.leftCols(coefficients.rows()) = design * coefficients.transpose();
  for (index_t i = 0; i < logs.rows(); ++i) {
    const double top = logs.row(i).maxCoeff();
    logs.row(i).array() -= top + std::log((logs.row(i).array() - top).exp().sum());
  }
  return logs;
}

/// The coefficients are where the search begins, too.
inline void fit_softmax_regression(const matrix<double>& design, const matrix<double>& answers, double penalty,
                                   matrix<double>& coefficients) {
  const index_t classes = coefficients.rows(), q = coefficients.cols();
  if (classes == 0) return;
  const auto as_matrix = [&](const Eigen::VectorXd& c) {
    return matrix<double>(Eigen::Map<const matrix<double>>(c.data(), classes, q));
  };
  Eigen::VectorXd penalties = Eigen::VectorXd::Constant(classes * q, penalty);
  for (index_t k = 0; k < classes; ++k) penalties[k * q] = 0;
  Eigen::VectorXd c = Eigen::Map<const Eigen::VectorXd>(coefficients.data(), classes * q);
  const Eigen::VectorXd weight = answers.rowwise().sum();
  maximize_by_newton(
      [&](const Eigen::VectorXd& at) {
        return softmax_log_probabilities(design, as_matrix(at)).cwiseProduct(answers).sum();
      },
      [&](const Eigen::VectorXd& at, Eigen::VectorXd& gradient, matrix<double>& curvature) {
        const matrix<double> p = softmax_log_probabilities(design, as_matrix(at)).array().exp().matrix();
        for (index_t k = 0; k < classes; ++k) {
          gradient.segment(k * q, q) =
              design.transpose() * (answers.col(k).array() - weight.array() * p.col(k).array()).matrix();
          for (index_t j = 0; j <= k; ++j) {
            const Eigen::VectorXd w = weight.array() * p.col(k).array() * ((j == k ? 1.0 : 0.0) - p.col(j).array());
            const matrix<double> part = design.transpose() * w.asDiagonal() * design;
            curvature.block(k * q, j * q, q, q) = part;
            curvature.block(j * q, k * q, q, q) = part;
          }
        }
      },
      penalties, c);
  coefficients = as_matrix(c);
}

}  // namespace sluice::inline SLUICE_ISA
