#include <sluice/attention/selective_attention.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/tokens_choose/position_share.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/router/unit_weights.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../io/messages.hpp"
#include "../support.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

using namespace sluice;

namespace {

template <typename Scalar>
auto heads_by_top_k(index_t heads, index_t top_k, const selective_attention_options& o) {
  selective_attention layer{head_router{top_k_router<Scalar>{6, heads, {.top_k = top_k, .weights = weighting::pre}}, switch_balance{}}, o};
  initialize(layer, 3);
  return layer;
}

template <typename Scalar>
using union_routing = head_router<unit_weights_router<position_share_router<Scalar>>>;

/// Row vector turned by a position, pairs halves apart.
matrix<double> turned(matrix<double> row, index_t width, index_t position) {
  for (index_t i = 0; i < width / 2; ++i) {
    const double angle = double(position) * std::pow(10000.0, -2.0 * double(i) / double(width));
    const double a = row(0, i), b = row(0, width / 2 + i);
    row(0, i) = a * std::cos(angle) - b * std::sin(angle);
    row(0, width / 2 + i) = b * std::cos(angle) + a * std::sin(angle);
  }
  return row;
}

}  // namespace

static_assert(is_causal<selective_attention<head_router<top_k_router<float>>>>);
static_assert(!is_causal<selective_attention<union_routing<float>>>);

TEST_CASE("selective_attention: every promise of a layer", "[attention][conformance]") {
  const auto passes = [](const auto& layer) {
    const auto report = check_layer(layer, {.seed = 5});
    INFO(report.describe());
    CHECK(report.passed());
    return report.find("gradients")->result;
  };
  CHECK(passes(heads_by_top_k<double>(4, 2, {.head_width = 4, .value_width = 3, .bias = true, .rotary = {.width = 2}})) ==
        outcome::passed);
  selective_attention<head_router<top_k_router<double>>, attention_order::bidirectional> both_ways{
      head_router{top_k_router<double>{6, 3, {.top_k = 1, .weights = weighting::pre}}}, {.head_width = 2}};
  initialize(both_ways, 3);
  CHECK(passes(both_ways) == outcome::passed);
  // Its router learns by design as if weights counted: no derivative to compare with.
  selective_attention of_union{union_routing<double>{unit_weights_router{position_share_router<double>{6, 4, {.top_k = 2}}}},
                               {.head_width = 2, .bias = true, .rotary = {.width = 2}}};
  initialize(of_union, 3);
  passes(of_union);
}

TEST_CASE("selective_attention: all heads at weight 1 are self_attention", "[attention]") {
  unit_weights_router<top_k_router<double>> all{top_k_router<double>{6, 3, {.top_k = 3}}};
  selective_attention layer{head_router{all}, {.head_width = 4, .value_width = 2, .rotary = {.width = 4}}};
  initialize(layer, 3);
  self_attention<double> plain(6, {.heads = 3, .head_width = 4, .value_width = 2, .rotary = {.width = 4}});
  matrix<double> query(12, 6), key(12, 6), value(6, 6), output(6, 6);
  for (index_t h = 0; h < 3; ++h) {
    query.middleRows(4 * h, 4) = layer.query().expert(h).weight().to_matrix();
    key.middleRows(4 * h, 4) = layer.key().expert(h).weight().to_matrix();
    value.middleRows(2 * h, 2) = layer.value().expert(h).weight().to_matrix();
    output.middleCols(2 * h, 2) = layer.output().expert(h).weight().to_matrix();
  }
  plain.query().assign(query), plain.key().assign(key), plain.value().assign(value), plain.output().assign(output);
  const matrix<double> x = test::random_matrix<double>(17, 6, 1);
  matrix<double> y(17, 6), expected(17, 6);
  decltype(layer)::workspace ws;
  self_attention<double>::workspace plain_ws;
  const std::vector<index_t> borders{0, 5, 5, 17};
  layer.forward(x, y, ws, {.sequences = borders});
  plain.forward(x, expected, plain_ws, {.sequences = borders});
  CHECK(test::largest_difference(y, expected) < test::bound<double>(30, 4));
}

