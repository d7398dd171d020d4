// Two mixtures for tables as whole models, trained on generated problems of a few regions: GG MoE and KAMoE. They are
// held against what their papers hold them against: a plain network, and the same mixture with a linear gate. Margins
// are wide of what six seeds gave.
#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/gate/gated_residual.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/over_draws.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/every_expert/gumbel_softmax.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/cross_entropy.hpp>
#include <sluice/train/initialize.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

constexpr index_t table_inputs = 4, table_batch = 64;

struct table_sample {
  matrix<float> x, y;
  std::vector<index_t> region;
};
/// In every region two slopes of its own, those of the last two inputs; the first two say which region it is.
template <typename RegionOf>
table_sample regions_of_lines(index_t n, std::uint64_t seed, std::uint64_t task, RegionOf&& region_of) {
  table_sample s{matrix<float>(n, table_inputs), matrix<float>(n, 1), {}};
  const random_source random(seed);
  const matrix<float> slopes = 2 * test::random_matrix<float>(4, 3, 100 + task);
  for (index_t i = 0; i < n; ++i) {
    for (index_t d = 0; d < table_inputs; ++d)
      s.x(i, d) = static_cast<float>(2 * random.uniform(random_site::user_site, table_inputs * i + d) - 1);
    const index_t own = region_of(s.x(i, 0), s.x(i, 1));
    s.region.push_back(own);
    s.y(i, 0) = slopes(own, 0) * s.x(i, 2) + slopes(own, 1) * s.x(i, 3) +
                0.05f * static_cast<float>(random.normal(random_site("noise"), i));
  }
  return s;
}
table_sample quadrants(std::uint64_t seed, std::uint64_t task) {
  return regions_of_lines(1024, seed, task, [](float a, float b) { return index_t(a > 0) + 2 * index_t(b > 0); });
}
table_sample disc(std::uint64_t seed, std::uint64_t task) {
  return regions_of_lines(1024, seed, task, [](float a, float b) { return index_t(a * a + b * b < 0.64f); });
}

/// Adam at a falling rate; the gradient of a batch is dy(y, first row).
template <typename Layer, typename Gradient>
void fit_table(Layer& layer, const table_sample& s, index_t epochs, double rate, const Gradient& gradient) {
  adamw<float> optimizer{{.weight_decay = 0, .clear_gradients = true}};
  typename Layer::tape tape;
  matrix<float> y(table_batch, layer.outputs()), dy(table_batch, layer.outputs()), dx(table_batch, table_inputs);
  const index_t batches = s.x.rows() / table_batch, steps = epochs * batches;
  for (index_t step = 0; step < steps; ++step) {
    const index_t first = step % batches * table_batch;
    routing_context<float> context;
    context.training = true;
    context.random = random_source(7, static_cast<std::uint64_t>(step));
    layer.forward(s.x.middleRows(first, table_batch), y, tape, context);
    gradient(y, first, dy);
    layer.backward(dy, dx, tape);
    optimizer.set_learning_rate(rate * (1 - 0.95 * static_cast<double>(step) / static_cast<double>(steps)));
    optimizer.step(layer);
  }
}
template <typename Layer>
void fit_lines(Layer& layer, const table_sample& s, std::uint64_t seed, index_t epochs, double rate) {
  initialize(layer, seed);
  fit_table(layer, s, epochs, rate, [&](const matrix<float>& y, index_t first, matrix<float>& dy) {
    dy = (2.0f / table_batch) * (y - s.y.middleRows(first, table_batch));
  });
}

float mean_square(const matrix<float>& error) { return error.squaredNorm() / static_cast<float>(error.rows()); }
template <typename Layer>
float table_error(const Layer& layer, const table_sample& s) {
  matrix<float> y(s.x.rows(), 1);
  typename Layer::workspace workspace;
  layer.forward(s.x, y, workspace);
  return mean_square(y - s.y);
}
template <typename Layer>
index_t table_parameters(const Layer& layer) {
  index_t count = 0;
  for_each_parameter(layer, [&](const std::string&, const auto& p) { count += p.size(); });
  return count;
}

auto table_experts(index_t experts, index_t hidden, index_t outputs = 1) {
  return expert_bank<ffn<float>>{experts, table_inputs, hidden, {.outputs = outputs}};  // without biases, as GG MoE's
}
auto linear_mixture(expert_bank<ffn<float>> experts) {
  const index_t E = experts.experts();
  return moe_layer{dense_softmax_router<float>{linear_gate<float>(table_inputs, E, {.bias = true})},
                   std::move(experts)};
}
auto gg_mixture(index_t experts, index_t outputs = 1) {
  return moe_layer{gumbel_softmax_router<float>{linear_gate<float>(table_inputs, experts, {.bias = true})},
                   table_experts(experts, 8, outputs)};
}

}  // namespace

