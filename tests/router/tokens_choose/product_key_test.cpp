#include <sluice/router/tokens_choose/product_key.hpp>

#include <sluice/expert/neuron_bank.hpp>
#include <sluice/kernel/row_norm.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>

#include "router/router_table.hpp"
#include "support.hpp"

#include <set>

using namespace sluice;

namespace {

const test::table_router product_key_in_table("product_key_router", [] {
  return test::made(product_key_router<double>{6, 3, {.heads = 2, .top_k = 2}}, {.k = 4});
});

struct shape {
  index_t tokens, inputs, keys, heads, k, width;
};

/// Keys of deviation 1 instead of the small initial ones, so that choices and weights differ.
template <typename Router>
void spread_keys(Router& router, std::uint64_t seed) {
  using scalar = typename Router::scalar;
  const matrix<scalar> keys = test::random_matrix<scalar>(1, router.keys().size(), seed);
  std::copy_n(keys.data(), keys.size(), router.keys().data());
}

/// The k largest of all n² sums of one head and token: the larger sum first, then the lower expert.
template <typename Scalar>
std::vector<index_t> search_everything(const matrix<Scalar>& s1, const matrix<Scalar>& s2, index_t token, index_t k) {
  const index_t n = s1.cols();
  std::vector<index_t> ids(static_cast<std::size_t>(n * n));
  for (std::size_t e = 0; e < ids.size(); ++e) ids[e] = static_cast<index_t>(e);
  const auto sum = [&](index_t e) { return s1(token, e / n) + s2(token, e % n); };
  std::partial_sort(ids.begin(), ids.begin() + k, ids.end(), [&](index_t a, index_t b) {
    const auto key_a = order_key(sum(a)), key_b = order_key(sum(b));
    return key_a != key_b ? key_a > key_b : a < b;
  });
  ids.resize(static_cast<std::size_t>(k));
  return ids;
}

template <typename Router>
std::vector<index_t> chosen(const Router&, const typename Router::tape& tape, index_t token, index_t head) {
  const index_t k = tape.seen.top_k;
  const index_t* first = tape.seen.expert.row(token) + head * k;
  return {first, first + k};
}

template <typename Layer>
gradient_report check_layer(Layer& layer, index_t tokens, std::uint64_t seed) {
  matrix<double> x = test::random_matrix<double>(tokens, layer.inputs(), seed + 1);
  const matrix<double> dy = test::random_matrix<double>(tokens, layer.outputs(), seed + 2);
  matrix<double> y(tokens, layer.outputs()), dx(tokens, layer.inputs());
  typename Layer::tape tape;
  layer.forward(x, y, tape);
  layer.backward(dy, dx, tape);
  typename Layer::workspace workspace;
  return check_gradients(layer, {{"x", test::span_of(x), test::span_of(std::as_const(dx))}}, [&] {
    layer.forward(x, y, workspace);
    return (y.array() * dy.array()).sum();
  });
}

}  // namespace

