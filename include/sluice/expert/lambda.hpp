/// A function of your own as an expert.
///
///   auto expert = make_expert<float>(64, 64, [w](auto x, auto y) { y = x * w.transpose(); },    // forward
///                                            [w](auto, auto dy, auto dx) { dx = dy * w; });     // backward, optional
///   expert_bank bank(8, expert);
///
/// forward(x, y) fills y [n,D'] from x [n,D]; backward(x, dy, dx) fills dx [n,D]. x and dy are tokens_in<Scalar>, y and
/// dx tokens_out<Scalar>; n may be 0. Each row must depend on its own input row only. The function is called as const,
/// possibly from several threads at once. Without backward the expert is for inference: a layer that holds it has no
/// backward. An expert with parameters of its own is a struct; see examples/own_expert.cpp.
#pragma once

#include <sluice/core/concepts.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// Stands in the place of a backward function that there is not.
struct no_backward {};

template <FloatOrDouble Scalar, typename Forward, typename Backward = no_backward>
class lambda_expert {
  static_assert(std::invocable<const Forward&, tokens_in<Scalar>, tokens_out<Scalar>>,
                "sluice: make_expert needs a forward function (tokens_in<scalar> x, tokens_out<scalar> y) that is "
                "callable as const");
  static_assert(std::same_as<Backward, no_backward> ||
                    std::invocable<const Backward&, tokens_in<Scalar>, tokens_in<Scalar>, tokens_out<Scalar>>,
                "sluice: make_expert needs a backward function (tokens_in<scalar> x, tokens_in<scalar> dy, "
                "tokens_out<scalar> dx) "
                "that is callable as const");

public:
  using scalar = Scalar;

  /// Throws std::invalid_argument unless D and D' are at least 1.
  lambda_expert(index_t inputs, index_t outputs, Forward run, Backward run_backward = {})
      : inputs_(inputs), outputs_(outputs), forward_(std::move(run)), backward_(std::move(run_backward)) {
    if (inputs < 1 || outputs < 1) throw_invalid("an expert needs D, D' >= 1, not ", inputs, ", ", outputs);
  }

  index_t inputs() const noexcept { return inputs_; }
  index_t outputs() const noexcept { return outputs_; }
  index_t saved_columns() const noexcept { return 0; }

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tokens_out<Scalar>) const { forward_(x, y); }

  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tokens_out<Scalar>, tokens_out<Scalar> dx) const
      requires(!std::same_as<Backward, no_backward>) {
    backward_(x, dy, dx);
  }

private:
  index_t inputs_;
  index_t outputs_;
  Forward forward_;
  SLUICE_NO_UNIQUE_ADDRESS Backward backward_;
};

template <std::floating_point Scalar, typename Forward>
lambda_expert<Scalar, Forward> make_expert(index_t inputs, index_t outputs, Forward forward) {
  return {inputs, outputs, std::move(forward)};
}

template <std::floating_point Scalar, typename Forward, typename Backward>
lambda_expert<Scalar, Forward, Backward> make_expert(index_t inputs, index_t outputs, Forward forward,
                                                     Backward backward) {
  return {inputs, outputs, std::move(forward), std::move(backward)};
}

namespace detail {
struct nothing_forward {
  void operator()(tokens_in<float>, tokens_out<float>) const {}
};
struct nothing_backward {
  void operator()(tokens_in<float>, tokens_in<float>, tokens_out<float>) const {}
};
}  // namespace detail

static_assert(ExpertFunctor<lambda_expert<float, detail::nothing_forward>>);
static_assert(!DifferentiableExpert<lambda_expert<float, detail::nothing_forward>>);
static_assert(DifferentiableExpert<lambda_expert<float, detail::nothing_forward, detail::nothing_backward>>);

}  // namespace sluice::inline SLUICE_ISA
