#include <sluice/router/over_training/stable.hpp>

#include <sluice/expert/change.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/loss/stable.hpp>
#include <sluice/train/adamw.hpp>

#include "router/layer_checks.hpp"
#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;

namespace {

const test::table_router stable_in_table("stable_router", [] {
  return test::made(stable_router<double>(linear_gate<double>(6, 4), token_id_gate<double>(6, 4, 8, 5)),
                    {.k = 1, .training_capacity = 24});
});

using word_stable = stable_router<double>;

word_stable some_stable(index_t first_stage = 10, index_t inputs = 4, index_t experts = 3, index_t ids = 7) {
  word_stable router(linear_gate<double>(inputs, experts), token_id_gate<double>(inputs, experts, ids, 5),
                     {.first_stage = first_stage});
  initialize(router, 3);
  return router;
}

std::vector<index_t> ids_for(index_t tokens) {
  std::vector<index_t> ids;
  for (index_t t = 0; t < tokens; ++t) ids.push_back((3 * t + t / 4) % 7);
  return ids;
}

routing_context<double> with_stage(const std::vector<index_t>& ids, bool training, index_t step) {
  routing_context<double> context;
  context.token_ids = ids;
  context.training = training;
  context.step = step;
  return context;
}

}  // namespace

TEST_CASE("stable: first its own best expert, then the one that its id foretells", "[router][stable]") {
  const word_stable router = some_stable();
  const matrix<double> x = 3 * test::random_matrix<double>(12, 4, 2);
  const auto ids = ids_for(12);
  const auto check = [&](bool training, index_t step, bool by_itself) {
    const auto result = test::route(router, x, with_stage(ids, training, step));
    const auto& seen = result.tape.seen;
    CHECK(seen.is_first_stage == by_itself);
    for (index_t t = 0; t < 12; ++t) {
      const index_t e = result.tape.base.choices.expert[t];
      CHECK(e == test::sorted_positions(by_itself ? seen.clean.row(t) : seen.distilled.row(t), 3)[0]);
      CHECK(std::abs(result.tape.base.choices.weight[t] - 1 / (1 + std::exp(-seen.clean(t, e)))) <=
            test::bound<double>(4));
    }
  };
  check(true, 9, true);
  check(true, 10, false);
  check(false, 0, false);

  // Another context of the same ids: the same experts.
  const auto here = test::route(router, x, with_stage(ids, false, 0));
  const auto there = test::route(router, matrix<double>(-x), with_stage(ids, true, 99));
  CHECK(here.tape.base.choices.expert == there.tape.base.choices.expert);

  auto context = with_stage(ids, true, 0);
  context.top_k = 2;
  CHECK_THROWS_WITH(test::route(router, x, context), test::contains("k = 2"));
  CHECK_THROWS_WITH(test::route(router, x), test::contains("token_ids"));
  CHECK_THROWS_WITH(some_stable(-1), test::contains("-1 steps"));
  CHECK_THROWS_WITH(word_stable(linear_gate<double>(4, 3), token_id_gate<double>(4, 5, 7)),
                    test::contains("equal D and E"));
  CHECK(test::route(router, matrix<double>(0, 4)).plan.size() == 0);
}

