#include <sluice/adapter/adapted.hpp>
#include <sluice/adapter/low_rank.hpp>
#include <sluice/adapter/merge.hpp>

#include <sluice/expert/linear.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/linear.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/conformance.hpp>
#include <sluice/train/model_part.hpp>
#include <sluice/train/sgd.hpp>

#include "io/messages.hpp"
#include "layer/layer_promises.hpp"
#include "router/layer_checks.hpp"

using namespace sluice;

namespace {

constexpr index_t in = 6, rank = 3, out = 5;

template <typename Scalar>
low_rank_expert<Scalar> set_expert(std::uint64_t seed) {
  low_rank_expert<Scalar> expert(in, rank, {.outputs = out, .scale = Scalar(2)});
  test::fill_normal(expert.a(), seed);
  test::fill_normal(expert.b(), seed + 1);
  return expert;
}

/// A base in any storage beside four low-rank experts, two a token.
template <typename Scalar, typename Storage = full_precision<Scalar>>
auto adapted(std::uint64_t seed) {
  linear_expert<Scalar> base(in, out, {.bias = true});
  test::fill_normal(base.weight(), seed);
  test::fill_normal(base.bias(), seed + 1);
  moe_layer adapters{top_k_router<Scalar>{in, 4, {.top_k = 2}},
                     expert_bank<low_rank_expert<Scalar>>{4, in, rank, {.outputs = out, .scale = Scalar(2)}}};
  initialize(adapters, seed + 2);
  return adapted_layer{dense_layer{base.template stored_as<Storage>()}, std::move(adapters)};
}

}  // namespace

TEST_CASE("low_rank: is s B A x, and begins with nothing", "[adapter][low_rank]") {
  const auto expert = set_expert<float>(3);
  const matrix<float> x = test::random_matrix<float>(7, in, 5);
  matrix<float> y(7, out), saved(7, 0);
  expert.forward(x, y, saved);
  const matrix<float> wanted = 2 * (x * expert.a().to_matrix().transpose()) * expert.b().to_matrix().transpose();
  CHECK(test::largest_difference(y, wanted) < test::bound<float>(in + rank, wanted.cwiseAbs().maxCoeff()));

  low_rank_expert<float> fresh(in, rank, {.outputs = out});
  initialize(fresh, 7);
  CHECK(fresh.b().to_matrix().isZero(0));
  CHECK(fresh.a().to_matrix().cwiseAbs().maxCoeff() <= 1 / std::sqrt(float(in)));
  CHECK(fresh.a().to_matrix().cwiseAbs().maxCoeff() > 0.2f);
  fresh.forward(x, y, saved);
  CHECK(y.isZero(0));
  CHECK_THROWS_WITH((low_rank_expert<float>{in, 0}), test::contains("not 6, 0, 6"));
  CHECK_THROWS_WITH((low_rank_expert<float>{in, 2, {.scale = quiet_nan<float>()}}), test::contains("not 6, 2, 6, nan"));
  CHECK(expert.stored_as<bfloat16_storage>().scale() == 2);
}

