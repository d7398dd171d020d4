// How fast estimates of a softmax-gated mixture of two lines converge whose gate has a learned temperature, by maximum
// likelihood on generated data: "Is Temperature Sample Efficient for Softmax Gaussian Mixture of Experts?",
// arXiv:2401.13875.
#include <sluice/gate/activated.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/gate/tempered.hpp>
#include <sluice/train/initialize.hpp>

#include "support.hpp"

#include <array>

using namespace sluice;

namespace {

/// y = 1 + 2x or 0.5 - 3x, noise 0.3; the first with logit (phi(a x) + b) / tau ahead of the other's 0, phi(0) = 0.
struct two_gated_lines {
  static constexpr index_t count = 8;  // a, b, log tau, two lines, log deviation
  static Eigen::VectorXd truth() {
    Eigen::VectorXd q(count);
    q << 1.5, 0.2, std::log(0.5), 1, 2, 0.5, -3, std::log(0.3);
    return q;
  }
};

template <typename Phi>
class gated_lines {
  using gate_type = tempered_gate<activated_gate<linear_gate<double>, Phi>>;

public:
  explicit gated_lines(index_t n) : x_(n, 1), y_(n), logits_(n, 2), dlogits_(n, 2), dx_(n, 1) {
    initialize(gate_, 1);
    ensure_gradients(gate_);
  }

  void draw(std::uint64_t seed) {
    const random_source random(seed);
    const Eigen::VectorXd q = two_gated_lines::truth();
    for (index_t i = 0; i < y_.size(); ++i) x_(i, 0) = 4 * random.uniform(random_site::user_site, 2 * i) - 2;
    score(q);
    for (index_t i = 0; i < y_.size(); ++i) {
      const double share = 1 / (1 + std::exp(logits_(i, 1) - logits_(i, 0))), x = x_(i, 0);
      const bool first = random.uniform(random_site::user_site, 2 * i + 1) < share;
      y_[i] = (first ? q[3] + q[4] * x : q[5] + q[6] * x) + std::exp(q[7]) * random.normal(random_site("noise"), i);
    }
  }

  /// Minus the mean log-likelihood, and its gradient.
  double value(const Eigen::VectorXd& q, Eigen::VectorXd& gradient) {
    score(q);
    zero_gradients(gate_);
    gradient = Eigen::VectorXd::Zero(q.size());
    const double n = static_cast<double>(y_.size()), precision = std::exp(-2 * q[7]);
    double sum = 0;
    for (index_t i = 0; i < y_.size(); ++i) {
      const double x = x_(i, 0), e1 = y_[i] - q[3] - q[4] * x, e2 = y_[i] - q[5] - q[6] * x;
      const double z1 = logits_(i, 0), z2 = logits_(i, 1), f1 = z1 - e1 * e1 * precision / 2,
                   f2 = z2 - e2 * e2 * precision / 2;
      const double log_sum = std::max(f1, f2) + std::log1p(std::exp(-std::abs(f1 - f2)));
      const double log_gates = std::max(z1, z2) + std::log1p(std::exp(-std::abs(z1 - z2)));
      const double r = std::exp(f1 - log_sum), g = std::exp(z1 - log_gates);
      sum += log_sum - log_gates - q[7];
      dlogits_(i, 0) = r - g;
      dlogits_(i, 1) = g - r;
      gradient[3] += r * e1 * precision;
      gradient[4] += r * e1 * precision * x;
      gradient[5] += (1 - r) * e2 * precision;
      gradient[6] += (1 - r) * e2 * precision * x;
      gradient[7] += (r * e1 * e1 + (1 - r) * e2 * e2) * precision - 1;
    }
    dx_.setZero();
    gate_.backward(x_, {}, dlogits_, tape_, dx_);
    gradient[0] = gate_.inner().inner().weight().gradient()[0];
    gradient[1] = gate_.inner().offset().gradient()[0];
    gradient[2] = gate_.log_temperature().gradient()[0];
    gradient /= -n;
    return -sum / n;
  }

