#include <sluice/convert/kept_experts.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

using kept_layer = moe_layer<top_k_router<double>, expert_bank<ffn<double>>>;

kept_layer layer_of(index_t experts, weighting weights) {
  kept_layer layer(top_k_router<double>(6, experts, {.top_k = 2, .weights = weights}),
                   expert_bank<ffn<double>>(experts, 6, 5));
  initialize(layer, 1);
  return layer;
}

kept_layer smaller_layer(kept_layer& layer, const std::vector<index_t>& ids, weighting weights) {
  kept_layer smaller(top_k_router<double>(6, static_cast<index_t>(ids.size()), {.top_k = 2, .weights = weights}),
                     kept_experts(layer.bank(), ids));
  smaller.router().gate().weight().assign(router_rows<double>(layer.router().gate().weight().to_matrix(), ids));
  return smaller;
}

matrix<double> outputs_of_kept(const kept_layer& layer, const matrix<double>& x) {
  matrix<double> y(x.rows(), 6);
  kept_layer::workspace workspace;
  layer.forward(x, y, workspace);
  return y;
}

}  // namespace

TEST_CASE("kept_experts: all is the same layer, those that a batch chose do, if weights are theirs alone",
          "[convert][kept]") {
  for (const weighting weights : {weighting::post, weighting::pre}) {
    kept_layer layer = layer_of(6, weights);
    const matrix<double> x = test::random_matrix<double>(3, 6, 2), y = outputs_of_kept(layer, x);
    const std::vector<index_t> all{0, 1, 2, 3, 4, 5};
    CHECK(test::same_bits(outputs_of_kept(smaller_layer(layer, all, weights), x), y));
    const matrix<double> logits = x * layer.router().gate().weight().to_matrix().transpose();
    std::vector<double> tokens(6, 0.0);
    for (index_t t = 0; t < 3; ++t) {
      const matrix<double> row = logits.row(t);
      for (const index_t e : most_used<double>(test::span_of(row), 2)) tokens[as_size(e)] += 1;
    }
    const index_t chosen = std::count_if(tokens.begin(), tokens.end(), [](double n) { return n > 0; });
    REQUIRE(chosen < 6);
    const auto ids = most_used<double>(tokens, chosen);
    const double off = test::largest_difference(outputs_of_kept(smaller_layer(layer, ids, weights), x), y);
    CHECK((off < 1e-12) == (weights == weighting::post));
  }
}

TEST_CASE("most_used: the lower of equals stays, NaN goes first", "[convert][kept]") {
  const std::vector<float> scores{1, quiet_nan<float>(), 3, 1, -2};
  CHECK(most_used<float>(scores, 2) == std::vector<index_t>{0, 2});
  CHECK(most_used<float>(scores, 4) == std::vector<index_t>{0, 2, 3, 4});
  CHECK_THROWS_AS(most_used<float>(scores, 0), std::invalid_argument);
  CHECK_THROWS_WITH(most_used<float>(scores, 6), "sluice: of 5 experts 6 cannot stay");
  CHECK_THROWS_AS(router_rows<float>(matrix<float>::Zero(3, 2), std::vector<index_t>{3}), std::invalid_argument);
}

TEST_CASE("router_change: of the norm, of the row", "[convert][kept]") {
  matrix<double> before(2, 2), after(2, 2);
  before << 1, 0, 0, 1;
  after << 1, 0.1, 0, 3;
  const auto scores = router_change<double>(before, after);
  CHECK(std::abs(scores[0] - (std::sqrt(1.01) - 1)) < 1e-15);
  CHECK(scores[1] == 2);
  CHECK(most_used<double>(scores, 1) == std::vector<index_t>{1});
  // A rotation of all rows changes no norm.
  const double c = std::cos(0.3), s = std::sin(0.3);
  const matrix<double> turn = (matrix<double>(2, 2) << c, s, -s, c).finished();
  const auto turned = router_change<double>(before, after * turn);
  for (std::size_t e = 0; e < 2; ++e) CHECK(std::abs(turned[e] - scores[e]) < 1e-12);
  CHECK(std::abs(router_change<double>(before, after, router_change_measure::of_row)[0] - 0.1) < 1e-15);
  CHECK_THROWS_WITH(router_change<double>(before, before * turn), Catch::Matchers::Contains("length 1"));
  CHECK_THROWS_AS(router_change<double>(before, after.topRows(1)), std::invalid_argument);
}

TEST_CASE("usage_pruning: the worked round, the fixed point, beta of 0, the last round", "[convert][kept]") {
  usage_pruning pruning(4);
  pruning.set_usage(std::vector<double>{0.7, 0.2, 0.08, 0.02});
  CHECK(pruning.prune() == std::vector<index_t>{0, 1, 2});  // threshold 0.025
  CHECK(pruning.prune() == std::vector<index_t>{0, 1, 2});  // 0.0333 of (0.714, 0.204, 0.082)
  CHECK(pruning.prune(true) == std::vector<index_t>{0});
  CHECK(pruning.prune() == std::vector<index_t>{0});

  usage_pruning none(3, {.beta = 0});
  none.set_usage(std::vector<double>{0.5, 0, 0.5});
  CHECK(none.prune() == std::vector<index_t>{0, 2});
  usage_pruning two(3, {.beta = 2, .minimum = 2});
  two.observe(std::vector<double>{0.1, 0.6, 0.3});
  CHECK(std::abs(two.usage()[1] - (0.3 + 0.06)) < 1e-12);
  CHECK(two.prune() == std::vector<index_t>{1, 2});  // fewer than two pass
  CHECK_THROWS_AS(usage_pruning(2, {.minimum = 3}), std::invalid_argument);
  CHECK_THROWS_AS(two.observe(std::vector<double>{1, 0}), std::invalid_argument);
  CHECK_THROWS_AS(two.set_usage(std::vector<double>{1, quiet_nan<double>(), 0}), std::invalid_argument);
}
