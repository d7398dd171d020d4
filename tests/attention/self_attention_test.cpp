#include <sluice/attention/self_attention.hpp>

#include <sluice/layer/depth/repeated.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../layer/plain_checks.hpp"

using namespace sluice;

namespace {

const self_attention_options every_option{.heads = 4,
                                          .key_heads = 2,
                                          .head_width = 6,
                                          .value_width = 5,
                                          .bias = true,
                                          .output_bias = true,
                                          .rotary = {.width = 4, .base = 50}};

/// With biases that are not zero.
template <typename Scalar, attention_order Order = attention_order::causal>
self_attention<Scalar, Order> attention_of(index_t width, const self_attention_options& o) {
  self_attention<Scalar, Order> layer(width, o);
  initialize(layer, 3);
  for_each_parameter(layer, [](const std::string& name, auto& p) {
    if (name.ends_with("bias"))
      p.fill([](index_t i) { return static_cast<Scalar>(0.1) * static_cast<Scalar>(i % 5 - 2); });
  });
  return layer;
}

}  // namespace

static_assert(TrainableLayer<self_attention<float>>);
static_assert(is_causal<self_attention<float>> && !is_causal<self_attention<float, attention_order::bidirectional>>);

TEST_CASE("self_attention: every promise of a layer", "[attention][conformance]") {
  const auto passes = [](const auto& layer) {
    const auto report = check_layer(layer, {.seed = 5});
    INFO(report.describe());
    CHECK(report.passed());
    CHECK(report.find("gradients")->result == outcome::passed);
  };
  passes(attention_of<double>(8, every_option));
  passes(attention_of<double, attention_order::bidirectional>(6, {.heads = 3, .sharing = key_sharing::repeated}));
}

TEST_CASE("self_attention: projections, softmax over earlier tokens, projection", "[attention]") {
  auto layer = attention_of<double>(8, every_option);
  const index_t T = 9;
  const matrix<double> x = test::random_matrix<double>(T, 8, 1);
  matrix<double> y(T, 8);
  self_attention<double>::workspace ws;
  layer.forward(x, y, ws);
  const auto projected = [&](parameter<double>& w, parameter<double>& b) {
    return matrix<double>((x * w.to_matrix().transpose()).rowwise() + b.to_matrix().col(0).transpose());
  };
  const auto turned = [](Eigen::RowVectorXd head, index_t position) {
    for (index_t i = 0; i < 2; ++i) {
      const double angle = static_cast<double>(position) * std::pow(50.0, -0.5 * static_cast<double>(i));
      const double a = head[i], b = head[i + 2];
      head[i] = a * std::cos(angle) - b * std::sin(angle), head[i + 2] = b * std::cos(angle) + a * std::sin(angle);
    }
    return head;
  };
  const matrix<double> q = projected(layer.query(), layer.query_bias()), k = projected(layer.key(), layer.key_bias());
  const matrix<double> v = projected(layer.value(), layer.value_bias());
  matrix<double> heads(T, 20);
  for (index_t h = 0; h < 4; ++h)
    for (index_t i = 0; i < T; ++i) {
      Eigen::RowVectorXd weights(i + 1);
      for (index_t j = 0; j <= i; ++j)
        weights[j] = std::exp(turned(q.row(i).segment(6 * h, 6), i).dot(turned(k.row(j).segment(6 * (h / 2), 6), j)) /
                              std::sqrt(6.0));
      heads.row(i).segment(5 * h, 5) = weights / weights.sum() * v.topRows(i + 1).middleCols(5 * (h / 2), 5);
    }
  const matrix<double> expected =
      (heads * layer.output().to_matrix().transpose()).rowwise() + layer.output_bias().to_matrix().col(0).transpose();
  CHECK(test::largest_difference(y, expected) < test::bound<double>(20 + T, 4));
}

TEST_CASE("self_attention: sequences, padding and NaN keep to themselves", "[attention]") {
  auto layer = attention_of<double>(8, {.heads = 2, .bias = true});
  const matrix<double> x = test::random_matrix<double>(30, 8, 11);
  matrix<double> together(30, 8), first(11, 8), second(19, 8);
  self_attention<double>::workspace ws;
  const std::vector<index_t> borders{0, 11, 30};
  layer.forward(x, together, ws, {.sequences = borders});
  layer.forward(x.topRows(11), first, ws);
  layer.forward(x.bottomRows(19), second, ws);
  CHECK(test::same_bits(together.topRows(11), first));
  CHECK(test::same_bits(together.bottomRows(19), second));
}

TEST_CASE("self_attention: a batch with a hidden token gives what it gives without it", "[attention]") {
  auto layer = attention_of<double>(8, {.heads = 2, .bias = true});  // no positions, which the token would take
  matrix<double> x = test::random_matrix<double>(9, 8, 92), dy = test::random_matrix<double>(9, 8, 93), x8(8, 8),
                 dy8(8, 8);
  x8 << x.topRows(4), x.bottomRows(4);
  dy8 << dy.topRows(4), dy.bottomRows(4);
  x.row(4).setConstant(quiet_nan<double>());
  const auto expected = test::train_once(layer, x8, dy8), r = test::train_once(layer, x, dy);
  const double tolerance = test::bound<double>(8 * 9, 8);
  CHECK(test::largest_difference(matrix<double>(r.y.bottomRows(4)), matrix<double>(expected.y.bottomRows(4))) <
        tolerance);
  CHECK(test::largest_difference(matrix<double>(r.dx.topRows(4)), matrix<double>(expected.dx.topRows(4))) < tolerance);
  CHECK(test::largest_difference(matrix<double>(r.dx.bottomRows(4)), matrix<double>(expected.dx.bottomRows(4))) <
        tolerance);
  CHECK(r.dx.row(4).isZero(0));
  for (std::size_t p = 0; p < r.gradients.size(); ++p)
    CHECK(test::largest_difference(r.gradients[p], expected.gradients[p]) < tolerance);
}

