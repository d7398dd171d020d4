#include <sluice/router/assigned/sinkhorn.hpp>

#include <sluice/capacity/batch_priority.hpp>
#include <sluice/capacity/position.hpp>
#include <sluice/train/initialize.hpp>

#include "router/layer_checks.hpp"
#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

#include <cmath>
#include <limits>
#include <vector>

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router sinkhorn_in_table("sinkhorn_router", [] {
  return test::made(sinkhorn_router<double>{6, 4, sinkhorn_router_options::vmoe(2)}, {.k = 2});
});
const test::table_router sinkhorn_experts_in_table("sinkhorn_expert_choice_router", [] {
  return test::made(sinkhorn_expert_choice_router<double>{6, 4}, {.training_capacity = 24});
});

using plain_sinkhorn = sinkhorn_router<double, copy_gate<double>>;
using sinkhorn_choices = sinkhorn_router_options;

plain_sinkhorn sinkhorn_over_copies(index_t experts, const sinkhorn_choices& o) {
  return plain_sinkhorn(copy_gate<double>(experts, experts), o);
}

/// The whole coupling of one group without padding.
matrix<double> coupled(const matrix<double>& logits, const sinkhorn_options& o, index_t* rounds = nullptr) {
  const auto router = sinkhorn_over_copies(logits.cols(), {.coupling = o});
  const auto result = test::route(router, logits, test::training());
  if (rounds != nullptr) *rounds = result.tape.rule.rounds;
  return result.tape.rule.coupling.map();
}

/// Straight from the definition: exp(L), rows and columns in turn, V-MoE's order.
matrix<double> naive_sinkhorn(const matrix<double>& logits, int rounds) {
  matrix<double> p = logits.array().exp();
  const double column_sum = double(p.rows()) / double(p.cols());
  for (int r = 0; r < rounds; ++r) {
    for (index_t e = 0; e < p.cols(); ++e) p.col(e) *= column_sum / p.col(e).sum();
    for (index_t t = 0; t < p.rows(); ++t) p.row(t) /= p.row(t).sum();
  }
  return p;
}

std::vector<index_t> first_choices(const sparse_plan<double>& plan) {
  std::vector<index_t> experts;
  for (index_t t = 0; t < plan.tokens(); ++t) experts.push_back(plan.expert(plan.of_token(t)[0]));
  return experts;
}

}  // namespace

TEST_CASE("sinkhorn: the example of the catalogue, whose token 1 is moved", "[router][sinkhorn]") {
  matrix<double> expected(4, 4);
  expected << .374266, .222050, .274864, .128820, .181255, .177300, .361845, .279600, .016795, .544033, .247741, .191431,
      .427684, .056618, .115549, .400149;
  const matrix<double> logits = test::fixture_f<double>();
  const matrix<double> p = coupled(logits, sinkhorn_options::vmoe());
  CHECK(test::largest_difference(p, expected) <= test::printed);
  CHECK((p.rowwise().sum().array() - 1).abs().maxCoeff() <= test::bound<double>(4));
  CHECK((p.colwise().sum().array() - 1).abs().maxCoeff() <= 1e-6);
  CHECK(test::largest_difference(p, naive_sinkhorn(logits, 20)) <= 20 * test::bound<double>(4));

  const auto router = sinkhorn_over_copies(4, sinkhorn_choices::vmoe(1));
  const auto plan = test::route(router, logits).plan;
  CHECK(first_choices(plan) == std::vector<index_t>{0, 2, 1, 0});
  for (index_t t = 0; t < 4; ++t) {
    const index_t i = plan.of_token(t)[0];
    const double p_of_expert = test::naive_softmax(&logits(t, 0), 4)[static_cast<std::size_t>(plan.expert(i))];
    CHECK(std::abs(plan.weight(i) - p_of_expert) <= test::bound<double>(4));
  }

  // Megatron's stops after 7 rounds, at a quarter of it.
  index_t rounds = 0;
  const matrix<double> quarter = coupled(logits, sinkhorn_options::megatron(), &rounds);
  CHECK(rounds == 7);
  CHECK(test::largest_difference(quarter, matrix<double>(p / 4)) <= 1e-5);
}

