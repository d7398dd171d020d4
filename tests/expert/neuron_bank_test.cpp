#include <sluice/expert/neuron_bank.hpp>

#include <sluice/exec/thread_pool.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "../layer/layer_promises.hpp"
#include "../support.hpp"

using namespace sluice;

namespace {

/// Rows of experts of the given loads.
std::vector<index_t> offsets_of(std::initializer_list<index_t> loads, index_t first = 0) {
  std::vector<index_t> offsets{first};
  for (const index_t load : loads) offsets.push_back(offsets.back() + load);
  return offsets;
}

}  // namespace

TEMPLATE_TEST_CASE("neuron_bank: equals feed-forward experts of hidden width 1", "[expert][neuron_bank]", float,
                   double) {
  using S = TestType;
  const auto offsets = GENERATE(offsets_of({0, 0, 0, 0}), offsets_of({1, 0, 0, 0}), offsets_of({3, 0, 200, 5}),
                                offsets_of({0, 0, 0, 300}), offsets_of({2, 1, 1, 2}));
  const index_t rows = offsets.back(), D = 9, D2 = 6;
  CAPTURE(rows);
  neuron_bank<S> bank(4, D, {.outputs = D2});
  initialize(bank, 3);
  expert_bank<ffn<S, gelu>> plain(4, D, 1, {.outputs = D2});
  for (index_t e = 0; e < 4; ++e) {
    plain.expert(e).up().assign(bank.down().map().row(e));
    plain.expert(e).down().assign(bank.up().map().row(e).transpose());
  }
  const matrix<S> x = test::random_matrix<S>(rows, D, 4);
  const matrix<S> dy = test::random_matrix<S>(rows, D2, 5);
  matrix<S> y(rows, D2), y2(rows, D2), dx(rows, D), dx2(rows, D);
  typename neuron_bank<S>::tape tape;
  typename expert_bank<ffn<S, gelu>>::tape tape2;
  bank.forward(x, offsets, y, tape, {});
  plain.forward(x, offsets, y2, tape2, {});
  bank.backward(x, offsets, dy, dx, tape, {});
  ensure_gradients(plain);
  plain.backward(x, offsets, dy, dx2, tape2, {});
  const S bound = test::bound<S>(D * std::max<index_t>(rows, 1), S(16));  // sums over rows of numbers below 4 * 4
  CHECK(test::largest_difference(y, y2) < bound);
  CHECK(test::largest_difference(dx, dx2) < bound);
  for (index_t e = 0; e < 4; ++e) {
    CHECK(test::largest_difference(matrix<S>(bank.down().gradient_map().row(e)),
                                   plain.expert(e).up().gradient_matrix()) < bound);
    CHECK(test::largest_difference(matrix<S>(bank.up().gradient_map().row(e).transpose()),
                                   plain.expert(e).down().gradient_matrix()) < bound);
  }
}

TEST_CASE("neuron_bank: keeps every promise of a layer, beside other banks too", "[expert][neuron_bank][gradient]") {
  test::check_layer_promises(
      moe_layer{top_k_router<double>{5, 7, {.top_k = 3}},
                expert_union{expert_bank<identity_expert<double>>(1, 5), neuron_bank<double, silu>{4, 5},
                             expert_bank<ffn<double, gelu>>(2, 5, 3)}},
      11);
}

TEST_CASE("neuron_bank: a plan run as it lies has the bits of gathering, running and adding", "[expert][neuron_bank]") {
  const index_t T = 60, D = 37, D2 = 21, E = 40;  // no whole vectors, several tasks
  neuron_bank<float> bank(E, D, {.outputs = D2});
  initialize(bank, 41);
  const matrix<float> x = test::random_matrix<float>(T, D, 42);
  sparse_plan<float> plan;
  plan.reset(T, E, T * 5);
  const matrix<float> w = test::random_matrix<float>(T, 5, 43);
  for (index_t t = 0; t < T; ++t)
    for (index_t j = 0; j < 5; ++j) plan.add(t, (t * t + 7 * j) % E, j == 3 && t % 4 == 0 ? 0 : w(t, j), j);
  plan.finish();
  neuron_bank<float>::tape tape;
  matrix<float> rows(plan.rows(), D), outputs(plan.rows(), D2), y(T, D2);
  dispatch(plan, tokens_in<float>(x), rows, {});
  bank.forward(rows, plan.by_expert(), outputs, tape, {});
  combine(plan, tokens_in<float>(outputs), y, {});
  for (const int threads : {1, 2, 3}) {
    thread_pool pool(threads);
    matrix<float> own = matrix<float>::Zero(T, D2);
    bank.forward_routed(x, plan.routed(), own, tape, pool);
    CHECK(test::same_bits(own, y));
  }
}