TEST_CASE("GG MoE: fewer parameters than a network and less error, ten draws say what many do",
          "[statistics][tabular]") {
  // Six seeds: .35 to .68 of the network's error; that of ten draws is within .07 of that of a thousand, and within .07
  // of the router's own inference.
  const std::uint64_t seed = 1;
  const table_sample train = quadrants(seed, seed), unseen = quadrants(seed + 50, seed);
  auto network = linear_mixture(expert_bank<ffn<float>>{1, table_inputs, 40, {.outputs = 1, .bias = true}});
  auto mixture = gg_mixture(4);
  fit_lines(network, train, seed, 300, 3e-2);
  fit_lines(mixture, train, seed, 300, 3e-2);
  CHECK(table_parameters(mixture) < table_parameters(network));
  over_draws<decltype(mixture)> draws;
  const auto error_of = [&](index_t count) {
    matrix<float> y(unseen.x.rows(), 1);
    draws.mean(mixture, unseen.x, y, {.draws = count});
    return mean_square(y - unseen.y);
  };
  const float ten = error_of(10), network_error = table_error(network, unseen);
  CAPTURE(ten, network_error);
  CHECK(ten < 0.75f * network_error);
  CHECK(std::abs(ten / error_of(300) - 1) < 0.2f);
  CHECK(std::abs(ten / table_error(mixture, unseen) - 1) < 0.2f);  // the router's own ten draws, the same for all rows
}

TEST_CASE("GG MoE: a classifier's mean probability is worth more than its draws", "[statistics][tabular]") {
  const table_sample train = quadrants(3, 3), unseen = quadrants(53, 3);
  const auto label_of = [](index_t region) { return index_t(region == 1 || region == 2); };  // no line parts them
  std::vector<index_t> labels, unseen_labels;
  for (const index_t r : train.region) labels.push_back(label_of(r));
  for (const index_t r : unseen.region) unseen_labels.push_back(label_of(r));
  auto mixture = gg_mixture(4, 2);
  initialize(mixture, 3);
  fit_table(mixture, train, 40, 2e-2, [&](const matrix<float>& y, index_t first, matrix<float>& dy) {
    softmax_cross_entropy<float>{}(y, std::span<const index_t>(labels).subspan(as_size(first), as_size(table_batch)),
                                   dy);
  });
  const index_t T = unseen.x.rows(), M = 10;
  over_draws<decltype(mixture)> draws;
  matrix<float> p(T, 2), dp(T, 2), sum = matrix<float>::Zero(T, 2);
  double mean_of_losses = 0;
  for (index_t m = 0; m < M; ++m) {
    routing_context<float> context;
    context.random = random_source(100 + static_cast<std::uint64_t>(m));
    draws.mean(mixture, unseen.x, p, {.draws = 1}, softmax_of_rows{}, context);
    sum += p / static_cast<float>(M);
    mean_of_losses += probability_cross_entropy<float>{}(p, unseen_labels, dp).loss / static_cast<double>(M);
  }
  const auto averaged = probability_cross_entropy<float>{}(sum, unseen_labels, dp);
  CHECK(averaged.loss < mean_of_losses);  // -log is convex
  draws.mean(mixture, unseen.x, p, {.draws = M}, softmax_of_rows{});
  CHECK(probability_cross_entropy<float>{}(p, unseen_labels, dp).loss < mean_of_losses);
  CHECK(averaged.accuracy() > 0.9);
}

TEST_CASE("KAMoE: a gate of splines finds a disc that a linear gate cannot cut out", "[statistics][tabular]") {
  // Six seeds: .16 to .57 of the error of a linear gate over larger experts (640 parameters, KAMoE 624).
  const std::uint64_t seed = 2;
  const table_sample train = disc(seed, seed), unseen = disc(seed + 50, seed);
  auto linear = linear_mixture(table_experts(4, 31));
  normalized_layer kamoe{
      moe_layer{dense_softmax_router<float, grkan_gate<float>>{grkan_gate<float>(table_inputs, 4, 8)},
                table_experts(4, 8)},
      gain_only<float>{table_inputs}};
  fit_lines(linear, train, seed, 150, 2e-2);
  fit_lines(kamoe, train, seed, 150, 2e-2);
  CHECK(table_parameters(kamoe) < table_parameters(linear));
  const float error = table_error(kamoe, unseen), linear_error = table_error(linear, unseen);
  CAPTURE(error, linear_error);
  CHECK(error < 0.7f * linear_error);
}
