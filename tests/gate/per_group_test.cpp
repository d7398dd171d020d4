#include <sluice/gate/per_group.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/gate/cluster.hpp>
#include <sluice/gate/identity.hpp>
#include <sluice/gate/joined.hpp>
#include <sluice/gate/noisy.hpp>
#include <sluice/gate/residual.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "../io/messages.hpp"
#include "gate_check.hpp"

using namespace sluice;

namespace {

using mean_gate = per_group_gate<linear_gate<double>>;
using first_gate = per_group_gate<linear_gate<double>, group_source::first_token>;
using vector_gate = per_group_gate<linear_gate<double>, group_source::group_vector>;

template <typename Gate>
Gate filled_gate(Gate gate, std::uint64_t seed = 3) {
  initialize(gate, seed);
  return gate;
}

const std::vector<index_t> three_groups{0, 4, 4, 9};  // the second is empty
const std::vector<std::uint8_t> one_hidden{1, 0, 1, 1, 1, 1, 1, 1, 1};

routing_context<double> grouped() {
  routing_context<double> context = test::training_context<double>();
  context.groups = three_groups;
  context.token_mask = one_hidden;
  return context;
}

}  // namespace

TEST_CASE("per_group_gate: the inner gate reads the mean of the tokens that are seen, or the first",
          "[gate][per_group]") {
  const auto mean = filled_gate(mean_gate(5, 3));
  const auto first = filled_gate(first_gate(5, 3));
  const auto inner = filled_gate(linear_gate<double>(5, 3));
  matrix<double> x = test::random_matrix<double>(9, 5, 4);
  matrix<double> vectors(2, 5);
  vectors.row(0) = (x.row(0) + x.row(2) + x.row(3)) / 3;
  vectors.row(1) = x.bottomRows(5).colwise().mean();
  const matrix<double> logits = test::score(mean, x, grouped());
  const matrix<double> expected = test::score(inner, vectors);
  matrix<double> firsts(2, 5);
  firsts << x.row(0), x.row(4);
  const matrix<double> first_logits = test::score(first, x, grouped()), first_expected = test::score(inner, firsts);
  CHECK(logits.row(1).isZero(0));  // padding
  for (index_t t = 0; t < 9; ++t) {
    if (t == 1) continue;
    CHECK(test::largest_difference(matrix<double>(logits.row(t)), matrix<double>(expected.row(t < 4 ? 0 : 1))) <=
          test::bound<double>(10, 4.0));
    CHECK(test::same_bits(matrix<double>(first_logits.row(t)), matrix<double>(first_expected.row(t < 4 ? 0 : 1))));
    CHECK(test::same_bits(matrix<double>(logits.row(t)), matrix<double>(logits.row(t < 4 ? 0 : 4))));
  }
  // A permutation of the patches moves nothing but rounding; what padding holds, nothing at all.
  x.row(1).setConstant(1e9);
  CHECK(test::same_bits(test::score(mean, x, grouped()), logits));
  STATIC_REQUIRE_FALSE(mean_gate::causal);
  STATIC_REQUIRE(vector_gate::causal);
}

TEST_CASE("per_group_gate: the inner gate reads the context's vectors, whose gradient stays in the tape",
          "[gate][per_group]") {
  auto gate = filled_gate(vector_gate(2, linear_gate<double>(4, 3)));
  const matrix<double> x = test::random_matrix<double>(9, 2, 5);
  matrix<double> vectors = test::random_matrix<double>(3, 4, 6);
  auto context = grouped();
  context.group_features = vectors;
  const matrix<double> logits = test::score(gate, x, context);
  const matrix<double> expected = test::score(gate.inner(), vectors);
  CHECK(test::same_bits(matrix<double>(logits.row(2)), matrix<double>(expected.row(0))));
  CHECK(test::same_bits(matrix<double>(logits.row(8)), matrix<double>(expected.row(2))));
  CHECK(gate.inputs() == 2);

  vector_gate::tape tape;
  const matrix<double> dlogits = test::random_matrix<double>(9, 3, 7);
  CHECK(test::pull_back(gate, x, dlogits, context, tape).isZero(0));
  const matrix<double> dvectors = tape.group_gradient().map();
  CHECK(dvectors.row(1).isZero(0));
  const matrix<double> sum = dlogits.bottomRows(5).colwise().sum() * gate.inner().weight().map();
  CHECK(test::largest_difference(matrix<double>(dvectors.row(2)), sum) <= test::bound<double>(15, 8.0));

  // NaN in one vector is that group's alone.
  vectors(0, 1) = quiet_nan<double>();
  const matrix<double> spoiled = test::score(gate, x, context);
  for (index_t t = 0; t < 9; ++t) CHECK(is_nan(spoiled(t, 0)) == (t < 4 && t != 1));
  matrix<double> cleared = dlogits;
  cleared.topRows(4).setZero();
  test::pull_back(gate, x, cleared, context, tape);
  CHECK(gate.inner().weight().gradient_map().allFinite());

  context.group_features = {};
  CHECK_THROWS_WITH(test::score(gate, x, context), test::contains("[3, 4]"));
}