TEST_CASE("neuron_bank: keeps every promise of a layer whose weights act on inputs",
          "[expert][neuron_bank][gradient]") {
  test::check_layer_promises(
      moe_layer{sigmoid_router<double>{5, 7, {.top_k = 3, .renormalize = false, .use = weight_use::input}},
                neuron_bank<double, silu>{7, 5}},
      51);
}

TEST_CASE("neuron_bank: lists the rows it touched", "[expert][neuron_bank]") {
  neuron_bank<double> bank(6, 3);
  initialize(bank, 21);
  const matrix<double> x = test::random_matrix<double>(5, 3, 22);
  matrix<double> y(5, 3), dx(5, 3);
  neuron_bank<double>::tape tape;
  const auto run = [&](const std::vector<index_t>& offsets) {
    bank.forward(x, offsets, y, tape, {});
    bank.backward(x, offsets, x, dx, tape, {});
  };
  const auto touched = [&] { return std::vector<index_t>(bank.touched().begin(), bank.touched().end()); };
  CHECK(touched().empty());
  run(offsets_of({0, 2, 0, 0, 3, 0}));
  CHECK(touched() == std::vector<index_t>{1, 4});
  run(offsets_of({0, 0, 1, 0, 4, 0}));
  CHECK(touched() == std::vector<index_t>{1, 4, 2});
  for (const index_t e : {0, 3, 5})
    for (index_t d = 0; d < 3; ++d) {
      CHECK(bank.down().gradient()[static_cast<std::size_t>(e * 3 + d)] == 0);
      CHECK(bank.up().gradient()[static_cast<std::size_t>(e * 3 + d)] == 0);
    }
  CHECK(bank.up().gradient()[4 * 3] != 0);
  bank.zero_touched_gradients();
  CHECK(touched().empty());
  for (const double g : bank.down().gradient()) CHECK(g == 0);
  for (const double g : bank.up().gradient()) CHECK(g == 0);
  run(offsets_of({0, 2, 0, 0, 3, 0}));
  CHECK(touched() == std::vector<index_t>{1, 4});
}

TEST_CASE("neuron_bank: NaN stays in its row", "[expert][neuron_bank]") {
  neuron_bank<double> bank(2, 3);
  initialize(bank, 31);
  matrix<double> x = test::random_matrix<double>(4, 3, 32);
  const auto offsets = offsets_of({2, 2});
  matrix<double> y(4, 3), y2(4, 3);
  neuron_bank<double>::tape tape;
  bank.forward(x, offsets, y, tape, {});
  x(1, 1) = quiet_nan<double>();
  bank.forward(x, offsets, y2, tape, {});
#ifndef __FAST_MATH__  // there the router's verdict on the token makes its output NaN, not arithmetic
  CHECK(is_nan(y2(1, 0)));
#endif
  for (const index_t r : {0, 2, 3}) CHECK(test::same_bits(y.row(r), y2.row(r)));
}

TEST_CASE("neuron_bank: equal bits for every executor and thread count", "[expert][neuron_bank][determinism]") {
  neuron_bank<float> bank(300, 10);
  initialize(bank, 41);
  std::vector<index_t> offsets{0};
  for (index_t e = 0; e < 300; ++e) offsets.push_back(offsets.back() + (e == 7 ? 400 : e % 4));
  const index_t rows = offsets.back();
  const matrix<float> x = test::random_matrix<float>(rows, 10, 42);
  const matrix<float> dy = test::random_matrix<float>(rows, 10, 43);
  const auto run = [&](executor_ref executor) {
    zero_gradients(bank);
    neuron_bank<float>::tape tape;
    matrix<float> y(rows, 10), dx(rows, 10);
    bank.forward(x, offsets, y, tape, executor);
    bank.backward(x, offsets, dy, dx, tape, executor);
    std::vector<float> numbers(y.data(), y.data() + y.size());
    numbers.insert(numbers.end(), dx.data(), dx.data() + dx.size());
    for_each_parameter(bank, [&](const std::string&, parameter<float>& p) {
      numbers.insert(numbers.end(), p.gradient().begin(), p.gradient().end());
    });
    return numbers;
  };
  const auto expected = run({});
  for (const int threads : {1, 2, 3, 8}) {
    CAPTURE(threads);
    test::shuffled_threads pool(threads);
    const auto numbers = run(pool);
    CHECK(std::memcmp(numbers.data(), expected.data(), numbers.size() * sizeof(float)) == 0);
  }
}

TEST_CASE("neuron_bank: refuses empty shapes", "[expert][neuron_bank]") {
  CHECK_THROWS_AS(neuron_bank<float>(0, 3), std::invalid_argument);
  CHECK_THROWS_AS(neuron_bank<float>(3, 0), std::invalid_argument);
  CHECK_THROWS_AS(neuron_bank<float>(3, 3, {.outputs = -1}), std::invalid_argument);
}
