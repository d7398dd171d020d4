#include <sluice/adapter/adapted.hpp>
#include <sluice/adapter/merge.hpp>
#include <sluice/adapter/per_instance.hpp>
#include <sluice/adapter/rank_one.hpp>

#include <sluice/layer/linear.hpp>
#include <sluice/router/every_expert/dense.hpp>

#include "io/messages.hpp"
#include "layer/layer_promises.hpp"
#include "router/layer_checks.hpp"

using namespace sluice;

namespace per_instance_test {

constexpr index_t D = 6, O = 5, E = 3, F = 4;
const std::vector<index_t> samples{0, 4, 4, 9, 12};
const std::vector<index_t> cluster_of_token{1, 1, 1, 1, 0, 0, 0, 0, 0, 2, 2, 2};

template <typename Scalar>
void fill_experts(auto& bank, std::uint64_t seed) {
  for (index_t e = 0; e < bank.experts(); ++e) {
    test::fill_normal<Scalar>(bank.expert(e).a(), seed++);
    test::fill_normal<Scalar>(bank.expert(e).b(), seed++);
  }
}

template <typename Layer>
matrix<double> outputs_of(const Layer& layer, const matrix<double>& x, const routing_context<double>& context) {
  matrix<double> y(x.rows(), layer.outputs());
  typename Layer::workspace workspace;
  layer.forward(x, y, workspace, context);
  return y;
}

TEST_CASE("per_instance: a sample's instruction weighs the same experts for all its tokens",
          "[adapter][per_instance]") {
  instance_adapters<double> layer(D, F, E, 2, {.outputs = O, .scale = 0.5});
  initialize(layer, 3);
  fill_experts<double>(layer.bank(), 4);
  const matrix<double> x = test::random_matrix<double>(12, D, 11);
  matrix<double> q = test::random_matrix<double>(4, F, 12);
  q.row(3) = q.row(0);
  routing_context<double> context;
  context.groups = samples;
  context.group_features = q;
  instance_adapters<double>::workspace workspace;
  matrix<double> y(12, O);
  layer.forward(x, y, workspace, context);
  const matrix<double> w = workspace.plan.dense_weights();
  for (index_t t = 1; t < 4; ++t) CHECK(test::same_bits(w.row(t), w.row(0)));
  for (index_t t = 9; t < 12; ++t) CHECK(test::same_bits(w.row(t), w.row(0)));  // the same instruction
  CHECK(!w.row(4).isApprox(w.row(0)));

  // The gate of sample 2 by hand, and its experts merged into a base.
  const matrix<double> logits = q.row(2) * layer.router().gate().inner().weight().to_matrix().transpose();
  matrix<double> p = logits.array().exp();
  p /= p.sum();
  index_t worst = 0;
  p.row(0).minCoeff(&worst);
  p(0, worst) = 0;
  p /= p.sum() + 1e-9;
  CHECK(test::largest_difference(matrix<double>(w.row(5)), p) < test::bound<double>(F, 4));
  linear_layer<double> base(D, O);
  initialize(base, 13);
  const matrix<double> x2 = x.middleRows(4, 5);
  adapted_layer both{base, layer};
  const matrix<double> wanted = outputs_of(both, x, context).middleRows(4, 5);
  for (index_t e = 0; e < E; ++e) merge_adapter(base.weight(), layer.bank().expert(e), w(4, e));
  CHECK(test::largest_difference(outputs_of(base, x2, {}), wanted) < test::bound<double>(D, 64));

  // Tokens of a sample change places, and so do their outputs.
  matrix<double> swapped = x;
  swapped.row(5).swap(swapped.row(7));
  matrix<double> again = outputs_of(layer, swapped, context);
  again.row(5).swap(again.row(7));
  CHECK(test::same_bits(again, y));
}

TEST_CASE("per_instance: a sample's second expert may be left out by one draw", "[adapter][per_instance]") {
  const choice_policy<double> drawn{.policy = further_choices::random, .threshold = {0.2}};
  instance_adapters<double> layer(D, 1, 2, 2, {.training = drawn});
  initialize(layer, 3);
  layer.router().gate().inner().weight().fill([](index_t e) { return e == 1 ? std::log(9.0) : 0.0; });
  constexpr index_t count = 600, tokens = 3 * count;
  std::vector<index_t> borders;
  for (index_t g = 0; g <= count; ++g) borders.push_back(3 * g);
  const matrix<double> x = test::random_matrix<double>(tokens, D, 1), q = matrix<double>::Ones(count, 1);
  matrix<double> y(tokens, D);
  const auto weights_of = [&](std::uint64_t step, bool training) {
    routing_context<double> context{.training = training, .random = random_source(7, step), .groups = borders};
    context.group_features = q;
    instance_adapters<double>::tape tape;
    layer.forward(x, y, tape, context);
    return tape.plan.dense_weights();
  };
  // G = (0.9, 0.1), each over 1 + 1e-9: the second stays with probability 0.1 / 0.2.
  const matrix<double> w = weights_of(1, true);
  index_t stays = 0;
  for (index_t g = 0; g < count; ++g) {
    stays += w(3 * g, 0) > 0;
    for (index_t t = 3 * g; t < 3 * g + 3; ++t) {
      CHECK(w(t, 1) == Approx(0.9 / (1 + 1e-9)).epsilon(1e-14));
      CHECK((w(t, 0) == 0 || std::abs(w(t, 0) - 0.1 / (1 + 1e-9)) < 1e-15));
      CHECK((w(t, 0) > 0) == (w(3 * g, 0) > 0));
    }
  }
  CHECK(std::abs(double(stays) - count / 2) < 5 * std::sqrt(count * 0.25));
  CHECK(test::same_bits(weights_of(1, true), w));
  CHECK_FALSE(test::same_bits(weights_of(2, true), w));
  CHECK((weights_of(1, false).array() > 0).all());
}

TEST_CASE("per_instance: means of groups and their gradient", "[adapter][per_instance]") {
  const matrix<float> rows = (matrix<float>(3, 2) << 1, 2, 3, 6, 5, 5).finished();
  const std::vector<index_t> borders{0, 2, 2, 3};
  matrix_buffer<float> means;
  mean_of_each<float>(borders, rows, means);
  CHECK(test::same_bits(means.map(), (matrix<float>(3, 2) << 2, 4, 0, 0, 5, 5).finished()));
  matrix<float> drows = matrix<float>::Ones(3, 2);
  mean_of_each_backward<float>(borders, means, drows);
  CHECK(test::same_bits(drows, (matrix<float>(3, 2) << 2, 3, 2, 3, 6, 6).finished()));
  const std::vector<index_t> wrong{0, 2};
  CHECK_THROWS_WITH(mean_of_each<float>(wrong, rows, means), test::contains("the number of rows, 3"));
}

TEST_CASE("per_instance: the universal expert gets what the cluster's expert leaves", "[adapter][per_instance]") {
  cluster_adapters<double> layer(D, E, 2, {.outputs = O, .clusters = 3, .embedding = F, .temperature = 1});
  CHECK(layer.experts() == E + 1);
  initialize(layer, 21);
  fill_experts<double>(layer.bank(), 22);
  const matrix<double> x = test::random_matrix<double>(12, D, 31);
  routing_context<double> context;
  context.groups = samples;
  context.cluster_ids = cluster_of_token;
  cluster_adapters<double>::workspace workspace;
  matrix<double> y(12, O);
  layer.forward(x, y, workspace, context);
  const matrix<double> w = workspace.plan.dense_weights();
  for (index_t t = 0; t < 12; ++t) {
    CHECK((w.row(t).head(E).array() > 0).count() == 1);
    CHECK(w(t, E) == 1 - w.row(t).head(E).maxCoeff());
    CHECK(w(t, E) > 0);
  }
  // A wide margin leaves it nothing, and so does an expert without rivals.
  layer.router().inner().gate().clusters().bias().fill([](index_t e) { return e == 1 ? 100.0 : 0.0; });
  layer.forward(x, y, workspace, context);
  CHECK((workspace.plan.dense_weights().col(1).array() == 1).all());
  cluster_adapters<double> alone(D, 1, 2, {.outputs = O, .clusters = 3, .embedding = F});
  initialize(alone, 41);
  fill_experts<double>(alone.bank(), 42);
  const matrix<double> before = outputs_of(alone, x, context);
  alone.universal().b().fill([](index_t) { return 7.0; });
  CHECK(test::same_bits(outputs_of(alone, x, context), before));
}

TEST_CASE("per_instance: every promise of a layer", "[adapter][per_instance][conformance]") {
  const matrix<double> q = test::random_matrix<double>(4, F, 51);
  layer_check_options<double> options{.seed = 52, .tokens = 12, .gradients = {.most_entries = 100}};
  options.context.groups = samples;
  options.context.group_features = q;
  options.context.cluster_ids = cluster_of_token;
  const auto check_one = [&](auto layer) {
    initialize(layer.router(), 53);
    fill_experts<double>(layer.bank(), 54);
    const auto report = check_layer(layer, options);
    INFO(report.describe());
    CHECK(report.passed());
    CHECK(report.find("gradients")->result == outcome::passed);
  };
  check_one(instance_adapters<double>(D, F, E, 2, {.outputs = O}));
  const choice_policy<double> drawn{.policy = further_choices::random, .threshold = {0.9}};
  check_one(instance_adapters<double>(D, F, E, 2, {.training = drawn}));
  check_one(cluster_adapters<double>(D, E, 2, {.clusters = 3, .embedding = F, .temperature = 0.5, .by_best = true}));
}

TEST_CASE("rank_one: without a gate a LoRA of rank E, with one expert an outer product", "[adapter][rank_one]") {
  rank_one_adapters<double> layer(D, E, 2, {.outputs = O, .scale = 0.5});
  initialize(layer, 61);
  test::fill_normal(layer.bank().a(), 62);
  test::fill_normal(layer.bank().b(), 63);
  const matrix<double> a = layer.bank().a().to_matrix(), bt = layer.bank().b().to_matrix();
  const matrix<double> x = test::random_matrix<double>(12, D, 64);
  moe_layer ungated{dense_router<double>{D, E}, layer.bank()};
  CHECK(test::largest_difference(outputs_of(ungated, x, {}), matrix<double>(0.5 * x * a.transpose() * bt)) <
        test::bound<double>(D + E, 32));

  const matrix<double> embeddings = (matrix<double>(4, 2) << 3, 4, 0, 0, 0, -2, 1, 0).finished();
  const matrix<double> centres = (matrix<double>(2, 2) << 1, 0, 0, 5).finished();
  matrix_buffer<double> features;
  cluster_similarities<double>(embeddings, centres, samples, features);
  CHECK((features.rows() == 12 && features.cols() == 2));
  for (const index_t t : {0, 3})
    CHECK((std::abs(features(t, 0) - 0.6) < 1e-15 && std::abs(features(t, 1) - 0.8) < 1e-15));
  CHECK((features(4, 0) == 0 && features(8, 1) == -1 && features(11, 0) == 1));
  CHECK_THROWS_WITH(cluster_similarities<double>(embeddings, x, samples, features),
                    test::contains("[G, F] = [4, 2] not 5 and [12, 6]"));

  // The instance alone decides: weights of x are zero, and those of c make expert 1 of instances like centre 1.
  const matrix<double> c = features.map();
  routing_context<double> context;
  context.features = c;
  layer.router().gate().inner().weight().fill([](index_t i) { return i == (2 + D) + 1 ? 2000.0 : 0.0; });
  const matrix<double> y = outputs_of(layer, x, context);
  const matrix<double> outer = 0.5 * x.row(0).dot(a.row(1)) * bt.row(1);
  CHECK((y.row(0) - outer).cwiseAbs().maxCoeff() < test::bound<double>(D, 32));
}

TEST_CASE("rank_one: every promise of a layer", "[adapter][rank_one][conformance]") {
  rank_one_adapters<double> layer(D, E, 2);
  initialize(layer, 71);
  test::fill_normal(layer.bank().b(), 72);
  const matrix<double> c = test::random_matrix<double>(37, 2, 73);
  layer_check_options<double> options{.seed = 74, .gradients = {.most_entries = 100}};
  options.context.features = c;
  const auto report = check_layer(layer, options);
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(report.find("gradients")->result == outcome::passed);
}

}  // namespace per_instance_test
