// The tasks are as kin as they are told to be.
#include "task.hpp"

#include "shared/testing.hpp"

using namespace multitask;

namespace {

/// Correlation of the two labels over many examples.
double label_correlation(const related_tasks& data, index_t rows) {
  sluice::matrix<float> x(rows, related_tasks::features), labels(rows, tasks);
  data.draw(0, x, labels);
  const sluice::matrix<double> centred = (labels.rowwise() - labels.colwise().mean()).cast<double>();
  return centred.col(0).dot(centred.col(1)) / (centred.col(0).norm() * centred.col(1).norm());
}

}  // namespace

TEST_CASE("multitask: weights have the cosine that was asked for", "[multitask]") {
  for (const double cosine : {1.0, 0.9, 0.5, 0.0, -1.0}) {
    INFO(cosine);
    CHECK(std::abs(related_tasks(cosine, 7).cosine() - cosine) < 1e-12);
  }
}

TEST_CASE("multitask: labels are the more alike the more the weights are", "[multitask]") {
  constexpr index_t rows = 4000;  // chance moves a correlation of 0 by 0.016
  const double same = label_correlation(related_tasks(1, 7), rows),
               half = label_correlation(related_tasks(0.5, 7), rows),
               none = label_correlation(related_tasks(0, 7), rows);
  CHECK(same > 0.95);
  CHECK(half < same - 0.1);
  CHECK(none < half - 0.1);
  CHECK(std::abs(none) < 0.08);
}

TEST_CASE("multitask: examples depend on seed and step alone", "[multitask]") {
  sluice::matrix<float> x(5, related_tasks::features), labels(5, tasks), other = x, other_labels = labels;
  related_tasks(0.5, 7).draw(3, x, labels);
  related_tasks(0.5, 7).draw(3, other, other_labels);
  CHECK(x == other);
  CHECK(labels == other_labels);
  related_tasks(0.5, 7).draw(4, other, other_labels);
  CHECK(x != other);
  related_tasks(0.5, 8).draw(3, other, other_labels);
  CHECK(x != other);
}