TEMPLATE_TEST_CASE("product_key: the choice is that of a search through all n² sums", "[router][product_key]", float,
                   double) {
  using S = TestType;
  const auto s = GENERATE(shape{1, 2, 1, 1, 1, 1}, shape{1, 3, 2, 1, 4, 2}, shape{9, 6, 5, 2, 3, 4},
                          shape{40, 8, 12, 3, 12, 4}, shape{33, 8, 9, 2, 25, 3}, shape{17, 16, 40, 8, 16, 8});
  CAPTURE(s.tokens, s.inputs, s.keys, s.heads, s.k, s.width);
  product_key_router<S> router(s.inputs, s.keys, {.heads = s.heads, .top_k = s.k, .key_width = s.width});
  initialize(router, 3);
  spread_keys(router, 4);
  const matrix<S> x = test::random_matrix<S>(s.tokens, s.inputs, 5);
  sparse_plan<S> plan;
  typename product_key_router<S>::tape tape;
  router.route(x, {}, plan, tape);
  plan.validate();
  CHECK(plan.experts() == s.keys * s.keys);

  matrix<S> weights = matrix<S>::Zero(s.tokens, plan.experts());
  for (index_t h = 0; h < s.heads; ++h) {
    const matrix<S> s1 = router.similarities(tape, h, 0);
    const matrix<S> s2 = router.similarities(tape, h, 1);
    for (index_t t = 0; t < s.tokens; ++t) {
      const auto expected = search_everything(s1, s2, t, s.k);
      CHECK(chosen(router, tape, t, h) == expected);
      S sum = 0;
      const auto score = [&](index_t e) { return s1(t, e / s.keys) + s2(t, e % s.keys); };
      for (const index_t e : expected) sum += std::exp(score(e) - score(expected[0]));
      for (const index_t e : expected) weights(t, e) += std::exp(score(e) - score(expected[0])) / sum;
    }
  }
  CHECK(test::largest_difference(plan.dense_weights(), weights) < test::bound<S>(s.heads * s.k));

  // The similarities themselves: queries ordered (half, head, d), keys [heads, n, 2, d].
  const matrix<S> queries = x * router.query_weight().map().transpose();
  const S size = queries.cwiseAbs().maxCoeff() * router.keys().map().cwiseAbs().maxCoeff();
  for (index_t half = 0; half < 2; ++half)
    for (index_t h = 0; h < s.heads; ++h) {
      const matrix<S> similarity = router.similarities(tape, h, half);
      for (index_t i = 0; i < s.keys; ++i) {
        S dot = 0;
        for (index_t d = 0; d < s.width; ++d)
          dot += queries(s.tokens - 1, (half * s.heads + h) * s.width + d) *
                 router.keys().data()[((h * s.keys + i) * 2 + half) * s.width + d];
        CHECK(std::abs(similarity(s.tokens - 1, i) - dot) < test::bound<S>(s.inputs * s.width, size * S(s.inputs)));
      }
    }
}

TEST_CASE("product_key: three keys a half, by hand", "[router][product_key][ties]") {
  // Half scores (.9,.1,.5) and (.2,.8,.4): (0,1) has 1.7, then (0,2) and (2,1) tie at 1.3, and the lower expert comes
  // first.
  product_key_router<double> router(1, 3, {.heads = 1, .top_k = 3, .key_width = 1});
  router.query_weight().data()[0] = router.query_weight().data()[1] = 1;
  const double keys[] = {0.9, 0.2, 0.1, 0.8, 0.5, 0.4};  // [n, 2]
  std::copy_n(keys, 6, router.keys().data());
  sparse_plan<double> plan;
  product_key_router<double>::tape tape;
  router.route(matrix<double>::Ones(1, 1), {}, plan, tape);
  CHECK(chosen(router, tape, 0, 0) == std::vector<index_t>{0 * 3 + 1, 0 * 3 + 2, 2 * 3 + 1});
  CHECK(tape.seen.scores(0, 0) == Approx(1.7));
  CHECK(tape.seen.weights(0, 0) == Approx(1 / (1 + 2 * std::exp(-0.4))));
}

TEST_CASE("product_key: ties go to the lower expert, as in a search through all sums", "[router][product_key][ties]") {
  // Small whole numbers: sums are exact and most of them tie.
  const index_t n = 6;
  const auto k = GENERATE(index_t(1), index_t(4), index_t(6), index_t(20), index_t(36));
  product_key_router<double> router(2, n, {.heads = 2, .top_k = k, .key_width = 1});
  for (auto* p : {&router.query_weight(), &router.keys()}) {
    const matrix<double> numbers = test::random_matrix<double>(1, p->size(), 11);
    for (index_t i = 0; i < p->size(); ++i) p->data()[i] = std::floor(numbers(0, i));
  }
  matrix<double> x = test::random_matrix<double>(30, 2, 12);
  x = x.array().floor();
  sparse_plan<double> plan;
  product_key_router<double>::tape tape;
  router.route(x, {}, plan, tape);
  plan.validate();
  for (index_t h = 0; h < 2; ++h)
    for (index_t t = 0; t < 30; ++t)
      CHECK(chosen(router, tape, t, h) ==
            search_everything(router.similarities(tape, h, 0), router.similarities(tape, h, 1), t, k));
  router.route(matrix<double>::Zero(1, 2), {}, plan, tape);  // everything ties
  for (index_t r = 0; r < k; ++r) CHECK(tape.seen.expert(0, r) == r);
}

