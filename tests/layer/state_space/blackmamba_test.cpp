#include <sluice/layer/state_space/blackmamba.hpp>

#include <sluice/expert/gated_ffn.hpp>
#include <sluice/layer/reserve.hpp>
#include <sluice/train/check_layer.hpp>
#include <sluice/train/initialize.hpp>

#include "../plain_checks.hpp"

using namespace sluice;

namespace {

using parts = blackmamba_parts<double>;
const blackmamba_options small{.width = 4, .hidden = 6, .deviation = 0.5, .mixer = {.channels = 5, .states = 2}};

/// The values of the same parameters, in order, go from one object to another.
template <typename From, typename To>
void copy_values(From& from, To& to) {
  std::vector<matrix<double>> values;
  for_each_parameter(from, [&](const std::string&, auto& p) { values.push_back(p.to_matrix()); });
  std::size_t i = 0;
  for_each_parameter(to, [&](const std::string&, auto& p) { p.assign(values.at(i++)); });
  CHECK(i == values.size());
}

template <typename Layer>
matrix<double> inferred(const Layer& layer, const matrix<double>& x) {
  matrix<double> y(x.rows(), x.cols());
  typename Layer::workspace ws;
  layer.forward(x, y, ws);
  return y;
}

}  // namespace

static_assert(TrainableLayer<blackmamba<float>>);

TEST_CASE("blackmamba: every promise of a layer, with blocks of every kind", "[layer][blackmamba][conformance]") {
  auto stack = make_blackmamba<double>({"r", "3", "r2", "1", "r1"}, small);
  initialize(stack, 4);
  const auto report = check_layer(stack, {.seed = 5});
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(report.find("gradients")->result == outcome::passed);
}

TEST_CASE("blackmamba: a code says what a layer is", "[layer][blackmamba]") {
  auto stack = make_blackmamba<double>({"r", "1", "12", "r1", "r2"}, small);
  CHECK(stack.depth() == 5);
  CHECK(stack.layer(0).holds<parts::mixer_block>());
  CHECK(stack.layer(1).holds<parts::mlp_block>());
  CHECK(stack.layer(2).holds<parts::mixture_block>());
  CHECK(stack.layer(3).holds<parts::mlp_beside_mixer>());
  CHECK(stack.layer(4).holds<parts::mixture_beside_mixer>());
  stack.layer(2).visit([](auto& block) {
    if constexpr (requires { block.layer().layer().router().gate(); }) {
      CHECK(block.layer().layer().experts() == 12);
      CHECK(block.layer().layer().router().gate().has_bias());
      CHECK(block.layer().layer().bank().expert(0).hidden() == 6);
    }
  });
}

TEST_CASE("blackmamba: with dense layers alone it is a dense stack of pre-norm blocks", "[layer][blackmamba]") {
  auto stack = make_blackmamba<double>({"r", "1", "r", "1"}, small);
  initialize(stack, 4);
  const rms_norm<double> norm(4, {.epsilon = 1e-5});
  residual_layer mixer{
      normalized_layer{state_space_mixer<double>{4, {.channels = 5, .states = 2, .bias = true}}, norm}};
  residual_layer mlp{normalized_layer{dense_layer{ffn<double, gelu>{4, 6, {.bias = true}}}, norm}};
  const matrix<double> x = test::random_matrix<double>(9, 4, 7);
  matrix<double> expected = x;
  for (index_t i = 0; i < 4; ++i) {
    if (i % 2 == 0) {
      copy_values(stack.layer(i), mixer);
      expected = inferred(mixer, expected);
    } else {
      copy_values(stack.layer(i), mlp);
      expected = inferred(mlp, expected);
    }
  }
  CHECK(test::same_bits(inferred(stack, x), expected));
}

TEST_CASE("blackmamba: beside a mixer that gives nothing a mixture is the mixture's own block", "[layer][blackmamba]") {
  auto both = make_blackmamba<double>({"r3"}, small), alone = make_blackmamba<double>({"3"}, small);
  initialize(both, 4), initialize(alone, 4);
  const matrix<double> x = test::random_matrix<double>(9, 4, 7);
  const auto mixture_of_both = [&](auto&& f) {
    both.layer(0).visit([&](auto& block) {
      if constexpr (requires { block.layer().other(); }) f(block.layer());
    });
  };
  mixture_of_both([&](auto& beside) {
    alone.layer(0).visit([&](auto& block) {
      if constexpr (std::same_as<std::remove_cvref_t<decltype(block.layer())>,
                                 std::remove_cvref_t<decltype(beside.layer())>>)
        copy_values(beside.layer(), block.layer());
    });
  });
  CHECK(test::largest_difference(inferred(both, x), inferred(alone, x)) > 0.01);
  mixture_of_both([](auto& beside) { beside.other().layer().weights().output.fill([](index_t) { return 0.0; }); });
  CHECK(test::same_bits(inferred(both, x), inferred(alone, x)));
}