TEST_CASE("sinkhorn: a shift of a column or of a row changes nothing", "[router][sinkhorn]") {
  const matrix<double> logits = 2 * test::random_matrix<double>(13, 5, 3);
  matrix<double> shifted = logits;
  shifted.col(2).array() += 40;
  shifted.row(7).array() -= 300;
  sinkhorn_options o;
  o.rounds = 150;
  CHECK(test::largest_difference(coupled(logits, o), coupled(shifted, o)) <= 300 * test::bound<double>(13));
  CHECK((coupled(shifted, o).colwise().sum().array() - 13.0 / 5).abs().maxCoeff() <= 300 * test::bound<double>(13));
}

TEST_CASE("sinkhorn: every published form against its definition", "[router][sinkhorn]") {
  const matrix<double> logits = test::random_matrix<double>(9, 4, 8);
  const double n = 9, all = 4;
  {  // BlackMamba: exp(2 L), columns at first, then Megatron's rounds
    const matrix<double> k = (2 * logits).array().exp();
    matrix<double> d1 = (k.colwise().sum().array() * all).inverse(), d0, before;
    do {
      before = d1;
      d0 = ((k * d1.transpose()).array() + 1e-8).inverse() / n;
      d1 = ((d0.transpose() * k).array() + 1e-8).inverse() / all;
    } while ((d1 - before).cwiseAbs().mean() > 1e-4);
    const matrix<double> p = d0.asDiagonal() * k * d1.row(0).asDiagonal();
    CHECK(test::largest_difference(coupled(logits, sinkhorn_options::blackmamba()), p) <= 20 * test::bound<double>(9));
  }
  {  // S-BASE: subtracted inside, added at the end
    matrix<double> a = matrix<double>::Zero(1, 4), b(9, 1);
    for (int r = 0; r < 3; ++r) {
      for (index_t t = 0; t < 9; ++t) b(t, 0) = std::log(n) - std::log((logits.row(t) - a).array().exp().sum());
      for (index_t e = 0; e < 4; ++e) a(0, e) = std::log(all) - std::log((logits.col(e) - b).array().exp().sum());
    }
    const matrix<double> p = ((logits.colwise() + b.col(0)).rowwise() + a.row(0)).array().exp();
    CHECK(test::largest_difference(coupled(logits, sinkhorn_options::s_base()), p) <=
          p.maxCoeff() * 20 * test::bound<double>(9));
  }
}

TEST_CASE("sinkhorn: weights and inference of every published form", "[router][sinkhorn]") {
  const matrix<double> logits = test::random_matrix<double>(12, 4, 21);
  const auto sigmoid = [](double l) { return 1 / (1 + std::exp(-l)); };
  const auto check = [&](const sinkhorn_choices& o, bool by_sigmoid, bool balances_always) {
    const auto router = sinkhorn_over_copies(4, o);
    const index_t k = o.choice.top_k;
    for (const bool training : {true, false}) {
      routing_context<double> context;
      context.training = training;
      const auto result = test::route(router, logits, context);
      const bool balanced = training || balances_always;
      for (index_t t = 0; t < 12; ++t) {
        const double* by = balanced ? result.tape.rule.coupling.row(t) : &logits(t, 0);
        const auto order = test::sorted_positions(by, 4);
        const auto own = result.plan.of_token(t);
        REQUIRE(static_cast<index_t>(own.size()) == k);
        for (std::size_t j = 0; j < own.size(); ++j) {
          const index_t e = result.plan.expert(own[j]);
          CHECK(e == order[j]);
          const double w = by_sigmoid ? sigmoid(logits(t, e)) : test::naive_softmax(&logits(t, 0), 4)[as_size(e)];
          CHECK(std::abs(result.plan.weight(own[j]) - w) <= test::bound<double>(4));
        }
      }
    }
  };
  check(sinkhorn_choices::vmoe(2), false, true);
  check(sinkhorn_choices::megatron(1), true, false);
  check(sinkhorn_choices::megatron(2), false, false);
  check(sinkhorn_choices::blackmamba(), true, false);
  check(sinkhorn_choices::s_base(3), true, false);
}

