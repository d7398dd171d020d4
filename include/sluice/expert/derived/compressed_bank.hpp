/// Experts beside which a token's other choices are a vector each: compressed experts.
///
///   numbers 0 .. E-1: the experts of a bank;  E .. 2 E-1: vectors theta [E,D]
///   m[t] = sum over the vectors of token t of w theta_e, ones if it has none
///   y[t] = sum over its experts of w f_e(m[t] * x[t])
///   with u the bank's dx:  dx = m * u;  dw = <theta_e, x * u>;  dtheta_e += w x * u
///
///   moe_layer layer{auxiliary_choices_router{top_k_router<float>{64, 16, {.top_k = 4, .weights = weighting::pre}}, 2},
///                   compressed_bank{expert_bank<swiglu<float>>{16, 64, 128}}};
///
/// Half of the experts that a token wants are run, the other half (router/auxiliary_choices.hpp) only tell what they
/// would look at: theta starts at 1, where the layer is its main experts alone. In the paper vectors also multiply
/// inner activations; where is not spelled out in what could be read, and only those of the input are here. Sums go in
/// token and expert order: equal bits for every thread count. Token without experts: nothing of it reaches a gradient.
/// He, Gu, Ke 2025, "Efficiently Editing Mixture-of-Experts Models with Compressed Experts", arXiv:2503.00634.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/core/routed_rows.hpp>
#include <sluice/expert/bank_decorator.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Bank>
class compressed_bank : public bank_decorator<compressed_bank<Bank>, Bank> {
  friend bank_decorator<compressed_bank, Bank>;
  static_assert(RoutedBank<Bank>, "sluice: compressed_bank needs a bank that gathers rows itself, such as expert_bank");

public:
  using scalar = typename Bank::scalar;
  struct tape {
    typename Bank::tape bank;
    matrix_buffer<scalar> mixed;  ///< m, ones where a token has no vector
    matrix_buffer<scalar> x;      ///< m * x
    matrix_buffer<scalar> dx;     ///< u, then x * u
    buffer<std::uint8_t> has_vector;
  };

  explicit compressed_bank(Bank bank) : bank_(std::move(bank)) {
    theta_ = {{bank_.experts(), bank_.inputs()}, parameter_role::vector, initial_values::constant(1)};
  }

  index_t experts() const noexcept { return 2 * bank_.experts(); }
  index_t inputs() const noexcept { return bank_.inputs(); }
  index_t outputs() const noexcept { return bank_.outputs(); }
  Bank& bank() noexcept { return bank_; }
  const Bank& bank() const noexcept { return bank_; }
  parameter<scalar>& theta() noexcept { return theta_; }

  /// Rows of one token each: those of a vector give zero.
  void forward(tokens_in<scalar> x, const expert_rows& rows, tokens_out<scalar> y, tape& t,
               const executor_ref& executor) const {
    const expert_rows vectors = rows.slice(bank_.experts(), bank_.experts());
    y.middleRows(vectors.first_row(), vectors.rows()).setZero();
    bank_.forward(x, rows.slice(0, bank_.experts()), y, t.bank, executor);
  }
  void backward(tokens_in<scalar> x, const expert_rows& rows, tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t,
                const executor_ref& executor) requires DifferentiableBank<Bank> {
    const expert_rows vectors = rows.slice(bank_.experts(), bank_.experts());
    dx.middleRows(vectors.first_row(), vectors.rows()).setZero();
    bank_.backward(x, rows.slice(0, bank_.experts()), dy, dx, t.bank, executor);
  }

  void forward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_out<scalar> y, tape& t,
                      const executor_ref& executor) const {
    mix(x, rows.slice(bank_.experts(), bank_.experts()), t, executor);
    bank_.forward_routed(t.x.map(), rows.slice(0, bank_.experts()), y, t.bank, executor);
  }

  void backward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_in<scalar> dy,
                       tokens_out<scalar> dx, tape& t, scalar* dweight, scalar* dinput_scale,
                       const executor_ref& executor) requires DifferentiableBank<Bank> {
    const routed_rows<scalar> vectors = rows.slice(bank_.experts(), bank_.experts());
    t.dx.set_zero(x.rows(), inputs());
    bank_.backward_routed(t.x.map(), rows.slice(0, bank_.experts()), dy, t.dx.map(), t.bank, dweight, dinput_scale,
                          executor);
    executor.parallel_each(x.rows(), inputs(), [&](index_t token) {
      scalar* const u = t.dx.row(token);
      const scalar* const in = x.data() + token * x.outerStride();
      const scalar* const m = t.mixed.row(token);
      for (index_t d = 0; d < inputs(); ++d) {
        if (u[d] == scalar(0)) continue;  // what nobody read may be NaN
        dx(token, d) += m[d] * u[d];
        u[d] *= in[d];
      }
    });
    theta_.ensure_gradient();
    for (const auto& [expert, begin, end] : vectors.by_expert)
      for (index_t i = begin; i < end; ++i) {
        const scalar* const product = t.dx.row(vectors.token(i));
        const index_t place = expert * inputs();
        if (dweight != nullptr) dweight[i] = kernel::dot(std::as_const(theta_).data() + place, product, inputs());
        if (dinput_scale != nullptr) dinput_scale[i] = 0;
        kernel::add_scaled(vectors.weight(i), product, theta_.gradient().data() + place, inputs());
      }
  }

  index_t workspace_bytes(index_t rows, bool training) const {
    return detail::bank_bytes(bank_, rows, training) +
           rows * (training ? 3 : 2) * inputs() * static_cast<index_t>(sizeof(scalar));
  }

  /// The same bank with the weights of its experts rounded to another storage.
  template <typename Storage>
  auto stored_as(const auto&... format) const {
    auto bank = bank_.template stored_as<Storage>(format...);
    compressed_bank<decltype(bank)> other(std::move(bank));
    other.theta() = theta_;
    return other;
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Bank>) Bank::visit_parameters(self.bank_, visit);
    visit("theta", self.theta_);
  }

private:
  template <typename F>
  void for_each_bank(tape& t, F&& f) const {
    f(bank_, t.bank, 0);
  }
  void prepare_own(tape& t, index_t rows, bool training) const {
    t.mixed.reserve(rows, inputs());
    t.x.reserve(rows, inputs());
    t.has_vector.reserve(rows);
    if (training) t.dx.reserve(rows, inputs());
  }

  void mix(tokens_in<scalar> x, const routed_rows<scalar>& vectors, tape& t, const executor_ref& executor) const {
    t.mixed.set_zero(x.rows(), inputs());
    t.x.resize(x.rows(), inputs());
    t.has_vector.assign(x.rows(), 0);
    for (const auto& [expert, begin, end] : vectors.by_expert)
      for (index_t i = begin; i < end; ++i) {
        t.has_vector[vectors.token(i)] = 1;
        kernel::add_scaled(vectors.weight(i), theta_.data() + expert * inputs(), t.mixed.row(vectors.token(i)),
                           inputs());
      }
    executor.parallel_each(x.rows(), inputs(), [&](index_t token) {
      if (!t.has_vector[token]) std::fill_n(t.mixed.row(token), inputs(), scalar(1));
      kernel::transform(
          inputs(), [](const auto& m, const auto& v) { return m * v; }, t.x.row(token),
          std::as_const(t.mixed).row(token), x.data() + token * x.outerStride());
    });
  }

  Bank bank_;
  parameter<scalar> theta_;
};

}  // namespace sluice::inline SLUICE_ISA
