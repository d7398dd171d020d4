/// An expert whose outputs are probabilities: y = softmax(f(x)) row by row.
///
///   expert_bank bank(8, softmax_output{linear_expert<float>{64, 10, {.bias = true}}});
///
/// In a dense mixture with weights that sum to 1, y is a mixture of distributions: probability_cross_entropy
/// (train/cross_entropy.hpp) is its loss. df[c] = y[c] (dy[c] - sum over i of y[i] dy[i]). Parameters bear the expert's
/// own names. NaN stays in its row. Jordan and Jacobs 1994, "Hierarchical Mixtures of Experts and the EM Algorithm".
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/kernel/softmax.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Expert>
class softmax_output {
  static_assert(explain_expert<Expert>());

public:
  using scalar = typename Expert::scalar;

  explicit softmax_output(Expert expert) : expert_(std::move(expert)) {}

  index_t inputs() const noexcept { return expert_.inputs(); }
  index_t outputs() const noexcept { return expert_.outputs(); }
  /// What the expert saves, y, and room for the gradient of f.
  index_t saved_columns() const noexcept { return expert_.saved_columns() + 2 * outputs(); }

  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tokens_out<scalar> saved) const {
    expert_.forward(x, y, saved.leftCols(expert_.saved_columns()));
    for (index_t r = 0; r < y.rows(); ++r) {
      scalar* row = y.data() + r * y.outerStride();
      kernel::softmax(row, row, outputs());
    }
    saved.middleCols(expert_.saved_columns(), outputs()) = y;
  }

  void backward(tokens_in<scalar> x, tokens_in<scalar> dy, tokens_out<scalar> saved, tokens_out<scalar> dx)
    requires DifferentiableExpert<Expert>
  {
    const auto y = saved.middleCols(expert_.saved_columns(), outputs());
    auto df = saved.rightCols(outputs());
    for (index_t r = 0; r < dy.rows(); ++r) {
      scalar inner = 0;
      for (index_t c = 0; c < outputs(); ++c) inner += y(r, c) * dy(r, c);
      for (index_t c = 0; c < outputs(); ++c) df(r, c) = y(r, c) * (dy(r, c) - inner);
    }
    expert_.backward(x, df, saved.leftCols(expert_.saved_columns()), dx);
  }

  Expert& inner() noexcept { return expert_; }
  const Expert& inner() const noexcept { return expert_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Expert>) Expert::visit_parameters(self.expert_, visit);
  }

private:
  Expert expert_;
};

}  // namespace sluice::inline SLUICE_ISA
