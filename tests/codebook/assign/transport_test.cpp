#include <sluice/codebook/assign/transport.hpp>

#include <sluice/codebook/codes/mapped.hpp>
#include <sluice/codebook/loss/distance_cross_entropy.hpp>
#include <sluice/codebook/vector_quantizer.hpp>

#include "../codebook_checks.hpp"

using namespace sluice;

namespace {

struct coupled {
  matrix<double> plan;
  Eigen::VectorXd masses;
};

coupled couple(const matrix<double>& x, const matrix<double>& codes, const transport_assignment& assignment) {
  transport_assignment::memory<double> memory;
  assignment.couple<double>({x.data(), x.rows(), x.cols()}, {codes.data(), codes.rows(), codes.cols()}, memory, {});
  coupled c{matrix<double>(x.rows(), codes.rows()), {}};
  transport_assignment::plan<double>(memory, c.plan);
  c.masses = c.plan.colwise().sum();
  return c;
}

/// 64 tokens around code 0, seven codes far away.
std::pair<matrix<double>, matrix<double>> crowded() {
  matrix<double> codes = 10 * test::random_matrix<double>(8, 4, 1);
  matrix<double> x = test::random_matrix<double>(64, 4, 2);
  x.rowwise() += codes.row(0);
  return {x, codes};
}

matrix<double> by_hand(const matrix<double>& x, const matrix<double>& codes, const transport_assignment& a) {
  matrix<double> cost(x.rows(), codes.rows());
  for (index_t t = 0; t < x.rows(); ++t)
    for (index_t c = 0; c < codes.rows(); ++c) cost(t, c) = (x.row(t) - codes.row(c)).norm();
  if (a.cost == transport_cost::all) {
    const double mean = cost.mean();
    const double deviation = std::sqrt((cost.array() - mean).square().sum() / static_cast<double>(cost.size() - 1));
    cost = ((cost.array() - mean) / (deviation + 1e-6)).matrix().eval();
    cost.array() -= cost.minCoeff();
  } else if (a.cost == transport_cost::width) {
    cost /= std::sqrt(static_cast<double>(x.cols()));
  }
  matrix<double> q = (-a.epsilon * cost.array()).exp().matrix();
  q /= q.sum() + 1e-8;
  for (index_t round = 0; round < a.rounds; ++round) {
    for (index_t c = 0; c < q.cols(); ++c) q.col(c) /= (q.col(c).sum() + 1e-8) * static_cast<double>(q.cols());
    for (index_t t = 0; t < q.rows(); ++t) q.row(t) /= (q.row(t).sum() + 1e-8) * static_cast<double>(q.rows());
  }
  return static_cast<double>(q.rows()) * q;
}

}  // namespace

TEST_CASE("transport_assignment: codes that no token is near get their part", "[codebook]") {
  const auto [x, codes] = crowded();
  const auto five = couple(x, codes, {});
  CHECK(test::largest_difference(five.plan.rowwise().sum(), Eigen::VectorXd::Ones(64)) < 1e-5);
  const auto many = couple(x, codes, {.rounds = 200});
  for (index_t c = 0; c < 8; ++c) {
    CHECK(five.masses(c) > 4);
    CHECK(many.masses(c) == Approx(8).margin(1e-3));
  }
  const auto one = couple(x, codes.topRows(1), {});
  CHECK(one.plan.isOnes(1e-6));
}

TEST_CASE("transport_assignment: the plan is the published iteration's", "[codebook]") {
  const matrix<double> x = test::random_matrix<double>(50, 4, 1), codes = test::random_matrix<double>(150, 4, 2);
  for (const transport_cost cost : {transport_cost::all, transport_cost::width, transport_cost::none}) {
    const transport_assignment a{.epsilon = 4, .rounds = 5, .cost = cost};
    CHECK(test::largest_difference(couple(x, codes, a).plan, by_hand(x, codes, a)) < 1e-12);
  }
}

TEST_CASE("transport_assignment: codes are the plan's best, or drawn from it", "[codebook]") {
  const auto [x, codes] = crowded();
  vector_quantizer best{learned_codes<double>{8, 4}, transport_assignment{.epsilon = 3, .draws = false}};
  vector_quantizer drawn{learned_codes<double>{8, 4}, transport_assignment{.epsilon = 3}};
  best.codebook().table().assign(codes);
  drawn.codebook().table().assign(codes);
  const matrix<double> plan = couple(x, codes, {.epsilon = 3}).plan;
  matrix<double> y(64, 4);
  decltype(best)::tape tape;
  best.forward(x, y, tape);
  for (index_t t = 0; t < 64; ++t) {
    index_t id = 0;
    plan.row(t).maxCoeff(&id);
    CHECK(tape.ids(t, 0) == id);
  }
  decltype(drawn)::tape other;
  matrix<double> found = matrix<double>::Zero(64, 8);
  constexpr int draws = 500;
  for (std::uint64_t step = 0; step < draws; ++step) {
    drawn.forward(x, y, other, {.training = true, .random = random_source{1, step}});
    for (index_t t = 0; t < 64; ++t) found(t, other.ids(t, 0)) += 1.0 / draws;
  }
  CHECK(test::largest_difference(found, plan) < 5 * 0.5 / std::sqrt(double(draws)));  // five deviations of a share
}

TEST_CASE("transport_assignment: tokens so far that every exponential vanishes still get a code", "[codebook]") {
  vector_quantizer q{learned_codes<float>{8, 4}, transport_assignment{.cost = transport_cost::none, .draws = false}};
  q.codebook().table().assign(test::random_matrix<float>(8, 4, 1));
  const matrix<float> x = 1e6F * test::random_matrix<float>(16, 4, 2);
  matrix<float> y(16, 4);
  decltype(q)::tape tape;
  q.forward(x, y, tape);
  CHECK(tape.usage.total() == 16);
  CHECK(y.allFinite());
}

TEST_CASE("distance_cross_entropy: the formula and its gradients", "[codebook][gradient]") {
  const matrix<double> x = test::random_matrix<double>(9, 2, 1);
  vector_quantizer q{learned_codes<double>{140, 2}, distance_cross_entropy{.coefficient = 0.5},
                     transport_assignment{.draws = false}};
  q.codebook().table().assign(test::random_matrix<double>(140, 2, 3));
  decltype(q)::tape tape;
  matrix<double> y(9, 2);
  q.forward(x, y, tape);
  double expected = 0;
  const matrix<double> codes = q.codebook().table().to_matrix();
  for (index_t t = 0; t < 9; ++t) {
    double sum = 0;
    for (index_t c = 0; c < 140; ++c) sum += std::exp(-(x.row(t) - codes.row(c)).norm());
    expected += (std::log(sum) + (x.row(t) - y.row(t)).norm()) / 9;
  }
  CHECK(tape.loss() == Approx(0.5 * expected));
  test::check_loss_gradients(q, x);
}

TEST_CASE("transport_assignment: every promise of a layer, and options", "[codebook][conformance]") {
  test::check_quantizer_promises(vector_quantizer{mapped_codes<double>{11, 6, {.bias = true, .learned_basis = true}},
                                                  transport_assignment{}, distance_cross_entropy{}},
                                 5);
  static_assert(!vector_quantizer<learned_codes<float>, transport_assignment>::causal);
  CHECK_THROWS_AS(vector_quantizer(learned_codes<double>{11, 6}, transport_assignment{.epsilon = 0}),
                  std::invalid_argument);
}
