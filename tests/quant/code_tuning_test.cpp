#include <sluice/quant/code_tuning.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/quant/candidate_codes.hpp>
#include <sluice/quant/discrete_step.hpp>
#include <sluice/quant/low_rank_codes.hpp>
#include <sluice/quant/residual_codes.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/initialize.hpp>
#include <sluice/train/sgd.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

using coded_layer = moe_layer<top_k_router<double>, expert_bank<ffn<double>>>;

coded_layer full_layer() {
  coded_layer layer(top_k_router<double>(8, 3, {.top_k = 2}), expert_bank<ffn<double>>(3, 8, 12));
  initialize(layer, 1);
  return layer;
}

matrix<double> outputs_of(const coded_layer& layer, const matrix<double>& x) {
  matrix<double> y(x.rows(), 8);
  coded_layer::workspace workspace;
  layer.forward(x, y, workspace);
  return y;
}

/// Mean squared difference of two layers' outputs on tokens of their own.
double difference_of(const coded_layer& layer, const coded_layer& full) {
  const matrix<double> x = test::random_matrix<double>(64, 8, 2);
  return (outputs_of(layer, x) - outputs_of(full, x)).squaredNorm() / 64;
}

/// Backward of 1/2 that difference on a batch of generated tokens.
void learn_from(coded_layer& layer, const coded_layer& full, std::uint64_t seed) {
  const matrix<double> x = test::random_matrix<double>(32, 8, seed);
  matrix<double> y(32, 8), dx(32, 8);
  coded_layer::tape tape;
  layer.forward(x, y, tape);
  layer.backward((y - outputs_of(full, x)) / 32, dx, tape);
}

/// f(weight) for both weights of the experts.
template <typename F>
void for_each_expert_weight(coded_layer& layer, F&& f) {
  for_each_parameter(layer, [&](const std::string& name, parameter<double>& p) {
    if (name.starts_with("experts.")) f(p);
  });
}

vector_codes start_codes(const parameter<double>& p) {
  return residual_codes(p.to_matrix().cast<float>(),
                        {.tile = {1, 4}, .codes = 6, .scales = true, .random = random_source(3)});
}

}  // namespace

TEST_CASE("code_tuning: PV-Tuning of the experts inside a layer, codebooks and scales, then indices as well",
          "[quant][tuning]") {
  const coded_layer full = full_layer();
  const auto trained = [&](bool moves_indices) {
    coded_layer layer = full;
    code_tuning<tunable_codes<double>> tuning;
    for_each_expert_weight(layer, [&](parameter<double>& p) {
      vector_codes codes = start_codes(p);
      for (index_t t = 0; t < codes.indices[0].size(); t += 3)  // every third tile has a wrong index
        codes.indices[0].data()[t] = static_cast<std::uint16_t>((codes.indices[0].data()[t] + 1) % 6);
      tuning.add(p, tunable_codes<double>(codes));
    });
    REQUIRE(tuning.size() == 6);
    const double before = difference_of(layer, full);
    sgd<double> optimizer({.learning_rate = 3});
    adamw<double> code_optimizer({.learning_rate = 0.01});
    index_t changed = 0;
    for (std::uint64_t step = 0; step < 60; ++step) {
      learn_from(layer, full, 100 + step);
      tuning.collect(layer);
      optimizer.step(layer);
      code_optimizer.step(tuning);
      tuning.settle(layer, [&](tunable_codes<double>& codes, const matrix<double>& reference) {
        if (moves_indices) changed += discrete_step<double>(codes, reference, {.fraction = 0.1, .trust = 0.03}).changed;
      });
      zero_gradients(layer);
      zero_gradients(tuning);
    }
    CHECK((changed > 0) == moves_indices);
    // What the layer computes with is what the codes decode to.
    index_t i = 0;
    for_each_expert_weight(layer, [&](parameter<double>& p) {
      CHECK(p.to_matrix() == tuning.codes(i).to_matrix());
      CHECK((p.to_matrix() - tuning.codes(i).plain().to_matrix().cast<double>()).cwiseAbs().maxCoeff() < 1e-6);
      ++i;
    });
    return std::pair(before, difference_of(layer, full));
  };
  const auto [start, codebooks] = trained(false);
  const auto [same, both] = trained(true);
  WARN("mean squared error of a layer's outputs, 6 codes for 4 weights, a third of them wrong: "
       << start << ", codebooks and scales trained " << codebooks << ", indices too " << both);
  CHECK(start == same);
  CHECK(codebooks < 0.6 * start);
  CHECK(both < 0.9 * codebooks);
}

