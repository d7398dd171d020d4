#include <sluice/router/masked/modality.hpp>

#include <sluice/expert/ffn.hpp>
#include <sluice/loss/membership.hpp>
#include <sluice/router/experts_choose/predicted_choice.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router vlmo_in_table("vlmo_router", [] {
  return test::made(vlmo_router<double>{6, 4, {3, 1}}, {.k = 1});
});
const test::table_router moma_in_table("moma_router", [] {
  return test::made(moma_router<double>{linear_gate<double>(6, 4), {2, 2}, {.capacity = capacity_limit::fixed(5)}},
                    {.training_capacity = 5});
});
const test::table_router taught_in_table("taught_choice_router", [] {
  using teacher = expert_choice_router<double>;
  return test::made(
      taught_choice_router<double>{teacher(6, 4, {.scores = teacher::score::sigmoid}), two_layer_gate<double>(6, 4)},
      {.training_capacity = 24});
});
const test::table_router predicted_in_table("predicted_choice_router", [] {
  using teacher = expert_choice_router<double>;
  const teacher experts(6, 4, {.scores = teacher::score::sigmoid});
  return test::made(taught_choice_router<double>(experts, two_layer_gate<double>(6, 4)).predicted());
});

using given_moma = moma_router<double, copy_gate<double>, no_noise<double>>;

const std::vector<index_t> two_modalities{0, 1, 1, 0, 1, 0, 0, 1, 1, 1};

routing_context<double> of_modalities(bool is_training = true) {
  routing_context<double> context = test::training(41);
  context.training = is_training;
  context.modality_ids = two_modalities;
  return context;
}

}  // namespace

TEST_CASE("modality: VLMo gives every modality its expert, with weight 1", "[router][modality]") {
  const vlmo_router<double> router(5, 3, {2, 0});
  const matrix<double> x = test::random_matrix<double>(10, 5, 42);
  const auto plan = test::route(router, x, of_modalities()).plan;
  REQUIRE(plan.size() == 10);
  for (index_t t = 0; t < 10; ++t) {
    CHECK(plan.expert(plan.of_token(t)[0]) == (two_modalities[std::size_t(t)] == 0 ? 2 : 0));
    CHECK(plan.weight(plan.of_token(t)[0]) == 1);
  }
  CHECK(plan.load(1) == 0);
  CHECK_THROWS_WITH(test::route(router, x), test::contains("modality_ids"));
}

TEST_CASE("modality: MoMa's experts choose among the tokens of their modality", "[router][modality]") {
  const given_moma router(copy_gate<double>(5, 5), {2, 3}, {.capacity = capacity_limit::fixed(2)});
  const matrix<double> logits = test::random_matrix<double>(10, 5, 43);
  const auto plan = test::route(router, logits, of_modalities()).plan;
  CHECK(plan.size() == 10);
  for (index_t e = 0; e < 5; ++e) {
    const index_t modality = e < 2 ? 0 : 1;
    std::vector<index_t> own;
    for (index_t t = 0; t < 10; ++t)
      if (two_modalities[std::size_t(t)] == modality) own.push_back(t);
    std::stable_sort(own.begin(), own.end(), [&](index_t a, index_t b) { return logits(a, e) > logits(b, e); });
    const row_range rows = plan.by_expert().of(e);
    REQUIRE(rows.size() == 2);
    for (index_t c = 0; c < 2; ++c) {
      CHECK(plan.token(rows.begin + c) == own[std::size_t(c)]);
      CHECK(std::abs(plan.weight(rows.begin + c) - 1 / (1 + std::exp(-logits(own[std::size_t(c)], e)))) <=
            test::bound<double>(2));
    }
  }
  // Capacity counts the tokens and experts of the modality: ceil(4 / 2) and ceil(6 / 3).
  const given_moma even(copy_gate<double>(5, 5), {2, 3});
  CHECK(test::route(even, logits, of_modalities()).plan.load(0) == 2);
  CHECK(test::route(even, logits, of_modalities()).plan.load(4) == 2);
}

