// A step of training, and checkpoints.
#include "train.hpp"

#include <sluice/io/model_file.hpp>
#include <sluice/train/clip.hpp>
#include <sluice/train/cross_entropy.hpp>
#include <sluice/train/initialize.hpp>

#include <algorithm>
#include <numbers>
#include <utility>

namespace language_model {

training::training(transformer model, const training_options& o)
    : options_(o),
      model_(std::move(model)),
      random_(o.seed),
      rate_({.peak = o.rate, .floor = o.rate / 20, .warmup = o.steps / 20, .steps = o.steps}),
      optimizer_({.beta2 = 0.98, .weight_decay = o.decay, .clear_gradients = true}) {
  sluice::initialize(model_, o.seed);
  optimizer_.prepare(model_);
}

void training::run(bool is_training, const sluice::random_source& random, const sluice::executor_ref& executor) {
  context c;
  c.training = is_training;
  c.random = random;
  c.step = step_;
  c.token_ids = batch_.ids;
  c.sequences = batch_.borders;
  c.executor = executor;
  logits_.resize(static_cast<index_t>(batch_.ids.size()), byte_values);
  model_.forward(logits_.map(), c);
}

/// Bits a byte, and their gradient.
double training::judge() {
  dlogits_.resize(logits_.rows(), byte_values);
  const auto result = sluice::softmax_cross_entropy<float>{}(logits_.map(), batch_.next, dlogits_.map());
  return result.loss / std::numbers::ln2;
}

void training::advance(std::string_view text, const sluice::executor_ref& executor) {
  const sluice::random_source random = random_.at_step(static_cast<std::uint64_t>(step_));
  draw_batch(text, options_.windows, model_.size().length, random, batch_);
  run(true, random, executor);
  curve_.push_back(static_cast<float>(judge()));
  model_.backward(dlogits_.map());
  sluice::clip_gradient_norm(model_, 1.0);
  optimizer_.set_learning_rate(rate_(step_));
  optimizer_.step(model_, executor);
  model_.after_step();
  ++step_;
}

double training::evaluate(std::string_view text, const sluice::executor_ref& executor) {
  const auto starts = window_starts(text.size(), model_.size().length, options_.validation);
  const auto together = static_cast<std::size_t>(options_.windows);
  double sum = 0;
  for (std::size_t first = 0; first < starts.size(); first += together) {
    const std::size_t last = std::min(starts.size(), first + together);
    batch_.clear();
    for (std::size_t i = first; i < last; ++i) batch_.add(text, starts[i], model_.size().length);
    run(false, random_, executor);
    sum += judge() * static_cast<double>(last - first);
  }
  return sum / static_cast<double>(starts.size());
}

namespace {

/// What a file holds.
template <typename Model, typename Optimizer, typename Curve>
struct saved_state {
  Model& model;
  Optimizer& optimizer;
  Curve& curve;

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("model", self.model);
    visit("optimizer", self.optimizer);
    visit("curve", self.curve);
  }
};

sluice::parameter<float> curve_of(index_t steps) { return {{steps}, sluice::parameter_role::state}; }

}  // namespace

void training::save(const std::string& path, const std::map<std::string, std::string>& about) const {
  auto curve = curve_of(step_);
  std::copy(curve_.begin(), curve_.end(), curve.data());
  sluice::save(
      saved_state<const transformer, const sluice::adamw<float>, const sluice::parameter<float>>{model_, optimizer_,
                                                                                                curve},
      path, about);
}

void training::load(const std::string& path) {
  const sluice::safetensors_reader file(path);
  const sluice::tensor_info* const steps = file.find("curve");
  if (steps == nullptr || steps->shape.size() != 1) throw sluice::file_error(path, "holds no curve of a training");
  auto curve = curve_of(steps->shape[0]);
  saved_state<transformer, sluice::adamw<float>, sluice::parameter<float>> all{model_, optimizer_, curve};
  sluice::load_parameters(file, all);
  curve_.assign(curve.value().begin(), curve.value().end());
  step_ = curve.size();
}

std::map<std::string, std::string> metadata_of(const std::string& path) {
  return sluice::safetensors_reader(path).metadata();
}

}  // namespace language_model
