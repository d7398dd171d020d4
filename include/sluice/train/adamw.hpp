/// AdamW: Adam with bias correction and decoupled weight decay.
///
///   w = w - learning_rate * weight_decay * w                      (for parameter_role::weight only)
///   m = beta1 m + (1 - beta1) g;   v = beta2 v + (1 - beta2) g^2    (both start at zero)
///   w = w - learning_rate * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon),  t = 1, 2, ... of this array
///
///   adamw<float> optimizer{{.learning_rate = 3e-4}};
///   layer.backward(dy, dx, tape);  optimizer.step(layer);  zero_gradients(layer);
///
/// step() leaves gradients as they are unless clear_gradients is set. Frozen parameters, states, and parameters that
/// never had a gradient are left alone. An array that joins the model later has a t of its own. Memory is taken in the
/// first step (or by prepare). Moments and t can be visited and saved: a run that goes on from the saved model and
/// optimiser gives the same bits. Kingma, Ba 2015, arXiv:1412.6980; Loshchilov, Hutter 2019, arXiv:1711.05101.
#pragma once

#include <sluice/core/executor.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/vector_math.hpp>
#include <sluice/train/optimizer_state.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class adamw {
public:
  using scalar = Scalar;
  struct options {
    double learning_rate = 1e-3;
    double beta1 = 0.9;
    double beta2 = 0.999;
    double epsilon = 1e-8;
    double weight_decay = 0.01;
    bool clear_gradients = false;  ///< set the gradients to zero after they are used
  };

  /// Throws std::invalid_argument unless rate, decay >= 0, epsilon > 0 and 0 <= beta < 1.
  explicit adamw(options o = {}) : options_(o) {
    const auto is_beta = [](double beta) { return is_between(beta, 0, 1) && beta < 1; };
    if (!is_at_least(o.learning_rate, 0) || !is_at_least(o.weight_decay, 0) || !is_above(o.epsilon, 0) ||
        !is_beta(o.beta1) || !is_beta(o.beta2))
      throw_invalid("adamw needs learning rate and weight decay >= 0, epsilon > 0 and betas in [0, 1), not ",
                    o.learning_rate, ", ", o.weight_decay, ", ", o.epsilon, ", ", o.beta1, ", ", o.beta2);
  }

  double learning_rate() const noexcept { return options_.learning_rate; }
  void set_learning_rate(double rate) noexcept { options_.learning_rate = rate; }

  /// Makes the moments, as the first step would; needed before saved ones are loaded, and to hand the optimiser over to
  /// another model.
  template <typename Model>
  void prepare(Model& model) {
    state_.prepare(model);
  }

  /// Changes every learned parameter of the model by its gradient. Throws std::invalid_argument for another model
  /// than so far (train/optimizer_state.hpp).
  template <typename Model>
  void step(Model& model, const executor_ref& executor = {}) {
    static_assert(explain_model<Model>());
    state_.for_each(model, [&](parameter<Scalar>& p, auto& entry) { update(p, entry, executor); });
    if (options_.clear_gradients) zero_gradients(model);
  }

  /// Forgets a row of a parameter that now holds something else (train/optimizer_state.hpp).
  void forget_row(const parameter<Scalar>& p, index_t row) { state_.forget_row(p, row); }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    decltype(self.state_)::visit_parameters(self.state_, visit);
  }

private:
  template <typename Entry>
  void update(parameter<Scalar>& p, Entry& entry, const executor_ref& executor) const {
    const double t = static_cast<double>(entry.steps.data()[0] += 1);
    const double decay = p.role() == parameter_role::weight ? options_.learning_rate * options_.weight_decay : 0;
    const auto kept = static_cast<Scalar>(1 - decay);
    const auto rate = static_cast<Scalar>(options_.learning_rate / (1 - std::pow(options_.beta1, t)));
    const auto unbias = static_cast<Scalar>(1 / std::sqrt(1 - std::pow(options_.beta2, t)));
    const auto beta1 = static_cast<Scalar>(options_.beta1);
    const auto beta2 = static_cast<Scalar>(options_.beta2);
    const auto rest1 = static_cast<Scalar>(1 - options_.beta1);
    const auto rest2 = static_cast<Scalar>(1 - options_.beta2);
    const auto epsilon = static_cast<Scalar>(options_.epsilon);
    const Scalar* gradient = std::as_const(p).gradient().data();
    Scalar* value = p.data();
    Scalar* first = entry.arrays[0].data();
    Scalar* second = entry.arrays[1].data();
    executor.parallel_blocks(static_cast<index_t>(p.value().size()), detail::optimizer_block, 8,
                             [=](index_t begin, index_t end) {
                               const index_t count = end - begin;
                               kernel::transform(
                                   count, [&](const auto& m, const auto& g) { return beta1 * m + rest1 * g; },
                                   first + begin, first + begin, gradient + begin);
                               kernel::transform(
                                   count, [&](const auto& v, const auto& g) { return beta2 * v + rest2 * g * g; },
                                   second + begin, second + begin, gradient + begin);
                               kernel::transform(
                                   count,
                                   [&](const auto& w, const auto& m, const auto& v) {
                                     using std::sqrt;  // a vector's is found beside its type
                                     return kept * w - rate * m / (sqrt(v) * unbias + epsilon);
                                   },
                                   value + begin, value + begin, first + begin, second + begin);
                             });
  }

  options options_;
  optimizer_state<Scalar, 2> state_{{"first_moment", "second_moment"}};
};

static_assert(HasParameters<adamw<float>>);

}  // namespace sluice::inline SLUICE_ISA