TEST_CASE("modality: one modality is the ungrouped router, for every kind of score", "[router][modality]") {
  using router_type = expert_choice_router<double>;
  using score = router_type::score;
  const auto scores = GENERATE(score::softmax, score::sigmoid, score::over_tokens, score::over_taken);
  router_type plain(5, 3, {.scores = scores});
  router_type grouped(5, 3, {.scores = scores, .modalities = std::vector<index_t>{3}});
  initialize(plain, 3);
  initialize(grouped, 3);
  const matrix<double> x = test::random_matrix<double>(10, 5, 44);
  const std::vector<index_t> ones(10, 0);
  routing_context<double> context;
  context.modality_ids = ones;
  CHECK(test::plan_bits(test::route(grouped, x, context).plan) == test::plan_bits(test::route(plain, x).plan));
}

TEST_CASE("modality: scores of other modalities have no gradient", "[router][modality][gradient]") {
  using router_type = expert_choice_router<double>;
  using score = router_type::score;
  const auto scores = GENERATE(score::softmax, score::sigmoid, score::over_tokens, score::over_taken);
  const router_type router(5, 5, {.scores = scores, .modalities = std::vector<index_t>{2, 3}});
  const auto report = test::check_router_gradients(router, 10, 45, of_modalities());
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);

  using given = expert_choice_router<double, copy_gate<double>>;
  given copied(copy_gate<double>(5, 5), {.scores = given::score::softmax, .modalities = std::vector<index_t>{2, 3}});
  const matrix<double> logits = test::random_matrix<double>(10, 5, 46);
  auto r = test::route(copied, logits, of_modalities());
  r.tape.dseen.zero_like(r.tape.seen);
  sparse_plan_gradient<double> gradient;
  gradient.weight.assign(r.plan.size(), 1.0);
  matrix<double> dx = matrix<double>::Zero(10, 5);
  copied.backward(logits, of_modalities(), r.plan, gradient, r.tape, dx);
  for (index_t t = 0; t < 10; ++t)
    for (index_t e = 0; e < 5; ++e)
      if ((e < 2) != (two_modalities[std::size_t(t)] == 0)) CHECK(dx(t, e) == 0);
}

TEST_CASE("modality: logistic noise is the difference of two Gumbel draws", "[router][modality][noise]") {
  using noisy = expert_choice_router<double, copy_gate<double>, logistic_noise<double>>;
  const noisy router(copy_gate<double>(2, 2), {}, logistic_noise<double>(0.5));
  const std::vector<double> draws{1, 0.5, 2, 3, 0, 0, -1, 1};
  auto context = test::training();
  context.random.replay(noise_site, draws);
  const matrix<double> logits = test::random_matrix<double>(2, 2, 47);
  const auto r = test::route(router, logits, context);
  const double added[] = {0.25, -0.5, 0, -1};
  for (index_t i = 0; i < 4; ++i) CHECK(r.tape.seen.noisy().data()[i] == logits.data()[i] + added[i]);
  CHECK_FALSE(test::route(router, logits).tape.seen.has_noise);
  CHECK_THROWS_WITH(logistic_noise<double>(-1), test::contains("-1"));
}