TEST_CASE("low_rank: every promise of an expert", "[adapter][low_rank][conformance]") {
  const auto report = check_expert(set_expert<double>(11));
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("adapted: is the base and the adapters, of which the base is frozen", "[adapter][adapted]") {
  auto layer = adapted<float>(21);
  const matrix<float> x = test::random_matrix<float>(9, in, 25), dy = test::random_matrix<float>(9, out, 26);
  matrix<float> y(9, out), alone(9, out), dx(9, in);
  decltype(layer)::tape tape;
  std::remove_cvref_t<decltype(layer.base())>::workspace ws;
  const matrix<float> weight = layer.base().expert().weight().to_matrix();

  // Nothing changes at first. The gradient of A is exactly zero, that of B is not, the base's weights have none.
  layer.forward(x, y, tape);
  layer.base().forward(x, alone, ws);
  CHECK(test::same_bits(y, alone));
  layer.backward(dy, dx, tape);
  CHECK(test::largest_difference(dx, matrix<float>(dy * weight)) < test::bound<float>(out, 8));
  float largest_of_b = 0;
  for (index_t e = 0; e < 4; ++e) {
    CHECK(layer.bank().expert(e).a().gradient_matrix().isZero(0));
    largest_of_b = std::max(largest_of_b, layer.bank().expert(e).b().gradient_matrix().cwiseAbs().maxCoeff());
  }
  CHECK(largest_of_b > 0.1f);
  CHECK(!layer.base().expert().weight().has_gradient());

  // A step moves adapters alone, and a part of the model is them.
  model_part adapters{layer, of_adapters};
  CHECK(adapters.arrays() == 1 + 4 * 2);
  std::vector<std::string> names;
  for_each_parameter(layer, [&](const std::string& name, const auto&) { names.push_back(name); });
  CHECK((names.size() == 11 && names[0] == "base.weight" && names[2] == "adapters.router.gate.weight"));
  sgd<float> steps({.learning_rate = 0.1f});
  steps.step(layer);
  layer.after_step(tape);
  CHECK(test::same_bits(layer.base().expert().weight().to_matrix(), weight));
  CHECK(!layer.bank().expert(0).b().to_matrix().isZero(0));
  CHECK_THROWS_WITH((adapted_layer{linear_layer<float>{4, 5}, layer.adapters()}), test::contains("6 -> 5 and 4 -> 5"));
  CHECK((of_adapters("x.adapters.a") && !of_adapters("base.weight") && !of_adapters("1.base.experts.0.up")));
}

TEST_CASE("adapted: every promise of a layer, with bases of several kinds", "[adapter][adapted][conformance]") {
  const auto check_all = [](auto layer, bool exact) {
    for (index_t e = 0; e < 4; ++e) test::fill_normal(layer.bank().expert(e).b(), 31 + static_cast<std::uint64_t>(e));
    const auto report = check_layer(layer, {.seed = 33, .gradients = {.most_entries = 100}});
    INFO(report.describe());
    CHECK(report.passed());
    CHECK((report.find("gradients")->result == outcome::passed) == exact);
  };
  check_all(adapted<double>(41), true);
  check_all(adapted<float, bfloat16_storage>(43), false);
}

TEST_CASE("adapted: a base in sixteen bits passes gradients on as what it was rounded to", "[adapter][adapted]") {
  auto small = adapted<float, bfloat16_storage>(61);
  adapted_layer full{dense_layer{linear_expert<float>{in, out, {.bias = true}}}, small.adapters()};
  full.base().expert().weight().assign(small.base().expert().weight().to_matrix());
  full.base().expert().bias() = small.base().expert().bias();
  const matrix<float> x = test::random_matrix<float>(9, in, 63), dy = test::random_matrix<float>(9, out, 64);
  const auto numbers_of = [&](auto& layer) {
    std::pair<matrix<float>, matrix<float>> r{matrix<float>(9, out), matrix<float>(9, in)};
    typename std::remove_cvref_t<decltype(layer)>::tape tape;
    layer.forward(x, r.first, tape);
    layer.backward(dy, r.second, tape);
    return r;
  };
  const auto a = numbers_of(small), b = numbers_of(full);
  CHECK(test::largest_difference(a.first, b.first) < test::bound<float>(in, 8));
  CHECK(test::largest_difference(a.second, b.second) < test::bound<float>(out, 8));
  CHECK(full.stored_as<bfloat16_storage>().adapters().bank().expert(0).scale() == 2);
}

TEST_CASE("merge: the base alone gives what both gave, and unmerge takes it out", "[adapter][merge]") {
  auto expert = set_expert<float>(51);
  adapted_layer layer{linear_layer<float>{in, out}, dense_layer{expert}};
  initialize(layer.base(), 53);
  const matrix<float> before = layer.base().weight().to_matrix();
  const matrix<float> x = test::random_matrix<float>(9, in, 54);
  matrix<float> y(9, out), merged(9, out);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  merge_adapter(layer.base().weight(), expert);
  linear_layer<float>::workspace ws;
  layer.base().forward(x, merged, ws);
  CHECK(test::largest_difference(y, merged) < test::bound<float>(in + rank, y.cwiseAbs().maxCoeff()));
  const float largest = layer.base().weight().to_matrix().cwiseAbs().maxCoeff();
  unmerge_adapter(layer.base().weight(), expert);
  CHECK(test::largest_difference(layer.base().weight().to_matrix(), before) <=
        2 * std::numeric_limits<float>::epsilon() * largest);

  // Into panels, with a weight, of an expert in another storage.
  linear_expert<float> panels(in, out);
  panels.weight().assign(before);
  const auto small = expert.stored_as<bfloat16_storage>();
  merge_adapter(panels.weight(), small, 0.25f);
  const matrix<float> wanted = before + 0.5f * small.b().to_matrix() * small.a().to_matrix();
  CHECK(test::largest_difference(panels.weight().to_matrix(), wanted) < test::bound<float>(rank, largest));
  linear_expert<float> other(in, out + 1);
  initialize(other, 55);
  CHECK_THROWS_WITH(merge_adapter(other.weight(), expert),
                    test::contains("[6, 6] cannot take a low-rank expert that maps 6 -> 5"));
}
