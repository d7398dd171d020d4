#include <sluice/expert/derived/compressed_bank.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/auxiliary_choices.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "io/messages.hpp"
#include "layer/layer_promises.hpp"
#include "layer/saved_layer.hpp"

using namespace sluice;

namespace {

auto compressed_layer() {
  return moe_layer{auxiliary_choices_router{top_k_router<double>{5, 6, {.top_k = 4, .weights = weighting::pre}}, 2},
                   compressed_bank{expert_bank<swiglu<double>>{6, 5, 7}}};
}

}  // namespace

TEST_CASE("compressed_bank: with vectors of ones a layer is its main experts alone", "[expert][derived][compressed]") {
  auto layer = compressed_layer();
  initialize(layer, 3);
  const matrix<double> x = test::random_matrix<double>(9, 5, 4);
  matrix<double> y(9, 5), expected(9, 5);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  moe_layer mains{top_k_router<double>{5, 6, {.top_k = 2, .weights = weighting::pre}}, layer.bank().bank()};
  mains.router().gate() = layer.router().inner().gate();
  decltype(mains)::workspace own;
  mains.forward(x, expected, own);
  CHECK(test::largest_difference(y, expected) <= test::bound<double>(20, 4.0));  // weights sum to 1 up to rounding
  // Vectors are mixed by the weights of the other choices, made to sum to 1.
  layer.bank().theta().fill([](index_t i) { return i == 1 * 5 ? 1.0 : i == 3 * 5 ? 3.0 : 0.0; });
  sparse_plan<double>& plan = workspace.plan;
  plan.reset(1, 12);
  plan.add(0, 2, 0.5, 0);
  plan.add(0, 6 + 1, 0.75, 2);
  plan.add(0, 6 + 3, 0.25, 3);
  plan.finish();
  layer.forward_planned(x.topRows(1), y.topRows(1), workspace);
  matrix<double> seen = matrix<double>::Zero(1, 5), f(1, 5);
  seen(0, 0) = 1.5 * x(0, 0);
  const std::vector<index_t> offsets{0, 0, 0, 1, 1, 1, 1};
  expert_bank<swiglu<double>>::tape tape;
  layer.bank().bank().prepare(tape, 1, false);
  layer.bank().bank().forward(seen, offsets, f, tape, {});
  CHECK(test::largest_difference(matrix<double>(y.topRows(1)), matrix<double>(0.5 * f)) <=
        test::bound<double>(12, 4.0));
}

TEST_CASE("compressed_bank: every promise of a layer", "[expert][derived][compressed][conformance]") {
  auto layer = compressed_layer();
  test::check_layer_promises(layer, 11);
  initialize(layer, 12);
  layer.bank().theta().fill([](index_t i) { return 0.5 + 0.1 * double(i % 7); });
  CHECK(test::file_keeps(layer, 13));
  CHECK_THROWS_WITH((auxiliary_choices_router{top_k_router<double>{5, 6, {.top_k = 4}}, 0}), test::contains("not 0"));
}
