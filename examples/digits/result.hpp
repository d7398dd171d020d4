/// What one router achieved: the numbers of the table and the picture.
#pragma once

#include <Eigen/Core>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "dataset.hpp"

namespace digits {

struct result {
  std::string router;             // the name that --router takes, or "dense"
  std::string title;              // as a reader would say it: "top-k (k = 2)"
  double accuracy = 0;            // correct test images, 0..1
  double accuracy_deviation = 0;  // standard deviation over the seeds (of the sample), 0 for one seed
  double experts_per_token = 0;   // mean on the test images
  double load_cv = 0;  // standard deviation / mean of the experts' loads on the test images; 0 is perfect balance
  double dropped = 0;  // share of the test tokens that no expert took, 0..1
  double tokens_per_second = 0;        // training: forward, backward and optimiser step
  std::int64_t parameters = 0;         // of the whole model
  std::int64_t active_parameters = 0;  // of these, used by one token on average
  Eigen::MatrixXd share;             // classes x E: share of a digit's routed weight that an expert got; rows sum to 1
  std::vector<std::string> experts;  // E short names for the picture's columns
};

/// Means over the seeds. The picture is that of the first seed: experts have no identity across seeds, so a mean of
/// their maps would be grey. `runs` are one router's and not empty.
inline result mean(const std::vector<result>& runs) {
  result m = runs.front();
  const auto n = static_cast<double>(runs.size());
  const auto average = [&](auto member) {
    double sum = 0;
    for (const result& r : runs) sum += static_cast<double>(r.*member);
    return sum / n;
  };
  m.accuracy = average(&result::accuracy);
  m.experts_per_token = average(&result::experts_per_token);
  m.load_cv = average(&result::load_cv);
  m.dropped = average(&result::dropped);
  m.tokens_per_second = average(&result::tokens_per_second);
  m.parameters = std::llround(average(&result::parameters));
  m.active_parameters = std::llround(average(&result::active_parameters));
  double squares = 0;
  for (const result& r : runs) squares += (r.accuracy - m.accuracy) * (r.accuracy - m.accuracy);
  m.accuracy_deviation = runs.size() > 1 ? std::sqrt(squares / (n - 1)) : 0;
  return m;
}

}  // namespace digits