TEST_CASE("sinkhorn: noise chooses, the logits before it weigh, or entries of the coupling do", "[router][sinkhorn]") {
  const matrix<double> logits = test::random_matrix<double>(12, 4, 22);
  const sinkhorn_router<double, copy_gate<double>, gaussian_noise<double>, position_capacity> router(
      copy_gate<double>(4, 4), sinkhorn_choices::vmoe(2), gaussian_noise<double>(8),
      position_capacity(capacity_limit::vmoe(0.75, capacity_rounding::up, 0)));
  const auto result = test::route(router, logits, test::training(5));
  const matrix<double> noisy = result.tape.seen.noisy().map();
  CHECK(noisy != logits);
  const matrix<double> p = naive_sinkhorn(noisy, 20);
  CHECK(test::largest_difference(matrix<double>(result.tape.rule.coupling.map()), p) <= 100 * test::bound<double>(12));
  CHECK(result.plan.size() + static_cast<index_t>(result.plan.dropped().size()) == 24);
  for (index_t e = 0; e < 4; ++e) CHECK(result.plan.load(e) <= 5);
  for (index_t i = 0; i < result.plan.size(); ++i) {
    const index_t t = result.plan.token(i), e = result.plan.expert(i);
    CHECK(std::abs(result.plan.weight(i) - test::naive_softmax(&logits(t, 0), 4)[as_size(e)]) <= test::bound<double>(4));
  }

  auto o = sinkhorn_choices::vmoe(2);
  o.choice.weigh_by_coupling = true;
  const auto plan = test::route(sinkhorn_over_copies(4, o), logits).plan;
  const matrix<double> q = naive_sinkhorn(logits, 20);
  for (index_t i = 0; i < plan.size(); ++i)
    CHECK(std::abs(plan.weight(i) - q(plan.token(i), plan.expert(i))) <= 100 * test::bound<double>(12));
}

TEST_CASE("sinkhorn: gradients through the softmax, the sigmoid, and the whole coupling",
          "[router][sinkhorn][gradient]") {
  const auto check = [&](const sinkhorn_choices& o, const routing_context<double>& context) {
    const sinkhorn_router<double> router{6, 4, o};
    const auto report = test::check_router_gradients(router, 9, 94, context);
    INFO(report.describe());
    CHECK(report.largest_error < 1e-6);
  };
  check(sinkhorn_choices::vmoe(2), test::training());
  check(sinkhorn_choices::s_base(2), test::training());
  auto o = sinkhorn_choices::vmoe(2);
  o.choice.weigh_by_coupling = true;
  o.coupling.rounds = 50;  // converged
  check(o, test::training());
  o.coupling.epsilon = 0.7;
  const std::vector<index_t> groups{0, 5, 5, 9};
  auto context = test::training();
  context.groups = groups;
  check(o, context);
}

TEST_CASE("sinkhorn: padding and NaN are in no coupling, groups have couplings of their own",
          "[router][sinkhorn][nan]") {
  matrix<double> logits = test::random_matrix<double>(9, 3, 6);
  logits(4, 1) = quiet_nan<double>();
  const std::vector<std::uint8_t> mask{1, 1, 0, 1, 1, 1, 1, 1, 1};
  const std::vector<index_t> groups{0, 6, 9};
  routing_context<double> context;
  context.token_mask = mask;
  context.groups = groups;
  const auto result = test::route(sinkhorn_over_copies(3, sinkhorn_choices::vmoe(1)), logits, context);
  CHECK(std::ranges::equal(result.plan.invalid_tokens(), std::vector<index_t>{4}));
  matrix<double> first(4, 3);
  first << logits.row(0), logits.row(1), logits.row(3), logits.row(5);
  const matrix<double> p = naive_sinkhorn(first, 20), q = naive_sinkhorn(logits.bottomRows(3), 20);
  const matrix<double> coupling = result.tape.rule.coupling.map();
  matrix<double> own(4, 3);
  own << coupling.row(0), coupling.row(1), coupling.row(3), coupling.row(5);
  CHECK(test::largest_difference(own, p) <= 100 * test::bound<double>(9));
  CHECK(test::largest_difference(matrix<double>(coupling.bottomRows(3)), q) <= 100 * test::bound<double>(9));
  CHECK(result.plan.size() == 7);
  CHECK(test::route(sinkhorn_over_copies(3, {}), matrix<double>(0, 3)).plan.size() == 0);
}

