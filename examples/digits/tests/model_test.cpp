#include "model.hpp"  // first: proves that the header stands alone

#include <sluice/expert/ffn.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/every_expert/soft_moe.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/cross_entropy.hpp>
#include <sluice/train/initialize.hpp>

#include <cmath>
#include <limits>

#include "support.hpp"

using namespace digits;

namespace {

batch some_images(patch_shape shape) {
  const dataset data = read_dataset(SLUICE_EXAMPLE_DATA "/digits.csv");
  batch b;
  fill_batch(data.train, {0, 1, 2, 5, 7, 11, 200}, shape, b);
  return b;
}

template <typename Mixture>
double loss_of(const classifier<Mixture>& model, const batch& b, typename classifier<Mixture>::tape& t) {
  context c;
  c.groups = b.groups;
  model.forward(b, t, c);
  t.dlogits.resize(t.logits.rows(), t.logits.cols());
  return sluice::softmax_cross_entropy<float>{.label_smoothing = 0.1}(t.logits, b.labels, t.dlogits).loss;
}

/// Compares each parameter's gradient with a difference of losses along that gradient.
template <typename Mixture>
void check_gradients(patch_shape shape, Mixture mixture) {
  classifier<Mixture> model(shape, std::move(mixture));
  sluice::initialize(model, 3);
  const batch b = some_images(shape);
  typename classifier<Mixture>::tape t;
  loss_of(model, b, t);
  model.backward(b, t);

  int checked = 0;
  sluice::for_each_parameter(model, [&](const std::string& name, auto& p) {
    CAPTURE(name);
    const std::vector<float> gradient(p.gradient().begin(), p.gradient().end());
    const std::vector<float> value(p.value().begin(), p.value().end());
    double length = 0;
    for (const float g : gradient) length += double(g) * double(g);
    length = std::sqrt(length);
    if (length < 1e-3) return;  // an expert that no token chose
    const double step = 2e-3;
    const auto loss_at = [&](double way) {
      for (std::size_t i = 0; i < value.size(); ++i)
        p.value()[i] = value[i] + static_cast<float>(way * gradient[i] / length);
      typename classifier<Mixture>::tape other;
      return loss_of(model, b, other);
    };
    const double slope = (loss_at(step) - loss_at(-step)) / (2 * step);
    std::copy(value.begin(), value.end(), p.value().begin());
    // Rounding: the loss is a mean of numbers up to about 10 that went through sums of at most 64 products, and its
    // error is divided by the step. Curvature and kinks: of the order of the step.
    const double rounding = 10 * 64 * std::numeric_limits<float>::epsilon() / step / 10;
    CHECK(std::abs(slope - length) < rounding + 0.03 * length);
    ++checked;
  });
  CHECK(checked > 6);
}

}  // namespace

TEST_CASE("model: gradients are those of the loss", "[digits][model]") {
  using namespace sluice;
  const auto shape = GENERATE(patch_shape::square, patch_shape::row);
  using ffns = expert_bank<ffn<float>>;
  check_gradients(shape, dense_layer{ffn<float>{12, 20}});
  check_gradients(shape, moe_layer{top_k_router<float>{12, 4, {.top_k = 2}}, ffns{4, 12, 10}});
  check_gradients(shape, moe_layer{soft_moe_router<float>{12, 4, {.slots_per_expert = 2}}, ffns{4, 12, 10}});
}

TEST_CASE("model: an image's logits do not depend on its neighbours in the batch", "[digits][model]") {
  using mixture = sluice::dense_layer<sluice::ffn<float>>;
  classifier<mixture> model(patch_shape::square, mixture{{12, 20}});
  sluice::initialize(model, 3);
  const batch all = some_images(patch_shape::square);
  classifier<mixture>::tape t, alone;
  loss_of(model, all, t);
  batch one;
  fill_batch(read_dataset(SLUICE_EXAMPLE_DATA "/digits.csv").train, {5}, patch_shape::square, one);
  loss_of(model, one, alone);
  const float bound = 64 * std::numeric_limits<float>::epsilon() * t.logits.row(3).norm();
  CHECK((t.logits.row(3) - alone.logits.row(0)).norm() <= bound);
}