TEST_CASE("product_key: equal choices of two heads share an assignment", "[router][product_key]") {
  product_key_router<double> router(4, 3, {.heads = 3, .top_k = 2, .key_width = 2});
  initialize(router, 1);
  spread_keys(router, 2);
  // Heads 0 and 2 are equal, head 1 is not.
  const auto queries = router.query_weight().map();
  auto copy_of = [&](index_t half) {
    router.query_weight().map().middleRows((half * 3 + 2) * 2, 2) = queries.middleRows(half * 6, 2);
  };
  copy_of(0);
  copy_of(1);
  router.keys().map().row(2) = router.keys().map().row(0);
  const matrix<double> x = test::random_matrix<double>(5, 4, 3);
  sparse_plan<double> plan;
  product_key_router<double>::tape tape;
  router.route(x, {}, plan, tape);
  plan.validate();  // experts of a token are distinct
  for (index_t t = 0; t < 5; ++t) {
    CHECK(plan.of_token(t).size() <= 4);
    CHECK(plan.dense_weights().row(t).sum() == Approx(3));
    const index_t e = tape.seen.expert(t, 0);
    CHECK(e == tape.seen.expert(t, 4));
    double expected = 0;
    for (index_t s = 0; s < 6; ++s)
      if (tape.seen.expert(t, s) == e) expected += tape.seen.weights(t, s);
    CHECK(plan.dense_weights()(t, e) == Approx(expected));
  }
}

TEST_CASE("product_key: gradients of a layer equal central differences", "[router][product_key][gradient]") {
  const auto weights = GENERATE(product_key_weights::softmax, product_key_weights::relu);
  const bool separate = GENERATE(false, true);
  CAPTURE(separate);
  product_key_router<double> router(
      5, 3, {.heads = 3, .top_k = 4, .key_width = 2, .weights = weights, .separate_experts = separate});
  neuron_bank<double> bank(router.experts(), 5, {.outputs = 4});
  moe_layer layer{std::move(router), std::move(bank)};
  initialize(layer, 21);
  spread_keys(layer.router(), 22);
  const auto report = check_layer(layer, 8, 23);
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);

  // The case is what it should be: heads agree somewhere unless their experts are separate, and some relu weights are
  // 0.
  decltype(layer)::workspace workspace;
  matrix<double> y(8, 4);
  layer.forward(test::random_matrix<double>(8, 5, 24), y, workspace);
  const bool complete = separate && weights == product_key_weights::softmax;
  CHECK((workspace.plan.size() == 8 * 3 * 4) == complete);
}

