#include <sluice/router/over_training/scheduled_k.hpp>

#include <sluice/expert/ffn.hpp>
#include <sluice/gate/random.hpp>
#include <sluice/train/sgd.hpp>

#include "router/layer_checks.hpp"
#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;

namespace {

const test::table_router smoe_dropout_in_table("smoe_dropout_router", [] {
  const top_k_schedule schedule({.first = 2, .last = 3, .steps = 100});
  return test::made(smoe_dropout_router<double>{6, 4, {.schedule = schedule, .top_k = 2}}, {.k = 2});
});

std::vector<index_t> numbers_at(const top_k_schedule& schedule, const std::vector<index_t>& steps) {
  std::vector<index_t> numbers;
  for (const index_t s : steps) numbers.push_back(schedule(s));
  return numbers;
}

}  // namespace

TEST_CASE("scheduled_k: every shape by hand, in both directions", "[router][scheduled_k]") {
  using v = std::vector<index_t>;
  const auto of = [](index_t first, index_t last, schedule_shape shape) {
    return top_k_schedule({.first = first, .last = last, .steps = 1000, .shape = shape});
  };
  const v steps{-5, 0, 100, 500, 1000, 5000};
  // 15 * 0.1 = 1.5 and 15 * 0.5 = 7.5 go to the even neighbours, 2 and 8; -1.5 to -2, -7.5 to -8.
  CHECK(numbers_at(of(1, 16, schedule_shape::linear), steps) == v{1, 1, 3, 9, 16, 16});
  CHECK(numbers_at(of(16, 1, schedule_shape::linear), steps) == v{16, 16, 14, 8, 1, 1});
  // -15 cos(9 degrees) = -14.8, -15 cos(45 degrees) = -10.6.
  CHECK(numbers_at(of(1, 16, schedule_shape::cosine), steps) == v{1, 1, 1, 5, 16, 16});
  CHECK(numbers_at(of(16, 1, schedule_shape::cosine), steps) == v{16, 16, 16, 12, 1, 1});
  // 0.99 to the power of 33, 166, 333 and 1666: 0.7177, 0.1886, 0.0352 and 0 times -15 are -10.8, -2.8, -0.5 and 0.
  CHECK(numbers_at(of(1, 16, schedule_shape::exponential), steps) == v{1, 1, 5, 13, 15, 16});
  CHECK(numbers_at(of(1, 16, schedule_shape::doubling), {0, 199, 200, 400, 600, 800, 1000, 9999}) ==
        v{1, 1, 2, 4, 8, 16, 16, 16});
  CHECK(numbers_at(of(16, 1, schedule_shape::doubling), {0, 199, 200, 400, 600, 800, 1000, 9999}) ==
        v{16, 16, 8, 4, 2, 1, 1, 1});
  // The released list, held within the bounds: five parts however near they are.
  CHECK(numbers_at(of(2, 8, schedule_shape::doubling), {0, 200, 399, 400, 599, 600, 800, 1000}) ==
        v{2, 2, 2, 4, 4, 8, 8, 8});
  CHECK(numbers_at(of(8, 2, schedule_shape::doubling), {0, 200, 399, 400, 599, 600, 800, 1000}) ==
        v{8, 8, 8, 4, 4, 2, 2, 2});
  CHECK(numbers_at(of(3, 10, schedule_shape::doubling), {0, 200, 400, 600, 800}) == v{3, 3, 4, 8, 10});
  CHECK(numbers_at(of(1, 40, schedule_shape::doubling), {0, 142, 143, 715, 858, 1000}) == v{1, 1, 2, 32, 40, 40});
  // At two thirds of the way the cosine is 1/2. NumPy, of the source's round(-15 * cos(pi * s / (2 * N))) + 16: in double
  // cos(pi * 26 / 78) is below it, -7.499... goes to -7; pi / 2 times 26 / 39 would give -7.500... and -8.
  const top_k_schedule edge({.first = 1, .last = 16, .steps = 39, .shape = schedule_shape::cosine});
  CHECK(edge(26) == 9);
  for (const auto shape : {schedule_shape::linear, schedule_shape::cosine, schedule_shape::exponential,
                           schedule_shape::doubling}) {
    CHECK(numbers_at(of(4, 4, shape), steps) == v{4, 4, 4, 4, 4, 4});
    const top_k_schedule at_once({.first = 1, .last = 8, .steps = 1, .shape = shape});
    for (index_t s = 0; s < 5; ++s) CHECK((at_once(s) >= 1 && at_once(s) <= 8));
  }
  for (const auto& [first, last, total] : {std::array<index_t, 3>{0, 4, 10}, {2, -1, 10}, {1, 2, 0}})
    CHECK_THROWS_WITH(top_k_schedule({.first = first, .last = last, .steps = total}),
                      test::contains("between 1 and 2^31, not " + std::to_string(first)));
}

