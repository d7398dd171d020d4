#include <sluice/expert/derived/core_and_rest.hpp>

#include <sluice/layer/dense.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "layer/layer_promises.hpp"
#include "layer/saved_layer.hpp"
#include "router/layer_checks.hpp"

using namespace sluice;

TEST_CASE("core_and_rest: starts as the dense network it was made of - bit for bit",
          "[expert][derived][core_and_rest]") {
  ffn<double, gelu> dense(6, 9, {.outputs = 5, .bias = true});
  initialize(dense, 3);
  dense.up_bias().fill([](index_t i) { return 0.1 * double(i); });
  dense.down_bias().fill([](index_t i) { return 1 - 0.2 * double(i); });
  const dense_layer<ffn<double, gelu>> whole(dense);
  const matrix<double> x = test::random_matrix<double>(11, 6, 4);
  matrix<double> expected(11, 5), y(11, 5);
  decltype(whole)::workspace dense_workspace;
  whole.forward(x, expected, dense_workspace);
  for (const index_t rank : {0, 2}) {
    core_and_rest_weights<double> weights(dense, 4, {.rank = rank});
    for (index_t e = 0; e < (rank > 0 ? 4 : 0); ++e)
      for (const std::size_t which : {0U, 1U})
        weights.left(which, e).fill([](index_t i) { return double(i) - 7; });  // right is zero
    moe_layer layer{top_k_router<double>{6, 4, {.top_k = 1, .constant_weight = true}},
                    core_and_rest_bank<double, gelu>{weights}};
    initialize(layer.router(), 5);
    decltype(layer)::workspace workspace;
    layer.forward(x, y, workspace);
    CHECK(test::same_bits(y, expected));
  }
}

TEST_CASE("core_and_rest: an expert's matrices are core and rest", "[expert][derived][core_and_rest]") {
  core_and_rest_weights<double> weights(3, 6, 9, {.rank = 2});
  initialize(weights, 7);
  for (index_t e = 0; e < 3; ++e)
    for (const std::size_t which : {0U, 1U}) test::fill_normal(weights.right(which, e), 8 + std::uint64_t(e));
  computed_bank<core_and_rest_weights<double>> bank{weights};
  const auto written = bank.written_out();
  for (index_t e = 0; e < 3; ++e)
    for (const std::size_t which : {0U, 1U}) {
      const matrix<double> expected = weights.core(which).to_matrix() + weights.left(which, e).to_matrix().transpose() *
                                                                            weights.right(which, e).to_matrix();
      const auto& expert = written.expert(e);
      const matrix<double> own = (which == 0 ? expert.first_map(0) : expert.last_map()).weight().to_matrix();
      CHECK(test::largest_difference(own, expected) <= test::bound<double>(4, 4.0));
    }
}

TEST_CASE("core_and_rest: every promise of a layer", "[expert][derived][core_and_rest][conformance]") {
  const auto check = [](core_and_rest_weights<double> weights) {
    moe_layer layer{top_k_router<double>{6, 3, {.top_k = 2}}, core_and_rest_bank<double, silu>{weights}};
    test::check_layer_promises(layer, 11);
    initialize(layer, 12);
    CHECK(test::file_keeps(layer, 13));
  };
  check({3, 6, 9, {.bias = true}});
  check({3, 6, 9, {.rank = 2}});
  // Frozen, the core gets no gradient and no memory for one; rests learn.
  core_and_rest_weights<double> weights(2, 4, 5, {.rank = 1});
  initialize(weights, 14);
  for (const std::size_t which : {0U, 1U}) weights.core(which).set_frozen(true);
  computed_bank<core_and_rest_weights<double>, silu> bank{weights};
  const std::vector<index_t> offsets{0, 3, 3};
  const matrix<double> x = test::random_matrix<double>(3, 4, 15), dy = test::random_matrix<double>(3, 4, 16);
  matrix<double> y(3, 4), dx(3, 4);
  decltype(bank)::tape tape;
  bank.prepare(tape, 3, true);
  bank.forward(x, offsets, y, tape, {});
  bank.backward(x, offsets, dy, dx, tape, {});
  CHECK_FALSE(bank.weights().core(0).has_gradient());
  CHECK(bank.weights().right(0, 0).gradient_matrix().cwiseAbs().maxCoeff() > 0);
  CHECK(bank.weights().right(0, 1).gradient_matrix().isZero(0));
}