TEST_CASE("modality: a predictor learns whom experts take, and then routes token by token", "[router][modality]") {
  using teacher = expert_choice_router<double>;
  teacher experts(6, 4, {.scores = teacher::score::sigmoid, .modalities = std::vector<index_t>{2, 2}});
  taught_choice_router<double> router(experts, two_layer_gate<double>(6, 4));
  initialize(router, 3);
  const matrix<double> x = test::random_matrix<double>(10, 6, 48);
  const auto context = of_modalities();
  auto r = test::route(router, x, context);
  CHECK(test::plan_bits(r.plan) == test::plan_bits(test::route(router.teacher(), x, context).plan));

  // The loss by its definition, and its gradient by differences.
  const membership_loss loss{.coefficient = 0.7};
  r.tape.dseen.zero_like(r.tape.seen);
  const double value = loss(r.tape.seen, r.plan, context, r.tape.dseen);
  double expected = 0;
  const matrix<double> taken = (r.plan.dense_weights().array() > 0).cast<double>();
  for (index_t t = 0; t < 10; ++t)
    for (index_t e = 0; e < 4; ++e)
      if ((e < 2) == (two_modalities[std::size_t(t)] == 0)) {
        const double p = 1 / (1 + std::exp(-r.tape.seen.predicted(t, e)));
        expected -= 0.7 / 20 * std::log(taken(t, e) != 0 ? p : 1 - p);
      }
  CHECK(std::abs(value - expected) <= test::bound<double>(20, 4.0));
  moe_layer layer{router, expert_bank<ffn<double>>(4, 6, 3), loss};
  initialize(layer, 5);
  decltype(layer)::tape tape;
  matrix<double> y(10, 6), dx(10, 6);
  layer.forward(x, y, tape, context);
  zero_gradients(layer);
  layer.backward(matrix<double>::Zero(10, 6), dx, tape);
  CHECK(dx.isZero(0));  // the predictor's gradient stops there
  matrix<double> weight = layer.router().predictor().weight2().map();
  double error = 0;
  for (index_t i = 0; i < weight.size(); ++i) {
    decltype(layer)::tape other;
    double& w = layer.router().predictor().weight2().data()[i];
    const double before = w;
    w = before + 1e-6, layer.forward(x, y, other, context);
    const double up = other.loss();
    w = before - 1e-6, layer.forward(x, y, other, context);
    w = before;
    error = std::max(
        error, std::abs((up - other.loss()) / 2e-6 - layer.router().predictor().weight2().gradient()[std::size_t(i)]));
  }
  CHECK(error < 1e-8);

  // What it foretells.
  const auto predicted = router.predicted();
  STATIC_REQUIRE(decltype(predicted)::causal);
  const auto plan = test::route(predicted, x, context).plan;
  for (index_t t = 0; t < 10; ++t) {
    std::size_t wanted = 0;
    for (index_t e = 0; e < 4; ++e)
      wanted += (e < 2) == (two_modalities[std::size_t(t)] == 0) && r.tape.seen.predicted(t, e) > 0;
    CHECK(plan.of_token(t).size() == wanted);
    for (const index_t i : plan.of_token(t))
      CHECK(plan.weight(i) == kernel::logistic(r.tape.seen.clean(t, plan.expert(i))));
  }
}

TEST_CASE("modality: the routers keep every promise", "[router][modality]") {
  const std::vector<index_t> all_ids = [] {
    std::vector<index_t> ids;
    for (index_t t = 0; t < 67; ++t) ids.push_back(t % 2);
    return ids;
  }();
  routing_context<double> context;
  context.modality_ids = all_ids;
  moma_router<double> moma(linear_gate<double>(16, 6), {2, 4});
  initialize(moma, 3);
  const conformance_report report = test::conformance(moma, context);
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("modality: refuses what makes no sense", "[router][modality]") {
  CHECK_THROWS_WITH(given_moma(copy_gate<double>(5, 5), {2, 2}), test::contains("4 experts together"));
  CHECK_THROWS_WITH(given_moma(copy_gate<double>(5, 5), {5, 0}), test::contains("not 0"));
  const given_moma router(copy_gate<double>(5, 5), {2, 3});
  const matrix<double> logits = test::random_matrix<double>(10, 5, 49);
  CHECK_THROWS_WITH(test::route(router, logits), test::contains("modality_ids"));
  std::vector<index_t> wrong = two_modalities;
  wrong[3] = 2;
  auto context = of_modalities();
  context.modality_ids = wrong;
  CHECK_THROWS_WITH(test::route(router, logits, context), test::contains("token 3 is of modality 2"));
  using teacher = expert_choice_router<double>;
  CHECK_THROWS_WITH(taught_choice_router<double>(teacher(6, 4), two_layer_gate<double>(6, 4)),
                    test::contains("sigmoid"));
  const teacher by_sigmoid(6, 4, {.scores = teacher::score::sigmoid});
  CHECK_THROWS_WITH(taught_choice_router<double>(by_sigmoid, two_layer_gate<double>(6, 5)), test::contains("E = 5"));
}