TEST_CASE("scheduled_k: a frozen random router whose k grows in training, any k at inference",
          "[router][scheduled_k]") {
  smoe_dropout_router<double> router{5, 8, {.schedule = {{.first = 1, .last = 8, .steps = 70}}}};
  initialize(router, 3);
  const matrix<double> x = test::random_matrix<double>(6, 5, 2);
  auto context = test::training();
  for (const index_t step : {0, 10, 30, 70, 200}) {
    context.step = step;
    const auto result = test::route(router, x, context);
    const index_t k = 1 + (std::min<index_t>)(step, 70) / 10;
    CHECK(result.plan.size() == 6 * k);
    CHECK((result.plan.dense_weights().rowwise().sum().array() - 1).abs().maxCoeff() <= test::bound<double>(8));
    CHECK(result.tape.seen.top_k == k);
  }
  CHECK(test::route(router, x).plan.size() == 6 * 8);
  context = {};
  context.top_k = 3;
  CHECK(test::route(router, x, context).plan.size() == 6 * 3);
  CHECK_THROWS_WITH((smoe_dropout_router<double>{5, 8, {.schedule = {{.last = 9}}}}), test::contains("E = 8"));

  std::vector<std::string> names;
  for_each_parameter(router, [&](const std::string& name, const auto& p) {
    CHECK_FALSE(p.is_learned());
    names.push_back(name);
  });
  CHECK(names == std::vector<std::string>{"gate.weight", "gate.bias"});
}

TEST_CASE("scheduled_k: training steps change the experts and nothing of the router", "[router][scheduled_k]") {
  moe_layer layer{smoe_dropout_router<double>{4, 3, {.schedule = {{.first = 2, .last = 3, .steps = 9}}}},
                  expert_bank<ffn<double>>(3, 4, 5)};
  initialize(layer, 5);
  const auto before = layer;
  const matrix<double> x = test::random_matrix<double>(9, 4, 1), dy = test::random_matrix<double>(9, 4, 2);
  matrix<double> y(9, 4), dx(9, 4);
  decltype(layer)::tape tape;
  sgd<double> optimizer({.learning_rate = 0.1, .weight_decay = 0.1});
  layer.forward(x, y, tape, test::in_training());
  layer.backward(dy, dx, tape);
  optimizer.step(layer);
  CHECK(test::route(layer.router(), x).tape.seen.clean.map() == test::route(before.router(), x).tape.seen.clean.map());
  matrix<double> again(9, 4);
  layer.forward(x, again, tape, test::in_training());
  CHECK(again != y);
  const auto report = test::layer_gradients(layer, x, test::in_training());  // dx has the router's path
  INFO(report.describe());
  CHECK(report.largest_error < test::gradient_tolerance);
}

TEST_CASE("scheduled_k: keeps every promise, over a frozen gate and over a random one", "[router][scheduled_k]") {
  smoe_dropout_router<double> frozen{4, 3, {.schedule = {{.first = 2, .last = 3, .steps = 9}}, .top_k = 2}};
  initialize(frozen, 1);
  const auto report = test::conformance(frozen);
  INFO(report.describe());
  CHECK(report.passed());
  const smoe_dropout_router<double, random_gate<double>> random{random_gate<double>(4, 3), {.top_k = 1}};
  const auto other = test::conformance(random);
  INFO(other.describe());
  CHECK(other.passed());
}
