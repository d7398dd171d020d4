/// Codes that learn by gradients: a table [C,D], changed by an optimiser.
///
/// A codebook has codes(), inputs(), evaluate (makes the table of a call) and evaluated (the table), gradient and
/// backward (where the gradients of codes are added up, and where they go), after_step (what it learns from a batch by
/// itself) and replace (a code that a repair moves).
/// Initial values: uniform in (-1/C, 1/C), as published; start from data where there is some
/// (codebook/first_codes.hpp, codebook/kmeans.hpp). Parameter: the table.
/// van den Oord, Vinyals, Kavukcuoglu 2017, "Neural Discrete Representation Learning".
#pragma once

#include <sluice/codebook/quantized_batch.hpp>
#include <sluice/core/parameter.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class learned_codes {
public:
  using scalar = Scalar;
  static constexpr bool learns_by_gradient = true;
  struct memory {};

  /// Throws std::invalid_argument unless C, D >= 1.
  learned_codes(index_t codes, index_t width) {
    if (codes < 1 || width < 1) throw_invalid("learned_codes needs C, D >= 1, not ", codes, ", ", width);
    table_ = {{codes, width}, parameter_role::weight, initial_values::uniform(1 / static_cast<double>(codes))};
  }

  index_t codes() const noexcept { return table_.rows(); }
  index_t inputs() const noexcept { return table_.cols(); }

  void evaluate(memory&, const executor_ref&) const {}
  const_matrix_map<Scalar> evaluated(const memory&) const { return table_.map(); }
  matrix_map<Scalar> gradient(memory&) { return table_.gradient_map(); }
  void backward(memory&, const executor_ref&) {}
  void after_step(const quantized_batch<Scalar>&, memory&) {}
  /// An optimiser's memory of the code stays as it is. How many tokens chose it is counted elsewhere.
  void replace(index_t code, const Scalar* vector, Scalar /*size*/ = 1) {
    std::copy_n(vector, inputs(), table_.data() + code * inputs());
  }

  parameter<Scalar>& table() noexcept { return table_; }
  const parameter<Scalar>& table() const noexcept { return table_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("", self.table_);
  }

private:
  parameter<Scalar> table_;
};

}  // namespace sluice::inline SLUICE_ISA
