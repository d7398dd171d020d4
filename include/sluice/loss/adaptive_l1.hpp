/// Controller of an L1 coefficient (ReMoE): steers lambda so that k experts a token are active on average.
///
/// Once per optimiser step, from the tokens and the active pairs of that step (padding not counted):
///   lambda *= alpha   if more than k pairs a token were active     (sparsity, the share of zero gates, below 1 - k/E)
///   lambda /= alpha   otherwise                                    lambda_0 = 1e-8, alpha = 1.2
/// When exactly k T pairs were active the published code divides; the paper's alpha^sign(target - sparsity) leaves
/// lambda as it is: on_target chooses. A step without tokens changes nothing. lambda stays a finite number above 0
/// however long it moves.
///
///   adaptive_l1   lambda and its update; the loss of one layer owns it, or it stands alone for several layers
///   shared_l1     refers to one that several layers share, as in the paper
///   fixed_l1      a coefficient that stays
/// Wang, Zhu, Chen 2024, "ReMoE", arXiv:2412.14711.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/core/statistics.hpp>

#include <algorithm>
#include <concepts>
#include <limits>

namespace sluice::inline SLUICE_ISA {

/// What a controller does when the target is met exactly.
enum class on_target { divide, keep };

/// lambda and its update. lambda is a state parameter, so it is saved with the model. One controller may serve all
/// layers of a model, as in the paper: give every layer's loss shared_l1{controller}, and call step() once after the
/// layers' after_step.
template <FloatOrDouble Scalar>
class adaptive_l1 {
public:
  struct options {
    double initial = 1e-8;
    double multiplier = 1.2;
    on_target at_target = on_target::divide;
  };

  /// Aims at top_k of E experts a token. Throws std::invalid_argument unless 1 <= k <= E, initial > 0 and multiplier >
  /// 1.
  adaptive_l1(index_t experts, index_t top_k, options o = {})
      : options_(o),
        experts_(experts),
        top_k_(top_k),
        lambda_({1}, parameter_role::state, initial_values::constant(o.initial)) {
    if (top_k < 1 || top_k > experts)
      throw_invalid("adaptive_l1 needs 1 <= k <= E, not k = ", top_k, " with E = ", experts);
    if (!is_above(o.initial, 0) || !is_above(o.multiplier, 1))
      throw_invalid("adaptive_l1 needs a first coefficient above 0 and a multiplier above 1, not ", o.initial, " and ",
                    o.multiplier);
  }

  double value() const noexcept { return static_cast<double>(lambda_.data()[0]); }
  double target_sparsity() const noexcept { return 1 - static_cast<double>(top_k_) / static_cast<double>(experts_); }

  /// One update from the share of gates that were zero.
  void update(double sparsity) { move(sparsity < target_sparsity() ? 1 : sparsity > target_sparsity() ? -1 : 0); }

  /// Gathers what one layer did; step() then updates from all that was gathered. Nothing gathered, or no token: no
  /// update.
  void observe(const routing_statistics& statistics) noexcept {
    wanted_ += top_k_ * statistics.tokens;
    active_ += statistics.assignments;
  }
  void step() {
    // In whole numbers, so that equality is exact.
    if (wanted_ > 0) move(active_ > wanted_ ? 1 : active_ < wanted_ ? -1 : 0);
    wanted_ = active_ = 0;
  }

  /// What a loss calls after a step of its layer.
  void after_layer(const routing_statistics& statistics) {
    observe(statistics);
    step();
  }

  parameter<Scalar>& lambda() noexcept { return lambda_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("lambda", self.lambda_);
  }

private:
  void move(int direction) {
    Scalar& lambda = lambda_.data()[0];
    const auto multiplier = static_cast<Scalar>(options_.multiplier);
    if (direction > 0)
      lambda *= multiplier;
    else if (direction < 0 || options_.at_target == on_target::divide)
      lambda /= multiplier;
    // A product of many factors must not end in 0 or infinity, from which it could never come back.
    lambda = std::clamp(lambda, (std::numeric_limits<Scalar>::min)(), (std::numeric_limits<Scalar>::max)());
  }

  options options_;
  index_t experts_;
  index_t top_k_;
  index_t wanted_ = 0;
  index_t active_ = 0;
  parameter<Scalar> lambda_;
};

/// Refers to a controller that several layers share; it must outlive them.
template <FloatOrDouble Scalar>
class shared_l1 {
public:
  explicit shared_l1(adaptive_l1<Scalar>& controller) : controller_(&controller) {}
  double value() const noexcept { return controller_->value(); }
  void after_layer(const routing_statistics& statistics) noexcept { controller_->observe(statistics); }

private:
  adaptive_l1<Scalar>* controller_;
};

/// A coefficient that stays as it is.
struct fixed_l1 {
  double coefficient = 0;
  double value() const noexcept { return coefficient; }
};

}  // namespace sluice::inline SLUICE_ISA
