// What runs experts: outputs, hidden states and weights of a bank, and what measures say of them.
#include <sluice/inspect/expert_outputs.hpp>

#include <sluice/expert/simple.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/inspect/expert_weights.hpp>
#include <sluice/inspect/hidden_states.hpp>
#include <sluice/inspect/output_similarity.hpp>
#include <sluice/inspect/unit_matching.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

expert_bank<swiglu<double>> inspected_bank() {
  expert_bank<swiglu<double>> bank(3, 4, 6, {.outputs = 5, .bias = true});
  initialize(bank, 7);
  for (index_t e = 0; e < 3; ++e) bank.expert(e).gate_bias().fill([&](index_t i) { return 0.1 * double(i - e); });
  return bank;
}

}  // namespace

TEST_CASE("expert_outputs: every expert, every token, NaN in its row", "[inspect]") {
  const auto bank = inspected_bank();
  matrix<double> x = test::random_matrix<double>(6, 4, 2);
  x(4, 1) = quiet_nan<double>();
  const auto outputs = expert_outputs(bank, x);
  REQUIRE(outputs.size() == 3);
  for (index_t e = 0; e < 3; ++e)
    for (index_t t = 0; t < 6; ++t) {
      matrix<double> y(1, 5), saved(1, bank.expert(e).saved_columns());
      bank.expert(e).forward(x.row(t), y, saved);
      if (t == 4)
        CHECK(is_nan(outputs[as_size(e)](t, 0)));
      else
        CHECK(test::largest_difference(matrix<double>(outputs[as_size(e)].row(t)), y) < test::bound<double>(6, 10.0));
    }
  const matrix<double> norms = output_norms(outputs);
  CHECK_THAT(norms(2, 1), Catch::WithinRel(outputs[1].row(2).norm(), 1e-14));
  CHECK(is_nan(norms(4, 0)));
  CHECK(expert_outputs(bank, matrix<double>(0, 4))[2].rows() == 0);
  CHECK(output_norms(std::vector<matrix<double>>{}).size() == 0);
  CHECK_THROWS_WITH(expert_outputs(bank, matrix<double>(1, 3)), Catch::Contains("width 4; x is [1, 3]"));
  CHECK_THROWS_AS(output_norms(std::vector<matrix<double>>{matrix<double>(1, 2), matrix<double>(2, 2)}),
                  std::invalid_argument);
}

TEST_CASE("expert_outputs: unions too, and NaN comes out of an expert that reads nothing", "[inspect]") {
  expert_union bank{expert_bank<ffn<float>>{2, 3, 4}, expert_bank<zero_expert<float>>{1, 3}};
  initialize(bank, 3);
  matrix<float> x = test::random_matrix<float>(2, 3, 2);
  x(1, 0) = quiet_nan<float>();
  const auto outputs = expert_outputs(bank, x);
  REQUIRE(outputs.size() == 3);
  CHECK(outputs[2].row(0).isZero(0));
  CHECK(is_nan(outputs[2](1, 2)));
  const matrix<double> s = output_similarity(outputs);
  CHECK(s(0, 2) == 0.5);
  CHECK(s(0, 0) == 1);
}

TEST_CASE("hidden_states: the activation by hand, who is at work", "[inspect]") {
  const auto bank = inspected_bank();
  const matrix<double> x = test::random_matrix<double>(5, 4, 2);
  const auto states = hidden_states(bank, x);
  auto expert = bank.expert(1);
  const matrix<double> z = x * expert.gate().to_matrix().transpose();
  for (index_t t = 0; t < 5; ++t)
    for (index_t j = 0; j < 6; ++j) {
      const double a = z(t, j) + 0.1 * double(j - 1);
      CHECK_THAT(states[1](t, j), Catch::WithinAbs(a / (1 + std::exp(-a)), test::bound<double>(4, 10.0)));
    }
  matrix<double> h(3, 2);
  h << 1, -0.2, 0, -3, quiet_nan<double>(), 1;
  const std::vector<matrix<double>> of{h};
  CHECK(unit_activity(of, 0.1) == std::vector<std::vector<double>>{{0.5, 1}});
  CHECK(unit_activity(of, 0.2) == std::vector<std::vector<double>>{{0.5, 0.5}});  // above, not at
  const matrix<double> share = active_share(of, 0.1);
  CHECK(share(0, 0) == 1);
  CHECK(share(1, 0) == 0.5);
  CHECK(is_nan(share(2, 0)));
  CHECK(is_nan(unit_activity(std::vector<matrix<double>>{matrix<double>(0, 2)}, 0.1)[0][1]));
  CHECK_THROWS_AS(active_share(std::vector<matrix<double>>{h, matrix<double>(2, 2)}, 0.1), std::invalid_argument);
  CHECK_THROWS_WITH(hidden_states(bank, matrix<double>(1, 3)), Catch::Contains("width 4"));

  expert_bank<ffn<float>> plain(2, 3, 4, {.bias = true});  // through a ReLU: what is not at work is 0
  initialize(plain, 5);
  const auto relu_states = hidden_states(plain, test::random_matrix<float>(8, 3, 1));
  CHECK(relu_states[0].minCoeff() == 0);
  CHECK(active_share(relu_states, 0.0f)(0, 1) < 1);
}

TEST_CASE("expert_weights: a row a unit, by name, and a copy with shuffled units is found out", "[inspect]") {
  auto bank = inspected_bank();
  const std::vector<index_t> order{2, 0, 1, 5, 3, 4};
  const matrix<double> gate = bank.expert(0).gate().to_matrix(), down = bank.expert(0).down().to_matrix();
  bank.expert(2).gate().fill([&](index_t i) { return gate(order[as_size(i / 4)], i % 4); });
  bank.expert(2).down().fill([&](index_t i) { return down(i / 6, order[as_size(i % 6)]); });
  const auto all = expert_weights(bank);
  REQUIRE(all.size() == 3);
  CHECK(all[0].name == "gate");
  CHECK(all[1].name == "up");
  CHECK(all[2].name == "down");
  CHECK(all[0].of[0] == gate);
  CHECK(all[2].of[0] == matrix<double>(down.transpose()));
  for (const int w : {0, 2}) {
    const unit_matching found = match_units(all[as_size(w)].of[2], all[as_size(w)].of[0]);
    CHECK(found.order == order);
    CHECK_THAT(found.cosine, Catch::WithinAbs(1, 1e-14));
    CHECK_THAT(mean_unit_similarity(all[as_size(w)].of)(0, 2), Catch::WithinAbs(1, 1e-14));
    CHECK(matrix_similarity(all[as_size(w)].of)(0, 2) < 0.9);
  }
  CHECK(match_units(all[1].of[2], all[1].of[0]).cosine < 0.9);

  const expert_bank<ffn<float, relu, bfloat16_storage>> stored(2, 3, 4);
  const auto two = expert_weights(stored);
  REQUIRE(two.size() == 2);
  CHECK(two[0].name == "up");
  CHECK(two[1].of[1].rows() == 4);
}