TEST_CASE("sinkhorn: peaked and infinite logits, one token, one expert", "[router][sinkhorn]") {
  constexpr double inf = std::numeric_limits<double>::infinity();
  matrix<double> logits(4, 3);
  logits << 1000, -1000, 0, inf, 0, -inf, -inf, -inf, -inf, 5000, 5000, 5000;
  for (const auto& form : {sinkhorn_options::vmoe(), sinkhorn_options::megatron(), sinkhorn_options::blackmamba(),
                           sinkhorn_options::s_base()}) {
    const matrix<double> p = coupled(logits, form);
    for (index_t i = 0; i < p.size(); ++i) CHECK((!is_nan(p.data()[i]) && p.data()[i] >= 0));
  }
  CHECK((coupled(logits, {}).rowwise().sum().array() - 1).abs().maxCoeff() <= test::bound<double>(3));
  CHECK(test::largest_difference(coupled(matrix<double>::Constant(1, 4, 3.0), {}), matrix<double>::Constant(1, 4, .25)) <=
        test::bound<double>(4));
  CHECK(test::largest_difference(coupled(test::random_matrix<double>(6, 1, 2), {}), matrix<double>::Ones(6, 1)) <=
        test::bound<double>(6));
}

TEST_CASE("sinkhorn: experts choose by the coupling and are weighed by the softmax", "[router][sinkhorn]") {
  using expert_choice = sinkhorn_expert_choice_router<double, copy_gate<double>>;
  const matrix<double> logits = 2 * test::random_matrix<double>(12, 4, 23);
  expert_choice::options o;
  o.capacity = capacity_limit::vmoe(1.0, capacity_rounding::up, 0);
  const expert_choice router(copy_gate<double>(4, 4), o);
  const auto plan = test::route(router, logits).plan;
  const matrix<double> p = naive_sinkhorn(logits, 20);
  for (index_t e = 0; e < 4; ++e) {
    const matrix<double> column = p.col(e).transpose();
    const auto order = test::sorted_positions(column.data(), 12);
    REQUIRE(plan.load(e) == 3);
    for (index_t c = 0; c < 3; ++c) {
      const index_t i = plan.by_expert().of(e).begin + c;
      const index_t t = plan.token(i);
      CHECK(t == order[as_size(c)]);
      CHECK(std::abs(plan.weight(i) - test::naive_softmax(&logits(t, 0), 4)[as_size(e)]) <= test::bound<double>(4));
    }
  }
}

TEST_CASE("sinkhorn: experts choose by the coupling and are weighed by it", "[router][sinkhorn][gradient]") {
  using expert_choice = sinkhorn_expert_choice_router<double>;
  const expert_choice::options o{.capacity = capacity_limit::vmoe(1.0, capacity_rounding::up, 0),
                                 .scores = expert_choice::score::coupled};
  // NumPy: p = exp(L) of the catalogue's logits, 20 times columns then rows; the largest of each column.
  const sinkhorn_expert_choice_router<double, copy_gate<double>> given(copy_gate<double>(4, 4), {o.capacity, o.scores});
  const auto plan = test::route(given, test::fixture_f<double>()).plan;
  REQUIRE(plan.size() == 4);
  const std::vector<index_t> taken{3, 2, 1, 3};
  const std::vector<double> entries{.427684, .544033, .361845, .400149};
  for (index_t e = 0; e < 4; ++e) {
    const index_t i = plan.by_expert().of(e).begin;
    CHECK(plan.token(i) == taken[as_size(e)]);
    CHECK(std::abs(plan.weight(i) - entries[as_size(e)]) <= test::printed);
  }
  sinkhorn_options converged;
  converged.rounds = 50;
  expert_choice router(linear_gate<double>(6, 4), o, {}, {}, sinkhorn_coupling<double>(converged));
  initialize(router, 3);
  const std::vector<index_t> groups{0, 5, 5, 10};
  const std::vector<std::uint8_t> mask{1, 1, 0, 1, 1, 1, 1, 1, 1, 1};
  routing_context<double> context = test::training();
  context.groups = groups;
  context.token_mask = mask;
  moe_layer layer{router, expert_bank<swiglu<double>>(4, 6, 3)};
  initialize(layer, 3);
  const auto gradients = test::layer_gradients(layer, test::random_matrix<double>(10, 6, 4), context);
  INFO(gradients.describe());
  CHECK(gradients.largest_error < test::gradient_tolerance);
  const auto report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
  CHECK_THROWS_WITH(expert_choice_router<double>(6, 4, {.scores = expert_choice_score::coupled}),
                    test::contains("no coupling"));
  CHECK_THROWS_AS(expert_choice(linear_gate<double>(6, 4), o, {}, {}, sinkhorn_coupling<double>(sinkhorn_options::s_base())),
                  std::invalid_argument);
}