TEMPLATE_TEST_CASE("self_attention: token by token with a cache has the bits of whole sequences", "[attention]", float,
                   double) {
  using Scalar = TestType;
  auto layer = attention_of<Scalar>(8, every_option);
  const std::vector<index_t> borders{0, 90, 130};
  std::vector<std::uint8_t> mask(130, 1);
  mask[3] = 0;
  matrix<Scalar> x = test::random_matrix<Scalar>(130, 8, 11), whole(130, 8);
  x(100, 2) = quiet_nan<Scalar>();
  typename self_attention<Scalar>::workspace ws;
  layer.forward(x, whole, ws, {.token_mask = mask, .sequences = borders});

  key_value_cache<Scalar> cache(layer, 2, 90);
  index_t done[] = {0, 0};
  for (const index_t step : {5, 1, 1, 70, 1, 12}) {  // the second sequence ends first
    const index_t more[] = {step, std::min<index_t>(40 - done[1], (step + 1) / 2)};
    const std::vector<index_t> some{0, more[0], more[0] + more[1]};
    matrix<Scalar> part(some[2], 8), y(some[2], 8), expected(some[2], 8);
    part << x.middleRows(done[0], more[0]), x.middleRows(90 + done[1], more[1]);
    expected << whole.middleRows(done[0], more[0]), whole.middleRows(90 + done[1], more[1]);
    std::vector<std::uint8_t> part_mask(mask.begin() + done[0], mask.begin() + done[0] + more[0]);
    part_mask.insert(part_mask.end(), as_size(more[1]), 1);
    layer.forward_cached(part, y, cache, ws, {.token_mask = part_mask, .sequences = some});
    CHECK(test::same_bits(y, expected));
    for (index_t s = 0; s < 2; ++s) CHECK(cache.length(s) == (done[s] += more[s]));
  }
}

TEST_CASE("self_attention: inside of pre-norm blocks, one after the other, it is decoded as well", "[attention]") {
  const auto block = [] {
    return residual_layer{normalized_layer{self_attention<float>(8, {.heads = 2, .rotary = {.width = 4}}),
                                           rms_norm<float>{8, {.epsilon = 1e-5f}}}};
  };
  repeated_layers stack{std::vector{block(), block()}, {.rounds = 2}};
  initialize(stack, 3);
  const matrix<float> x = test::random_matrix<float>(6, 8, 11);
  matrix<float> whole(6, 8), y(1, 8);
  decltype(stack)::workspace ws;
  stack.forward(x, whole, ws);
  const self_attention<float>& inside = stack.layer(0).layer().layer();
  std::vector<key_value_cache<float>> caches(4, key_value_cache<float>(inside, 1, 6));
  for (index_t t = 0; t < 6; ++t) {
    stack.forward_cached(x.middleRows(t, 1), y, std::span(caches), ws);
    CHECK(test::same_bits(y, whole.row(t)));
  }
  CHECK_THROWS_AS(stack.forward_cached(x.topRows(1), y, std::span(caches).first(3), ws), std::invalid_argument);
}

TEST_CASE("key_value_cache: goes back to an earlier position, and says what does not fit", "[attention]") {
  auto layer = attention_of<float>(8, {.heads = 2, .rotary = {.width = 4}});
  auto wider = attention_of<float>(8, {.heads = 2, .head_width = 5});
  const matrix<float> x = test::random_matrix<float>(6, 8, 11);
  matrix<float> y(6, 8), again(2, 8);
  self_attention<float>::workspace ws;
  key_value_cache<float> cache(layer, 1, 6);
  CHECK(cache.positions() == 6);
  layer.forward_cached(x, y, cache, ws);
  CHECK_THROWS_WITH(layer.forward_cached(x.topRows(1), again.topRows(1), cache, ws),
                    Catch::Matchers::Contains("sequence 0 has 6 of 6 positions and should get 1 more"));
  CHECK(cache.length(0) == 6);
  CHECK_THROWS_AS(cache.truncate(0, 7), std::invalid_argument);
  CHECK_THROWS_AS(cache.truncate(1, 0), std::invalid_argument);
  cache.truncate(0, 4);
  layer.forward_cached(x.bottomRows(2), again, cache, ws);
  CHECK(test::same_bits(again, y.bottomRows(2)));
  cache.clear();
  CHECK(cache.longest() == 0);
  CHECK_THROWS_AS(wider.forward_cached(x, y, cache, ws), std::invalid_argument);
  const std::vector<index_t> two{0, 3, 6};
  CHECK_THROWS_AS(layer.forward_cached(x, y, cache, ws, {.sequences = two}), std::invalid_argument);
  CHECK_THROWS_AS(key_value_cache<float>(layer, 0, 6), std::invalid_argument);
}

TEST_CASE("self_attention: widths that do not fit throw", "[attention]") {
  CHECK_THROWS_AS(self_attention<float>(7, {.heads = 2}), std::invalid_argument);
  CHECK_THROWS_AS(self_attention<float>(0), std::invalid_argument);
  CHECK_THROWS_AS(self_attention<float>(8, {.heads = 4, .key_heads = 3}), std::invalid_argument);
  CHECK_THROWS_AS(self_attention<float>(8, {.heads = 2, .rotary = {.width = 6}}), std::invalid_argument);
}
