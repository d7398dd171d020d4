#include <sluice/adapter/fine_tuning.hpp>

#include <sluice/adapter/low_rank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>
#include <sluice/train/model_part.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

using tuned_adapter = ffn<double, silu>;

/// Five experts, two a token.
template <typename Storage = full_precision<double>>
auto tuned_base() {
  moe_layer base{top_k_router<double>{6, 5, {.top_k = 2}}, expert_bank<swiglu<double>>{5, 6, 7}};
  initialize(base, 21);
  return base.stored_as<Storage>();
}

template <typename Layer>
matrix<double> tuned_outputs(const Layer& layer, const matrix<double>& x) {
  matrix<double> y(x.rows(), layer.outputs());
  typename Layer::workspace workspace;
  layer.forward(x, y, workspace);
  return y;
}

matrix<double> adapter_alone(const tuned_adapter& adapter, const matrix<double>& x) {
  matrix<double> y(x.rows(), adapter.outputs()), saved(x.rows(), 0);
  adapter.forward(x, y, saved);
  return y;
}

tuned_adapter drawn_adapter(std::uint64_t seed) {
  tuned_adapter adapter(6, 3);
  initialize(adapter, seed);
  return adapter;
}

}  // namespace

TEST_CASE("perft: with nothing on the way up all forms are the base, bit for bit", "[adapter][perft]") {
  const auto base = tuned_base();
  const tuned_adapter nothing(6, 3, {.zero_output = true});
  const matrix<double> x = test::random_matrix<double>(9, 6, 22), y = tuned_outputs(base, x);
  const auto check_is_base = [&](auto layer, auto& adapters_of) {
    initialize(adapters_of(layer), 23);
    CHECK(test::same_bits(tuned_outputs(layer, x), y));
  };
  const auto beside = [](auto& layer) -> auto& { return layer.adapters(); };
  const auto inside = [](auto& layer) -> auto& { return layer.bank().adapters(); };
  check_is_base(published::perft_routed(base, nothing, {.adapters = 4, .top_k = 2}), beside);
  check_is_base(published::perft_embedded(base, nothing), inside);
  check_is_base(published::perft_dense(base, nothing, 3), beside);
  check_is_base(published::perft_single(base, nothing), beside);
}

TEST_CASE("perft: what each form adds to the base", "[adapter][perft]") {
  const auto base = tuned_base();
  const matrix<double> x = test::random_matrix<double>(9, 6, 24), y = tuned_outputs(base, x);
  const auto own = drawn_adapter(25);
  const matrix<double> added = adapter_alone(own, x);
  const double bound = test::bound<double>(30, 16.0);

  CHECK(test::largest_difference(tuned_outputs(published::perft_single(base, own), x), matrix<double>(y + added)) <=
        bound);
  CHECK(test::largest_difference(tuned_outputs(published::perft_dense(base, own, 3), x),
                                 matrix<double>(y + 3 * added)) <= bound);
  // The base's weights sum to 1: equal adapters in every expert are one beside the layer.
  CHECK(test::largest_difference(tuned_outputs(published::perft_embedded(base, own), x), matrix<double>(y + added)) <=
        bound);
  // One adapter of its own router has weight 1.
  auto one = published::perft_routed(base, own, {.adapters = 1, .top_k = 1});
  initialize(one.router(), 26);
  CHECK(test::largest_difference(tuned_outputs(one, x), matrix<double>(y + added)) <= bound);

  // Of four the best, by its share of all four.
  auto routed = published::perft_routed(base, own, {.adapters = 4, .top_k = 1});
  initialize(routed.router(), 27);
  for (index_t j = 0; j < 4; ++j) routed.bank().expert(j) = drawn_adapter(30 + static_cast<std::uint64_t>(j));
  const matrix<double> z = tuned_outputs(routed, x);
  const matrix<double> logits = x * routed.router().gate().weight().to_matrix().transpose();
  for (index_t t = 0; t < 9; ++t) {
    index_t best = 0;
    logits.row(t).maxCoeff(&best);
    const double share = 1 / (logits.row(t).array() - logits(t, best)).exp().sum();
    const matrix<double> expected = y.row(t) + share * adapter_alone(routed.bank().expert(best), x.row(t));
    CHECK(test::largest_difference(matrix<double>(z.row(t)), expected) <= bound);
  }
}

TEST_CASE("perft: every form keeps every promise of a layer", "[adapter][perft][conformance][gradient]") {
  const auto check_all = [](auto layer, bool exact) {
    std::uint64_t seed = 40;
    for_each_parameter(layer, [&](const std::string& name, auto& p) {
      if (of_adapters(name) && name.find("router") == std::string::npos)
        p.assign(test::random_matrix<double>(p.rows(), p.cols(), ++seed) * 0.5);
    });
    if constexpr (requires { layer.adapters().router().gate(); }) initialize(layer.adapters().router(), 45);
    const auto report = check_layer(layer);
    INFO(report.describe());
    CHECK(report.passed());
    CHECK((report.find("gradients")->result == outcome::passed) == exact);
  };
  const tuned_adapter adapter(6, 3, {.zero_output = true});
  check_all(published::perft_embedded(tuned_base(), adapter), true);
  check_all(
      published::perft_routed(tuned_base(), low_rank_expert<double>(6, 2, {.scale = 2}), {.adapters = 4, .top_k = 2}),
      true);
}

TEST_CASE("adapted_bank: experts are frozen, adapters learn by the weights of both", "[adapter][adapted_bank]") {
  auto layer = published::perft_embedded(tuned_base(), drawn_adapter(50));
  const matrix<double> x = test::random_matrix<double>(9, 6, 51), dy = test::random_matrix<double>(9, 6, 52);
  matrix<double> y(9, 6), dx(9, 6);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  layer.backward(dy, dx, tape);
  model_part adapters{layer, of_adapters};
  std::size_t learned = 0;
  for_each_parameter(layer, [&](const std::string& name, const auto& p) {
    INFO(name);
    CHECK(p.is_learned() == (name.find("adapters") != std::string::npos));
    learned += p.is_learned();
  });
  CHECK(learned == 5 * 2);
  CHECK(!layer.bank().base().expert(0).up().has_gradient());

  // Rows that were gathered before: both halves, and only the rows asked for.
  auto& bank = layer.bank();
  const std::vector<index_t> offsets{1, 3, 3, 6, 7, 8};
  matrix<double> z = matrix<double>::Constant(9, 6, 9.0), base = z, added = z;
  std::remove_cvref_t<decltype(bank)>::tape own;
  std::remove_cvref_t<decltype(bank.base())>::tape of_base;
  std::remove_cvref_t<decltype(bank.adapters())>::tape of_adapters_;
  bank.forward(x, offsets, z, own, {});
  bank.base().forward(x, offsets, base, of_base, {});
  bank.adapters().forward(x, offsets, added, of_adapters_, {});
  CHECK((z.row(0).array() == 9).all());
  CHECK((z.row(8).array() == 9).all());
  CHECK(test::same_bits(matrix<double>(z.middleRows(1, 7)), matrix<double>((base + added).middleRows(1, 7))));
  CHECK_THROWS_AS(
      (adapted_bank{expert_bank<swiglu<double>>{5, 6, 7}, expert_bank<tuned_adapter>(4, drawn_adapter(53))}),
      std::invalid_argument);
}
