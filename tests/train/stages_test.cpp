#include <sluice/train/stages.hpp>

#include <sluice/expert/bank.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/router/masked/modality.hpp>
#include <sluice/train/initialize.hpp>
#include <sluice/train/sgd.hpp>

#include "../support.hpp"

#include <map>

using namespace sluice;

namespace {

/// What attention is in VLMo, and an expert a modality.
auto staged_model() {
  return sequence{residual_layer{dense_layer{ffn<double, silu>{4, 5}}},
                  residual_layer{moe_layer{vlmo_router<double>(4, 2, {0, 1}), expert_bank<ffn<double, silu>>{2, 4, 5}}}};
}

/// Who has changed in a step on tokens of these modalities.
template <typename Model>
std::map<std::string, bool> moved_by_step(Model& model, const std::vector<index_t>& modalities) {
  std::map<std::string, std::vector<double>> before;
  for_each_parameter(model, [&](const std::string& name, const auto& p) { before[name].assign(p.value().begin(), p.value().end()); });
  typename Model::tape tape;
  const matrix<double> x = test::random_matrix<double>(static_cast<index_t>(modalities.size()), 4, 3);
  matrix<double> y(x.rows(), 4), dx(x.rows(), 4);
  zero_gradients(model);
  model.forward(x, y, tape, {.training = true, .modality_ids = modalities});
  model.backward(y, dx, tape);
  sgd<double> steps{{.learning_rate = 0.1}};
  steps.step(model);
  std::map<std::string, bool> moved;
  for_each_parameter(model, [&](const std::string& name, const auto& p) {
    moved[name] = !std::equal(p.value().begin(), p.value().end(), before[name].begin());
  });
  return moved;
}

}  // namespace

TEST_CASE("training_stages: VLMo learns from images, from text, from both", "[train][stages]") {
  auto model = staged_model();
  initialize(model, 1);
  training_stages stages(model);
  stages.begin(named_any({"0.layer", "experts.0"}));
  auto moved = moved_by_step(model, {0, 0, 0});
  CHECK(moved.at("0.layer.up"));
  CHECK(moved.at("1.layer.experts.0.up"));
  CHECK_FALSE(moved.at("1.layer.experts.1.up"));
  stages.begin(named("experts.1"));
  moved = moved_by_step(model, {1, 1, 1});
  CHECK_FALSE(moved.at("0.layer.up"));
  CHECK_FALSE(moved.at("1.layer.experts.0.up"));
  CHECK(moved.at("1.layer.experts.1.up"));
  stages.begin_all();
  moved = moved_by_step(model, {0, 1, 1});
  for (const char* name : {"0.layer.up", "1.layer.experts.0.up", "1.layer.experts.1.up"}) CHECK(moved.at(name));
}

TEST_CASE("training_stages: what stood still before never learns, and a stage of nothing is refused", "[train][stages]") {
  auto model = staged_model();
  initialize(model, 2);
  model_part attention{model, named("0.layer")};
  attention.set_frozen(true);
  training_stages stages(model);
  stages.begin_all();
  CHECK_FALSE(moved_by_step(model, {0, 1, 1}).at("0.layer.up"));
  CHECK_THROWS_WITH(stages.begin(named("connector")), Catch::Matchers::Contains("none of the 4 parameters"));
  CHECK_THROWS_WITH(stages.begin(named("0.layer")), Catch::Matchers::Contains("none of the 4 parameters"));
}
