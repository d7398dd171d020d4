/// Training on examples that are never seen twice, as those of a recommender, and what a call costs.
#pragma once

#include <sluice/train/adamw.hpp>
#include <sluice/train/initialize.hpp>
#include <sluice/train/schedule.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <vector>

#include "model.hpp"

namespace multitask {

inline constexpr index_t batch_rows = 256;

struct training {
  std::uint64_t seed = 1;
  index_t steps = 3000;
  index_t test_rows = 8192;
};

struct measured {
  std::array<double, tasks> error{};  ///< mean square over the labels' variance: 1 is what the mean would get
  index_t parameters = 0;
};

/// Mean squares over the labels' variance.
inline std::array<double, tasks> relative_errors(const sluice::matrix<float>& y, const sluice::matrix<float>& labels) {
  std::array<double, tasks> error{};
  for (std::size_t q = 0; q < tasks; ++q) {
    const auto column = labels.col(static_cast<index_t>(q)).cast<double>();
    const double variance = (column.array() - column.mean()).square().mean();
    error[q] = (y.col(static_cast<index_t>(q)).cast<double>() - column).squaredNorm() /
               static_cast<double>(labels.rows()) / variance;
  }
  return error;
}

template <typename Bottom>
measured train(two_towers<Bottom>& model, const related_tasks& data, const training& how) {
  sluice::initialize(model, how.seed);
  sluice::adamw<float> optimizer{{.weight_decay = 0, .clear_gradients = true}};
  const sluice::cosine_schedule rate{{.peak = 3e-3, .warmup = how.steps / 20, .steps = how.steps}};
  typename two_towers<Bottom>::tape tape;
  sluice::matrix<float> x(batch_rows, related_tasks::features), labels(batch_rows, tasks), y(batch_rows, tasks);
  context c;
  c.training = true;
  for (index_t step = 0; step < how.steps; ++step) {
    data.draw(step, x, labels);
    model.forward(x, y, tape, c);
    y = (y - labels) * (2.0F / static_cast<float>(batch_rows));  // the gradient of the mean square, summed over tasks
    model.backward(y, tape);
    optimizer.set_learning_rate(rate(step));
    optimizer.step(model);
  }
  x.resize(how.test_rows, Eigen::NoChange), labels.resize(how.test_rows, Eigen::NoChange),
      y.resize(how.test_rows, Eigen::NoChange);
  data.draw(how.steps, x, labels);
  typename two_towers<Bottom>::workspace workspace;
  model.forward(x, y, workspace);
  return {relative_errors(y, labels), sluice::parameter_count(model)};
}

struct latency {
  double median = 0, p99 = 0;  ///< microseconds a call
};

/// Of inference on a batch, one thread, warm.
template <typename Bottom>
latency measure_latency(const two_towers<Bottom>& model, index_t calls) {
  const sluice::matrix<float> x = sluice::matrix<float>::Random(batch_rows, related_tasks::features);
  sluice::matrix<float> y(batch_rows, tasks);
  typename two_towers<Bottom>::workspace workspace;
  std::vector<double> times;
  for (index_t i = -calls / 10 - 1; i < calls; ++i) {
    const auto start = std::chrono::steady_clock::now();
    model.forward(x, y, workspace);
    if (i >= 0)
      times.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  const auto at = [&](std::size_t percent) { return times[(times.size() - 1) * percent / 100]; };
  return {at(50), at(99)};
}

}  // namespace multitask
