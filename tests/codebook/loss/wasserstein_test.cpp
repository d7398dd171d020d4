#include <sluice/codebook/loss/wasserstein.hpp>

#include <sluice/codebook/vector_quantizer.hpp>

#include "../codebook_checks.hpp"

using namespace sluice;

namespace {

auto transported_quantizer(const matrix<double>& codes, wasserstein_options o) {
  vector_quantizer q{learned_codes<double>{codes.rows(), codes.cols()}, wasserstein_loss<double>{codes.rows(), o}};
  q.codebook().table().assign(codes);
  return q;
}

template <typename Q>
double loss_of(Q& q, const matrix<double>& x) {
  typename Q::tape tape;
  matrix<double> y(x.rows(), x.cols());
  q.forward(x, y, tape);
  return tape.loss();
}

}  // namespace

TEST_CASE("wasserstein_loss: codes that are the data cost nothing, moved ones the square of the way", "[codebook]") {
  const matrix<double> codes = test::random_matrix<double>(9, 4, 1);
  auto q = transported_quantizer(codes, {.kl = 0});
  CHECK(loss_of(q, codes.colwise().reverse()) == Approx(0).margin(1e-14));
  const Eigen::RowVectorXd way = Eigen::RowVector4d(0.01, 0.02, -0.03, 0);
  CHECK(loss_of(q, codes.colwise().reverse().rowwise() + way) == Approx(way.squaredNorm()));
  auto one = transported_quantizer(codes.topRows(1), {.kl = 0});
  CHECK(loss_of(one, codes) == Approx((codes.rowwise() - codes.row(0)).rowwise().squaredNorm().mean()));
}

TEST_CASE("wasserstein_loss: gradients of tokens, codes and weights", "[codebook][gradient]") {
  const matrix<double> x = test::random_matrix<double>(24, 3, 1);
  for (const index_t problems : {1, 4}) {
    auto q =
        transported_quantizer(test::random_matrix<double>(5, 3, 2), {.problems = problems, .beta = 0.7, .kl = 0.2});
    q.policy<wasserstein_loss<double>>().weights().assign(test::random_matrix<double>(problems, 5, 3));
    test::check_loss_gradients(q, x);
  }
}

TEST_CASE("wasserstein_loss: positions are problems of their own", "[codebook]") {
  const matrix<double> x = test::random_matrix<double>(12, 3, 1), codes = test::random_matrix<double>(5, 3, 2);
  auto both = transported_quantizer(codes, {.problems = 2, .kl = 0});
  auto one = transported_quantizer(codes, {.kl = 0});
  matrix<double> even(6, 3), odd(6, 3);
  for (index_t t = 0; t < 12; ++t) (t % 2 == 0 ? even : odd).row(t / 2) = x.row(t);
  CHECK(loss_of(both, x) == Approx(loss_of(one, even) + loss_of(one, odd)));
  CHECK_THROWS_WITH(loss_of(both, x.topRows(3)), Catch::Contains("2 positions, of which 3 tokens"));
}

TEST_CASE("wasserstein_loss: every promise of a layer", "[codebook][conformance]") {
  test::check_quantizer_promises(vector_quantizer{learned_codes<double>{11, 6}, wasserstein_loss<double>{11}}, 5);
  static_assert(!vector_quantizer<learned_codes<float>, wasserstein_loss<float>>::causal);
  CHECK_THROWS_AS(wasserstein_loss<float>(0), std::invalid_argument);
}
