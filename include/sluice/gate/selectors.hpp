/// Gates of selector routers (DSelect-k): codes Z and mixing logits a, the same for all tokens or linear in each token.
///
///   k selectors of m bits         Z [N, k·m] selector-major, a [N, k]
///   static_selectors   N = 1      Z and a are parameters; x is not read
///   linear_selectors   N = T      Z = x Wz^T + bz,  a = x Wa^T + ba
///
/// Initial values: codes (Z, Wz, bz) U(-gamma/100, gamma/100), mixing (a, Wa, ba) U(-0.05, 0.05), so every bit starts
/// near its middle. No weight decay on static codes: it would pull saturated bits back. m may be 0. T = 0 is fine.
/// Hazimeh et al. 2021, "DSelect-k", arXiv:2106.03760.
#pragma once

#include <sluice/core/checked_size.hpp>
#include <sluice/core/context.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/kernel/linear.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// What a selector router needs of its gate.
template <typename G>
concept SelectorGate = requires(G& gate, tokens_in<typename G::scalar> x,
                                const routing_context<typename G::scalar>& context, tokens_out<typename G::scalar> out,
                                typename G::scalar gamma, index_t size) {
  G(size, size, size, gamma);  // width, selectors, bits, gamma
  { std::as_const(gate).inputs() } -> std::convertible_to<index_t>;
  { G::per_token } -> std::convertible_to<bool>;
  std::as_const(gate).forward(x, context, out, out);
  gate.backward(x, context, x, x, out);
};

namespace detail {
inline initial_values initial_codes(double gamma) { return initial_values::uniform(gamma / 100); }
inline initial_values initial_mixing() { return initial_values::uniform(0.05); }
}  // namespace detail

template <FloatOrDouble Scalar>
class static_selectors {
public:
  using scalar = Scalar;
  static constexpr bool per_token = false;

  static_selectors(index_t inputs, index_t selectors, index_t bits, Scalar gamma)
      : inputs_(inputs),
        codes_({selectors, bits}, parameter_role::vector, detail::initial_codes(static_cast<double>(gamma))),
        mixing_({selectors}, parameter_role::vector, detail::initial_mixing()) {}

  index_t inputs() const noexcept { return inputs_; }

  void forward(tokens_in<Scalar>, const routing_context<Scalar>&, tokens_out<Scalar> codes,
               tokens_out<Scalar> mixing) const {
    std::copy_n(codes_.data(), codes_.size(), codes.data());
    std::copy_n(mixing_.data(), mixing_.size(), mixing.data());
  }
  void backward(tokens_in<Scalar>, const routing_context<Scalar>&, tokens_in<Scalar> dcodes, tokens_in<Scalar> dmixing,
                tokens_out<Scalar>) {
    add_column_sums(dcodes, codes_.gradient());
    add_column_sums(dmixing, mixing_.gradient());
  }

  parameter<Scalar>& codes() noexcept { return codes_; }    ///< [k,m]
  parameter<Scalar>& mixing() noexcept { return mixing_; }  ///< [k]

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if (self.codes_.size() > 0) visit("codes", self.codes_);
    visit("mixing", self.mixing_);
  }

private:
  index_t inputs_;
  parameter<Scalar> codes_;
  parameter<Scalar> mixing_;
};

template <FloatOrDouble Scalar>
class linear_selectors {
public:
  using scalar = Scalar;
  static constexpr bool per_token = true;

  linear_selectors(index_t inputs, index_t selectors, index_t bits, Scalar gamma)
      : inputs_(inputs),
        code_weight_({checked_product(selectors, bits), inputs}, parameter_role::weight,
                     detail::initial_codes(static_cast<double>(gamma))),
        code_bias_({selectors * bits}, parameter_role::vector, detail::initial_codes(static_cast<double>(gamma))),
        mixing_weight_({selectors, inputs}, parameter_role::weight, detail::initial_mixing()),
        mixing_bias_({selectors}, parameter_role::vector, detail::initial_mixing()) {}

  index_t inputs() const noexcept { return inputs_; }

  void forward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_out<Scalar> codes,
               tokens_out<Scalar> mixing) const {
    if (has_codes()) affine(x, code_weight_, code_bias_, codes, context.executor);
    affine(x, mixing_weight_, mixing_bias_, mixing, context.executor);
  }
  void backward(tokens_in<Scalar> x, const routing_context<Scalar>& context, tokens_in<Scalar> dcodes,
                tokens_in<Scalar> dmixing, tokens_out<Scalar> dx) {
    if (has_codes()) {
      linear_backward(x, code_weight_, dcodes, dx, context.executor);
      add_column_sums(dcodes, code_bias_.gradient());
    }
    linear_backward(x, mixing_weight_, dmixing, dx, context.executor);
    add_column_sums(dmixing, mixing_bias_.gradient());
  }

  parameter<Scalar>& code_weight() noexcept { return code_weight_; }      ///< [k·m, D]
  parameter<Scalar>& code_bias() noexcept { return code_bias_; }          ///< [k·m]
  parameter<Scalar>& mixing_weight() noexcept { return mixing_weight_; }  ///< [k, D]
  parameter<Scalar>& mixing_bias() noexcept { return mixing_bias_; }      ///< [k]

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if (self.has_codes()) {
      visit("code_weight", self.code_weight_);
      visit("code_bias", self.code_bias_);
    }
    visit("mixing_weight", self.mixing_weight_);
    visit("mixing_bias", self.mixing_bias_);
  }

private:
  bool has_codes() const noexcept { return code_bias_.size() > 0; }  // a single expert has no bits

  static void affine(tokens_in<Scalar> x, const parameter<Scalar>& weight, const parameter<Scalar>& bias,
                     tokens_out<Scalar> y, const executor_ref& executor) {
    linear_forward(x, weight, y, executor);
    y.rowwise() += bias.map().col(0).transpose();
  }

  index_t inputs_;
  parameter<Scalar> code_weight_;
  parameter<Scalar> code_bias_;
  parameter<Scalar> mixing_weight_;
  parameter<Scalar> mixing_bias_;
};

static_assert(SelectorGate<static_selectors<float>> && SelectorGate<linear_selectors<float>>);

}  // namespace sluice::inline SLUICE_ISA
