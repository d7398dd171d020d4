#include <sluice/layer/split/sub_tokens.hpp>

#include <sluice/capacity/position.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/fixed/hash.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "layer/layer_promises.hpp"

#include <memory>
#include <vector>

using namespace sluice;

namespace {

auto of_sub_tokens() {
  return moe_layer{top_k_router<double>{3, 4, {.top_k = 2}}, expert_bank<swiglu<double>>{4, 3, 5}, switch_balance{}};
}

/// Multiplies by a number.
struct times {
  using scalar = double;
  double factor;
  index_t inputs() const { return 1; }
  index_t outputs() const { return 1; }
  index_t saved_columns() const { return 0; }
  void forward(tokens_in<double> x, tokens_out<double> y, tokens_out<double>) const { y = factor * x; }
  void backward(tokens_in<double>, tokens_in<double> dy, tokens_out<double>, tokens_out<double> dx) const {
    dx = factor * dy;
  }
};

}  // namespace

TEST_CASE("sub_tokens: every part of a token has an expert of its own", "[layer][split]") {
  // D = h = 2; expert 0 doubles, expert 1 changes the sign; logits (z, -z); the weight is the probability.
  sub_token_layer layer{moe_layer{top_k_router<double>{1, 2, {.top_k = 1, .weights = weighting::pre}},
                                  expert_bank<times>(std::vector<times>{{2}, {-1}})},
                        2};
  layer.router().gate().weight().value()[0] = 1;
  layer.router().gate().weight().value()[1] = -1;
  matrix<double> x(1, 2), y(1, 2);
  x << 1, -3;
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  CHECK(y(0, 0) == Approx(1.761594).margin(5e-7));
  CHECK(y(0, 1) == Approx(2.992582).margin(5e-7));
  CHECK(workspace.layer.plan.tokens() == 2);
}

TEST_CASE("sub_tokens: one part is the layer inside, more are its tokens one below the other", "[layer][split]") {
  auto inner = of_sub_tokens();
  initialize(inner, 3);
  const matrix<double> x = test::random_matrix<double>(10, 3, 4);
  matrix<double> wanted(10, 3), y(10, 3), wide(5, 6);
  decltype(inner)::workspace alone;
  inner.forward(x, wanted, alone);
  sub_token_layer whole{inner, 1};
  decltype(whole)::workspace workspace;
  whole.forward(x, y, workspace);
  CHECK(test::same_bits(y, wanted));
  const sub_token_layer halves{inner, 2};
  const Eigen::Map<const matrix<double>> same(x.data(), 5, 6);
  halves.forward(same, wide, workspace);
  CHECK(test::same_bits(wide, Eigen::Map<const matrix<double>>(wanted.data(), 5, 6)));
}

TEST_CASE("sub_tokens: where parts stand is a matter of the maps around them", "[layer][split]") {
  // The slots of sub-tokens change places: rows of the first map and columns of the last one do the same.
  sequence layer{linear_layer<double>{6, 6}, sub_token_layer{of_sub_tokens(), 2}, linear_layer<double>{6, 6}};
  initialize(layer, 5);
  auto other = layer;
  const auto swapped = [](index_t i) { return (i + 3) % 6; };
  auto& first = layer.layer<0>();
  auto& last = layer.layer<2>();
  other.layer<0>().weight().fill(
      [&](index_t i) { return first.weight().value()[as_size(swapped(i / 6) * 6 + i % 6)]; });
  other.layer<0>().bias().fill([&](index_t i) { return first.bias().value()[as_size(swapped(i))]; });
  other.layer<2>().weight().fill([&](index_t i) { return last.weight().value()[as_size(i / 6 * 6 + swapped(i % 6))]; });
  const matrix<double> x = test::random_matrix<double>(9, 6, 6);
  matrix<double> y(9, 6), again(9, 6);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  other.forward(x, again, workspace);
  CHECK((y - again).cwiseAbs().maxCoeff() <= test::bound<double>(6, 8));
}

