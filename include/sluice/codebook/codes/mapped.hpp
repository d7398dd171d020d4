/// Codes that are a learned linear map of random vectors, fixed or learned: every code moves at every step (SimVQ).
///
///   codes [C,D] = basis [C,F] W^T (+ b)      basis: normal with deviation 1/sqrt(F), not learned;   W [D,F], b [D]
///   dW += dcodes^T basis;   db += sum over codes of dcodes;   with a learned basis (OptVQ), dbasis += dcodes W
///
/// One map a call, 2 C D F operations, whatever the number of tokens; for inference fold() gives the codes as they are.
/// Initial W: normal with deviation 1/sqrt(F), b zero. Parameters: "basis" (state unless it
/// is learned), "weight", "bias".
/// Zhu et al. 2024, "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer".
#pragma once

#include <sluice/codebook/codes/learned.hpp>
#include <sluice/kernel/linear.hpp>

#include <cmath>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct mapped_codes_options {
  bool bias = false;
  bool learned_basis = false;
};

template <FloatOrDouble Scalar>
class mapped_codes {
public:
  using scalar = Scalar;
  static constexpr bool learns_by_gradient = true;
  struct memory {
    matrix_buffer<Scalar> codes;
    matrix_buffer<Scalar> gradient;  ///< of the codes
  };

  /// Throws std::invalid_argument unless C, D, F >= 1.
  mapped_codes(index_t codes, index_t width, index_t basis_width, mapped_codes_options o = {}) : has_bias_(o.bias) {
    if (codes < 1 || width < 1 || basis_width < 1)
      throw_invalid("mapped_codes needs C, D, F >= 1, not ", codes, ", ", width, ", ", basis_width);
    const auto scale = initial_values::normal(1 / std::sqrt(static_cast<double>(basis_width)));
    basis_ = {{codes, basis_width}, o.learned_basis ? parameter_role::weight : parameter_role::state, scale};
    weight_ = {{width, basis_width}, parameter_role::weight, scale};
    if (has_bias_) bias_ = {{width}, parameter_role::vector};
  }
  mapped_codes(index_t codes, index_t width, mapped_codes_options o = {}) : mapped_codes(codes, width, width, o) {}

  index_t codes() const noexcept { return basis_.rows(); }
  index_t inputs() const noexcept { return weight_.rows(); }

  void evaluate(memory& m, const executor_ref& executor) const {
    m.codes.resize(codes(), inputs());
    linear_forward(basis_.map(), weight_, m.codes.map(), executor);
    if (has_bias_) add_to_rows(m.codes.map(), bias_);
  }
  const_matrix_map<Scalar> evaluated(const memory& m) const { return m.codes.map(); }

  matrix_map<Scalar> gradient(memory& m) {
    m.gradient.set_zero(codes(), inputs());
    return m.gradient.map();
  }
  void backward(memory& m, const executor_ref& executor) {
    if (weight_.is_learned())
      executor.parallel_blocks(inputs(), 32, codes() * weight_.cols() / 4, [&](index_t begin, index_t end) {
        linear_backward_weight(std::as_const(basis_).map(), weight_, std::as_const(m.gradient).map(), begin, end);
      });
    if (basis_.is_learned())
      linear_backward_inputs(weight_, std::as_const(m.gradient).map(), basis_.gradient_map(), executor);
    if (has_bias_) add_column_sums(std::as_const(m.gradient).map(), bias_.gradient());
  }
  void after_step(const quantized_batch<Scalar>&, memory&) {}

  /// The codes as they are now.
  learned_codes<Scalar> fold() const {
    memory m;
    learned_codes<Scalar> codes_now(codes(), inputs());
    evaluate(m, {});
    codes_now.table().assign(evaluated(m));
    return codes_now;
  }

  parameter<Scalar>& basis() noexcept { return basis_; }
  parameter<Scalar>& weight() noexcept { return weight_; }
  parameter<Scalar>& bias() noexcept { return bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("basis", self.basis_);
    visit("weight", self.weight_);
    if (self.has_bias_) visit("bias", self.bias_);
  }

private:
  bool has_bias_;
  parameter<Scalar> basis_;
  parameter<Scalar> weight_;
  parameter<Scalar> bias_;
};

}  // namespace sluice::inline SLUICE_ISA