TEST_CASE("stable: losses by hand", "[router][stable][loss]") {
  // Expert 0 has six of twelve tokens, the others three each: nbar = 4.
  stable_signals<double> seen;
  seen.is_first_stage = true;
  seen.clean.set_zero(12, 3);
  const double scores[] = {.5, 1, -.2, 0, .3, .1};
  for (index_t t = 0; t < 6; ++t) seen.clean(t, 0) = scores[t];
  seen.distilled.set_zero(12, 3);
  sparse_plan<double> plan;
  plan.reset(12, 3);
  for (index_t t = 0; t < 5; ++t) plan.add(t, 0, 1);
  for (index_t t = 6; t < 12; ++t) plan.add(t, t < 9 ? 1 : 2, 1);
  plan.add_dropped({5, 0, 0, 5, 1});
  plan.finish();
  stable_gradients<double> gradients;
  gradients.zero_like(seen);
  const double balance = stable_balance{.coefficient = 1}(seen, plan, {}, gradients);
  CHECK(std::abs(balance - (1.701553 - .25 * 3 * .5 * 2)) <=
        test::printed_numbers);  // the others: (3 - 4)/4 of 1.5 each
  CHECK(std::abs(gradients.clean(1, 0) - .5 * .731059 * .268941) <= test::printed_numbers);
  CHECK(gradients.clean(1, 1) == 0);
  gradients.zero_like(seen);
  CHECK(std::abs(distillation{.coefficient = 2}(seen, plan, {}, gradients) - 24 * std::log(3)) <=
        test::bound<double>(12, 24.0));
  CHECK(std::abs(gradients.distilled(5, 0) - 2 * (1.0 / 3 - 1)) <= test::bound<double>(3));
  CHECK(std::abs(gradients.distilled(5, 1) - 2 * (1.0 / 3)) <= test::bound<double>(3));
  seen.is_first_stage = false;
  CHECK(stable_balance{}(seen, plan, {}, gradients) == 0);
  CHECK(distillation{}(seen, plan, {}, gradients) == 0);
}

TEST_CASE("stable: gradients of a block in both stages, with drops, only the first teaches the distilled gate",
          "[router][stable][gradient]") {
  const std::vector<index_t> ids = ids_for(9);
  stable_router<double> router(linear_gate<double>(4, 3), token_id_gate<double>(4, 3, 7, 5), {.first_stage = 10},
                               position_capacity(capacity_limit::fixed(2)));
  residual_layer block{
      moe_layer{router, expert_bank<change_expert<ffn<double, silu>>>(3, change_expert(ffn<double, silu>(4, 5))),
                stable_balance{}, distillation{}}};
  initialize(block, 5);
  const matrix<double> x = test::random_matrix<double>(9, 4, 2);
  for (const index_t step : {0, 10}) {
    CAPTURE(step);
    const auto context = with_stage(ids, true, step);
    const auto report = test::layer_gradients(block, x, context);
    INFO(report.describe());
    CHECK(report.largest_error < test::gradient_tolerance);
    decltype(block)::tape tape;
    matrix<double> y(9, 4);
    block.forward(x, y, tape, context);
    CHECK((tape.loss() != 0) == (step == 0));
    CHECK(!tape.layer.plan.dropped().empty());
    for (const auto& d : tape.layer.plan.dropped())
      CHECK(matrix<double>(y.row(d.token)) == matrix<double>(x.row(d.token)));
    index_t learned = 0;
    for_each_parameter(block.router().distilled(),
                       [&](const std::string&, const auto& p) { learned += p.is_learned(); });
    CHECK(learned == (step == 0 ? 2 : 0));
  }
}

TEST_CASE("stable: in the second stage a step of the optimiser leaves the distilled gate alone", "[router][stable]") {
  const std::vector<index_t> ids = ids_for(9);
  moe_layer layer{some_stable(), expert_bank<ffn<double>>(3, 4, 5), stable_balance{}, distillation{}};
  initialize(layer, 5);
  const matrix<double> x = test::random_matrix<double>(9, 4, 2), dy = test::random_matrix<double>(9, 4, 3);
  matrix<double> y(9, 4), dx(9, 4);
  decltype(layer)::tape tape;
  adamw<double> optimizer({.learning_rate = 0.01, .weight_decay = 0.1});
  const auto step = [&](index_t number) {
    const matrix<double> before = layer.router().distilled().centroids().map();
    layer.forward(x, y, tape, with_stage(ids, true, number));
    layer.backward(dy, dx, tape);
    optimizer.step(layer);
    zero_gradients(layer);
    return matrix<double>(layer.router().distilled().centroids().map()) != before;
  };
  CHECK(step(9));
  CHECK_FALSE(step(10));
}

TEST_CASE("stable: keeps every promise in both stages", "[router][stable]") {
  const std::vector<index_t> ids = ids_for(67);
  for (const index_t step : {0, 10}) {
    CAPTURE(step);
    const auto report = test::conformance(some_stable(), with_stage(ids, true, step));
    INFO(report.describe());
    CHECK(report.passed());
  }
}
