#include <sluice/codebook/gradient/index_propagation.hpp>

#include <sluice/codebook/vector_quantizer.hpp>

#include "../../layer/plain_checks.hpp"
#include "../codebook_checks.hpp"

using namespace sluice;

namespace {

template <typename... Losses>
auto propagating_quantizer(index_t codes, index_t width, Losses... losses) {
  vector_quantizer q{learned_codes<double>{codes, width}, inner_product{}, index_propagation{}, losses...};
  q.codebook().table().assign(0.5 * test::random_matrix<double>(codes, width, 3));
  return q;
}

constexpr commitment_loss no_loss{.encoder = 0, .codebook = 0};

}  // namespace

TEST_CASE("index_propagation: the gradient is that of differences of the surrogate", "[codebook][gradient]") {
  constexpr index_t T = 4, C = 5, D = 3;
  auto q = propagating_quantizer(C, D, no_loss);
  matrix<double> x = test::random_matrix<double>(T, D, 1);
  const matrix<double> dy = test::random_matrix<double>(T, D, 2);
  const auto r = test::train_once(q, x, dy);
  matrix<double> codes = q.codebook().table().to_matrix();
  const matrix<double> before = codes, tokens = x;
  // sum of dy * (o + p - sg[p]) codes, o and sg[p] as they were.
  const auto surrogate = [&] {
    double sum = 0;
    for (index_t t = 0; t < T; ++t) {
      const Eigen::ArrayXd was = (before * tokens.row(t).transpose()).array(),
                           is = (codes * x.row(t).transpose()).array();
      Eigen::VectorXd o = is.exp() / is.exp().sum() - was.exp() / was.exp().sum();
      index_t best = 0;
      was.maxCoeff(&best);
      o(best) += 1;
      sum += (dy.row(t) * codes.transpose() * o).value();
    }
    return sum;
  };
  const auto slope = [&](double& number) { return test::slope_at(number, surrogate); };
  for (index_t i = 0; i < x.size(); ++i) CHECK(r.dx.data()[i] == Approx(slope(x.data()[i])).margin(1e-9));
  for (index_t i = 0; i < codes.size(); ++i)
    CHECK(r.gradients[0].data()[i] == Approx(slope(codes.data()[i])).margin(1e-9));
}

TEST_CASE("index_propagation: more codes and tokens than a tile, by the formula", "[codebook][gradient]") {
  constexpr index_t T = 41, C = 290, D = 6;
  auto q = propagating_quantizer(C, D, no_loss);
  const matrix<double> x = test::random_matrix<double>(T, D, 1), dy = test::random_matrix<double>(T, D, 2);
  const auto r = test::train_once(q, x, dy);
  const matrix<double> codes = q.codebook().table().to_matrix();
  matrix<double> dx(T, D), dcodes = matrix<double>::Zero(C, D);
  for (index_t t = 0; t < T; ++t) {
    const Eigen::ArrayXd l = (codes * x.row(t).transpose()).array();
    const Eigen::ArrayXd p = l.exp() / l.exp().sum(), along = (codes * dy.row(t).transpose()).array();
    const Eigen::VectorXd dl = p * (along - (p * along).sum());
    dx.row(t) = (codes.transpose() * dl).transpose();
    dcodes += dl * x.row(t);
    index_t best = 0;
    l.maxCoeff(&best);
    dcodes.row(best) += dy.row(t);
  }
  CHECK(test::largest_difference(r.dx, dx) < 1e-13);
  CHECK(test::largest_difference(r.gradients[0], dcodes) < 1e-12);
}

TEST_CASE("index_propagation: the surrogate loss goes the way of dy, and past straight_through it has no gradient",
          "[codebook][gradient]") {
  constexpr index_t T = 9, C = 5, D = 3;
  const matrix<double> x = test::random_matrix<double>(T, D, 1), none = matrix<double>::Zero(T, D);
  auto q = propagating_quantizer(C, D, commitment_loss{.encoder = 0, .codebook = 0, .surrogate = 0.5});
  const auto r = test::train_once(q, x, none);
  auto plain = propagating_quantizer(C, D, no_loss);
  const matrix<double> pull = (r.y - x) / (T * D);  // 2 * 0.5 / (T D)
  const auto expected = test::train_once(plain, x, pull);
  CHECK(test::largest_difference(r.dx, matrix<double>(expected.dx - pull)) < 1e-15);
  CHECK(test::largest_difference(r.gradients[0], expected.gradients[0]) < 1e-15);
  vector_quantizer straight{learned_codes<double>{C, D},
                            commitment_loss{.encoder = 0, .codebook = 0, .surrogate = 0.5}};
  straight.codebook().table().assign(test::random_matrix<double>(C, D, 3));
  CHECK(test::train_once(straight, x, none).dx.isZero(1e-15));
}

TEST_CASE("index_propagation: every promise of a layer", "[codebook][conformance]") {
  test::check_quantizer_promises(vector_quantizer{learned_codes<double>{11, 6}, inner_product{}, index_propagation{},
                                                  commitment_loss{.encoder = 1, .codebook = 0.25, .surrogate = 1}},
                                 5);
}
