#include <sluice/quant/bank_calibration.hpp>
#include <sluice/quant/compensated_rounding.hpp>

#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/kernel/block_storage.hpp>
#include <sluice/kernel/mixed_map.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

using calibrated_layer = moe_layer<top_k_router<float>, expert_bank<swiglu<float>>>;

calibrated_layer layer_to_calibrate() {
  calibrated_layer layer{top_k_router<float>{10, 5, {.top_k = 2}},
                         expert_bank<swiglu<float>>{5, 10, 21, {.bias = true}}};
  initialize(layer, 1);
  for (index_t e = 0; e < 5; ++e) {  // biases count in h
    layer.bank().expert(e).gate_bias().fill([](index_t i) { return 0.1F * static_cast<float>(i % 3); });
    layer.bank().expert(e).up_bias().fill([](index_t i) { return 0.3F - 0.1F * static_cast<float>(i % 4); });
  }
  return layer;
}

}  // namespace

TEST_CASE("input_moments: X^T X over batches, without rows that are not finite", "[quant][moments]") {
  const matrix<float> x = test::random_matrix<float>(150, 70, 1);
  matrix<float> spoiled = x;
  spoiled(3, 5) = quiet_nan<float>();
  spoiled(99, 69) = -std::numeric_limits<float>::infinity();
  input_moments moments(70);
  moments.add<float>(spoiled.topRows(40));
  moments.add<float>(spoiled.bottomRows(110));
  moments.add<float>(matrix<float>(0, 70));
  CHECK(moments.rows() == 148);
  CHECK(moments.left_out() == 2);
  matrix<float> clean = x;
  clean.row(3).setZero();
  clean.row(99).setZero();
  const matrix<double> expected = clean.cast<double>().transpose() * clean.cast<double>();
  CHECK(test::largest_difference(moments.to_matrix(), expected) <= test::bound<double>(150, 16));
  CHECK(moments.to_matrix() == matrix<double>(moments.to_matrix().transpose()));
  input_moments threaded(70);
  test::shuffled_threads threads(3);
  threaded.add<float>(spoiled.topRows(40), threads);
  threaded.add<float>(spoiled.bottomRows(110), threads);
  CHECK(test::same_bits(moments.to_matrix(), threaded.to_matrix()));
  CHECK(input_moments(3).to_matrix().isZero());
  CHECK_THROWS_WITH(moments.add<float>(matrix<float>(2, 3)), "sluice: moments of 70 inputs cannot take rows of 3");
}

TEST_CASE("bank_calibration: counts, weights and moments of every expert's rows and hidden units",
          "[quant][calibration]") {
  calibrated_layer layer = layer_to_calibrate();
  bank_calibration calibration(layer.bank(), {.least_rows = 3}), by_threads(layer.bank(), {.least_rows = 3});
  test::shuffled_threads threads(3);
  calibrated_layer::workspace workspace;
  std::vector<double> tokens(5, 0), weights(5, 0);
  std::vector<matrix<double>> first(5, matrix<double>::Zero(10, 10)), last(5, matrix<double>::Zero(21, 21));
  for (const std::uint64_t batch : {2U, 3U}) {
    const matrix<float> x = test::random_matrix<float>(60, 10, batch);
    matrix<float> y(60, 10);
    layer.forward(x, y, workspace);
    calibration.add(layer.bank(), x, workspace.plan.routed());
    by_threads.add(layer.bank(), x, workspace.plan.routed(), threads);
    for (index_t i = 0; i < workspace.plan.size(); ++i) {
      const index_t e = workspace.plan.expert(i);
      auto& expert = layer.bank().expert(e);
      const matrix<double> row = x.row(workspace.plan.token(i)).cast<double>();
      matrix<double> a = row * expert.gate().to_matrix().cast<double>().transpose(),
                     b = row * expert.up().to_matrix().cast<double>().transpose();
      a += expert.gate_bias().to_matrix().reshaped<Eigen::RowMajor>(1, 21).cast<double>();
      b += expert.up_bias().to_matrix().reshaped<Eigen::RowMajor>(1, 21).cast<double>();
      const matrix<double> h = (a.array() / (1 + (-a.array()).exp()) * b.array()).matrix();
      tokens[as_size(e)] += 1;
      weights[as_size(e)] += static_cast<double>(workspace.plan.weight(i));
      first[as_size(e)] += row.transpose() * row;
      last[as_size(e)] += h.transpose() * h;
    }
  }
  CHECK(calibration.tokens() == tokens);
  CHECK(calibration.unseen().empty());
  for (index_t e = 0; e < 5; ++e) {
    CHECK(calibration.weights()[as_size(e)] == Approx(weights[as_size(e)]));
    CHECK(test::largest_difference(calibration.first(e).to_matrix(), first[as_size(e)]) <=
          test::bound<double>(120, 16));
    const auto scale = static_cast<float>(last[as_size(e)].maxCoeff());
    CHECK(test::largest_difference(calibration.last(e).to_matrix(), last[as_size(e)]) <=
          static_cast<double>(test::bound<float>(2 * 10, scale)));
    CHECK(test::same_bits(calibration.last(e).to_matrix(), by_threads.last(e).to_matrix()));
  }
}