TEST_CASE("sub_tokens: masks, ids and groups are those of the token", "[layer][split]") {
  sub_token_layer layer{moe_layer{hash_router<double>(no_gate<double>(1, 2), matrix<index_t>{{0}, {1}}),
                                  expert_bank<times>(std::vector<times>{{2}, {-1}})},
                        2};
  const matrix<double> x{{1, 2}, {3, 4}, {5, 6}};
  matrix<double> y(3, 2);
  const std::vector<index_t> ids{0, 1, 1};
  const std::vector<std::uint8_t> mask{1, 1, 0};
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace, {.token_mask = mask, .token_ids = ids});
  CHECK(y == matrix<double>{{2, 4}, {-3, -4}, {0, 0}});
}

TEST_CASE("sub_tokens: sizes at which it costs what a mixture costs", "[layer][split]") {
  // The paper's: D = 768, SwiGLU, 8 experts of hidden width 2048, one a token.
  const mixture_sizes gated{.width = 768, .hidden = 2048, .experts = 8, .matrices = 3};
  CHECK(equal_cost_sizes(gated, 2, 2).hidden == Approx(768));
  CHECK(equal_cost_sizes(gated, 2, 2).experts == Approx(41.3).margin(0.05));
  CHECK(equal_cost_sizes(gated, 3, 3).hidden == Approx(512));
  CHECK(equal_cost_sizes(gated, 3, 3).experts == Approx(93));
  CHECK(equal_cost_sizes({.width = 64, .hidden = 256, .experts = 8}, 3, 1).hidden == Approx(192));
  CHECK(equal_cost_sizes({.width = 64, .hidden = 256, .experts = 8}, 3, 1).experts == Approx(31));
}

TEST_CASE("sub_tokens: a copied tape looks at its own masks", "[layer][split]") {
  sub_token_layer layer{of_sub_tokens(), 2};
  initialize(layer, 7);
  const matrix<double> x = test::random_matrix<double>(5, 6, 8), dy = test::random_matrix<double>(5, 6, 9);
  matrix<double> y(5, 6), dx(5, 6), again(5, 6);
  using tape_type = decltype(layer)::tape;
  const std::vector<std::uint8_t> mask{1, 0, 1, 1, 1};
  const std::vector<index_t> borders{0, 3, 5};
  auto tape = std::make_unique<tape_type>();
  layer.forward(x, y, *tape, {.training = true, .token_mask = mask, .groups = borders});
  layer.backward(dy, dx, *tape);
  tape_type copy = *tape;
  layer.forward(x.topRows(1), y.topRows(1), *tape);
  tape.reset();
  layer.backward(dy, again, copy);
  CHECK(test::same_bits(dx, again));
  CHECK(copy.layer.context.token_mask.data() == copy.own.token_mask.data());
  CHECK(copy.layer.context.groups.size() == 3);
  CHECK(copy.layer.context.groups[1] == 6);
}

TEST_CASE("sub_tokens: converts, counts its memory, and refuses no parts", "[layer][split]") {
  sub_token_layer layer{of_sub_tokens(), 2};
  initialize(layer, 1);
  const auto small = layer.stored_as<bfloat16_storage>();
  CHECK(small.inputs() == 6);
  CHECK(layer.workspace_bytes(9) > layer.layer().workspace_bytes(18));
  CHECK_THROWS_WITH((sub_token_layer{of_sub_tokens(), 0}), Catch::Matchers::Contains("into 0 parts"));
}

TEST_CASE("sub_tokens: every promise of a layer", "[layer][split][conformance]") {
  test::check_layer_promises(sequence{linear_layer<double>{6, 6}, sub_token_layer{of_sub_tokens(), 2}}, 11);
  test::check_layer_promises(sub_token_layer{of_sub_tokens(), 3}, 12);
}
