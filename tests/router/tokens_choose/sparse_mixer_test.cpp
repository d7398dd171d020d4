#include <sluice/router/tokens_choose/sparse_mixer.hpp>

#include <sluice/train/initialize.hpp>

#include "io/messages.hpp"
#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router sparse_mixer_in_table("sparse_mixer_router", [] {
  return test::made(sparse_mixer_router<double>{6, 4, {.jitter = 0.5}}, {.k = 2});
});

template <typename Scalar>
using given_mixer = sparse_mixer_router<Scalar, copy_gate<Scalar>>;

struct naive_mixer_choice {
  index_t expert;
  double weight;
  std::vector<bool> survives;
};

/// The definition of inference for one token.
std::vector<naive_mixer_choice> naive_mixer(std::vector<double> logits, index_t k, double jitter) {
  const std::vector<double> original = logits;
  std::vector<naive_mixer_choice> choices;
  for (index_t r = 0; r < k; ++r) {
    const auto top = std::max_element(logits.begin(), logits.end());
    naive_mixer_choice c{top - logits.begin(), 0, {}};
    double sum = 0;
    for (std::size_t e = 0; e < logits.size(); ++e) {
      const bool masked =
          logits[e] == -HUGE_VAL || (*top - original[e]) / std::max(std::abs(original[e]), *top) > 2 * jitter;
      c.survives.push_back(!masked);
      if (!masked) sum += std::exp(logits[e] - *top);
    }
    c.weight = 1 / sum;
    choices.push_back(c);
    logits[static_cast<std::size_t>(c.expert)] = -HUGE_VAL;
  }
  return choices;
}

}  // namespace

TEMPLATE_TEST_CASE("sparse_mixer: inference equals the definition", "[router][sparse_mixer]", float, double) {
  using S = TestType;
  struct shape {
    index_t T, E, k;
    double jitter;
  };
  const auto s = GENERATE(shape{0, 4, 2, 0.1}, shape{1, 2, 2, 0.01}, shape{40, 16, 2, 0.01}, shape{40, 16, 2, 0.3},
                          shape{20, 5, 1, 0.2}, shape{20, 6, 6, 0.5}, shape{6, 257, 3, 0.05});
  CAPTURE(s.T, s.E, s.k, s.jitter);
  const given_mixer<S> router(copy_gate<S>(s.E, s.E), {.top_k = s.k, .jitter = S(s.jitter)});
  const matrix<S> logits = test::random_matrix<S>(s.T, s.E, 3);
  const auto result = test::route(router, logits);
  for (index_t t = 0; t < s.T; ++t) {
    std::vector<double> row;
    for (index_t e = 0; e < s.E; ++e) row.push_back(static_cast<double>(logits(t, e)));
    const auto expected = naive_mixer(row, s.k, static_cast<double>(S(s.jitter)));
    for (index_t r = 0; r < s.k; ++r) {
      CAPTURE(t, r);
      CHECK(result.tape.choices.expert[t * s.k + r] == expected[static_cast<std::size_t>(r)].expert);
      // A sum of at most E exponentials, each exact to a few units in the last place.
      CHECK(std::abs(static_cast<double>(result.tape.choices.weight[t * s.k + r]) -
                     expected[static_cast<std::size_t>(r)].weight) <= static_cast<double>(test::bound<S>(s.E)));
    }
  }
}

TEST_CASE("sparse_mixer: worked examples", "[router][sparse_mixer]") {
  const auto route = [](std::vector<double> row, double jitter) {
    const auto experts = static_cast<index_t>(row.size());
    const given_mixer<double> router(copy_gate<double>(experts, experts), {.jitter = jitter});
    matrix<double> logits(1, experts);
    std::copy(row.begin(), row.end(), logits.data());
    return test::route(router, logits);
  };
  const auto near = route({2.0, 1.99, 0.5, -1}, 0.01);
  CHECK(near.tape.choices.expert[0] == 0);
  CHECK(near.tape.choices.expert[1] == 1);
  CHECK(std::abs(near.tape.choices.weight[0] - 0.5025) < 5e-5);
  CHECK(near.tape.choices.weight[1] == 1);
  // Ratios 0, .0909, .3333 at eps 0.1: the third is masked, so the first has one rival.
  const auto negative = route({-1, -1.1, -1.5}, 0.1);
  CHECK(std::abs(negative.tape.choices.weight[0] - 1 / (1 + std::exp(-0.1))) < 1e-14);
  const auto ties = route({0, 0, 0, 0}, 0.1);
  CHECK(ties.tape.choices.expert[0] == 0);
  CHECK(ties.tape.choices.expert[1] == 1);
  CHECK(std::abs(ties.tape.choices.weight[0] - 0.25) < 1e-15);
  CHECK(std::abs(ties.tape.choices.weight[1] - 1.0 / 3) < 1e-15);
}