TEST_CASE("per_group_gate: gradients equal central differences", "[gate][per_group][gradient]") {
  auto context = grouped();
  const auto check = [&](auto gate) {
    const auto report = test::check_gate(gate, test::random_matrix<double>(9, gate.inputs(), 8), 9, context);
    INFO(report.describe());
    CHECK(report.largest_error < 1e-6);
  };
  check(filled_gate(mean_gate(5, 3)));
  check(filled_gate(first_gate(5, 3)));
  using noisy = per_group_gate<noisy_gate<linear_gate<double>>>;
  check(filled_gate(
      noisy(noisy_gate<linear_gate<double>>(linear_gate<double>(5, 3), {.temperature = 0.5, .noise_std = 0.3}))));
  const std::vector<index_t> clusters{1, 9, 1, 1, 0, 0, 0, 0, 0};  // that of padding is not looked at
  context.cluster_ids = clusters;
  using by_cluster = per_group_gate<cluster_gate<double>, group_source::ids>;
  check(filled_gate(by_cluster(cluster_gate<double>(5, 3, 2, 4))));
}

TEST_CASE("noisy_gate: noise before the temperature, in training only", "[gate][noisy]") {
  const auto inner = filled_gate(linear_gate<double>(5, 3));
  const noisy_gate<linear_gate<double>> gate(inner, {.temperature = 0.5, .noise_std = 0.2});
  const matrix<double> x = test::random_matrix<double>(4, 5, 13), clean = test::score(inner, x);
  std::vector<double> z;
  for (index_t i = 0; i < 12; ++i) z.push_back(double(i) - 5);
  auto context = test::training_context<double>();
  context.random.replay(gate_noise_site, z);
  const matrix<double> noisy = test::score(gate, x, context), cold = test::score(gate, x);
  for (index_t i = 0; i < 12; ++i) {
    CHECK(std::abs(cold.data()[i] - clean.data()[i] / 0.5) <= test::bound<double>(2, 8.0));
    CHECK(std::abs(noisy.data()[i] - (clean.data()[i] + 0.2 * z[std::size_t(i)]) / 0.5) <= test::bound<double>(2, 8.0));
  }
  test::check_gate_promises(gate, 14);
  using options = noisy_gate<linear_gate<double>>::options;
  for (const auto& o :
       {options{.temperature = 0}, options{.temperature = quiet_nan<double>()}, options{.noise_std = -1}})
    CHECK_THROWS_AS((noisy_gate<linear_gate<double>>(inner, o)), std::invalid_argument);
}

TEST_CASE("cluster_gate: tokens of a cluster have its logits, whatever they hold", "[gate][cluster]") {
  auto gate = filled_gate(cluster_gate<double>(5, 3, 4, 6));
  gate.bias().fill([](index_t e) { return 0.1 * double(e); });
  const std::vector<index_t> clusters{2, 0, 2, 3};
  routing_context<double> context;
  context.cluster_ids = clusters;
  const matrix<double> x = test::random_matrix<double>(4, 5, 15), logits = test::score(gate, x, context);
  CHECK(test::same_bits(matrix<double>(logits.row(0)), matrix<double>(logits.row(2))));
  const matrix<double> expected = gate.weight().map() * gate.embedding().map().row(3).transpose();
  for (index_t e = 0; e < 3; ++e)
    CHECK(std::abs(logits(3, e) - expected(e, 0) - 0.1 * double(e)) <= test::bound<double>(6, 8.0));
  const auto report = test::check_gate(gate, x, 16, context);
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
  CHECK_THROWS_WITH(test::score(gate, x), test::contains("cluster_ids"));
  const std::vector<index_t> wrong{2, 0, 4, 3};
  context.cluster_ids = wrong;
  CHECK_THROWS_WITH(test::score(gate, x, context), test::contains("token 2 is of cluster 4"));
  CHECK_THROWS_WITH((cluster_gate<double>(5, 3, 0, 6)), test::contains("0"));
}

