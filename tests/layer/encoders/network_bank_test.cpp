#include <sluice/layer/encoders/network_bank.hpp>

#include <sluice/attention/self_attention.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/normalized_bank.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/encoders/unfolded.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/router/combined.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include <memory>
#include <vector>

#include "../../support.hpp"

using namespace sluice;

namespace {

/// Five numbers of one kind and three of another in, scores of 4 and of 2 out.
template <typename Scalar>
auto relation_network() {
  return sequence{residual_layer{dense_layer{ffn<Scalar, gelu>{8, 6, {.bias = true}}}}, linear_layer<Scalar>{8, 6}};
}

template <typename Scalar>
auto relation_mixture() {
  moe_layer layer{top_k_router<Scalar>{8, 3, {.top_k = 2}}, network_bank{3, relation_network<Scalar>()}};
  initialize(layer, 3);
  return layer;
}

}  // namespace

TEST_CASE("network_bank: a row goes through the networks that were chosen for it", "[layer][encoders]") {
  const auto layer = relation_mixture<double>();
  const matrix<double> x = test::random_matrix<double>(7, 8, 4);
  matrix<double> y(7, 6), expected = matrix<double>::Zero(7, 6), own(1, 6);
  decltype(relation_mixture<double>())::workspace ws;
  layer.forward(x, y, ws);
  for (index_t t = 0; t < 7; ++t)
    for (const index_t i : ws.plan.of_token(t)) {
      decltype(relation_network<double>())::workspace memory;
      layer.bank().network(ws.plan.expert(i)).forward(x.row(t), own, memory);
      expected.row(t) += ws.plan.weight(i) * own;
    }
  CHECK(test::largest_difference(y, expected) < test::bound<double>(8, 10));
}

TEST_CASE("network_bank: keeps the promises of layers, with sums and with logarithms", "[layer][encoders]") {
  const auto report = check_layer(relation_mixture<double>(), {.tokens = 21, .gradient_tokens = 5});
  INFO(report.describe());
  CHECK(report.passed());
  moe_layer logarithms{combined_router{top_k_router<double>{8, 3, {.top_k = 2}}, log_sum_exp{.weighted = true}},
                       network_bank{3, relation_network<double>()}};
  initialize(logarithms, 5);
  const auto other = check_layer(logarithms, {.tokens = 21, .gradient_tokens = 5});
  INFO(other.describe());
  CHECK(other.passed());
}

TEST_CASE("network_bank: networks that mix tokens see those that were sent to them, sequence by sequence",
          "[layer][encoders]") {
  const network_bank attentions{2, self_attention<double>{6, {.heads = 2}}};
  moe_layer layer{top_k_router<double>{6, 3, {.top_k = 2}},
                  normalized_bank{expert_union{attentions, network_bank{1, linear_layer<double>{6, 6}}}, no_norm<double>{}}};
  static_assert(is_token_mixer<decltype(layer)> && is_causal<decltype(layer)>);
  static_assert(!is_token_mixer<decltype(relation_mixture<double>())>);
  initialize(layer, 3);
  const matrix<double> x = test::random_matrix<double>(23, 6, 4);
  const std::vector<index_t> borders{0, 9, 9, 23};
  matrix<double> y(23, 6), expected = matrix<double>::Zero(23, 6);
  decltype(layer)::workspace ws;
  layer.forward(x, y, ws, {.sequences = borders});
  const auto add = [&](index_t e, const auto& network) {
    for (std::size_t s = 0; s + 1 < borders.size(); ++s) {
      std::vector<index_t> rows;
      for (index_t i = 0; i < ws.plan.size(); ++i)
        if (const index_t t = ws.plan.token(i); ws.plan.expert(i) == e && t >= borders[s] && t < borders[s + 1])
          rows.push_back(i);
      matrix<double> own(index_t(rows.size()), 6), out(own.rows(), 6);
      for (index_t r = 0; r < own.rows(); ++r) own.row(r) = x.row(ws.plan.token(rows[as_size(r)]));
      typename std::remove_cvref_t<decltype(network)>::workspace memory;
      network.forward(own, out, memory);
      for (index_t r = 0; r < own.rows(); ++r)
        expected.row(ws.plan.token(rows[as_size(r)])) += ws.plan.weight(rows[as_size(r)]) * out.row(r);
    }
  };
  const auto& banks = layer.bank().bank();
  add(0, banks.bank<0>().network(0)), add(1, banks.bank<0>().network(1)), add(2, banks.bank<1>().network(0));
  CHECK(test::largest_difference(y, expected) < test::bound<double>(23 + 18, 10));

  layer_check_options<double> options{.tokens = 23, .gradient_tokens = 5};
  options.context.sequences = borders;
  const auto report = check_layer(layer, options);
  INFO(report.describe());
  CHECK(report.passed());

  ws.plan.reset(23, 3);
  for (const index_t t : {3, 12, 5}) ws.plan.add(t, 1, 0.5);
  ws.plan.finish();
  CHECK_THROWS_WITH(layer.forward_planned(x, y, ws, {.sequences = borders}),
                    Catch::Contains("network 1 cannot mix tokens of 3 sequences: token 5 comes after"));
}

TEST_CASE("unfolded: a row is a sequence of its own", "[layer][encoders]") {
  unfolded_layer layer{residual_layer{dense_layer{ffn<double, gelu>{4, 5}}}, 3};
  initialize(layer, 8);
  CHECK((layer.inputs() == 12 && layer.outputs() == 12 && layer.pieces() == 3));
  const matrix<double> x = test::random_matrix<double>(5, 12, 9);
  matrix<double> y(5, 12), tokens(15, 4);
  decltype(layer)::workspace ws;
  layer.forward(x, y, ws);
  std::remove_cvref_t<decltype(layer.layer())>::workspace inner;
  layer.layer().forward(const_matrix_map<double>(x.data(), 15, 4), tokens, inner);
  CHECK(test::same_bits(matrix<double>(const_matrix_map<double>(y.data(), 15, 4)), tokens));
  const auto report = check_layer(layer, {.tokens = 13, .gradient_tokens = 3});
  INFO(report.describe());
  CHECK(report.passed());
  CHECK_THROWS_AS((unfolded_layer{linear_layer<float>{2, 2}, 0}), std::invalid_argument);
}

TEST_CASE("unfolded_layer: a copied tape looks at its own masks", "[layer][encoders]") {
  unfolded_layer layer{residual_layer{dense_layer{ffn<double, gelu>{4, 5}}}, 3};
  initialize(layer, 7);
  const matrix<double> x = test::random_matrix<double>(5, 12, 8), dy = test::random_matrix<double>(5, 12, 9);
  matrix<double> y(5, 12), dx(5, 12), again(5, 12);
  const std::vector<std::uint8_t> mask{1, 0, 1, 1, 1};
  auto tape = std::make_unique<decltype(layer)::tape>();
  layer.forward(x, y, *tape, {.training = true, .token_mask = mask});
  layer.backward(dy, dx, *tape);
  decltype(layer)::tape copy = *tape;
  layer.forward(x.topRows(1), y.topRows(1), *tape);
  tape.reset();
  layer.backward(dy, again, copy);
  CHECK(test::same_bits(dx, again));
  CHECK(copy.layer.context.token_mask.data() == copy.own.token_mask.data());
  CHECK(copy.layer.context.groups.size() == 6);
  CHECK(copy.layer.context.groups[1] == 3);
}
