#include <sluice/layer/multi_gate.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/gate/connected.hpp>
#include <sluice/expert/lambda.hpp>
#include <sluice/layer/reserve.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/every_expert/soft_moe.hpp>
#include <sluice/router/experts_choose/patch_level.hpp>
#include <sluice/router/over_training/compete.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../io/messages.hpp"
#include "../support.hpp"

#include <set>

using namespace sluice;

namespace {

using mmoe_gate = connected_gate<linear_gate<double>>;
using mmoe_router = dense_softmax_router<double, mmoe_gate>;
using mmoe_bank = expert_bank<ffn<double, silu>>;
using connections = std::vector<std::vector<std::uint8_t>>;

std::vector<mmoe_router> connected_routers(index_t inputs, const connections& connected) {
  std::vector<mmoe_router> routers;
  for (const auto& own : connected)
    routers.emplace_back(mmoe_gate(linear_gate<double>(inputs, static_cast<index_t>(own.size()), {.bias = true}), own));
  return routers;
}

}  // namespace

TEST_CASE("multi_gate_layer: keeps every promise", "[layer][multi_gate]") {
  multi_gate_layer layer(connected_routers(6, {{1, 0, 1}, {1, 1, 1}}), mmoe_bank{3, 6, 4}, {.task_bias = true},
                         importance_loss{});
  initialize(layer, 3);
  const auto report = check_layer(layer);
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("multi_gate_layer: a task is the dense mixture of its gate over the common experts", "[layer][multi_gate]") {
  multi_gate_layer layer(std::vector(2, dense_softmax_router<double>{5, 4}), mmoe_bank{4, 5, 3}, {.task_bias = true});
  initialize(layer, 1);
  layer.task_bias().data()[1] = 0.25;
  const matrix<double> x = test::random_matrix<double>(7, 5, 2);
  matrix<double> y(7, 10), own(7, 5);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  for (index_t q = 0; q < 2; ++q) {
    moe_layer alone{layer.task(q).router(), layer.bank()};
    decltype(alone)::workspace other;
    alone.forward(x, own, other);
    own.array() += q == 1 ? 0.25 : 0.0;
    CHECK(test::largest_difference(matrix<double>(y.middleCols(5 * q, 5)), own) <= test::bound<double>(20));
  }
}

TEST_CASE("multi_gate_layer: an expert runs once on every token that any task sends it", "[layer][multi_gate]") {
  index_t rows = 0;
  const auto counting = make_expert<double>(4, 4, [&rows](tokens_in<double> x, tokens_out<double> y) {
    rows += x.rows();
    y = x;
  });
  using bank_type = expert_bank<std::remove_const_t<decltype(counting)>>;
  const matrix<double> x = test::random_matrix<double>(9, 4, 2);
  matrix<double> y(9, 12);
  {
    multi_gate_layer layer(std::vector(3, dense_softmax_router<double>{4, 5}), bank_type(5, counting));
    initialize(layer, 1);
    decltype(layer)::workspace workspace;
    layer.forward(x, y, workspace);
    CHECK(rows == 9 * 5);
  }
  rows = 0;
  multi_gate_layer layer(std::vector(3, top_k_router<double>{4, 5, {.top_k = 2}}), bank_type(5, counting));
  initialize(layer, 1);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  std::set<std::pair<index_t, index_t>> wanted;
  for (const auto& task : workspace.tasks)
    for (index_t i = 0; i < task.plan.size(); ++i) wanted.emplace(task.plan.token(i), task.plan.expert(i));
  CHECK(rows == index_t(wanted.size()));
  CHECK(rows < 3 * 2 * 9);
}

namespace {

/// Outputs, dx and gradients are those of the tasks' own layers, one after the other.
template <typename Router>
void check_tasks_alone(const std::vector<Router>& routers, const routing_context<double>& context) {
  multi_gate_layer layer(routers, mmoe_bank{4, 6, 3});
  initialize(layer, 5);
  auto alone = layer;
  const index_t T = 11, Q = layer.tasks();
  const matrix<double> x = test::random_matrix<double>(T, 6, 2), dy = test::random_matrix<double>(T, 6 * Q, 3);
  matrix<double> y(T, 6 * Q), dx(T, 6), own_y(T, 6), own_dx(T, 6), sum = matrix<double>::Zero(T, 6);
  typename decltype(layer)::tape tape;
  layer.forward(x, y, tape, context);
  layer.backward(dy, dx, tape);
  zero_gradients(alone);
  for (index_t q = 0; q < Q; ++q) {
    auto own = context.for_layer(q);
    own.task_id = q;
    typename decltype(layer)::task_layer::tape one;
    alone.task(q).forward(x, own_y, one, own);
    CHECK(test::largest_difference(matrix<double>(y.middleCols(6 * q, 6)), own_y) <=
          test::bound<double>(40, 1 + own_y.cwiseAbs().maxCoeff()));
    alone.task(q).backward(matrix<double>(dy.middleCols(6 * q, 6)), own_dx, one);
    sum += own_dx;
  }
  CHECK(test::largest_difference(dx, sum) <= test::bound<double>(200, 1 + sum.cwiseAbs().maxCoeff()));
  std::vector<std::vector<double>> gradients;
  for_each_parameter(alone, [&](const std::string&, parameter<double>& p) {
    gradients.emplace_back(p.gradient().begin(), p.gradient().end());
  });
  for_each_parameter(layer, [&, next = std::size_t(0)](const std::string& name, parameter<double>& p) mutable {
    CAPTURE(name);
    const auto& expected = gradients[next++];
    for (std::size_t i = 0; i < expected.size(); ++i)
      CHECK(std::abs(p.gradient()[i] - expected[i]) <= test::bound<double>(200, 10 + std::abs(expected[i])));
  });
}

}  // namespace

TEST_CASE("multi_gate_layer: tasks whose rows are shared, scaled, mixed or weighed late are what they are alone",
          "[layer][multi_gate]") {
  routing_context<double> context;
  context.training = true;
  context.random = random_source(1);
  check_tasks_alone(std::vector(3, dense_softmax_router<double>{6, 4}), context);
  check_tasks_alone(std::vector(3, top_k_router<double>{6, 4, {.top_k = 2}}), context);
  check_tasks_alone(std::vector(2, soft_moe_router<double>{6, 4, {.slots_per_expert = 2}}), context);
  check_tasks_alone(std::vector(2, compete_router{top_k_router<double>{6, 4, {.top_k = 2}}, {.frequency = 1}}), context);
  check_tasks_alone(std::vector(2, pmoe_router<double>{6, 4, 3}), context);
}

TEST_CASE("multi_gate_layer: keeps every promise when tasks choose", "[layer][multi_gate]") {
  multi_gate_layer layer(std::vector(2, top_k_router<double>{6, 4, {.top_k = 2}}), mmoe_bank{4, 6, 4}, {});
  initialize(layer, 3);
  const auto report = check_layer(layer);
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("multi_gate_layer: experts are visited and stepped once, also after a move or a copy",
          "[layer][multi_gate]") {
  using layer_type = multi_gate_layer<top_k_router<double>, mmoe_bank>;
  auto first =
      std::make_unique<layer_type>(std::vector(3, top_k_router<double>{4, 5, {.top_k = 2}}), mmoe_bank{5, 4, 3});
  initialize(*first, 1);
  CHECK(parameter_count(*first) == parameter_count(first->bank()) + 3 * 20);
  layer_type copy = *first;
  layer_type moved = std::move(*first);
  first.reset();
  const matrix<double> x = test::random_matrix<double>(6, 4, 2);
  matrix<double> y(6, 12), z(6, 12);
  layer_type::workspace a, b;
  copy.forward(x, y, a);
  moved.forward(x, z, b);
  CHECK(test::same_bits(y, z));
  for (auto* one : {&copy, &moved}) {
    CHECK(&one->task(2).bank().bank() == &one->bank());
    layer_type::tape tape;
    matrix<double> dx(6, 4);
    one->forward(x, y, tape);
    one->backward(y, dx, tape);
  }
  layer_type assigned = copy;
  assigned = moved;
  CHECK(&assigned.task(0).bank().bank() == &assigned.bank());
}

TEST_CASE("connected_gate: a cut expert has weight and gradient exactly 0", "[layer][multi_gate][gate]") {
  const connections connected{{1, 0, 1}, {0, 1, 1}};
  multi_gate_layer layer(connected_routers(4, connected), mmoe_bank{3, 4, 3}, {});
  initialize(layer, 5);
  const matrix<double> x = test::random_matrix<double>(6, 4, 2);
  matrix<double> y(6, 8), dx(6, 4);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  for (std::size_t q = 0; q < 2; ++q) {
    const matrix<double> weights = tape.tasks[q].plan.dense_weights();
    for (index_t t = 0; t < 6; ++t) {
      CHECK(std::abs(weights.row(t).sum() - 1) <= test::bound<double>(3));
      for (index_t e = 0; e < 3; ++e) CHECK((weights(t, e) == 0) == (connected[q][static_cast<std::size_t>(e)] == 0));
    }
  }
  // Task 0 alone: the expert that belongs to task 1 learns nothing from it.
  matrix<double> dy = matrix<double>::Zero(6, 8);
  dy.leftCols(4) = test::random_matrix<double>(6, 4, 3);
  layer.backward(dy, dx, tape);
  for_each_parameter(layer.bank().expert(1), [](const std::string&, parameter<double>& p) {
    for (const double g : p.gradient()) CHECK(g == 0);
  });
  const auto cut = layer.task(0).router().gate().inner().weight().gradient_matrix();
  CHECK(cut.row(1).cwiseAbs().maxCoeff() == 0);
  CHECK(cut.row(0).cwiseAbs().maxCoeff() > 0);
}

TEST_CASE("exclusive_experts: the first half of the experts have a task each, or lack one",
          "[layer][multi_gate][gate]") {
  for (const auto form : {expert_diversity::exclusivity, expert_diversity::exclusion}) {
    const auto connected = exclusive_experts(9, 3, random_source(4), form);
    REQUIRE(connected.size() == 3);
    for (std::size_t e = 0; e < 9; ++e) {
      int tasks = 0;
      for (const auto& own : connected) tasks += own[e];
      CHECK(tasks == (e >= 4 ? 3 : form == expert_diversity::exclusivity ? 1 : 2));
    }
  }
  const auto shared = exclusive_experts(4, 2, random_source(4), expert_diversity::exclusivity, 1);
  for (const auto& own : shared) CHECK(own[3] == 1);
  CHECK(exclusive_experts(4, 2, random_source(4), expert_diversity::exclusion, 0) == connections(2, {1, 1, 1, 1}));
  CHECK_THROWS_WITH(exclusive_experts(4, 2, random_source(4), expert_diversity::exclusion, 1.5), test::contains("1.5"));
  CHECK_THROWS_WITH(mmoe_gate(linear_gate<double>(4, 3), {1, 1}), test::contains("E = 3"));
  CHECK_THROWS_WITH(mmoe_gate(linear_gate<double>(4, 3), {0, 0, 0}), test::contains("none of E = 3"));
  CHECK_THROWS_WITH((multi_gate_layer(std::vector<mmoe_router>{}, mmoe_bank{3, 4, 3})),
                    test::contains("a router a task"));
}