TEST_CASE("identity_gate: tokens are logits", "[gate][identity]") {
  test::check_gate_promises(identity_gate<double>(4), 17);
  CHECK_THROWS_WITH(identity_gate<double>(0), test::contains("E >= 1"));
}

TEST_CASE("per_group_gate: a joined gate inside reads the group's features in front of the mean", "[gate][per_group]") {
  const auto gate = filled_gate(
      per_group_gate<joined_gate<linear_gate<double>>>(joined_gate(linear_gate<double>(7, 3), 2)));
  const matrix<double> x = test::random_matrix<double>(9, 5, 4), text = test::random_matrix<double>(3, 2, 5);
  auto context = grouped();
  context.group_features = text;
  const matrix<double> logits = test::score(gate, x, context);
  matrix<double> joined(1, 7);
  joined << text.row(2), x.bottomRows(5).colwise().mean();
  const matrix<double> expected = test::score(gate.inner().inner(), joined);
  CHECK(test::largest_difference(matrix<double>(logits.row(6)), expected) <= test::bound<double>(14, 4.0));
  CHECK_THROWS_WITH(test::score(gate, x, grouped()), test::contains("routing_context.features [T, F] = [3, 2]"));
}

TEST_CASE("per_group_gate: the inner gate reads all tokens of a group, one behind the other", "[gate][per_group]") {
  using whole_gate = per_group_gate<linear_gate<double>, group_source::all_tokens>;
  const auto gate = filled_gate(whole_gate(5, linear_gate<double>(15, 4)));
  CHECK(gate.inputs() == 5);
  matrix<double> x = test::random_matrix<double>(6, 5, 4);
  const std::vector<index_t> halves{0, 3, 3, 6};
  const std::vector<std::uint8_t> mask{1, 0, 1, 1, 1, 1};
  routing_context<double> context = test::training_context<double>();
  context.groups = halves;
  context.token_mask = mask;
  matrix<double> vectors = matrix<double>::Zero(2, 15);
  vectors.row(0) << x.row(0), Eigen::RowVectorXd::Zero(5), x.row(2);
  vectors.row(1) << x.row(3), x.row(4), x.row(5);
  const matrix<double> logits = test::score(gate, x, context), expected = test::score(gate.inner(), vectors);
  CHECK(test::same_bits(matrix<double>(logits.row(2)), matrix<double>(expected.row(0))));
  CHECK(test::same_bits(matrix<double>(logits.row(5)), matrix<double>(expected.row(1))));
  STATIC_REQUIRE_FALSE(whole_gate::causal);
  context.groups = {};
  CHECK_THROWS_WITH(test::score(gate, x, context), test::contains("group 0 has 6 tokens of 5"));
  CHECK_THROWS_WITH((whole_gate(4, linear_gate<double>(15, 4))), test::contains("15 numbers, which are no tokens of 4"));
}

TEST_CASE("per_group_gate: the gradient of all tokens goes back to each", "[gate][per_group][gradient]") {
  auto gate = filled_gate(per_group_gate<linear_gate<double>, group_source::all_tokens>(2, linear_gate<double>(6, 3)));
  const std::vector<index_t> halves{0, 3, 6};
  routing_context<double> context = test::training_context<double>();
  context.groups = halves;
  const auto report = test::check_gate(gate, test::random_matrix<double>(6, 2, 7), 8, context);
  INFO(report.describe());
  CHECK(report.largest_error < 1e-8);
}

