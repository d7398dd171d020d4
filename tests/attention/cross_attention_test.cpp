#include <sluice/attention/cross_attention.hpp>

#include <sluice/attention/self_attention.hpp>
#include <sluice/exec/thread_pool.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/beside.hpp>
#include <sluice/layer/encoders/zero_gated.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../layer/plain_checks.hpp"

using namespace sluice;

namespace {

constexpr index_t cross_width = 8, source = 5;
const cross_attention_options every_cross_option{
    .source = source, .heads = 4, .key_heads = 2, .head_width = 6, .value_width = 3, .bias = true, .output_bias = true};

/// With biases and gains that are not what they start at.
template <typename Layer>
Layer initialized(Layer layer) {
  initialize(layer, 3);
  for_each_parameter(layer, [](const std::string& name, auto& p) {
    if (name.ends_with("bias")) p.fill([](index_t i) { return 0.1 * double(i % 5 - 2); });
    if (name.ends_with("gain")) p.fill([](index_t i) { return 0.7 + 0.2 * double(i % 3); });
  });
  return layer;
}

template <typename Layer>
matrix<double> cross_output_of(const Layer& layer, const matrix<double>& x, const routing_context<double>& context) {
  matrix<double> y(x.rows(), layer.outputs());
  typename Layer::workspace ws;
  layer.forward(x, y, ws, context);
  return y;
}

/// One range: the queries x over the rows s, with every option.
matrix<double> reference(cross_attention<double> layer, const matrix<double>& x, const matrix<double>& s) {
  const auto projected = [&](const matrix<double>& rows, parameter<double>& w, parameter<double>& b) {
    return matrix<double>((rows * w.to_matrix().transpose()).rowwise() + b.to_matrix().col(0).transpose());
  };
  const matrix<double> q = projected(x, layer.query(), layer.query_bias());
  const matrix<double> k = projected(s, layer.key(), layer.key_bias()),
                       v = projected(s, layer.value(), layer.value_bias());
  matrix<double> heads = matrix<double>::Zero(x.rows(), 12);
  for (index_t h = 0; h < 4 && s.rows() > 0; ++h)
    for (index_t t = 0; t < x.rows(); ++t) {
      Eigen::RowVectorXd w =
          ((q.row(t).segment(6 * h, 6) * k.middleCols(6 * (h / 2), 6).transpose()) / std::sqrt(6.0)).array().exp();
      heads.row(t).segment(3 * h, 3) = w / w.sum() * v.middleCols(3 * (h / 2), 3);
    }
  return projected(heads, layer.output(), layer.output_bias());
}

}  // namespace

static_assert(TrainableLayer<cross_attention<float>>);
static_assert(is_causal<cross_attention<float>> && !is_token_mixer<cross_attention<float>>);

TEST_CASE("cross_attention: every promise of a layer, whatever rows are hidden", "[attention][conformance]") {
  matrix<double> states = test::random_matrix<double>(11, source, 4);
  states(2, 1) = quiet_nan<double>();
  std::vector<std::uint8_t> seen(11, 1);
  seen[7] = 0;
  const encoder_states<double> encoder{.rows = states, .row_mask = seen};
  layer_check_options<double> options{.seed = 5};
  options.context.encoders = {&encoder, 1};
  const auto passes = [&](const auto& layer) {
    const auto report = check_layer(layer, options);
    INFO(report.describe());
    CHECK(report.passed());
    CHECK(report.find("gradients")->result == outcome::passed);
  };
  passes(initialized(cross_attention<double>(cross_width, every_cross_option)));
  passes(initialized(cross_attention<double, layer_norm<double>>(cross_width, {.source = source, .heads = 2})));
}

