#include <sluice/codebook/loss/exact_transport.hpp>

#include "../../support.hpp"

#include <numeric>

using namespace sluice;

namespace {

matrix_buffer<double> random_costs(index_t n, index_t takers, std::uint64_t seed) {
  matrix_buffer<double> cost;
  cost.resize(n, takers);
  const matrix<double> m = test::random_matrix<double>(n, takers, seed);
  std::copy_n(m.data(), m.size(), cost.data());
  return cost;
}

/// Amounts, flows and potentials that prove each other the best.
void check_best(const exact_transport& transport, const matrix_buffer<double>& cost, const buffer<double>& amounts) {
  const index_t n = cost.rows(), takers = cost.cols();
  const auto& flow = transport.flow();
  double total = 0, dual = 0;
  for (index_t k = 0; k < takers; ++k) {
    double sum = 0;
    for (index_t t = 0; t < n; ++t) sum += flow(k, t);
    CHECK(sum == Approx(amounts[k]).margin(1e-10));
    dual += amounts[k] * transport.potential()[k];
  }
  for (index_t t = 0; t < n; ++t) {
    double sum = 0, v = 1e300;
    for (index_t k = 0; k < takers; ++k) {
      CHECK(flow(k, t) >= 0);
      sum += flow(k, t);
      total += flow(k, t) * cost(t, k);
      v = std::min(v, cost(t, k) - transport.potential()[k]);
    }
    CHECK(sum == Approx(1).margin(1e-10));
    dual += v;
  }
  CHECK(transport.total() == Approx(total).margin(1e-10));
  CHECK(dual == Approx(total).margin(1e-9));
}

}  // namespace

TEST_CASE("exact_transport: one unit each is the best of all permutations", "[codebook]") {
  exact_transport transport;
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    const auto cost = random_costs(6, 6, seed);
    const buffer<double> amounts(6, 1.0);
    transport.solve(cost, amounts);
    std::array<index_t, 6> order;
    std::iota(order.begin(), order.end(), index_t(0));
    double best = 1e300;
    do {
      double sum = 0;
      for (index_t t = 0; t < 6; ++t) sum += cost(t, order[as_size(t)]);
      best = std::min(best, sum);
    } while (std::next_permutation(order.begin(), order.end()));
    CHECK(transport.total() == Approx(best));
    check_best(transport, cost, amounts);
  }
}

TEST_CASE("exact_transport: whole amounts are the best of all assignments, and any have potentials that prove them",
          "[codebook]") {
  exact_transport transport;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const index_t n = 1 + static_cast<index_t>(seed * 7 % 40), takers = 1 + static_cast<index_t>(seed * 5 % 17);
    const auto cost = random_costs(n, takers, seed);
    buffer<double> amounts(takers);
    double sum = 0;
    for (index_t k = 0; k < takers; ++k) {
      amounts[k] = k == 3 ? 0 : 0.05 + random_source(seed).uniform(random_site::user_site, k);
      sum += amounts[k];
    }
    for (double& amount : amounts) amount *= static_cast<double>(n) / sum;
    transport.solve(cost, amounts);
    check_best(transport, cost, amounts);
  }
}

TEST_CASE("exact_transport: equal costs, nobody, and amounts that do not add up", "[codebook][ties]") {
  exact_transport transport;
  matrix_buffer<double> cost;
  cost.set_zero(5, 3);
  buffer<double> amounts(3, 5.0 / 3);
  transport.solve(cost, amounts);
  check_best(transport, cost, amounts);
  cost.set_zero(0, 3);
  transport.solve(cost, buffer<double>(3, 0.0));
  CHECK(transport.total() == 0);
  cost.set_zero(5, 3);
  CHECK_THROWS_WITH(transport.solve(cost, buffer<double>(3, 1.0)), Catch::Contains("add up to 5, not to 3"));
}