TEST_CASE("selective_attention: a head attends among its own tokens at their places", "[attention]") {
  auto layer = heads_by_top_k<double>(4, 2, {.head_width = 4, .bias = true, .rotary = {.width = 4}});
  for (auto* bank : {&layer.query(), &layer.key(), &layer.value(), &layer.output()})  // biases begin at zero
    for (index_t h = 0; h < 4; ++h) bank->expert(h).bias().fill([&](index_t i) { return 0.1 * double(h) - 0.2 * double(i); });
  const index_t T = 13;
  const matrix<double> x = test::random_matrix<double>(T, 6, 1);
  matrix<double> y(T, 6), expected = matrix<double>::Zero(T, 6);
  decltype(layer)::workspace ws;
  const std::vector<index_t> borders{0, 4, 13};
  layer.forward(x, y, ws, {.sequences = borders});
  const matrix<double> weights = ws.plan.dense_weights();
  const auto mapped = [&](auto& bank, index_t h, const auto& row) {
    auto& expert = bank.expert(h);
    matrix<double> out = row * expert.weight().to_matrix().transpose();
    for (index_t c = 0; c < out.cols(); ++c) out(0, c) += expert.bias().data()[c];
    return out;
  };
  for (index_t h = 0; h < 4; ++h)
    for (std::size_t s = 0; s < 2; ++s) {
      std::vector<index_t> own;
      for (index_t t = borders[s]; t < borders[s + 1]; ++t)
        if (weights(t, h) != 0) own.push_back(t);
      for (std::size_t i = 0; i < own.size(); ++i) {
        const auto place = [&](std::size_t j) { return own[j] - borders[s]; };
        const matrix<double> q = turned(mapped(layer.query(), h, x.row(own[i])), 4, place(i));
        matrix<double> sum = matrix<double>::Zero(1, 4);
        double total = 0;
        for (std::size_t j = 0; j <= i; ++j) {
          const matrix<double> k = turned(mapped(layer.key(), h, x.row(own[j])), 4, place(j));
          const double p = std::exp(q.row(0).dot(k.row(0)) / 2);
          sum += p * mapped(layer.value(), h, x.row(own[j]));
          total += p;
        }
        expected.row(own[i]) += weights(own[i], h) * mapped(layer.output(), h, sum / total);
      }
    }
  CHECK(test::largest_difference(y, expected) < test::bound<double>(60, 8));
}

TEST_CASE("selective_attention: sequences keep to themselves and a head without tokens is idle", "[attention]") {
  auto layer = heads_by_top_k<float>(4, 1, {.head_width = 4, .rotary = {.width = 2}});
  const matrix<float> x = test::random_matrix<float>(30, 6, 11);
  matrix<float> together(30, 6), first(11, 6), second(19, 6);
  decltype(layer)::workspace ws;
  const std::vector<index_t> borders{0, 11, 30};
  layer.forward(x, together, ws, {.sequences = borders});
  layer.forward(x.topRows(11), first, ws);
  layer.forward(x.bottomRows(19), second, ws);
  CHECK(test::same_bits(together.topRows(11), first));
  CHECK(test::same_bits(together.bottomRows(19), second));
  layer.routing().router().gate().weight().fill([](index_t i) { return i < 6 ? 0.0F : -1.0F; });
  const matrix<float> ones = matrix<float>::Ones(3, 6);
  matrix<float> y(3, 6), y1(1, 6);
  layer.forward(ones, y, ws);
  CHECK(ws.plan.load(0) == 3);
  layer.forward(ones.topRows(1), y1, ws);
  CHECK(test::same_bits(y.topRows(1), y1));  // the first sees itself alone
}

TEST_CASE("selective_attention: all tokens of a sequence are seen, whatever expert they have", "[attention]") {
  using one_of = head_router<top_k_router<double>>;
  const one_of routing{top_k_router<double>{6, 3, {.top_k = 1, .weights = weighting::pre}}};
  selective_attention<one_of> layer{
      routing, {.heads = 2, .head_width = 2, .bias = true, .among = attended::all_tokens, .rotary = {.width = 2}}};
  initialize(layer, 3);
  const auto report = check_layer(layer, {.seed = 5});
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(report.find("gradients")->result == outcome::passed);
  // Experts alike: one attention, weighed by the router.
  self_attention<double> plain(6, {.heads = 2, .head_width = 2, .rotary = {.width = 2}});
  initialize(plain, 4);
  for (index_t e = 0; e < 3; ++e) {
    const auto same = [&](auto& bank, parameter<double>& map) { bank.expert(e).weight().assign(map.to_matrix()); };
    same(layer.query(), plain.query()), same(layer.key(), plain.key());
    same(layer.value(), plain.value()), same(layer.output(), plain.output());
  }
  const matrix<double> x = test::random_matrix<double>(11, 6, 1);
  matrix<double> y(11, 6), expected(11, 6);
  decltype(layer)::workspace ws;
  self_attention<double>::workspace plain_ws;
  const std::vector<index_t> borders{0, 4, 11};
  layer.forward(x, y, ws, {.sequences = borders});
  plain.forward(x, expected, plain_ws, {.sequences = borders});
  for (index_t t = 0; t < 11; ++t) expected.row(t) *= ws.plan.weight(ws.plan.of_token(t)[0]);
  CHECK(test::largest_difference(y, expected) < test::bound<double>(30, 4));
  selective_attention several{head_router{top_k_router<double>{6, 3, {.top_k = 2}}},
                              {.head_width = 2, .among = attended::all_tokens}};
  initialize(several, 3);
  decltype(several)::workspace several_ws;
  CHECK_THROWS_WITH(several.forward(x, y, several_ws), test::contains("token 0 has several experts"));
}

TEST_CASE("selective_attention: what makes no sense is refused", "[attention]") {
  const head_router routing{top_k_router<float>{6, 3}};
  CHECK_THROWS_WITH(selective_attention(routing, {.head_width = 4, .rotary = {.width = 6}}),
                    test::contains("of a head, 4"));
  CHECK_THROWS_WITH(selective_attention(routing, {.head_width = 0}), test::contains("widths >= 1"));
}
