#include <sluice/adapter/joined_low_rank.hpp>
#include <sluice/adapter/low_rank.hpp>
#include <sluice/adapter/scaling_bank.hpp>

#include <sluice/layer/dense.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/every_expert/soft_moe.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "io/messages.hpp"
#include "layer/layer_promises.hpp"
#include "router/layer_checks.hpp"

using namespace sluice;

namespace {

constexpr index_t D = 6, E = 4, R = 3, O = 5;

template <typename Scalar>
joined_low_rank_bank<Scalar> joined_bank(std::uint64_t seed) {
  joined_low_rank_bank<Scalar> bank(E, D, R, {.outputs = O, .scale = Scalar(2)});
  test::fill_normal(bank.a(), seed);
  test::fill_normal(bank.b(), seed + 1);
  return bank;
}
template <typename Scalar>
scaling_bank<Scalar> scales(std::uint64_t seed, index_t heads = 1) {
  scaling_bank<Scalar> bank(E, D, {.heads = heads});
  test::fill_normal(bank.vectors(), seed);
  return bank;
}
template <typename Scalar>
auto two_best() {
  return top_k_router<Scalar>{D, E, {.top_k = 2, .weights = weighting::pre}};
}

/// The routers of MoV and MoLORA, one whose rows are gathered before, and one whose plan scales inputs.
template <typename Bank>
void check_bank(const Bank& bank) {
  const auto check_with = [&](auto router, std::uint64_t seed) {
    moe_layer layer{std::move(router), bank};
    initialize(layer.router(), seed);
    const auto report = sluice::check_layer(layer, {.seed = seed, .gradients = {.most_entries = 100}});
    INFO(report.describe());
    CHECK(report.passed());
    CHECK(report.find("gradients")->result == outcome::passed);
    const auto [difference, magnitude] =
        test::difference_from_reference(layer, test::random_matrix<double>(11, D, seed + 1));
    CHECK(difference <= test::bound<double>(D + E * R, 8 * magnitude));
  };
  check_with(dense_softmax_router<double>{linear_gate<double>{D, E, {.bias = true}}}, 3);
  check_with(two_best<double>(), 5);
  check_with(sigmoid_router<double>{D, E, {.top_k = 2, .use = weight_use::input}}, 7);
  check_with(soft_moe_router<double>{D, E, {.slots_per_expert = 2}}, 9);
}

}  // namespace

TEST_CASE("joined_low_rank: is the mixture of low-rank experts", "[adapter][joined_low_rank]") {
  auto bank = joined_bank<double>(11);
  expert_bank<low_rank_expert<double>> apart(E, D, R, {.outputs = O, .scale = 2.0});
  for (index_t e = 0; e < E; ++e) {
    apart.expert(e).a().assign(bank.a().to_matrix().middleRows(e * R, R));
    apart.expert(e).b().assign(matrix<double>(bank.b().to_matrix().middleRows(e * R, R).transpose()));
  }
  moe_layer one{two_best<double>(), bank};
  moe_layer other{two_best<double>(), apart};
  initialize(one.router(), 13), initialize(other.router(), 13);
  const matrix<double> x = test::random_matrix<double>(9, D, 14), dy = test::random_matrix<double>(9, O, 15);
  const auto numbers_of = [&](auto& layer) {
    std::pair<matrix<double>, matrix<double>> r{matrix<double>(9, O), matrix<double>(9, D)};
    typename std::remove_cvref_t<decltype(layer)>::tape tape;
    layer.forward(x, r.first, tape);
    layer.backward(dy, r.second, tape);
    return r;
  };
  const auto a = numbers_of(one), b = numbers_of(other);
  CHECK(test::largest_difference(a.first, b.first) < test::bound<double>(D + R, 64));
  CHECK(test::largest_difference(a.second, b.second) < test::bound<double>(D + R, 64));
  for (index_t e = 0; e < E; ++e) {
    CHECK(test::largest_difference(apart.expert(e).a().to_matrix(),
                                   matrix<double>(one.bank().a().to_matrix().middleRows(e * R, R))) == 0);
    CHECK(test::largest_difference(other.bank().expert(e).b().gradient_matrix(),
                                   matrix<double>(one.bank().b().gradient_matrix().middleRows(e * R, R).transpose())) <
          test::bound<double>(9, 64));
  }
  CHECK_THROWS_WITH((joined_low_rank_bank<float>{0, 6, 2}), test::contains("not 0, 6, 2, 6"));
  CHECK_THROWS_WITH((joined_low_rank_bank<float>{3, 6, 2, {.scale = std::numeric_limits<float>::infinity()}}),
                    test::contains("not 3, 6, 2, 6, inf"));
  CHECK(bank.stored_as<bfloat16_storage>().rank() == R);

  // Zero B: nothing at first, and no gradient of A.
  joined_low_rank_bank<double> fresh(E, D, R, {.outputs = O});
  moe_layer layer{two_best<double>(), fresh};
  initialize(layer, 16);
  CHECK(numbers_of(layer).first.isZero(0));
  CHECK(layer.bank().a().gradient_matrix().isZero(0));
  CHECK(!layer.bank().b().gradient_matrix().isZero(0));
}

