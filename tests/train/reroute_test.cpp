#include <sluice/train/reroute.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "../io/messages.hpp"
#include "../support.hpp"

using namespace sluice;

namespace {

/// Two references: the first wants r = (1, 0, 0), the second r = (0, 1, 0); both are as similar as is said.
const matrix<double> reference_weights = [] {
  matrix<double> w(2, 3);
  w << .6, .2, .2, .2, .7, .1;
  return w;
}();
const neighbourhood<double> two_near{{0, 1}, {.9, .6}};

double distance_to_reference(index_t reference, std::span<const double> r) {
  double sum = 0;
  for (std::size_t e = 0; e < r.size(); ++e) {
    const double d = r[e] - (e == static_cast<std::size_t>(reference) ? 1.0 : 0.0);
    sum += d * d;
  }
  return sum;
}

}  // namespace

TEST_CASE("reroute: neighbours are the most similar references, of equals the lower", "[train][reroute]") {
  matrix<double> references(5, 2);
  references << 1, 0, 0, 2, 3, 3, 0, 1, 0, 0;
  const std::vector<double> query{0, 7};
  const auto near = nearest_references<double>(references, query, 4);
  CHECK(near.reference == std::vector<index_t>{1, 3, 2, 0});
  CHECK(near.similarity[0] == 1);
  CHECK(std::abs(near.similarity[2] - std::sqrt(.5)) <= test::bound<double>(2));
  CHECK(near.share(3) == 0);
  const neighbourhood<double> opposite{{0, 1}, {-1, quiet_nan<double>()}};
  CHECK(opposite.share(0) == 0.5);
  CHECK_THROWS_WITH(nearest_references<double>(references, query, 6), test::contains("N = 6"));
  CHECK_THROWS_WITH(nearest_references<double>(references, std::span<const double>(query).first(1), 2),
                    test::contains("width of 1"));
}

TEST_CASE("reroute: kernel regression goes towards the mean of the neighbours' weights", "[train][reroute]") {
  // m = (.9 (.6,.2,.2) + .6 (.2,.7,.1)) / 1.5 = (.44, .40, .16)
  std::vector<double> r{0, 0, 1};
  const double a = kernel_reroute<double>(r, two_near, reference_weights, distance_to_reference);
  CHECK(a == 1);
  const std::vector<double> mean{.44, .40, .16};
  for (std::size_t e = 0; e < 3; ++e) CHECK(std::abs(r[e] - mean[e]) <= test::bound<double>(4));
  // Weights that do best already stay: every step away is worse.
  std::vector<double> best{.6, .4, 0};
  CHECK(kernel_reroute<double>(best, two_near, reference_weights, distance_to_reference) == 0);
  CHECK(best == std::vector<double>{.6, .4, 0});
  CHECK_THROWS_WITH(
      kernel_reroute<double>(std::span<double>(best).first(2), two_near, reference_weights, distance_to_reference),
      test::contains("row of 2 weights"));
}

TEST_CASE("reroute: mode finding goes to the nearest mode and stays on the simplex", "[train][reroute]") {
  std::vector<double> r{.5, .3, .2};
  mode_reroute<double>(r, two_near, reference_weights, {.steps = 200, .step = .3, .bandwidth = .05});
  for (std::size_t e = 0; e < 3; ++e) CHECK(std::abs(r[e] - reference_weights(0, static_cast<index_t>(e))) <= 1e-6);
  std::vector<double> wide{.5, .3, .2};
  mode_reroute<double>(wide, two_near, reference_weights, {.steps = 200, .step = .3, .bandwidth = 1e4});
  for (std::size_t e = 0; e < 3; ++e)  // a kernel that sees no distance: the plain mean
    CHECK(std::abs(wide[e] - reference_weights.col(static_cast<index_t>(e)).mean()) <= 1e-6);
  std::vector<double> far{1e9, -1e9, 0};  // kernels of 0 but for the nearest
  mode_reroute<double>(far, two_near, reference_weights, {.steps = 1, .step = 1, .bandwidth = 1e-3});
  CHECK(std::abs(far[0] + far[1] + far[2] - 1) <= test::bound<double>(3));
  CHECK_THROWS_WITH(mode_reroute<double>(r, two_near, reference_weights, {.step = 2}), test::contains("2"));
}

TEST_CASE("reroute: descent on a layer's routing weights makes the neighbours' loss smaller", "[train][reroute]") {
  // Test sample and references are tokens of one layer; a reference's loss is the distance of its output from what it
  // wants.
  moe_layer layer{top_k_router<double>{5, 4, {.top_k = 3}}, expert_bank<ffn<double, silu>>{4, 5, 6}};
  initialize(layer, 3);
  const matrix<double> x = test::random_matrix<double>(6, 5, 2), wanted = test::random_matrix<double>(6, 5, 4);
  const auto near =
      nearest_references<double>(matrix<double>(x.bottomRows(5)), std::span<const double>(x.data(), 5), 3);
  decltype(layer)::tape tape;
  matrix<double> y(1, 5), dx(1, 5), dy(1, 5);
  const auto loss = [&](index_t reference, std::span<const double> r, std::span<double> dr) {
    tape.plan.reset(1, 4);
    for (index_t e = 0; e < 4; ++e) tape.plan.add(0, e, r[static_cast<std::size_t>(e)], e);
    tape.plan.finish();
    layer.forward_planned(x.row(1 + reference), y, tape);
    dy = 2 * (y - wanted.row(1 + reference));
    layer.backward(dy, dx, tape);
    for (index_t e = 0; e < 4; ++e) dr[static_cast<std::size_t>(e)] += tape.dplan.weight[e];
    return dy.squaredNorm() / 4;
  };
  std::vector<double> r{.25, .25, .25, .25};
  // Its gradient is that of the weights.
  std::vector<double> dr(4, 0), ignored(4, 0);
  loss(near.reference[0], r, dr);
  for (std::size_t e = 0; e < 4; ++e) {
    auto up = r, down = r;
    up[e] += 1e-6, down[e] -= 1e-6;
    const double numeric = (loss(near.reference[0], up, ignored) - loss(near.reference[0], down, ignored)) / 2e-6;
    CHECK(std::abs(numeric - dr[e]) <= 1e-6 * std::max(1.0, std::abs(dr[e])));
  }
  // No gate was asked, and none learns.
  for_each_parameter(layer.router(), [](const std::string&, const parameter<double>& p) {
    for (const double g : p.gradient()) CHECK(g == 0);
  });
  const auto losses = descend_reroute<double>(r, near, loss, {.steps = 20, .first_rate = 0.05});
  REQUIRE(losses.size() == 20);
  CHECK(losses.back() < losses.front());
  CHECK_THROWS_WITH(descend_reroute<double>(r, near, loss, {.steps = -1}), test::contains("-1"));
}