TEST_CASE("bank_calibration: experts without rows are listed and rounded plainly, some experts alone",
          "[quant][calibration]") {
  calibrated_layer layer = layer_to_calibrate();
  const matrix<float> x = test::random_matrix<float>(30, 10, 4);
  sparse_plan<float> plan;
  plan.reset(30, 5);
  for (index_t t = 0; t < 30; ++t) plan.add(t, t < 4 ? 1 : 3, 0.5F);
  plan.finish();
  bank_calibration calibration(layer.bank(), {.first_expert = 1, .only = 3, .least_rows = 5});
  calibration.add(layer.bank(), x, plan.routed());
  CHECK(calibration.tokens() == std::vector<double>{0, 4, 0, 26, 0});
  CHECK(calibration.weights()[3] == 13);
  CHECK(calibration.unseen() == std::vector<index_t>{1, 2});
  CHECK(calibration.factor_of_first(1).is_neutral());
  CHECK(calibration.factor_of_last(2).is_neutral());
  CHECK_FALSE(calibration.factor_of_first(3).is_neutral());
  const matrix<float> w = layer.bank().expert(2).down().to_matrix();
  CHECK(compensated_rounding(w, calibration.factor_of_last(2)).codes ==
        round_to_nearest(w, {.range = code_range::min_max}).codes);
  CHECK_THROWS_WITH(calibration.first(0), "sluice: no moments of expert 0 were asked for");

  matrix<float> scores = matrix<float>::Constant(30, 5, 0.25F);
  calibration.add(layer.bank(), x, plan.routed(), scores);
  CHECK(calibration.weights()[3] == 13 + 26 * 0.25);
  CHECK_THROWS_AS(calibration.add(layer.bank(), x, plan.routed(), scores.topRows(3)), std::invalid_argument);
  CHECK_THROWS_AS(calibration.add(layer.bank(), x.leftCols(9), plan.routed()), std::invalid_argument);
  CHECK_THROWS_AS(bank_calibration(layer.bank(), {.first_expert = 5}), std::invalid_argument);
}

TEST_CASE("bank_calibration: experts of one matrix, and of one first map in double", "[quant][calibration]") {
  const matrix<double> x = test::random_matrix<double>(40, 6, 5);
  const std::vector<index_t> offsets{0, 25, 40};
  expert_bank<linear_expert<double>> alone(2, 6, 3);
  initialize(alone, 1);
  bank_calibration of_one(alone);
  of_one.add(alone, x, {.by_expert = offsets});
  const matrix<double> expected = x.bottomRows(15).transpose() * x.bottomRows(15);
  CHECK(test::largest_difference(of_one.last(1).to_matrix(), expected) <= test::bound<double>(15, 16));
  CHECK(test::same_bits(of_one.first(1).to_matrix(), of_one.last(1).to_matrix()));

  expert_bank<ffn<double, relu>> two(2, 6, 9);
  initialize(two, 2);
  bank_calibration of_two(two);
  of_two.add(two, x, {.by_expert = offsets});
  const matrix<double> h = (x.topRows(25) * two.expert(0).up().to_matrix().transpose()).cwiseMax(0);
  CHECK(test::largest_difference(of_two.last(0).to_matrix(), matrix<double>(h.transpose() * h)) <=
        test::bound<double>(60, 16));
}

TEST_CASE("bank_calibration: whatever the weights are stored as, from matrix to matrix", "[quant][calibration]") {
  using storage = mixed_storage<full_precision<float>, int4_blocks>;
  const calibrated_layer layer = layer_to_calibrate();
  const auto small = layer.stored_as<storage>([](index_t expert, int map) -> storage {
    return expert == 2 || map == 1 ? storage(int4_blocks()) : storage(full_precision<float>());
  });
  const matrix<float> x = test::random_matrix<float>(40, 10, 6);
  matrix<float> y(40, 10);
  calibrated_layer::workspace workspace;
  layer.forward(x, y, workspace);
  bank_calibration whole(layer.bank());
  bank_calibration rounded(small.bank());
  whole.add(layer.bank(), x, workspace.plan.routed());
  rounded.add(small.bank(), x, workspace.plan.routed());
  for (index_t e = 0; e < 5; ++e) {
    CHECK(test::same_bits(whole.first(e).to_matrix(), rounded.first(e).to_matrix()));
    const double change = (whole.last(e).to_matrix() - rounded.last(e).to_matrix()).norm();
    CHECK(change > 0);  // up has four bits
    CHECK(change < 0.5 * whole.last(e).to_matrix().norm());
  }
}