TEST_CASE("cross_attention: tokens of a sequence look at the rows of its range", "[attention]") {
  const auto layer = initialized(cross_attention<double>(cross_width, every_cross_option));
  const matrix<double> x = test::random_matrix<double>(9, cross_width, 1),
                       states = test::random_matrix<double>(16, source, 2);
  const std::vector<index_t> borders{0, 2, 2, 8, 9}, rows{0, 7, 9, 9, 16};  // no tokens, and no rows
  const encoder_states<double> encoder{.rows = states, .sequences = rows};
  const matrix<double> y = cross_output_of(layer, x, {.sequences = borders, .encoders = {&encoder, 1}});
  for (std::size_t s = 0; s + 1 < borders.size(); ++s)
    CHECK(test::largest_difference(matrix<double>(y.middleRows(borders[s], borders[s + 1] - borders[s])),
                                   reference(layer, x.middleRows(borders[s], borders[s + 1] - borders[s]),
                                             states.middleRows(rows[s], rows[s + 1] - rows[s]))) <
          test::bound<double>(16 + 12, 8));
}

TEST_CASE("cross_attention: a row with NaN and a masked one are as if they were not there", "[attention]") {
  auto layer = initialized(cross_attention<double, layer_norm<double>>(cross_width, {.source = source, .heads = 2}));
  matrix<double> states = test::random_matrix<double>(6, source, 2), fewer(4, source), dstates(6, source),
                 dfewer(4, source);
  fewer << states.row(0), states.middleRows(2, 2), states.row(5);
  states(1, 3) = quiet_nan<double>();
  states.row(4).setConstant(quiet_nan<double>());
  const std::vector<std::uint8_t> mask{1, 1, 1, 1, 0, 1};
  dstates.setConstant(0.5), dfewer.setConstant(0.5);  // gradients are added
  const encoder_states<double> all{.rows = states, .row_mask = mask, .gradient = test::span_of(dstates)},
      some{.rows = fewer, .gradient = test::span_of(dfewer)};
  const matrix<double> x = test::random_matrix<double>(5, cross_width, 1),
                       dy = test::random_matrix<double>(5, cross_width, 3);
  const auto r = test::train_once(layer, x, dy, {.encoders = {&all, 1}}),
             expected = test::train_once(layer, x, dy, {.encoders = {&some, 1}});
  const double tolerance = test::bound<double>(cross_width * 6, 8);
  CHECK(test::largest_difference(r.y, expected.y) < tolerance);
  CHECK(test::largest_difference(r.dx, expected.dx) < tolerance);
  for (std::size_t p = 0; p < r.gradients.size(); ++p)
    CHECK(test::largest_difference(r.gradients[p], expected.gradients[p]) < tolerance);
  CHECK((dstates.row(1).array() == 0.5).all());
  CHECK((dstates.row(4).array() == 0.5).all());
  CHECK(test::largest_difference(matrix<double>(dstates.middleRows(2, 2)), matrix<double>(dfewer.middleRows(1, 2))) <
        tolerance);
  CHECK_FALSE((dfewer.array() == 0.5).any());

  const std::vector<std::uint8_t> none(6, 0);
  const encoder_states<double> hidden{.rows = states, .row_mask = none}, empty{};
  CHECK(cross_output_of(layer, x, {.encoders = {&hidden, 1}}).isZero(0));
  CHECK(cross_output_of(layer, x, {.encoders = {&empty, 1}}).isZero(0));
}