TEST_CASE("blackmamba: in training experts are equally busy, else the best one is taken", "[layer][blackmamba]") {
  auto stack = make_blackmamba<double>({"4"}, small);
  initialize(stack, 4);
  stack.layer(0).visit([](auto& block) {
    if constexpr (requires { block.layer().layer().router().gate().bias(); })
      block.layer().layer().router().gate().bias().fill([](index_t e) { return e == 2 ? 8.0 : 0.0; });
  });
  const matrix<double> x = test::random_matrix<double>(64, 4, 7);
  const auto most = [](const auto& memory) {
    index_t found = 0;
    sluice::detail::for_each_memory(memory, [&](const auto& own) {
      if constexpr (requires { own.plan.load(0); })
        for (index_t e = 0; e < own.plan.experts(); ++e) found = std::max(found, own.plan.load(e));
    });
    return found;
  };
  matrix<double> y(64, 4);
  blackmamba<double>::workspace ws;
  blackmamba<double>::tape tape;
  stack.forward(x, y, ws);
  stack.forward(x, y, tape);
  CHECK(most(ws.rounds[0]) == 64);
  CHECK(most(tape.rounds[0]) < 40);
}

TEST_CASE("blackmamba: token by token with caches it has the bits of whole sequences", "[layer][blackmamba]") {
  auto stack = make_blackmamba<double>({"r", "3", "r2", "1", "r1"}, small);
  initialize(stack, 4);
  const std::vector<index_t> borders{0, 6, 12}, one_each{0, 1, 2};
  std::vector<std::uint8_t> mask(12, 1);
  mask[2] = 0;
  const matrix<double> x = test::random_matrix<double>(12, 4, 7);
  matrix<double> whole(12, 4), part(2, 4), y(2, 4), expected(2, 4);
  blackmamba<double>::workspace ws;
  stack.forward(x, whole, ws, {.token_mask = mask, .sequences = borders});
  auto caches = make_blackmamba_caches(stack, 2);
  CHECK(caches.size() == 3);
  for (index_t t = 0; t < 6; ++t) {
    CAPTURE(t);
    part << x.row(t), x.row(6 + t);
    expected << whole.row(t), whole.row(6 + t);
    const std::vector<std::uint8_t> seen{mask[as_size(t)], 1};
    stack.forward_cached(part, y, std::span(caches), ws, {.token_mask = seen, .sequences = one_each});
    CHECK(test::same_bits(y, expected));
  }
  CHECK_THROWS_WITH(stack.forward_cached(part, y, std::span(caches).first(2), ws, {.sequences = one_each}),
                    Catch::Matchers::Contains("of the 5 applications of layers 3 use a cache; there are 2"));
  CHECK_THROWS_AS(stack.layer(1).forward_cached(part, y, caches[0], ws.rounds[1]), std::invalid_argument);
}

TEST_CASE("blackmamba: weights begin normal, those that write to the stream smaller", "[layer][blackmamba]") {
  auto stack = make_blackmamba<double, gated_ffn<double, gelu>>({"r", "2"}, {.width = 32});
  initialize(stack, 3);
  for_each_parameter(stack, [](const std::string& name, auto& p) {
    CAPTURE(name);
    const matrix<double> m = p.to_matrix();
    const double deviation = std::sqrt(m.squaredNorm() / static_cast<double>(m.size()));
    if (name.ends_with(".input") || name.ends_with(".up") || name.ends_with("expert.gate"))
      CHECK(deviation == Approx(0.02).epsilon(0.1));
    if (name.ends_with(".output") || name.ends_with(".down")) CHECK(deviation == Approx(0.01).epsilon(0.1));
    if (name.ends_with(".up") || name.ends_with(".down")) CHECK(p.size() == 4 * 32 * 32);
  });
}

TEST_CASE("blackmamba: what is no code throws with the code and the place", "[layer][blackmamba]") {
  const auto refused = [](const std::vector<std::string>& codes, const char* code, const char* place) {
    using Catch::Matchers::Contains;
    CHECK_THROWS_WITH(make_blackmamba<float>(codes, {.width = 4}), Contains(code) && Contains(place));
  };
  refused({"r", "8", "x"}, "layer 2 of the stack has the code \"x\"", "position 0");
  refused({""}, "layer 0 of the stack has the code \"\"", "position 0");
  refused({"rr"}, "\"rr\"", "position 1");
  refused({"r0"}, "\"r0\"", "position 1");
  refused({"0"}, "\"0\"", "position 0");
  refused({"12a"}, "\"12a\"", "position 2");
  refused({"8r"}, "\"8r\"", "position 1");
  refused({"99999999999999999999"}, "\"99999999999999999999\"", "position 6");
  CHECK_THROWS_AS(make_blackmamba<float>({}, {.width = 4}), std::invalid_argument);
  CHECK_THROWS_AS(make_blackmamba<float>({"r"}, {}), std::invalid_argument);
}

TEST_CASE("either_layer: memory follows the kind, and backward needs the kind's own forward", "[layer][either]") {
  auto mixer = make_blackmamba<double>({"r"}, small), mlp = make_blackmamba<double>({"1"}, small);
  initialize(mixer, 1), initialize(mlp, 2);
  const matrix<double> x = test::random_matrix<double>(5, 4, 3);
  matrix<double> y(5, 4), dx(5, 4);
  parts::block::tape shared;
  CHECK_THROWS_AS(mixer.layer(0).backward(x, dx, shared), std::invalid_argument);
  mixer.layer(0).forward(x, y, shared);
  CHECK_THROWS_AS(mlp.layer(0).backward(x, dx, shared), std::invalid_argument);
  mlp.layer(0).forward(x, y, shared);
  mlp.layer(0).backward(x, dx, shared);
  const auto expected = test::train_once(mlp.layer(0), x, x);
  CHECK(test::same_bits(expected.y, y));
  CHECK(test::same_bits(expected.dx, dx));
  CHECK(test::same_bits(inferred(mlp.stored_as<full_precision<double>>(), x), y));
}