TEST_CASE("scaling_bank: vectors are mixed and then multiplied", "[adapter][scaling]") {
  // l = (1, 1), (2, 0); weights .75, .25: the scale is (1.25, .75).
  scaling_bank<double> bank(2, 2);
  CHECK(bank.vectors().to_matrix().isOnes(0));
  bank.vectors().assign((matrix<double>(1, 4) << 1, 1, 2, 0).finished());
  moe_layer layer{dense_softmax_router<double>{linear_gate<double>{2, 2, {.bias = true}}}, bank};
  layer.router().gate().weight().fill([](index_t) { return 0.0; });
  layer.router().gate().bias().fill([](index_t e) { return e == 0 ? std::log(3.0) : 0.0; });
  const matrix<double> x = (matrix<double>(2, 2) << 2, 4, -1, 8).finished();
  matrix<double> y(2, 2);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  const matrix<double> wanted = (matrix<double>(2, 2) << 2.5, 3, -1.25, 6).finished();
  CHECK(test::largest_difference(y, wanted) < test::bound<double>(2, 8));
  CHECK_THROWS_WITH((scaling_bank<float>{3, 0}), test::contains("not 3, 0, 1"));

  // Equal vectors leave the router without a gradient.
  layer.bank().vectors().assign((matrix<double>(1, 4) << 3, 5, 3, 5).finished());
  decltype(layer)::tape tape;
  matrix<double> dx(2, 2);
  zero_gradients(layer);
  layer.forward(x, y, tape);
  layer.backward(x, dx, tape);
  CHECK(layer.router().gate().bias().gradient_matrix().cwiseAbs().maxCoeff() < test::bound<double>(4, 400));
}

TEST_CASE("scaling_bank: each head has its vectors, and the row after its last is the next token's first",
          "[adapter][scaling]") {
  auto bank = scales<double>(21, 3);
  moe_layer layer{two_best<double>(), bank};
  initialize(layer.router(), 22);
  const matrix<double> x = test::random_matrix<double>(12, D, 23);
  matrix<double> y(12, D);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  const matrix<double> vectors = bank.vectors().to_matrix(), weights = workspace.plan.dense_weights();
  for (index_t t = 0; t < 12; ++t) {
    const Eigen::Map<const matrix<double>> own(vectors.data() + t % 3 * E * D, E, D);
    const matrix<double> wanted = x.row(t).cwiseProduct(weights.row(t) * own);
    CHECK((y.row(t) - wanted).cwiseAbs().maxCoeff() < test::bound<double>(E, 16));
  }
  test::check_equal_bits(layer, 200, test::in_training());
  const std::vector<std::uint8_t> mask{1, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1, 1};
  auto context = test::in_training();
  context.token_mask = mask;
  const auto report = test::layer_gradients(layer, x, context);
  INFO(report.describe());
  CHECK(report.largest_error < test::gradient_tolerance);
}

TEST_CASE("joined_low_rank: every promise of a bank", "[adapter][joined_low_rank][conformance]") {
  check_bank(joined_bank<double>(31));
}
TEST_CASE("scaling_bank: every promise of a bank", "[adapter][scaling][conformance]") {
  check_bank(scales<double>(33));
}

TEST_CASE("joined_low_rank, scaling_bank: weights of zero get their gradients too", "[adapter]") {
  const std::vector<index_t> offsets{0, 2, 2, 3, 3}, tokens{0, 2, 0};
  const std::vector<double> weights{0, 0.5, 0};
  const routed_rows<double> rows{
      .by_expert = offsets, .is_routed = true, .tokens = tokens.data(), .weights = weights.data()};
  const matrix<double> x = test::random_matrix<double>(3, D, 41);
  const auto check_one = [&](auto bank) {
    const matrix<double> dy = test::random_matrix<double>(3, bank.outputs(), 42);
    matrix<double> y = matrix<double>::Zero(3, bank.outputs()), dx = matrix<double>::Zero(3, D),
                   alone(3, bank.outputs());
    std::vector<double> dweight(3, 99);
    typename decltype(bank)::tape tape;
    bank.forward_routed(x, rows, y, tape, {});
    ensure_gradients(bank);
    bank.backward_routed(x, rows, dy, dx, tape, dweight.data(), nullptr, {});
    CHECK((y.row(0).isZero(0) && y.row(1).isZero(0) && dx.row(1).isZero(0)));
    const std::vector<index_t> third{0, 0, 0, 3, 3};
    bank.forward(x, third, alone, tape, {});
    CHECK(std::abs(dweight[2] - alone.row(0).dot(dy.row(0))) < test::bound<double>(D + R, 64));
    auto apart = rows;
    apart.targets = tokens.data();
    CHECK_THROWS_WITH(bank.forward_routed(x, apart, y, tape, {}), test::contains("targets of their own"));
  };
  check_one(joined_bank<double>(43));
  check_one(scales<double>(45));
}