TEST_CASE("product_key: gradients behind a norm equal central differences", "[router][product_key][gradient]") {
  normalized_layer layer{
      moe_layer{product_key_router<double>{6, 4, {.heads = 2, .top_k = 3}}, neuron_bank<double>{16, 6}},
      rms_norm<double>{6}};
  initialize(layer, 31);
  const auto report = check_layer(layer, 6, 32);
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("product_key: losses reach the scores", "[router][product_key][gradient]") {
  // A user's loss, the mean square of the chosen scores, at work through dseen.
  const auto squares = [](const auto& seen, const auto&, const auto&, auto& gradients) {
    double sum = 0;
    for (index_t i = 0; i < seen.scores.size(); ++i) {
      sum += seen.scores.data()[i] * seen.scores.data()[i];
      gradients.scores.data()[i] += 2 * seen.scores.data()[i];
    }
    return sum;
  };
  moe_layer layer{product_key_router<double>{5, 4, {.heads = 2, .top_k = 3}}, neuron_bank<double>{16, 5}, squares};
  initialize(layer, 41);
  matrix<double> x = test::random_matrix<double>(6, 5, 42);
  matrix<double> y(6, 5), dx(6, 5);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  CHECK(tape.loss() > 0);
  layer.backward(matrix<double>::Zero(6, 5), dx, tape);
  const auto report = check_gradients(layer, {{"x", test::span_of(x), test::span_of(std::as_const(dx))}}, [&] {
    layer.forward(x, y, tape);
    return tape.loss();
  });
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("product_key: with every expert chosen it is a dense layer", "[router][product_key]") {
  // n = 2, k = 4, one head: weights are a softmax over all four neurons.
  moe_layer layer{product_key_router<double>{5, 2, {.heads = 1, .top_k = 4}}, neuron_bank<double, silu>{4, 5}};
  initialize(layer, 51);
  const matrix<double> x = test::random_matrix<double>(7, 5, 52);
  matrix<double> y(7, 5);
  decltype(layer)::workspace workspace;
  layer.forward(x, y, workspace);
  const matrix<double> z = x * layer.bank().down().map().transpose();
  const matrix<double> weights = workspace.plan.dense_weights();
  const matrix<double> a = z.array() / (1 + (-z.array()).exp()) * weights.array();
  const matrix<double> expected = a * layer.bank().up().map();
  CHECK(test::largest_difference(y, expected) < test::bound<double>(20, expected.cwiseAbs().maxCoeff()));
}

TEST_CASE("product_key: k of the call, candidates and refusals", "[router][product_key]") {
  product_key_router<double> router(4, 5, {.heads = 2, .top_k = 3});
  initialize(router, 61);
  const matrix<double> x = test::random_matrix<double>(6, 4, 62);
  sparse_plan<double> plan;
  product_key_router<double>::tape tape;
  routing_context<double> context;
  context.top_k = 7;
  router.route(x, context, plan, tape);
  for (index_t t = 0; t < 6; ++t)
    CHECK(chosen(router, tape, t, 1) ==
          search_everything(router.similarities(tape, 1, 0), router.similarities(tape, 1, 1), t, 7));
  context.top_k = 26;
  CHECK_THROWS_AS(router.route(x, context, plan, tape), std::invalid_argument);
  CHECK_THROWS_AS(router.similarities(tape, 2, 0), std::invalid_argument);

  using router_type = product_key_router<double>;
  CHECK_THROWS_AS(router_type(4, 5, {.top_k = 26}), std::invalid_argument);
  CHECK_THROWS_AS(router_type(4, 5, {.top_k = 0}), std::invalid_argument);
  CHECK_THROWS_AS(router_type(4, 5, {.heads = 0}), std::invalid_argument);
  CHECK_THROWS_AS(router_type(0, 5, {}), std::invalid_argument);
  CHECK_THROWS_AS(router_type(4, 0, {.top_k = 1}), std::invalid_argument);
  CHECK_THROWS_AS(router_type(4, 5, {.top_k = 3, .candidates = 6}), std::invalid_argument);
  CHECK_THROWS_AS(router_type(4, 5, {.top_k = 5, .candidates = 2}), std::invalid_argument);
  CHECK_NOTHROW(router_type(4, 5, {.top_k = 4, .candidates = 2}));
  CHECK(router_type(4, 5, {.heads = 3, .top_k = 3, .separate_experts = true}).experts() == 75);
}

TEST_CASE("product_key: NaN tokens, padding and empty batches", "[router][product_key]") {
  const auto weights = GENERATE(product_key_weights::softmax, product_key_weights::relu);
  moe_layer layer{product_key_router<double>{4, 5, {.heads = 2, .top_k = 3, .weights = weights}},
                  neuron_bank<double>{25, 4}};
  initialize(layer, 71);
  spread_keys(layer.router(), 72);
  decltype(layer)::tape tape;
  const auto run = [&](const matrix<double>& tokens, std::span<const std::uint8_t> mask) {
    routing_context<double> context;
    context.training = true;
    context.token_mask = mask;
    matrix<double> y(tokens.rows(), 4);
    layer.forward(tokens, y, tape, context);
    tape.plan.validate();
    return y;
  };
  const matrix<double> x = test::random_matrix<double>(5, 4, 73);
  const matrix<double> y = run(x, {});
  matrix<double> broken = x;
  broken(2, 0) = quiet_nan<double>();
  const matrix<double> y_broken = run(broken, {});
  for (index_t t = 0; t < 5; ++t) {
    if (t == 2)
      CHECK(is_nan(y_broken(t, 3)));
    else
      CHECK(test::same_bits(y_broken.row(t), y.row(t)));
  }
  const std::uint8_t mask[] = {1, 1, 0, 1, 1};
  const matrix<double> y_masked = run(broken, mask);
  CHECK(y_masked.row(2).isZero(0));
  CHECK(test::same_bits(y_masked.row(4), y.row(4)));
  for (index_t s = 0; s < 6; ++s) CHECK(tape.router.seen.expert(2, s) == no_expert);
  matrix<double> dx(5, 4);
  layer.backward(y, dx, tape);
  CHECK(dx.row(2).isZero(0));
  for_each_parameter(layer, [](const std::string& name, parameter<double>& p) {
    INFO(name);
    CHECK_FALSE(any_nan(p.gradient().data(), p.size()));
  });

  // A NaN among the keys is the end of every token of that head, but not of the ids.
  layer.router().keys().data()[0] = quiet_nan<double>();
  const matrix<double> y_lost = run(x, {});
  CHECK(is_nan(y_lost(0, 0)));

  const matrix<double> nothing = run(matrix<double>(0, 4), {});
  matrix<double> dnothing(0, 4);
  layer.backward(nothing, dnothing, tape);
}

TEST_CASE("product_key: infinite similarities are values", "[router][product_key]") {
  product_key_router<double> router(1, 4, {.heads = 1, .top_k = 3, .key_width = 1});
  router.query_weight().data()[0] = router.query_weight().data()[1] = 1;
  for (index_t i = 0; i < 8; ++i) router.keys().data()[i] = static_cast<double>(i);
  router.keys().data()[2 * 1] = std::numeric_limits<double>::infinity();   // first half, key 1
  router.keys().data()[2 * 3] = -std::numeric_limits<double>::infinity();  // first half, key 3
  sparse_plan<double> plan;
  product_key_router<double>::tape tape;
  router.route(matrix<double>::Ones(1, 1), {}, plan, tape);
  plan.validate();
  CHECK(plan.invalid_tokens().empty());
  for (index_t r = 0; r < 3; ++r) {
    CHECK(tape.seen.expert(0, r) / 4 == 1);
    CHECK(tape.seen.weights(0, r) == Approx(1.0 / 3));
  }
}

TEST_CASE("product_key: a score of infinities of both signs is no number, and its token invalid",
          "[router][product_key]") {
  constexpr double inf = std::numeric_limits<double>::infinity();
  product_key_router<double> router(1, 2, {.heads = 1, .top_k = 1, .key_width = 1});
  router.query_weight().data()[0] = router.query_weight().data()[1] = 1;
  const double keys[] = {inf, -inf, -inf, -inf};  // first and second half of key 0, then of key 1
  std::copy_n(keys, 4, router.keys().data());
  sparse_plan<double> plan;
  product_key_router<double>::tape tape;
  matrix<double> x(2, 1);
  x << 1, 0.0;  // 0 times infinity: its similarities are NaN
  router.route(x, {}, plan, tape);
  CHECK(plan.invalid_tokens().size() == 2);
  CHECK(plan.size() == 0);
  router.keys().data()[3] = 1;  // now one sum is infinity
  router.route(x.topRows(1), {}, plan, tape);
  CHECK(plan.invalid_tokens().empty());
  REQUIRE(plan.size() == 1);
  CHECK(plan.expert(0) == 1);
  CHECK(plan.weight(0) == 1);
}

TEST_CASE("product_key: equal bits for every executor and thread count", "[router][product_key][determinism]") {
  moe_layer layer{product_key_router<float>{12, 9, {.heads = 3, .top_k = 5}}, neuron_bank<float>{81, 12}};
  initialize(layer, 81);
  const matrix<float> x = test::random_matrix<float>(150, 12, 82);
  const matrix<float> dy = test::random_matrix<float>(150, 12, 83);
  const auto run = [&](executor_ref executor) {
    zero_gradients(layer);
    decltype(layer)::tape tape;
    matrix<float> y(150, 12), dx(150, 12);
    routing_context<float> context;
    context.training = true;
    context.executor = executor;
    layer.forward(x, y, tape, context);
    layer.backward(dy, dx, tape);
    std::vector<float> numbers(y.data(), y.data() + y.size());
    numbers.insert(numbers.end(), dx.data(), dx.data() + dx.size());
    for_each_parameter(layer, [&](const std::string&, parameter<float>& p) {
      numbers.insert(numbers.end(), p.gradient().begin(), p.gradient().end());
    });
    return numbers;
  };
  const auto expected = run({});
  for (const int threads : {1, 2, 3, 8}) {
    CAPTURE(threads);
    test::shuffled_threads pool(threads);
    const auto numbers = run(pool);
    CHECK(std::memcmp(numbers.data(), expected.data(), numbers.size() * sizeof(float)) == 0);
  }
}

TEST_CASE("product_key: a million experts", "[router][product_key][slow]") {
  const index_t n = 1024, D = 16, T = 24;
  moe_layer layer{product_key_router<float>{D, n, {.heads = 4, .top_k = 8}}, neuron_bank<float, silu>{n * n, D}};
  // Cheap numbers: drawing 33 million normal ones would take longer than the rest of the test.
  std::uint32_t state = 1;
  for_each_parameter(layer, [&](const std::string&, parameter<float>& p) {
    for (float& v : p.value())
      v = static_cast<float>(static_cast<std::int32_t>(state = state * 1664525u + 1013904223u)) * 0x1p-32f;
  });
  const matrix<float> x = test::random_matrix<float>(T, D, 91);
  const matrix<float> dy = test::random_matrix<float>(T, D, 92);
  matrix<float> y(T, D), dx(T, D);
  decltype(layer)::tape tape;
  layer.forward(x, y, tape);
  CHECK(tape.plan.experts() == 1048576);
  for (index_t h = 0; h < 4; ++h) {
    const matrix<float> s1 = layer.router().similarities(tape.router, h, 0);
    const matrix<float> s2 = layer.router().similarities(tape.router, h, 1);
    for (index_t t = 0; t < 2; ++t) CHECK(chosen(layer.router(), tape.router, t, h) == search_everything(s1, s2, t, 8));
  }
  for (index_t t = 0; t < T; ++t) {
    matrix<double> expected = matrix<double>::Zero(1, D);
    double size = 0;
    for (const index_t i : tape.plan.of_token(t)) {
      const auto down = layer.bank().down().map().row(tape.plan.expert(i)).cast<double>();
      const auto up = layer.bank().up().map().row(tape.plan.expert(i)).cast<double>();
      const double z = x.row(t).cast<double>().dot(down);
      expected += static_cast<double>(tape.plan.weight(i)) * z / (1 + std::exp(-z)) * up;
      size = std::max(size, std::abs(z));
    }
    CHECK(test::largest_difference(matrix<double>(y.row(t).cast<double>()), expected) <
          static_cast<double>(test::bound<float>(D + 32, static_cast<float>(size))));
  }
  layer.backward(dy, dx, tape);
  const auto touched = layer.bank().touched();
  const std::set<index_t> rows(touched.begin(), touched.end());
  CHECK(rows.size() == touched.size());
  CHECK(rows.size() <= static_cast<std::size_t>(T * 4 * 8));
  std::set<index_t> planned;
  for (index_t i = 0; i < tape.plan.size(); ++i) planned.insert(tape.plan.expert(i));
  CHECK(rows == planned);
  index_t written = 0;
  const auto gradient = std::as_const(layer.bank().up()).gradient();
  for (std::size_t i = 0; i < gradient.size(); ++i) written += gradient[i] != 0;
  CHECK(written > 0);
  CHECK(written <= static_cast<index_t>(rows.size()) * D);
  layer.bank().zero_touched_gradients();
  CHECK(layer.bank().touched().empty());
  CHECK(std::all_of(gradient.begin(), gradient.end(), [](float g) { return g == 0; }));
}
