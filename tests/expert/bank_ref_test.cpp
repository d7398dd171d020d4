#include <sluice/expert/bank_ref.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/lambda.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

#include <algorithm>
#include <string>
#include <vector>

using namespace sluice;

namespace {

using bank_type = expert_bank<swiglu<double>>;
using layer_type = moe_layer<top_k_router<double>, bank_ref<bank_type>, importance_loss>;

static_assert(RoutedBank<bank_ref<bank_type>> && DifferentiableBank<bank_ref<bank_type>>);
static_assert(RoutedBank<bank_ref<const bank_type>> && !DifferentiableBank<bank_ref<const bank_type>>);
static_assert(!HasParameters<bank_ref<bank_type>>);

/// Two gates over one bank: y = first(x) + second(x).
struct two_gates {
  bank_type experts{4, 6, 5};
  layer_type first{top_k_router<double>{6, 4, {.top_k = 2, .weights = weighting::pre}}, bank_ref{experts}, importance_loss{}};
  layer_type second{top_k_router<double>{6, 4, {.top_k = 1, .weights = weighting::pre}}, bank_ref{experts}, importance_loss{}};

  two_gates() = default;
  two_gates(const two_gates&) = delete;
  two_gates& operator=(const two_gates&) = delete;

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("experts", self.experts);
    visit("first", self.first);
    visit("second", self.second);
  }
};

struct tapes {
  layer_type::tape first, second;
};

matrix<double> forward(const two_gates& model, const matrix<double>& x, tapes& t) {
  matrix<double> y(x.rows(), 6), other(x.rows(), 6);
  model.first.forward(x, y, t.first);
  model.second.forward(x, other, t.second);
  return y + other;
}

matrix<double> backward(two_gates& model, const matrix<double>& dy, tapes& t) {
  matrix<double> dx(dy.rows(), 6), other(dy.rows(), 6);
  model.first.backward(dy, dx, t.first);
  model.second.backward(dy, other, t.second);
  return dx + other;
}

}  // namespace

TEST_CASE("bank_ref: each parameter is visited once and under one name", "[expert][bank_ref]") {
  two_gates model;
  std::vector<std::string> names;
  std::vector<const void*> arrays;
  for_each_parameter(model, [&](const std::string& name, auto& p) {
    names.push_back(name);
    arrays.push_back(p.data());
  });
  CHECK(names.front() == "experts.0.gate");
  CHECK(names[names.size() - 2] == "first.router.gate.weight");
  CHECK(names.back() == "second.router.gate.weight");
  CHECK(names.size() == 4 * 3 + 2);
  std::sort(arrays.begin(), arrays.end());
  CHECK(std::adjacent_find(arrays.begin(), arrays.end()) == arrays.end());
  CHECK(parameter_count(model) == 4 * 3 * 6 * 5 + 2 * 4 * 6);
}

TEST_CASE("bank_ref: a layer computes what it does with a bank of its own", "[expert][bank_ref]") {
  two_gates model;
  initialize(model, 1);
  const matrix<double> x = test::random_matrix<double>(9, 6, 2);
  moe_layer alone{model.first.router(), model.experts, importance_loss{}};
  matrix<double> y(9, 6), expected(9, 6);
  decltype(alone)::workspace own;
  layer_type::workspace shared;
  alone.forward(x, expected, own);
  model.first.forward(x, y, shared);
  CHECK(test::same_bits(y, expected));
  CHECK(model.first.workspace_bytes(18, true) == alone.workspace_bytes(18, true));

  const moe_layer reading{model.first.router(), bank_ref(std::as_const(model.experts))};
  decltype(reading)::workspace workspace;
  reading.forward(x, y, workspace);
  CHECK(test::same_bits(y, expected));
}

TEST_CASE("bank_ref: gradients of two layers add, and equal central differences", "[expert][bank_ref][gradient]") {
  two_gates model;
  initialize(model, 3);
  matrix<double> x = test::random_matrix<double>(9, 6, 4);
  const matrix<double> dy = test::random_matrix<double>(9, 6, 5);
  tapes t, other;
  forward(model, x, t);
  const matrix<double> dx = backward(model, dy, t);
  const auto report = check_gradients(model, {{"x", test::span_of(x), test::span_of(dx)}}, [&] {
    return (forward(model, x, other).array() * dy.array()).sum() + other.first.loss() + other.second.loss();
  });
  INFO(report.describe());
  CHECK(report.checked > 400);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("bank_ref: an optimiser steps the bank once", "[expert][bank_ref]") {
  // The same numbers with a gradient of the same bits, in a model that has the bank alone.
  two_gates model;
  initialize(model, 6);
  const matrix<double> x = test::random_matrix<double>(9, 6, 7);
  tapes t;
  forward(model, x, t);
  backward(model, test::random_matrix<double>(9, 6, 8), t);
  bank_type alone = model.experts;
  adamw<double> optimizer, other;
  optimizer.step(model);
  other.step(alone);
  CHECK(test::same_bits(model.experts.expert(1).up().to_matrix(), alone.expert(1).up().to_matrix()));
}

TEST_CASE("bank_ref: experts called one by one, and a bank that took another's place", "[expert][bank_ref]") {
  const auto times = [](double factor) {
    return expert_bank(4, make_expert<double>(6, 6, [factor](auto x, auto y) { y = factor * x; }));
  };
  auto two = times(2), three = times(3);
  static_assert(!RoutedBank<bank_ref<decltype(two)>>);
  moe_layer layer{top_k_router<double>{6, 4}, bank_ref{two}};
  initialize(layer, 11);
  const matrix<double> x = test::random_matrix<double>(9, 6, 12);
  matrix<double> y(9, 6);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  CHECK(test::largest_difference(y, matrix<double>(2 * x)) <= test::bound<double>(2, 8));
  layer.bank().rebind(three);
  layer.forward(x, y, workspace);
  CHECK(test::largest_difference(y, matrix<double>(3 * x)) <= test::bound<double>(2, 8));
}
