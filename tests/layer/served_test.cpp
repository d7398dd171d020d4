#include <sluice/layer/served.hpp>

#include <sluice/expert/ffn.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

#include <thread>

using namespace sluice;

namespace {

using served_case = dense_layer<ffn<float>>;

served_case served_of(std::uint64_t seed, index_t hidden = 11) {
  served_case layer{ffn<float>{6, hidden}};
  initialize(layer, seed);
  return layer;
}

matrix<float> outputs_of(const served_case& layer, const matrix<float>& x) {
  matrix<float> y(x.rows(), layer.outputs());
  served_case::workspace workspace;
  layer.forward(x, y, workspace);
  return y;
}

}  // namespace

TEST_CASE("served_layer: the layer it was given last", "[layer][served]") {
  const matrix<float> x = test::random_matrix<float>(5, 6, 1);
  const served_case first = served_of(1), second = served_of(2, 20);  // another hidden width is fine
  served_layer served{first};
  decltype(served)::workspace workspace;
  matrix<float> y(5, 6);
  served.forward(x, y, workspace);
  CHECK(test::same_bits(y, outputs_of(first, x)));
  served.replace(second);
  served.forward(x, y, workspace);
  CHECK(test::same_bits(y, outputs_of(second, x)));
  CHECK(served.current() == workspace.weights);

  CHECK_THROWS_WITH(served.replace(served_case{ffn<float>{6, 4, {.outputs = 5}}}),
                    "sluice: a layer 6 -> 6 cannot be replaced by one 6 -> 5");
  CHECK_THROWS_AS(served.replace(std::shared_ptr<const served_case>()), std::invalid_argument);
  CHECK_THROWS_AS(served_layer(std::shared_ptr<served_case>()), std::invalid_argument);
  served.forward(x, y, workspace);
  CHECK(test::same_bits(y, outputs_of(second, x)));
}

TEST_CASE("served_layer: old weights live as long as a workspace refers to them", "[layer][served]") {
  const auto old = std::make_shared<const served_case>(served_of(1));
  served_layer served{old};
  const matrix<float> x = test::random_matrix<float>(5, 6, 1);
  matrix<float> y(5, 6);
  decltype(served)::workspace a, b;
  served.forward(x, y, a);
  served.forward(x, y, b);
  CHECK(old.use_count() == 4);  // here, in served, in both workspaces
  served.replace(served_of(2));
  CHECK(old.use_count() == 3);
  served.forward(x, y, a);
  CHECK(old.use_count() == 2);
  b.let_go();
  CHECK(old.use_count() == 1);
  served.forward(x, y, b);
  CHECK(test::same_bits(y, outputs_of(*served.current(), x)));
}

TEST_CASE("served_layer: every call computes with one set of weights while they are replaced", "[layer][served][threads]") {
  const matrix<float> x = test::random_matrix<float>(3, 6, 1);
  std::vector<std::shared_ptr<const served_case>> layers;
  std::vector<matrix<float>> expected;
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    layers.push_back(std::make_shared<const served_case>(served_of(seed)));
    expected.push_back(outputs_of(*layers.back(), x));
  }
  served_layer served{layers[0]};
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0}, calls{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i)
    threads.emplace_back([&] {
      decltype(served)::workspace workspace;
      matrix<float> y(3, 6);
      do {
        served.forward(x, y, workspace);
        bool known = false;
        for (const auto& e : expected) known |= test::same_bits(y, e);
        wrong += !known;
        ++calls;
      } while (!stop);
    });
  for (std::size_t i = 0; i < 300; ++i) {
    served.replace(layers[i % 3]);
    std::this_thread::yield();
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(calls >= 3);
  for (const auto& layer : layers) CHECK(layer.use_count() == (layer == layers[2] ? 2 : 1));
}