TEST_CASE("sparse_mixer: gradients at inference equal central differences", "[router][sparse_mixer][gradient]") {
  const auto jitter = GENERATE(0.05, 0.4, 10.0);
  sparse_mixer_router<double> router(4, 6, {.jitter = jitter});
  const auto report = test::check_router_gradients(router, 8, 82, routing_context<double>{});
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("sparse_mixer: training draws among survivors, often as their softmax says, and lessens surprises",
          "[router][sparse_mixer]") {
  const index_t T = 4000;
  const given_mixer<double> router(copy_gate<double>(3, 3), {.top_k = 1, .jitter = 0.5});
  matrix<double> logits(T, 3);
  for (index_t t = 0; t < T; ++t) logits.row(t) << 1.0, 0.5, -5.0;  // the third is masked
  routing_context<double> context = test::training();
  const auto result = test::route(router, logits, context);
  const double p = 1 / (1 + std::exp(-0.5));
  index_t first = 0, lessened = 0;
  for (index_t t = 0; t < T; ++t) {
    const index_t e = result.tape.choices.expert[t];
    const double weight = result.tape.choices.weight[t];
    REQUIRE(e < 2);
    if (e == 0) {
      ++first;
      CHECK(weight == Approx(p));
    } else if (weight == Approx(0.3333 * (1 - p))) {
      ++lessened;
    } else {
      CHECK(weight == Approx(1 - p));
    }
  }
  // Binomial counts within five deviations.
  CHECK(std::abs(static_cast<double>(first) - T * p) < 5 * std::sqrt(T * p * (1 - p)));
  const auto others = static_cast<double>(T - first);
  CHECK(std::abs(static_cast<double>(lessened) - 0.75 * others) < 5 * std::sqrt(others * 0.75 * 0.25));
}

TEST_CASE("sparse_mixer: the training gradient is the estimate of its version", "[router][sparse_mixer][gradient]") {
  // The example of the catalogue of published routers: F_D(m) = c m + q m^2 + r m^3, expected over all draws, with
  // p = (.412327, .337585, .250089) and nobody masked; version one without the cubic terms.
  struct estimate {
    sparse_mixer_version version;
    double full, lessened, cubic;
    std::vector<double> expected;
  };
  const std::vector<double> logits{.3, .1, -.2}, c{1, -.5, 2}, q{.7, .4, -.3}, r{.5, -1.2, .8};
  const auto given =
      GENERATE_COPY(estimate{sparse_mixer_version::two, 0.25, 1 / 3., 1, {0.155710, -0.184737, 0.029027}},
                    estimate{sparse_mixer_version::one, 0.5, 0.5, 0, {0.245779, -0.305663, 0.059884}});
  const sparse_mixer_rule<double> rule({.top_k = 1, .jitter = 100, .version = given.version});
  std::vector<double> p(3), sum(3, 0.0);
  const routing_context<double> inference, training = test::training();
  const choice_row<double> row{{inference, 1, 3, 1}, 0, logits.data(), logits.data(), p.data(), nullptr};
  const choice_row<double> trained{{training, 1, 3, 1}, 0, logits.data(), logits.data(), p.data(), nullptr};
  rule.score(row, p.data());
  for (index_t d = 0; d < 3; ++d) {
    double m = 0;
    rule.weigh(row, {&d, 1}, &m);
    CHECK(m == Approx(p[static_cast<std::size_t>(d)]));
    for (const bool full : {true, false}) {
      const auto i = static_cast<std::size_t>(d);
      const double chance = p[i] * (d == 0 ? (full ? 1 : 0) : (full ? given.full : 1 - given.full));
      const double used = full ? m : m * given.lessened;
      const double upstream = c[i] + 2 * q[i] * used + 3 * given.cubic * r[i] * used * used;
      std::vector<double> dl(3, 0.0);
      rule.backward(trained, {{&d, 1}, &m, &upstream}, dl.data());
      for (std::size_t e = 0; e < 3; ++e) sum[e] += chance * dl[e];
    }
  }
  for (std::size_t e = 0; e < 3; ++e) CHECK(std::abs(sum[e] - given.expected[e]) < test::printed);
}

TEST_CASE("sparse_mixer: version one halves half of its surprises and doubles the gradient", "[router][sparse_mixer]") {
  const index_t T = 4000;
  const given_mixer<double> router(copy_gate<double>(3, 3),
                                   {.top_k = 1, .jitter = 0.5, .version = sparse_mixer_version::one});
  matrix<double> logits(T, 3);
  for (index_t t = 0; t < T; ++t) logits.row(t) << 1.0, 0.5, -5.0;  // the third is masked
  const auto result = test::route(router, logits, test::training());
  const double p = 1 / (1 + std::exp(-0.5));
  index_t others = 0, lessened = 0;
  for (index_t t = 0; t < T; ++t) {
    const double weight = result.tape.choices.weight[t];
    if (result.tape.choices.expert[t] == 0) {
      CHECK(weight == Approx(p));
      continue;
    }
    ++others;
    const bool is_half = weight == Approx((1 - p) / 2);
    lessened += is_half;
    if (!is_half) CHECK(weight == Approx(1 - p));
  }
  // A binomial count within five deviations.
  CHECK(std::abs(static_cast<double>(lessened) - static_cast<double>(others) / 2) < 5 * std::sqrt(static_cast<double>(others)) / 2);
}

TEST_CASE("sparse_mixer: promises of every token-choice router", "[router][sparse_mixer]") {
  test::check_promises(given_mixer<float>(copy_gate<float>(6, 6), {.top_k = 2, .jitter = 0.1f}), 2);
  test::check_promises(given_mixer<double>(copy_gate<double>(5, 5), {.top_k = 1}), 1);
}

TEMPLATE_TEST_CASE("sparse_mixer: every promise of a router", "[router][sparse_mixer]", float, double) {
  for (const double jitter : {0.01, 0.3}) {
    sparse_mixer_router<TestType> router(16, 8, {.jitter = TestType(jitter)});
    initialize(router, 3);
    const auto report = test::conformance(router);
    INFO(report.describe());
    CHECK(report.passed());
  }
}

TEST_CASE("sparse_mixer: bad options are refused with their numbers", "[router][sparse_mixer]") {
  CHECK_THROWS_WITH((sparse_mixer_router<double>(4, 6, {.jitter = -1})), test::contains("jitter of -1"));
  CHECK_THROWS_AS((sparse_mixer_router<double>(4, 6, {.top_k = 7})), std::invalid_argument);
}
