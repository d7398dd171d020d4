#include <sluice/expert/derived/sliced_bank.hpp>

#include <sluice/capacity/position.hpp>
#include <sluice/expert/simple.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/gate/sliced.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/overflow.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "io/messages.hpp"
#include "layer/layer_promises.hpp"
#include "layer/saved_layer.hpp"

using namespace sluice;

namespace {

using sliced_router = token_choice_router<sliced_gate<double>, softmax_rule<double>>;

/// At most 4 experts, D = 9 and H = 13.
auto super_layer() {
  return moe_layer{sliced_router(sliced_gate<double>(9, 4, {.bias = true}),
                                 softmax_rule<double>({.top_k = 2, .weights = weighting::pre})),
                   sliced_bank<double, silu>{4, 9, 13, {.bias = true}}};
}

}  // namespace

TEST_CASE("sliced_bank: the selected blocks are a layer of their own and nothing outside learns",
          "[expert][derived][sliced]") {
  auto layer = super_layer();
  initialize(layer, 3);
  for (index_t e = 0; e < 4; ++e) {
    layer.bank().expert(e).up_bias().fill([](index_t i) { return 0.1 * double(i) - 0.5; });
    layer.bank().expert(e).down_bias().fill([](index_t i) { return 0.3 - 0.1 * double(i); });
  }
  layer.router().gate().select(3, 7);
  layer.bank().select(7, {13, 2, 6});
  CHECK((layer.experts() == 3 && layer.inputs() == 7 && layer.outputs() == 7));
  const matrix<double> x = test::random_matrix<double>(10, 7, 4), dy = test::random_matrix<double>(10, 7, 5);
  matrix<double> y(10, 7), dx(10, 7), expected(10, 7), dexpected(10, 7);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  layer.backward(dy, dx, tape);

  auto own = layer.bank().cut_out();
  top_k_router<double> router(linear_gate<double>(7, 3, {.bias = true}), {.top_k = 2, .weights = weighting::pre});
  router.gate().weight().assign(layer.router().gate().weight().map().topLeftCorner(3, 7));
  router.gate().bias().fill([&](index_t e) { return layer.router().gate().bias().data()[e]; });
  moe_layer alone{router, own};
  decltype(alone)::tape alone_tape;
  alone.forward(x, expected, alone_tape);
  alone.backward(dy, dexpected, alone_tape);
  CHECK(test::same_bits(y, expected));
  CHECK(test::same_bits(dx, dexpected));
  for (index_t e = 0; e < 4; ++e) {
    const matrix<double> up = layer.bank().expert(e).up().gradient_matrix(),
                         down = layer.bank().expert(e).down().gradient_matrix();
    matrix<double> up_outside = up, down_outside = down;
    if (e < 3) {
      const index_t H = layer.bank().expert(e).hidden();
      CHECK(test::same_bits(matrix<double>(up.topLeftCorner(H, 7)), alone.bank().expert(e).up().gradient_matrix()));
      up_outside.topLeftCorner(H, 7).setZero();
      down_outside.topLeftCorner(7, H).setZero();
      for (index_t i = H; i < 13; ++i) CHECK(layer.bank().expert(e).up_bias().gradient()[as_size(i)] == 0);
    }
    CHECK((up_outside.isZero(0) && down_outside.isZero(0)));
  }
  CHECK(layer.router().gate().weight().gradient_map().row(3).isZero(0));
  CHECK(layer.router().gate().weight().gradient_map().rightCols(2).isZero(0));

  CHECK_THROWS_WITH(layer.bank().select(7, {14}), test::contains("no block 7 -> 14 -> 7"));
  CHECK_THROWS_WITH(layer.bank().select(7, {}), test::contains("of 4 experts 0"));
  CHECK(layer.bank().expert(1).hidden() == 2);  // nothing changed
  CHECK_THROWS_WITH(layer.router().gate().select(5, 7), test::contains("[4, 9]"));
  // The whole again.
  layer.bank().select(9, {13, 13, 13, 13});
  layer.router().gate().select(4, 9);
  CHECK(layer.inputs() == 9);
}

TEST_CASE("sliced_bank: every promise of a layer", "[expert][derived][sliced][conformance]") {
  auto layer = super_layer();
  layer.router().gate().select(3, 7);
  layer.bank().select(7, {13, 2, 6});
  test::check_layer_promises(layer, 11);
  initialize(layer, 12);
  CHECK(test::file_keeps(layer, 13));
}

TEST_CASE("overflow_router: what finds no room carries its input", "[router][overflow]") {
  const auto with_room_for = [](index_t capacity) {
    top_k_router<double> router{6, 3, {.top_k = 2, .weights = weighting::pre}};
    return moe_layer{overflow_router(router, position_capacity(capacity_limit::fixed(capacity))),
                     expert_union{expert_bank<ffn<double, silu>>{3, 6, 5}, expert_bank<identity_expert<double>>{1, 6}}};
  };
  auto layer = with_room_for(3);
  test::check_layer_promises(layer, 21);
  initialize(layer, 22);
  const matrix<double> x = test::random_matrix<double>(12, 6, 23);
  matrix<double> y(12, 6);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  const auto& plan = workspace.plan;
  const auto& own = workspace.router.own;
  CHECK_NOTHROW(plan.validate());
  for (index_t e = 0; e < 3; ++e) CHECK(plan.load(e) <= 3);
  CHECK(plan.load(3) > 0);
  for (index_t t = 0; t < 12; ++t) {
    double before = 0, after = 0;
    for (const index_t i : own.of_token(t)) before += own.weight(i);
    for (const index_t i : plan.of_token(t)) after += plan.weight(i);
    CHECK(after == Approx(before).epsilon(1e-14));
  }
  // With room for all it is the router inside.
  auto roomy = with_room_for(100);
  initialize(roomy, 24);
  roomy.router().inner().gate() = layer.router().inner().gate();
  roomy.forward(x, y, workspace);
  CHECK(workspace.plan.load(3) == 0);
}
