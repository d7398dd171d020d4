/// An expert whose outputs are probabilities: y = softmax(f(x)) row by row.
///
///   expert_bank bank(8, softmax_output{linear_expert<float>{64, 10, {.bias = true}}});
///
/// In a dense mixture with weights that sum to 1, y is a mixture of distributions: probability_cross_entropy
/// (train/cross_entropy.hpp) is its loss. df[c] = y[c] (dy[c] - sum over i of y[i] dy[i]). Parameters bear the expert's
/// own names. NaN stays in its row. Jordan and Jacobs 1994, "Hierarchical Mixtures of Experts and the EM Algorithm".
#pragma once

#include <sluice/expert/decorator.hpp>
#include <sluice/kernel/softmax.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Expert>
class softmax_output : public expert_decorator<Expert> {
  using base = expert_decorator<Expert>;

public:
  using typename base::scalar;

  explicit softmax_output(Expert expert) : base(std::move(expert)) {}

  /// What the expert saves, y, and room for the gradient of f.
  index_t saved_columns() const noexcept { return base::saved_columns() + 2 * this->outputs(); }

  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tokens_out<scalar> saved) const {
    this->inner().forward(x, y, saved.leftCols(base::saved_columns()));
    for (index_t r = 0; r < y.rows(); ++r) {
      scalar* row = y.data() + r * y.outerStride();
      kernel::softmax(row, row, this->outputs());
    }
    saved.middleCols(base::saved_columns(), this->outputs()) = y;
  }

  void backward(tokens_in<scalar> x, tokens_in<scalar> dy, tokens_out<scalar> saved, tokens_out<scalar> dx)
    requires DifferentiableExpert<Expert>
  {
    const auto y = saved.middleCols(base::saved_columns(), this->outputs());
    auto df = saved.rightCols(this->outputs());
    for (index_t r = 0; r < dy.rows(); ++r) {
      scalar inner = 0;
      for (index_t c = 0; c < this->outputs(); ++c) inner += y(r, c) * dy(r, c);
      for (index_t c = 0; c < this->outputs(); ++c) df(r, c) = y(r, c) * (dy(r, c) - inner);
    }
    this->inner().backward(x, df, saved.leftCols(base::saved_columns()), dx);
  }
};

}  // namespace sluice::inline SLUICE_ISA