TEST_CASE("code_tuning: what codes cannot follow is forgotten, or carried on", "[quant][tuning]") {
  vector_codes plain{.outputs = 1, .inputs = 1};
  plain.codebooks.push_back((matrix<float>(2, 1) << 0, 1).finished());
  plain.indices.push_back(matrix<std::uint16_t>::Zero(1, 1));
  const auto after = [&](double carry, int steps) {
    parameter<double> weight({1, 1}, parameter_role::weight);
    code_tuning<tunable_codes<double>> tuning(carry);
    tuning.add(weight, tunable_codes<double>(plain));
    for (int step = 0; step < steps; ++step) {
      weight.data()[0] += 0.2;
      tuning.settle(weight, [](tunable_codes<double>& codes, const matrix<double>& reference) {
        discrete_step<double>(codes, reference, {.fraction = 1, .trust = {}});
      });
    }
    return weight.data()[0];
  };
  CHECK(after(0, 9) == 0);    // 0.2 is nearer to 0 each time
  CHECK(after(1, 2) == 0);    // 0.4
  CHECK(after(1, 3) == 1);    // 0.6
  CHECK(after(0.5, 9) == 0);  // never above 0.4
  CHECK_THROWS_AS(code_tuning<tunable_codes<double>>(1.5), std::invalid_argument);
}

TEST_CASE("code_tuning: low-rank codes of the experts, learned end to end", "[quant][tuning]") {
  const coded_layer full = full_layer();
  coded_layer layer = full;
  code_tuning<low_rank_codes<double>> tuning;
  for_each_expert_weight(layer, [&](parameter<double>& p) {
    tuning.add(p, low_rank_codes<double>(p.to_matrix(), {1, 4}, {.codes = 8, .width = 2, .random = random_source(4)}));
  });
  const double before = difference_of(layer, full);
  adamw<double> code_optimizer({.learning_rate = 0.01});
  for (std::uint64_t step = 0; step < 60; ++step) {
    learn_from(layer, full, 200 + step);
    tuning.collect(layer);
    code_optimizer.step(tuning);
    tuning.settle(layer);
    zero_gradients(layer);
    zero_gradients(tuning);
  }
  CHECK(difference_of(layer, full) < 0.7 * before);
}

TEST_CASE("code_tuning: candidates of the experts on generated tokens, until each tile has one", "[quant][tuning]") {
  const coded_layer full = full_layer();
  coded_layer layer = full, nearest = full;
  code_tuning<candidate_codes<double>> tuning;
  code_tuning<tunable_codes<double>> plain;
  for_each_expert_weight(nearest, [&](parameter<double>& p) {
    const vector_codes codes =
        residual_codes(p.to_matrix().cast<float>(), {.tile = {1, 4}, .codes = 8, .random = random_source(5)});
    plain.add(p, tunable_codes<double>(codes));
  });
  index_t i = 0;
  for_each_expert_weight(layer, [&](parameter<double>& p) {
    tuning.add(p, candidate_codes<double>(p.to_matrix(), plain.codes(i++).plain(), {.candidates = 2, .sharpness = 2}));
  });
  adamw<double> code_optimizer({.learning_rate = 0.02});
  for (std::uint64_t step = 0; step < 80; ++step) {
    learn_from(layer, full, 300 + step);
    tuning.collect(layer);
    for (index_t c = 0; c < tuning.size(); ++c) tuning.codes(c).ratio_loss(0.005 * static_cast<double>(step));
    code_optimizer.step(tuning);
    tuning.settle(layer);
    zero_gradients(layer);
    zero_gradients(tuning);
  }
  coded_layer chosen = full;
  i = 0;
  for_each_expert_weight(
      chosen, [&](parameter<double>& p) { p.assign(tuning.codes(i++).chosen().to_matrix().cast<double>()); });
  WARN("mean squared error of a layer's outputs, 8 codes for 4 weights: nearest "
       << difference_of(nearest, full) << ", calibrated " << difference_of(chosen, full));
  CHECK(difference_of(chosen, full) < 0.8 * difference_of(nearest, full));
}

TEST_CASE("code_tuning: a weight is found wherever the layer moves, and not in a copy", "[quant][tuning]") {
  coded_layer layer = full_layer();
  code_tuning<tunable_codes<double>> tuning;
  for_each_expert_weight(layer, [&](parameter<double>& p) { tuning.add(p, tunable_codes<double>(start_codes(p))); });
  coded_layer moved = std::move(layer);
  tuning.settle(moved);
  coded_layer copy = moved;
  CHECK_THROWS_WITH(tuning.settle(copy), Catch::Matchers::Contains("the model has 0 of the 6 weights"));
  CHECK_THROWS_AS(tuning.collect(copy), std::invalid_argument);
  parameter<double> other({3, 8}, parameter_role::weight);
  CHECK_THROWS_WITH(tuning.add(other, tunable_codes<double>(residual_codes(matrix<float>::Zero(4, 8)))),
                    Catch::Matchers::Contains("[3, 8] has no codes of a matrix [4, 8]"));
  parameter<double> twice({4, 8}, parameter_role::weight);
  tuning.add(twice, tunable_codes<double>(residual_codes(matrix<float>::Zero(4, 8))));
  CHECK_THROWS_WITH(tuning.add(twice, tunable_codes<double>(residual_codes(matrix<float>::Zero(4, 8)))),
                    Catch::Matchers::Contains("has codes already"));
}