TEST_CASE("per_group_gate: sequences choose slices of a network, and all slices are the network (Union of Experts)",
          "[gate][per_group][top_k]") {
  // Each slice has an output bias of its own: the whole one has their sum.
  const index_t width = 3, hidden = 8, slices = 4, each = hidden / slices;
  ffn<double, gelu> whole(width, hidden, {.bias = true});
  initialize(whole, 5);
  whole.down_bias().fill([](index_t i) { return 0.5 + static_cast<double>(i); });
  expert_bank<ffn<double, gelu>> parts(slices, width, each, {.bias = true});
  const matrix<double> up = whole.up().to_matrix(), down = whole.down().to_matrix();
  for (index_t e = 0; e < slices; ++e) {
    parts.expert(e).up().assign(matrix<double>(up.middleRows(e * each, each)));
    parts.expert(e).down().assign(matrix<double>(down.middleCols(e * each, each)));
    parts.expert(e).up_bias().fill([&](index_t i) { return whole.up_bias().value()[as_size(e * each + i)]; });
    parts.expert(e).down_bias().fill([&](index_t i) { return whole.down_bias().value()[as_size(i)] / 4; });
  }
  using gate_type = per_group_gate<linear_gate<double>, group_source::all_tokens>;
  using router_type = top_k_router<double, dynamic, dynamic, gate_type>;
  const auto gate = filled_gate(gate_type(width, linear_gate<double>(2 * width, slices)));
  const auto layer_of = [&](index_t k) {
    return moe_layer{router_type(gate, {.top_k = k, .weights = weighting::one, .constant_weight = true}), parts};
  };
  const matrix<double> x = test::random_matrix<double>(4, width, 9);
  const std::vector<index_t> pairs{0, 2, 4};
  routing_context<double> context;
  context.groups = pairs;
  matrix<double> y(4, width), dense(4, width), dx(4, width);
  const auto all = layer_of(slices);
  decltype(layer_of(1))::workspace workspace;
  all.forward(x, y, workspace, context);
  dense_layer network{whole};
  decltype(network)::workspace dense_workspace;
  network.forward(x, dense, dense_workspace);
  CHECK((y - dense).cwiseAbs().maxCoeff() <= test::bound<double>(hidden + width, 4));

  auto two = layer_of(2);
  decltype(two)::tape tape;
  context.training = true;
  two.forward(x, y, tape, context);
  for (const index_t e : {0, 1, 2, 3}) CHECK(tape.plan.load(e) % 2 == 0);  // both tokens of a pair, or none
  for (index_t i = 0; i < tape.plan.rows(); ++i) CHECK(tape.plan.weight(i) == 1);
  ensure_gradients(two);
  zero_gradients(two);
  two.backward(matrix<double>::Ones(4, width), dx, tape);
  CHECK(two.router().gate().inner().weight().gradient_map().isZero(0));
  CHECK_THROWS_WITH((router_type(gate, {.weights = weighting::one})), test::contains("weights that are 1"));
}

TEST_CASE("per_group_gate: logits of tokens are added around it, and refused by a gate inside that would add them",
          "[gate][per_group]") {
  const matrix<double> x = test::random_matrix<double>(9, 5, 31), previous = test::random_matrix<double>(9, 3, 32);
  routing_context<double> context = grouped();
  const auto alone = filled_gate(mean_gate(5, 3));
  residual_gate around(alone);
  around.residual().assign(2 * matrix<double>::Identity(3, 3));
  const matrix<double> without = test::score(alone, x, context);
  context.previous_logits = previous;
  CHECK(test::same_bits(test::score(alone, x, context), without));
  const matrix<double> logits = test::score(around, x, context);
  CHECK(test::largest_difference(matrix<double>(logits.row(5)), matrix<double>(without.row(5) + 2 * previous.row(5))) <
        1e-12);

  const auto inside =
      filled_gate(per_group_gate(residual_gate<linear_gate<double>>(linear_gate<double>(5, 3), {.optional = true})));
  CHECK_THROWS_WITH(test::score(inside, x, context),
                    test::contains("previous_logits are of 9 tokens") && test::contains("3 groups"));
  context.previous_logits = {};
  CHECK(test::score(inside, x, context).allFinite());
}
