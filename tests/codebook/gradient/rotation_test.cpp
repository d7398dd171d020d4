#include <sluice/codebook/gradient/rotation.hpp>

#include <sluice/codebook/vector_quantizer.hpp>

#include "../../layer/plain_checks.hpp"

using namespace sluice;

namespace {

auto turning_quantizer(const matrix<double>& codes) {
  vector_quantizer q{learned_codes<double>{codes.rows(), codes.cols()}, rotation{}, commitment_loss{.encoder = 0, .codebook = 0}};
  q.codebook().table().assign(codes);
  return q;
}

}  // namespace

TEST_CASE("rotation: lambda R takes x to its code, and the gradient goes back by its transpose", "[codebook][gradient]") {
  const matrix<double> codes = test::random_matrix<double>(5, 7, 1), x = test::random_matrix<double>(20, 7, 2);
  const matrix<double> dy = test::random_matrix<double>(20, 7, 3);
  auto q = turning_quantizer(codes);
  const auto r = test::train_once(q, x, dy);
  for (index_t t = 0; t < 20; ++t) {
    const Eigen::VectorXd u = x.row(t).normalized(), v = r.y.row(t).normalized(), w = (u + v).normalized();
    const double lambda = r.y.row(t).norm() / x.row(t).norm();
    const Eigen::MatrixXd R = Eigen::MatrixXd::Identity(7, 7) - 2 * w * w.transpose() + 2 * v * u.transpose();
    CHECK((R.transpose() * R - Eigen::MatrixXd::Identity(7, 7)).norm() < 1e-13);
    CHECK((lambda * R * x.row(t).transpose() - r.y.row(t).transpose()).norm() < 1e-13);
    CHECK((lambda * R.transpose() * dy.row(t).transpose() - r.dx.row(t).transpose()).norm() < 1e-13);
    CHECK(r.dx.row(t).norm() == Approx(lambda * dy.row(t).norm()));
    CHECK(r.dx.row(t).dot(x.row(t)) / (r.dx.row(t).norm() * x.row(t).norm()) ==
          Approx(dy.row(t).dot(r.y.row(t)) / (dy.row(t).norm() * r.y.row(t).norm())).margin(1e-12));
  }
}

TEST_CASE("rotation: where x is its code dx is dy", "[codebook][gradient]") {
  const matrix<double> codes = test::random_matrix<double>(5, 7, 1), dy = test::random_matrix<double>(5, 7, 3);
  auto q = turning_quantizer(codes);
  CHECK(test::largest_difference(test::train_once(q, codes, dy).dx, dy) < 1e-15);
}

TEST_CASE("rotation: zero tokens, zero codes and opposite ones stay finite", "[codebook][gradient]") {
  matrix<double> codes(2, 2), x(3, 2);
  codes << 0, 0, 3, 0;
  x << 0, 0, -1, 0, 2.9, 0;
  auto q = turning_quantizer(codes);
  const matrix<double> dy = test::random_matrix<double>(3, 2, 3);
  CHECK(test::train_once(q, x, dy).dx.allFinite());
  codes << -3, 0, -3, 0;  // the opposite of every positive x
  auto opposite = turning_quantizer(codes);
  CHECK(test::train_once(opposite, x, dy).dx.allFinite());
}
