/// Stochastic gradient descent with momentum and weight decay.
///
///   g = gradient + weight_decay * w          (decay for parameter_role::weight only)
///   v = momentum * v + g                     (v starts at zero)
///   w = w - learning_rate * v                or, Nesterov:  w - learning_rate * (g + momentum * v)
///
///   sgd<float> optimizer{{.learning_rate = 0.1, .momentum = 0.9}};
///   layer.backward(dy, dx, tape);  optimizer.step(layer);  zero_gradients(layer);
///
/// step() leaves gradients as they are unless clear_gradients is set. Frozen parameters, states, and parameters that
/// never had a gradient are left alone. Memory is taken in the first step (or by prepare). The velocities can be
/// visited and saved: a run that goes on from the saved model and optimiser gives the same bits. Sutskever et al. 2013,
/// "On the importance of initialization and momentum in deep learning".
#pragma once

#include <sluice/core/executor.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/train/optimizer_state.hpp>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class sgd {
public:
  using scalar = Scalar;
  struct options {
    double learning_rate = 0.01;
    double momentum = 0;
    bool nesterov = false;
    double weight_decay = 0;
    bool clear_gradients = false;  ///< set the gradients to zero after they are used
  };

  /// Throws std::invalid_argument if a number is negative, or for Nesterov's form without momentum.
  explicit sgd(options o = {}) : options_(o) {
    if (!is_at_least(o.learning_rate, 0) || !is_at_least(o.momentum, 0) || !is_at_least(o.weight_decay, 0))
      throw_invalid("sgd needs learning rate, momentum and weight decay >= 0, not ", o.learning_rate, ", ", o.momentum,
                    ", ", o.weight_decay);
    if (o.nesterov && o.momentum == 0) throw_invalid("sgd: Nesterov's form needs a momentum");
  }

  double learning_rate() const noexcept { return options_.learning_rate; }
  void set_learning_rate(double rate) noexcept { options_.learning_rate = rate; }

  /// Makes the velocities, as the first step would; needed before saved ones are loaded, and to hand the optimiser over
  /// to another model.
  template <typename Model>
  void prepare(Model& model) {
    if (options_.momentum != 0) state_.prepare(model);
  }

  /// Changes every learned parameter of the model by its gradient. Throws std::invalid_argument for another model
  /// than so far (train/optimizer_state.hpp); without momentum nothing is remembered and any model will do.
  template <typename Model>
  void step(Model& model, const executor_ref& executor = {}) {
    static_assert(explain_model<Model>());
    if (options_.momentum != 0)
      state_.for_each(model, [&](parameter<Scalar>& p, auto& entry) {
        update(p, entry.arrays[0].data(), executor);
        entry.steps.data()[0] += 1;
      });
    else
      detail::for_each_unnamed_parameter(model, detail::for_optimized<Scalar>([&](parameter<Scalar>& p) {
        if (p.is_learned() && p.has_gradient()) update(p, nullptr, executor);
      }));
    if (options_.clear_gradients) zero_gradients(model);
  }

  /// Forgets a row of a parameter that now holds something else (train/optimizer_state.hpp).
  void forget_row(const parameter<Scalar>& p, index_t row) { state_.forget_row(p, row); }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    decltype(self.state_)::visit_parameters(self.state_, visit);
  }

private:
  void update(parameter<Scalar>& p, Scalar* velocity, const executor_ref& executor) const {
    const auto rate = static_cast<Scalar>(options_.learning_rate);
    const auto momentum = static_cast<Scalar>(options_.momentum);
    const auto decay = static_cast<Scalar>(p.role() == parameter_role::weight ? options_.weight_decay : 0);
    const Scalar* gradient = std::as_const(p).gradient().data();
    Scalar* value = p.data();
    executor.parallel_blocks(static_cast<index_t>(p.value().size()), detail::optimizer_block, 4,
                             [=, this](index_t begin, index_t end) {
                               for (index_t i = begin; i < end; ++i) {
                                 Scalar direction = gradient[i] + decay * value[i];
                                 if (velocity) {
                                   velocity[i] = momentum * velocity[i] + direction;
                                   direction = options_.nesterov ? direction + momentum * velocity[i] : velocity[i];
                                 }
                                 value[i] -= rate * direction;
                               }
                             });
  }

  options options_;
  optimizer_state<Scalar, 1> state_{{"velocity"}};
};

static_assert(HasParameters<sgd<float>>);

}  // namespace sluice::inline SLUICE_ISA