TEST_CASE("cross_attention: several encoders in one block, one of them read twice", "[attention]") {
  const cross_attention<double> first(cross_width, {.encoder = 0, .source = source, .heads = 2});
  const cross_attention<double, rms_norm<double>> second(cross_width, {.encoder = 1, .source = 3, .heads = 4});
  auto block = initialized(
      sequence{residual_layer{normalized_layer{beside_layer{first, second}, layer_norm<double>{cross_width}}},
               residual_layer{first}});
  matrix<double> x = test::random_matrix<double>(6, cross_width, 1), images = test::random_matrix<double>(5, source, 2),
                 sounds = test::random_matrix<double>(9, 3, 3), dimages = matrix<double>::Zero(5, source),
                 dsounds = matrix<double>::Zero(9, 3);
  const matrix<double> dy = test::random_matrix<double>(6, cross_width, 4);
  const std::vector<index_t> borders{0, 4, 6}, image_rows{0, 1, 5}, sound_rows{0, 6, 9};
  const encoder_states<double> encoders[] = {
      {.rows = images, .sequences = image_rows, .gradient = test::span_of(dimages)},
      {.rows = sounds, .sequences = sound_rows, .gradient = test::span_of(dsounds)}};
  const routing_context<double> context{.training = true, .sequences = borders, .encoders = encoders};
  matrix<double> y(6, cross_width), dx(6, cross_width);
  decltype(block)::tape tape, own;
  block.forward(x, y, tape, context);
  block.backward(dy, dx, tape);
  const auto report = check_gradients(block,
                                      {{"x", test::span_of(x), test::span_of(std::as_const(dx))},
                                       {"images", test::span_of(images), test::span_of(std::as_const(dimages))},
                                       {"sounds", test::span_of(sounds), test::span_of(std::as_const(dsounds))}},
                                      [&] {
                                        block.forward(x, y, own, context);
                                        return (y.array() * dy.array()).sum();
                                      });
  INFO(report.describe());
  CHECK(report.checked > 300);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("cross_attention: EVLM's branches leave a language model as it was until their gates open", "[attention]") {
  const residual_layer first{
      normalized_layer{self_attention<double>{cross_width, {.heads = 2}}, rms_norm<double>{cross_width}}};
  const residual_layer last{
      normalized_layer{linear_layer<double>{cross_width, cross_width}, rms_norm<double>{cross_width}}};
  const zero_gated_layer look{cross_attention<double, layer_norm<double>>{cross_width, {.source = source, .heads = 2}}};
  const zero_gated_layer experts{
      moe_layer{top_k_router<double>{cross_width, 3, {.top_k = 2}}, expert_bank<ffn<double, gelu>>{3, cross_width, 5}}};
  auto model = initialized(sequence{first, look, experts, last});
  sequence before{model.layer<0>(), model.layer<3>()};
  matrix<double> x = test::random_matrix<double>(9, cross_width, 1),
                 states = test::random_matrix<double>(12, source, 2), dstates = matrix<double>::Zero(12, source);
  const matrix<double> dy = test::random_matrix<double>(9, cross_width, 3);
  const std::vector<index_t> borders{0, 4, 9}, rows{0, 5, 12};
  const encoder_states<double> images{.rows = states, .sequences = rows, .gradient = test::span_of(dstates)};
  const routing_context<double> context{.training = true, .sequences = borders, .encoders = {&images, 1}};
  const auto r = test::train_once(model, x, dy, context), expected = test::train_once(before, x, dy, context);
  CHECK((test::same_bits(r.y, expected.y) && test::same_bits(r.dx, expected.dx)));
  CHECK(dstates.isZero(0));
  CHECK((model.layer<1>().gate().gradient()[0] != 0 && model.layer<2>().gate().gradient()[0] != 0));

  model.layer<1>().gate().data()[0] = 0.4;
  model.layer<2>().gate().data()[0] = -0.7;
  const auto open = test::train_once(model, x, dy, context);
  matrix<double> y(9, cross_width);
  decltype(model)::tape tape;
  const auto report = check_gradients(model,
                                      {{"x", test::span_of(x), test::span_of(open.dx)},
                                       {"images", test::span_of(states), test::span_of(std::as_const(dstates))}},
                                      [&] {
                                        model.forward(x, y, tape, context);
                                        return (y.array() * dy.array()).sum();
                                      });
  INFO(report.describe());
  CHECK(report.checked > 400);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("cross_attention: many more rows than tokens, in shares that threads take", "[attention]") {
  auto layer = initialized(cross_attention<double>(4, {.source = 3, .heads = 2}));
  matrix<double> x = test::random_matrix<double>(3, 4, 1), states = test::random_matrix<double>(1300, 3, 2),
                 dstates = matrix<double>::Zero(1300, 3);
  const matrix<double> dy = test::random_matrix<double>(3, 4, 3);
  const encoder_states<double> encoder{.rows = states, .gradient = test::span_of(dstates)};
  routing_context<double> context{.encoders = {&encoder, 1}};
  const auto r = test::train_once(layer, x, dy, context);
  const matrix<double> once = dstates;
  thread_pool three(3);
  context.executor = three;
  const auto again = test::train_once(layer, x, dy, context);
  CHECK((test::same_bits(r.y, again.y) && test::same_bits(r.dx, again.dx)));
  CHECK(test::same_bits(matrix<double>(2 * once), dstates));
  for (std::size_t p = 0; p < r.gradients.size(); ++p) CHECK(test::same_bits(r.gradients[p], again.gradients[p]));
  zero_gradients(layer);
  matrix<double> y(3, 4), dx(3, 4);
  decltype(layer)::tape tape;
  context.training = true;
  layer.forward(x, y, tape, context);
  layer.backward(dy, dx, tape);
  const auto report = check_gradients(
      layer, {{"x", test::span_of(x), test::span_of(r.dx)}, {"states", test::span_of(states), test::span_of(once)}},
      [&] {
        layer.forward(x, y, tape, context);
        return (y.array() * dy.array()).sum();
      },
      {.most_entries = 40});
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("cross_attention: an encoder that is missing or does not fit throws", "[attention]") {
  const auto layer = initialized(cross_attention<double>(cross_width, {.encoder = 1, .source = source, .heads = 2}));
  const matrix<double> x = test::random_matrix<double>(4, cross_width, 1),
                       states = test::random_matrix<double>(6, source, 2),
                       narrow = test::random_matrix<double>(6, 3, 2);
  const std::vector<index_t> borders{0, 2, 4}, early{0, 3, 5};
  const std::vector<std::uint8_t> mask(5, 1);
  std::vector<double> room(7);
  const auto with = [&](const encoder_states<double>& one, std::span<const index_t> sequences = {}) {
    const encoder_states<double> both[] = {{}, one};
    routing_context<double> context{.encoders = both};
    const std::vector<index_t> none{0, 0, 0};
    encoder_states<double> of_none[] = {{.sequences = none}, one};
    if (!sequences.empty()) context.sequences = sequences, context.encoders = of_none;
    cross_output_of(layer, x, context);
  };
  using Catch::Contains;
  CHECK_THROWS_WITH(cross_output_of(layer, x, {}), Contains("encoders[1], of which there are 0"));
  CHECK_THROWS_WITH(with({.rows = narrow}),
                    Contains("reads rows of width 5; those of routing_context.encoders[1] have 3"));
  CHECK_THROWS_WITH(with({.rows = states}, borders), Contains("a range for each of 2 sequences; it has 1"));
  CHECK_THROWS_WITH(with({.rows = states, .sequences = early}, borders), Contains("from 0 to its number of rows, 6"));
  CHECK_THROWS_WITH(with({.rows = states, .row_mask = mask}), Contains("row_mask has 5 entries for 6 rows"));
  CHECK_THROWS_WITH(with({.rows = states, .gradient = room}), Contains("room for 7 of 30 numbers"));
  CHECK_THROWS_WITH(cross_attention<double>(7, {.heads = 2}), Contains("cross_attention needs D >= 1"));
  CHECK_THROWS_AS(cross_attention<double>(8, {.heads = 4, .key_heads = 3}), std::invalid_argument);
  CHECK_THROWS_WITH(cross_attention<double>(8, {.encoder = -1}), Contains("not -1 and 0"));
  using normed = cross_attention<double, rms_norm<double>>;
  CHECK_THROWS_WITH(normed(8, {.source = 5}, rms_norm<double>(8)),
                    Contains("rows of width 5; the norm is for width 8"));
}
