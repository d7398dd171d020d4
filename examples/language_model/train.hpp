/// Training of a model, which can be stopped and goes on to the bit: everything that a step needs is a function of the
/// seed, the number of the step, and what a checkpoint holds.
#pragma once

#include <sluice/train/adamw.hpp>
#include <sluice/train/schedule.hpp>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "model.hpp"

namespace language_model {

struct training_options {
  index_t steps = 1500;
  index_t windows = 8;  ///< of text, a step
  double rate = 6e-3;   ///< of learning, at its peak
  double decay = 0.1;
  std::uint64_t seed = 1;
  index_t validation = 512;  ///< windows that tell how good a model is
};

class training {
public:
  training(transformer model, const training_options& o);

  transformer& model() { return model_; }
  index_t step() const { return step_; }
  bool done() const { return step_ >= options_.steps; }
  /// Bits a byte of the text of each step, before it was learned from.
  const std::vector<float>& curve() const { return curve_; }

  void advance(std::string_view text, const sluice::executor_ref& executor);

  /// Bits a byte of windows all over a text.
  double evaluate(std::string_view text, const sluice::executor_ref& executor);

  /// Replaces the file as a whole. `about` is what a reader needs to make such a model again.
  void save(const std::string& path, const std::map<std::string, std::string>& about) const;

  /// Goes on where a file was saved. Throws sluice::file_error if it is of another model.
  void load(const std::string& path);

private:
  void run(bool is_training, const sluice::random_source& random, const sluice::executor_ref& executor);
  double judge();

  training_options options_;
  transformer model_;
  sluice::random_source random_;
  sluice::cosine_schedule rate_;
  sluice::adamw<float> optimizer_;
  index_t step_ = 0;
  std::vector<float> curve_;

  batch batch_;
  sluice::matrix_buffer<float> logits_, dlogits_;
};

/// What save was told about a model. Throws sluice::file_error if there is no such file.
std::map<std::string, std::string> metadata_of(const std::string& path);

}  // namespace language_model