  /// The maximum of the likelihood near q, by quasi-Newton steps (BFGS).
  Eigen::VectorXd maximum_near(Eigen::VectorXd q) {
    Eigen::VectorXd gradient, next_gradient;
    matrix<double> inverse = 0.05 * matrix<double>::Identity(q.size(), q.size());
    double f = value(q, gradient);
    for (int steps = 0; steps < 200 && gradient.norm() > 1e-7; ++steps) {
      Eigen::VectorXd direction = -(inverse * gradient);
      direction *= (std::min)(1.0, 0.3 / direction.norm());  // not into another valley
      double length = 1, next = 0;
      for (;; length /= 2) {
        next = value(q + length * direction, next_gradient);
        if (next <= f + 1e-4 * length * gradient.dot(direction) || length < 1e-6) break;
      }
      if (!(f - next > 1e-13)) break;  // what is left is rounding
      const Eigen::VectorXd s = length * direction, d = next_gradient - gradient;
      const double along = s.dot(d);
      if (along > 0) {
        const Eigen::VectorXd h = inverse * d;
        inverse +=
            (1 + d.dot(h) / along) / along * (s * s.transpose()) - (h * s.transpose() + s * h.transpose()) / along;
      }
      q += s;
      f = next;
      gradient = next_gradient;
    }
    return q;
  }

private:
  void score(const Eigen::VectorXd& q) {
    gate_.inner().inner().weight().map() << q[0], 0;
    gate_.inner().offset().data()[0] = q[1];
    gate_.log_temperature().data()[0] = q[2];
    gate_.forward(x_, {}, logits_, tape_);
  }

  gate_type gate_{activated_gate<linear_gate<double>, Phi>(linear_gate<double>(1, 2))};
  typename gate_type::tape tape_;
  matrix<double> x_;
  Eigen::VectorXd y_;
  matrix<double> logits_, dlogits_, dx_;
};

/// Mean errors over some samples of n: of a, b and tau; of a / tau and b / tau, which is all that they say without an activation.
struct gate_errors {
  double apart = 0, together = 0;
};
template <typename Phi>
gate_errors errors_at(index_t n, std::uint64_t first_seed, index_t samples) {
  const Eigen::VectorXd truth = two_gated_lines::truth();
  gated_lines<Phi> model(n);
  gate_errors mean;
  for (index_t sample = 0; sample < samples; ++sample) {
    const auto seed = first_seed + static_cast<std::uint64_t>(sample);
    model.draw(seed);
    Eigen::VectorXd start = truth;
    for (index_t j = 0; j < start.size(); ++j)
      start[j] *= 1 + 0.3 * (2 * random_source(seed).uniform(random_site("start"), j) - 1);
    const Eigen::VectorXd q = model.maximum_near(start);
    const double tau = std::exp(q[2]), share = 1 / static_cast<double>(samples);
    mean.apart += share * (std::abs(q[0] - 1.5) + std::abs(q[1] - 0.2) + std::abs(tau - 0.5));
    mean.together += share * (std::abs(q[0] / tau - 3) + std::abs(q[1] / tau - 0.4));
  }
  return mean;
}

}  // namespace

TEST_CASE("temperature: the likelihood's gradient equals central differences", "[statistics][gradient]") {
  gated_lines<hyperbolic_tangent> model(40);
  model.draw(3);
  Eigen::VectorXd q = two_gated_lines::truth(), gradient, ignored;
  q.array() += 0.1;
  model.value(q, gradient);
  for (index_t j = 0; j < q.size(); ++j)
    CHECK_THAT(gradient[j], Catch::WithinAbs(test::slope_at(q[j], [&] { return model.value(q, ignored); }), 1e-7));
}

TEST_CASE("temperature: without an activation its estimate hardly converges, with one as others do", "[statistics]") {
  // Slopes of log error over log n from 500 to 8000 rows, 12 samples each, in six sets of seeds:
  //   identity   a, b, tau -.09 to -.05       a / tau, b / tau -.63 to -.38
  //   tanh       a, b, tau -.73 to -.50       where -.5 is the rate of estimates that are determined
  // Without an activation the likelihood is flat where a, b and tau grow together, and an estimate stays where its
  // search came from: a start within .3 of the truth. 1 / log n, the paper's bound, falls with a slope of -.13 there.
  const auto slope = [](double few, double many) { return std::log(many / few) / std::log(16.0); };
  const gate_errors plain_few = errors_at<no_activation>(500, 101, 12), plain = errors_at<no_activation>(8000, 101, 12);
  CHECK(slope(plain_few.apart, plain.apart) > -0.25);
  CHECK(plain.apart > 0.1);
  CHECK_THAT(slope(plain_few.together, plain.together), Catch::WithinAbs(-0.5, 0.25));
  const gate_errors few = errors_at<hyperbolic_tangent>(500, 101, 12),
                    many = errors_at<hyperbolic_tangent>(8000, 101, 12);
  CHECK(slope(few.apart, many.apart) < -0.35);
}
