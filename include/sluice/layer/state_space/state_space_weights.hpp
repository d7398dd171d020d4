/// The parameters of a state-space layer (layer/state_space/state_space_mixer.hpp): shapes, and what they begin with.
///
///   "input" [2I,D] normal                         "selection" [R + 2N, I] normal
///   "convolution" [I,W], its "_bias" [I] uniform  "step" [I,R] uniform, "step_bias" [I] so that softplus of it is
///   "output" [D,I] normal                         log-uniform in [0.001, 0.1]
///   "log_decay" [I,N]: A = -(1 .. N)              "skip" [I]: 1
///   "step_norm", "into_norm" and "out_of_norm", gains of r, B and C: 1        "input_bias" [2I], "output_bias" [D]: 0
///
/// Uniform: within 1 / sqrt(fan-in). Decays, skips and biases have no weight decay.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/row_norm.hpp>

#include <array>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

struct state_space_options {
  index_t channels = 0;               ///< I; 0: 2 D
  index_t states = 16;                ///< N
  index_t step_rank = 0;              ///< R; 0: D / 16, rounded up
  index_t taps = 4;                   ///< W
  bool bias = false;                  ///< of W_in and W_out
  bool normalized_selection = false;  ///< RMS norms of r, B and C
  double epsilon = 1e-6;              ///< of those
  double deviation = 0;               ///< of the first values of W_in, W_sel and W_out; 0: 1 / sqrt(fan-in)
  double output_deviation = 0;        ///< of W_out's, if not as the others'
};

template <FloatOrDouble Scalar>
struct state_space_weights {
  /// Throws std::invalid_argument unless D, N and W are at least 1 and nothing is below 0.
  state_space_weights(index_t width, const state_space_options& o) : options_(o) {
    if (width < 1 || o.channels < 0 || o.states < 1 || o.step_rank < 0 || o.taps < 1 || !is_at_least(o.deviation, 0) ||
        !is_at_least(o.output_deviation, 0) || !is_at_least(o.epsilon, 0))
      throw_invalid("a state-space layer needs D, N and W >= 1 and nothing below 0, not D ", width, ", I ", o.channels,
                    ", N ", o.states, ", R ", o.step_rank, ", W ", o.taps, ", epsilon ", o.epsilon, ", deviations ",
                    o.deviation, " and ", o.output_deviation);
    const index_t I = o.channels == 0 ? 2 * width : o.channels;
    const index_t R = o.step_rank == 0 ? (width + 15) / 16 : o.step_rank;
    const auto map = [](index_t out, index_t in, double deviation) {
      return parameter<Scalar>(
          {out, in}, parameter_role::weight,
          initial_values::normal(deviation > 0 ? deviation : 1 / std::sqrt(static_cast<double>(in))));
    };
    const auto within = [](double fan_in) { return initial_values::uniform(1 / std::sqrt(fan_in)); };
    input = map(2 * I, width, o.deviation);
    convolution = {{I, o.taps}, parameter_role::weight, within(static_cast<double>(o.taps))};
    convolution_bias = {{I}, parameter_role::vector, within(static_cast<double>(o.taps))};
    selection = map(R + 2 * o.states, I, o.deviation);
    step = {{I, R}, parameter_role::weight, within(static_cast<double>(R))};
    step_bias = {{I}, parameter_role::vector, initial_values::computed([](index_t, double draw) {
                   const double wanted = 0.001 * std::pow(100.0, draw);
                   return wanted + std::log(-std::expm1(-wanted));
                 })};
    log_decay = {{I, o.states}, parameter_role::vector, initial_values::computed([](index_t n, double) {
                   return std::log(static_cast<double>(n + 1));
                 })};
    skip = {{I}, parameter_role::vector, initial_values::constant(1)};
    output = map(width, I, o.output_deviation > 0 ? o.output_deviation : o.deviation);
    if (o.bias) {
      input_bias = {{2 * I}, parameter_role::vector};
      output_bias = {{width}, parameter_role::vector};
    }
    if (o.normalized_selection)
      for (std::size_t i = 0; i < norms.size(); ++i)
        norms[i] = rms_norm<Scalar>(i == 0 ? R : o.states, {.epsilon = static_cast<Scalar>(o.epsilon)});
  }

  index_t inputs() const noexcept { return input.cols(); }
  index_t channels() const noexcept { return step.rows(); }
  index_t states() const noexcept { return options_.states; }
  index_t step_rank() const noexcept { return step.cols(); }
  index_t taps() const noexcept { return options_.taps; }
  bool is_normalized() const noexcept { return options_.normalized_selection; }
  bool has_bias() const noexcept { return options_.bias; }

  parameter<Scalar> input, convolution, convolution_bias, selection, step, step_bias, log_decay, skip, output;
  parameter<Scalar> input_bias, output_bias;
  std::array<rms_norm<Scalar>, 3> norms{rms_norm<Scalar>(1), rms_norm<Scalar>(1), rms_norm<Scalar>(1)};  ///< r, B, C

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("input", self.input);
    if (self.has_bias()) visit("input_bias", self.input_bias);
    visit("convolution", self.convolution);
    visit("convolution_bias", self.convolution_bias);
    visit("selection", self.selection);
    if (self.is_normalized()) {
      visit("step_norm", self.norms[0]);
      visit("into_norm", self.norms[1]);
      visit("out_of_norm", self.norms[2]);
    }
    visit("step", self.step);
    visit("step_bias", self.step_bias);
    visit("log_decay", self.log_decay);
    visit("skip", self.skip);
    visit("output", self.output);
    if (self.has_bias()) visit("output_bias", self.output_bias);
  }

private:
  state_space_options options_;
};

}  // namespace sluice::inline SLUICE_ISA