TEST_CASE("sinkhorn: batch priority goes by the coupling", "[router][sinkhorn]") {
  using router_type = sinkhorn_router<double, copy_gate<double>, no_noise<double>, batch_priority_capacity>;
  // NumPy: the largest entries of the coupling are .374, .362, .544 and .428 by token. The shift of a column leaves them,
  // while the largest of the softmax become .975, .988, .980 and .943, which would serve tokens 1, 2, 0, 3.
  matrix<double> logits = test::fixture_f<double>();
  logits.col(2).array() += 6;
  const router_type router(copy_gate<double>(4, 4), sinkhorn_choices::vmoe(2), {},
                           batch_priority_capacity(capacity_limit::fixed(1)));
  const auto r = test::route(router, logits);
  std::vector<index_t> order;
  for (const index_t pair : r.tape.choices.order)
    if (pair % 2 == 0) order.push_back(pair / 2);
  CHECK(order == std::vector<index_t>{2, 3, 0, 1});
  // Without a coupling, at Megatron's inference, it is the scores'.
  const router_type other(copy_gate<double>(4, 4), sinkhorn_choices::megatron(2), {},
                          batch_priority_capacity(capacity_limit::fixed(1)));
  CHECK(std::abs(test::route(other, test::fixture_f<double>()).tape.choices.priority[1] - .455054) <= test::printed);
}

TEST_CASE("sinkhorn: strange options are refused", "[router][sinkhorn]") {
  const auto refuses = [](sinkhorn_options o, const char* why) {
    CHECK_THROWS_WITH(sinkhorn_coupling<double>(o), test::contains(why));
  };
  refuses({.epsilon = 0}, "not 0, 20,");
  refuses({.rounds = 0}, "not 1, 0,");
  refuses({.tolerance = -1}, "20, -1 and");
  refuses({.added = quiet_nan<double>()}, "added >= 0");
  auto o = sinkhorn_choices::megatron(1);
  o.choice.weigh_by_coupling = true;
  CHECK_THROWS_WITH(sinkhorn_over_copies(4, o), test::contains("inference has none"));
  o = sinkhorn_choices::s_base(1);
  o.choice.weigh_by_coupling = true;
  o.choice.training_only = false;
  CHECK_THROWS_WITH(sinkhorn_over_copies(4, o), test::contains("they cannot weigh"));
  CHECK_THROWS_WITH(sinkhorn_over_copies(4, sinkhorn_choices::vmoe(5)), test::contains("k = 5 with E = 4"));
}

TEST_CASE("sinkhorn: keeps every promise", "[router][sinkhorn]") {
  const auto check = [](auto router) {
    initialize(router, 3);
    const auto report = test::conformance(router);
    INFO(report.describe());
    CHECK(report.passed());
  };
  check(sinkhorn_router<double>{4, 3, sinkhorn_choices::vmoe(2)});
  check(sinkhorn_router<double>{4, 3, sinkhorn_choices::megatron(1)});
  check(sinkhorn_expert_choice_router<double>{4, 3});
  auto o = sinkhorn_choices::vmoe(2);
  o.choice.weigh_by_coupling = true;
  o.coupling.rounds = 50;
  check(sinkhorn_router<double>{4, 3, o});
}
