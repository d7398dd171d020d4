#include <sluice/layer/embedding.hpp>

#include <sluice/core/numeric.hpp>
#include <sluice/layer/shared_expert.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;

static_assert(TrainableLayer<embedding_layer<float>>);

namespace {

template <typename Scalar>
embedding_layer<Scalar> embedding_case(index_t outputs = 5) {
  embedding_layer<Scalar> layer{7, outputs};
  initialize(layer, 1);
  return layer;
}

}  // namespace

TEMPLATE_TEST_CASE("embedding_layer: rows of the table, and the gradients of repeated ids add up", "[layer][embedding]",
                   float, double) {
  auto layer = embedding_case<TestType>();
  const std::vector<index_t> ids{6, 0, 6, 3};
  matrix<TestType> y(4, 5), again(4, 5), dx(4, 0);
  typename embedding_layer<TestType>::workspace workspace;
  layer.forward(ids, y, workspace);
  for (index_t t = 0; t < 4; ++t)
    CHECK(test::same_bits(y.row(t), layer.table().map().row(ids[static_cast<std::size_t>(t)])));

  routing_context<TestType> context;
  context.token_ids = ids;
  typename embedding_layer<TestType>::tape tape;
  layer.forward(no_inputs<TestType>(4), again, tape, context);
  CHECK(test::same_bits(again, y));
  const matrix<TestType> dy = test::random_matrix<TestType>(4, 5, 2);
  layer.backward(dy, dx, tape);
  matrix<TestType> expected = matrix<TestType>::Zero(7, 5);
  expected.row(6) = dy.row(0) + dy.row(2);
  expected.row(0) = dy.row(1);
  expected.row(3) = dy.row(3);
  CHECK(test::same_bits(layer.table().gradient_matrix(), expected));
  layer.forward(ids, again, tape);
  CHECK(test::same_bits(again, y));
  layer.backward(dy, tape);  // added
  CHECK(test::same_bits(layer.table().gradient_matrix(), matrix<TestType>(2 * expected)));
}

TEST_CASE("embedding_layer: padding gets zero, its id is not read and it adds nothing", "[layer][embedding]") {
  auto layer = embedding_case<float>();
  const std::vector<index_t> ids{2, -5, 2};
  const std::vector<std::uint8_t> mask{1, 0, 1};
  routing_context<float> context;
  context.token_ids = ids;
  context.token_mask = mask;
  matrix<float> y(3, 5), dy = test::random_matrix<float>(3, 5, 3), dx(3, 0);
  dy.row(1).setConstant(quiet_nan<float>());
  embedding_layer<float>::tape tape;
  layer.forward(no_inputs<float>(3), y, tape, context);
  CHECK(y.row(1).isZero(0));
  layer.backward(dy, dx, tape);
  matrix<float> expected = matrix<float>::Zero(7, 5);
  expected.row(2) = dy.row(0) + dy.row(2);
  CHECK(test::same_bits(layer.table().gradient_matrix(), expected));
}

TEST_CASE("embedding_layer: NaN in a row of the table stays with its id", "[layer][embedding][nan]") {
  auto layer = embedding_case<float>();
  layer.table().map()(2, 1) = quiet_nan<float>();
  matrix<float> y(3, 5);
  embedding_layer<float>::workspace workspace;
  layer.forward(std::vector<index_t>{1, 2, 3}, y, workspace);
  CHECK_FALSE(any_nan(y.row(0).data(), 5));
  CHECK(any_nan(y.row(1).data(), 5));
  CHECK_FALSE(any_nan(y.row(2).data(), 5));
}

TEST_CASE("embedding_layer: no tokens, and what does not fit", "[layer][embedding]") {
  auto layer = embedding_case<float>();
  matrix<float> none(0, 5), y = matrix<float>::Constant(2, 5, 99), dx(0, 0);
  embedding_layer<float>::workspace workspace;
  embedding_layer<float>::tape tape;
  layer.forward(std::vector<index_t>{}, none, workspace);
  layer.forward(no_inputs<float>(0), none, tape, {});
  layer.backward(none, dx, tape);
  CHECK_THROWS_WITH(layer.forward(std::vector<index_t>{0, 7}, y, workspace),
                    "sluice: id 7 of token 1 is not one of the 7 of the embedding");
  CHECK_THROWS_AS(layer.forward(std::vector<index_t>{0, -1}, y, workspace), std::invalid_argument);
  CHECK_THROWS_AS(layer.forward(std::vector<index_t>{0}, y, workspace), std::invalid_argument);
  CHECK_THROWS_AS(layer.forward(no_inputs<float>(2), y, workspace, {}), std::invalid_argument);  // no ids
  CHECK((y.array() == 99).all());
  CHECK_THROWS_AS(embedding_layer<float>(0, 5), std::invalid_argument);
  CHECK_THROWS_WITH(embedding_layer<float>(4, 5, {.deviation = -1}), Catch::Matchers::Contains("not 4, 5, -1"));
  CHECK_THROWS_WITH(embedding_layer<float>(4, 5, {.deviation = quiet_nan<double>()}), Catch::Matchers::Contains("nan"));
  embedding_layer<float>::tape unused;
  CHECK_THROWS_WITH(layer.backward(y.topRows(0), dx, unused),
                    Catch::Matchers::Contains("backward needs a training forward call"));
}

TEST_CASE("embedding_layer: equal bits for every thread count", "[layer][embedding][determinism]") {
  auto layer = embedding_case<float>(150);  // three tasks of columns
  std::vector<index_t> ids;
  for (index_t t = 0; t < 90; ++t) ids.push_back(t * t % 7);
  const matrix<float> dy = test::random_matrix<float>(90, 150, 4);
  const auto gradient = [&](executor_ref executor) {
    routing_context<float> context;
    context.token_ids = ids;
    context.executor = executor;
    matrix<float> y(90, 150), dx(90, 0);
    embedding_layer<float>::tape tape;
    zero_gradients(layer);
    layer.forward(no_inputs<float>(90), y, tape, context);
    layer.backward(dy, dx, tape);
    return layer.table().gradient_matrix();
  };
  const auto serial = gradient({});
  for (const int threads : {2, 3, 8}) {
    test::shuffled_threads pool(threads);
    CHECK(test::same_bits(gradient(pool), serial));
  }
}
