#include <sluice/quant/calibrated_maps.hpp>
#include <sluice/quant/compensated_rounding.hpp>
#include <sluice/quant/rounding_error.hpp>

#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

using rounded_layer = moe_layer<top_k_router<float>, expert_bank<swiglu<float>>>;

auto& map_of(rounded_layer& layer, const calibrated_map& map) {
  auto& expert = layer.bank().expert(map.expert);
  return map.is_last ? expert.down() : map.number == 0 ? expert.gate() : expert.up();
}

}  // namespace

TEST_CASE("quant: a layer rounded with compensation is nearer on new tokens than one rounded plainly",
          "[quant][calibrated_maps]") {
  rounded_layer layer{top_k_router<float>{24, 4, {.top_k = 2}}, expert_bank<swiglu<float>>{4, 24, 32}};
  initialize(layer, 1);
  const matrix<float> mix = test::random_matrix<float>(24, 24, 2);
  const auto tokens = [&](std::uint64_t seed) {
    matrix<float> x = test::random_matrix<float>(300, 24, seed) * mix;
    return matrix<float>(x / x.norm() * 80);
  };
  rounded_layer::workspace workspace;
  matrix<float> y(300, 24), rounded(300, 24);
  bank_calibration calibration(layer.bank());
  for (const std::uint64_t batch : {3U, 4U}) {
    layer.forward(tokens(batch), y, workspace);
    calibration.add(layer.bank(), tokens(batch), workspace.plan.routed());
  }
  const matrix<float> unseen = tokens(5);
  layer.forward(unseen, y, workspace);
  const auto error_of = [&](rounded_layer& other) {
    other.forward(unseen, rounded, workspace);
    return (y - rounded).norm() / y.norm();
  };
  for (const int bits : {2, 3, 4}) {
    rounded_layer plain = layer, compensated = layer;
    std::vector<std::pair<index_t, int>> order;
    for_each_calibrated_map(layer.bank(), calibration, {.order_by_activity = true}, [&](const calibrated_map& map) {
      order.emplace_back(map.expert, map.number);
      const matrix<float> by_itself =
          round_to_nearest(map.weights, {.bits = bits, .group = 8, .range = code_range::min_max}).to_matrix();
      const matrix<float> in_turn =
          compensated_rounding(map.weights, map.factor, {.bits = bits, .group = 8}).to_matrix();
      map_of(plain, map).assign(by_itself);
      map_of(compensated, map).assign(in_turn);
      const matrix<double> h = map.moments.to_matrix();
      CHECK(error_of_rounding(map.weights, in_turn, h).outputs < error_of_rounding(map.weights, by_itself, h).outputs);
    });
    CHECK(order.size() == 12);
    CHECK(order[5] == std::pair<index_t, int>{1, 2});
    const float errors[] = {error_of(plain), error_of(compensated)};
    CHECK(errors[1] < 0.9F * errors[0]);
    WARN(bits << " bits, relative error of a layer on new tokens: " << errors[0] << " rounded, " << errors[1]
              << " GPTQ");
  }
}

TEST_CASE("rounding_error: what the definitions say", "[quant][rounding_error]") {
  const matrix<float> w = test::random_matrix<float>(70, 9, 6), q = w + 0.1F * test::random_matrix<float>(70, 9, 7);
  const matrix<double> x = test::random_matrix<double>(30, 9, 8), h = x.transpose() * x;
  const rounding_error error = error_of_rounding(w, q, h);
  CHECK(error.weights == Approx(static_cast<double>((w - q).norm() / w.norm())).epsilon(1e-5));
  CHECK(error.outputs ==
        Approx((x * (w - q).cast<double>().transpose()).norm() / (x * w.cast<double>().transpose()).norm())
            .epsilon(1e-6));
  test::shuffled_threads threads(3);
  CHECK(error_of_rounding(w, q, h, threads).outputs == error.outputs);
  const matrix<double> nothing = matrix<double>::Zero(9, 9);
  CHECK(error_of_rounding(w, q, nothing).outputs == error.weights);
  const matrix<float> zero = matrix<float>::Zero(70, 9);
  CHECK(error_of_rounding(zero, zero, h).outputs == 0);
  CHECK(error_of_rounding(matrix<float>(0, 9), matrix<float>(0, 9), h).weights == 0);
  CHECK_THROWS_AS(error_of_rounding(w, q.topRows(3), h), std::invalid_argument);
}
