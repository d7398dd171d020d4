/// What is trained, the results by router and seed, and their means.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "measures.hpp"
#include "subject.hpp"

namespace study {

/// One router with every seed.
struct outcome {
  subject of;
  std::vector<measured> digits, clusters;
};

/// The three models of the paper on its task, with every seed.
struct paper_outcome {
  std::vector<measured> cubic_experts, linear_experts, one_network;
};

struct results {
  std::vector<outcome> routers;
  paper_outcome paper;
};

/// Mean over the seeds of a number of a training.
template <typename Number>
double mean(const std::vector<measured>& runs, Number&& number) {
  double sum = 0;
  for (const measured& m : runs) sum += number(m);
  return sum / static_cast<double>(runs.size());
}

/// Standard deviation of the accuracy over the seeds (of the sample); 0 for one.
inline double accuracy_deviation(const std::vector<measured>& runs) {
  const double middle = mean(runs, [](const measured& m) { return m.accuracy; });
  const double squares = mean(runs, [&](const measured& m) { return (m.accuracy - middle) * (m.accuracy - middle); });
  return runs.size() < 2 ? 0
                         : std::sqrt(squares * static_cast<double>(runs.size()) / static_cast<double>(runs.size() - 1));
}

inline double accuracy(const std::vector<measured>& runs) {
  return mean(runs, [](const measured& m) { return m.accuracy; });
}
inline double entropy(const std::vector<measured>& runs) {
  return mean(runs, [](const measured& m) { return m.last().entropy; });
}
inline double load_cv(const std::vector<measured>& runs) {
  return mean(runs, [](const measured& m) { return m.last().load_cv; });
}
inline double experts_per_token(const std::vector<measured>& runs) {
  return mean(runs, [](const measured& m) { return m.last().experts_per_token; });
}

/// Means over the seeds of the dispatch entropy at every look.
inline std::vector<double> entropy_over_training(const std::vector<measured>& runs) {
  std::vector<double> all;
  for (std::size_t i = 0; i < runs.front().over_training.size(); ++i)
    all.push_back(mean(runs, [&](const measured& m) { return m.over_training[i].entropy; }));
  return all;
}

}  // namespace study
