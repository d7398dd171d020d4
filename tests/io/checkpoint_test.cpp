// A layer and its optimiser in one file: a run that stops and goes on gives the same bits as one that does not stop.
#include <sluice/expert/bank.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/io/model_file.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/adamw.hpp>
#include <sluice/train/initialize.hpp>

#include "messages.hpp"
#include "support.hpp"
#include "temporary_folder.hpp"

#include <cstdint>
#include <filesystem>

using namespace sluice;

namespace {

template <typename Scalar>
struct run {
  moe_layer<top_k_router<Scalar>, expert_bank<swiglu<Scalar>>> layer{top_k_router<Scalar>{6, 5, {.top_k = 2}},
                                                                     expert_bank<swiglu<Scalar>>{5, 6, 7}};
  adamw<Scalar> optimizer{{.learning_rate = 1e-2}};

  explicit run(std::uint64_t seed) { initialize(layer, seed); }

  void train(int first, int last) {
    typename decltype(layer)::tape tape;
    for (int step = first; step < last; ++step) {
      const auto x = test::random_matrix<Scalar>(8, 6, static_cast<std::uint64_t>(100 + step));
      const auto dy = test::random_matrix<Scalar>(8, 6, static_cast<std::uint64_t>(200 + step));
      matrix<Scalar> y(8, 6);
      matrix<Scalar> dx(8, 6);
      layer.forward(x, y, tape);
      layer.backward(dy, dx, tape);
      optimizer.step(layer);
      zero_gradients(layer);
    }
  }

  matrix<Scalar> output() const {
    matrix<Scalar> y(8, 6);
    typename decltype(layer)::workspace workspace;
    layer.forward(test::random_matrix<Scalar>(8, 6, 300), y, workspace);
    return y;
  }
};

template <typename Scalar>
void save_run(const run<Scalar>& r, const std::filesystem::path& path) {
  safetensors_writer file;
  add_parameters(file, r.layer, "layer");
  add_parameters(file, r.optimizer, "optimizer");
  file.save(path);
}

template <typename Scalar>
void load_run(run<Scalar>& r, const std::filesystem::path& path) {
  const safetensors_reader file(path);
  load_parameters(file, r.layer, {.prefix = "layer"});
  r.optimizer.prepare(r.layer);
  load_parameters(file, r.optimizer, {.prefix = "optimizer"});
}

}  // namespace

TEMPLATE_TEST_CASE("checkpoint: a stopped run goes on from its file bit for bit", "[io][train]", float, double) {
  const test::temporary_folder folder;
  run<TestType> whole(1);
  whole.train(0, 6);

  run<TestType> stopped(1);
  stopped.train(0, 3);
  save_run(stopped, folder / "checkpoint");
  run<TestType> resumed(2);
  CHECK(!test::same_bits(resumed.output(), stopped.output()));
  load_run(resumed, folder / "checkpoint");
  CHECK(test::same_bits(resumed.output(), stopped.output()));
  resumed.train(3, 6);
  CHECK(test::same_bits(resumed.output(), whole.output()));
}

TEST_CASE("checkpoint: a layer of one expert fewer is refused by name", "[io]") {
  const test::temporary_folder folder;
  const run<float> saved(1);
  save(saved.layer, folder / "layer");
  moe_layer layer{top_k_router<float>{6, 4, {.top_k = 2}}, expert_bank<swiglu<float>>{4, 6, 7}};
  CHECK_THROWS_WITH(load(layer, folder / "layer"), test::contains("problems") && test::contains("the model needs"));
}
