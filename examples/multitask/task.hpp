/// Two regression tasks whose kinship is set: as the MMoE paper generates them.
///
///   u1, u2   orthogonal unit vectors of D numbers;   w1 = u1,   w2 = p u1 + sqrt(1 - p^2) u2:   cosine p
///   z_q = <w_q, x>,   x normal;   y_q = z_q + sum over i of sin(a_i z_q + b_i) + 0.1 noise
///
/// The paper leaves a and b open: here a_i = 1, 2, 3 and b is drawn, alike for both tasks. Ma et al. 2018, section 3.
#pragma once

#include <sluice/core/random.hpp>
#include <sluice/core/types.hpp>

#include <array>
#include <cmath>
#include <cstddef>
#include <numbers>
#include <vector>

namespace multitask {

using sluice::index_t;

inline constexpr index_t tasks = 2;

class related_tasks {
public:
  static constexpr index_t features = 100;

  related_tasks(double cosine, std::uint64_t seed) : random_(sluice::random_source(seed).split(0)) {
    std::vector<double> first = normal_row(site_of_weights, 0), second = normal_row(site_of_weights, 1);
    make_unit(first);
    double along = 0;
    for (index_t d = 0; d < features; ++d) along += first[at(d)] * second[at(d)];
    for (index_t d = 0; d < features; ++d) second[at(d)] -= along * first[at(d)];
    make_unit(second);
    for (index_t d = 0; d < features; ++d)
      second[at(d)] = cosine * first[at(d)] + std::sqrt(1 - cosine * cosine) * second[at(d)];
    weights_ = {first, second};
    for (std::size_t i = 0; i < waves; ++i)
      shift_[i] = 2 * std::numbers::pi * random_.uniform(site_of_waves, static_cast<index_t>(i));
  }

  double cosine() const {
    double sum = 0;
    for (index_t d = 0; d < features; ++d) sum += weights_[0][at(d)] * weights_[1][at(d)];
    return sum;
  }

  /// Fills x [n, features] and labels [n, tasks] with the examples of a step.
  void draw(index_t step, sluice::matrix<float>& x, sluice::matrix<float>& labels) const {
    const sluice::random_source random = random_.at_step(static_cast<std::uint64_t>(step));
    for (index_t i = 0; i < x.rows(); ++i) {
      std::array<double, tasks> z{};
      for (index_t d = 0; d < features; ++d) {
        const double feature = random.normal(site_of_features, i * features + d);
        x(i, d) = static_cast<float>(feature);
        for (std::size_t q = 0; q < tasks; ++q) z[q] += weights_[q][at(d)] * feature;
      }
      for (std::size_t q = 0; q < tasks; ++q) {
        double y = z[q] + 0.1 * random.normal(site_of_noise, i * tasks + static_cast<index_t>(q));
        for (std::size_t w = 0; w < waves; ++w) y += std::sin(static_cast<double>(w + 1) * z[q] + shift_[w]);
        labels(i, static_cast<index_t>(q)) = static_cast<float>(y);
      }
    }
  }

private:
  static constexpr std::size_t waves = 3;
  static constexpr sluice::random_site site_of_weights{"multitask.weights"}, site_of_waves{"multitask.waves"},
      site_of_features{"multitask.features"}, site_of_noise{"multitask.noise"};

  static std::size_t at(index_t d) { return static_cast<std::size_t>(d); }

  std::vector<double> normal_row(sluice::random_site site, index_t row) const {
    std::vector<double> v;
    for (index_t d = 0; d < features; ++d) v.push_back(random_.normal(site, row * features + d));
    return v;
  }
  static void make_unit(std::vector<double>& v) {
    double squares = 0;
    for (const double number : v) squares += number * number;
    for (double& number : v) number /= std::sqrt(squares);
  }

  sluice::random_source random_;
  std::array<std::vector<double>, tasks> weights_;
  std::array<double, waves> shift_{};
};

}  // namespace multitask
