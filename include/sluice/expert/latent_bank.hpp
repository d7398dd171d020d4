/// Experts on a projection of the tokens: they read and write L numbers where the layer has D; the router reads all D.
///
///   z [T,L] = x V^T;   u [T,L] = the bank's on z, added up by weight;   y [T,D] = u U^T          V [L,D], U [D,L]
///   du = dy U;  dU += dy^T u;   dz the bank's;   dx += dz V;  dV += dz^T x
///
///   moe_layer layer{sigmoid_router<float>{64, 8},
///                   latent_bank{expert_bank<ffn<float, squared_relu>>{8, 16, 128}, 64, 64}};    // D = 64, L = 16
///
/// A token is projected once, however many experts it has. A token without experts has u = 0; nothing of it reaches a
/// gradient, and its numbers may be NaN. Elango et al. 2026, arXiv:2601.18089 (LatentMoE, Nemotron-3 Super and Ultra).
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/core/expert_rows.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/core/routed_rows.hpp>
#include <sluice/expert/bank_decorator.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/kernel/linear.hpp>

#include <cmath>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Bank>
class latent_bank : public bank_decorator<latent_bank<Bank>, Bank> {
  friend bank_decorator<latent_bank, Bank>;
  static_assert(RoutedBank<Bank>, "sluice: latent_bank needs a bank that gathers rows itself, such as expert_bank");

public:
  using scalar = typename Bank::scalar;
  struct tape {
    typename Bank::tape bank;
    matrix_buffer<scalar> latent;   ///< z
    matrix_buffer<scalar> mixed;    ///< u
    matrix_buffer<scalar> dlatent;
    matrix_buffer<scalar> dmixed;
  };

  /// The bank reads L numbers and writes L', the whole D and D'. Throws std::invalid_argument unless D, D' >= 1.
  latent_bank(Bank bank, index_t inputs, index_t outputs) : bank_(std::move(bank)) {
    if (inputs < 1 || outputs < 1) throw_invalid("latent_bank needs D, D' >= 1, not ", inputs, ", ", outputs);
    const auto deviation = [](index_t read) {
      return initial_values::normal(1 / std::sqrt(static_cast<double>(read)));
    };
    into_ = {{bank_.inputs(), inputs}, parameter_role::weight, deviation(inputs)};
    out_of_ = {{outputs, bank_.outputs()}, parameter_role::weight, deviation(bank_.outputs())};
  }

  index_t experts() const noexcept { return bank_.experts(); }
  index_t inputs() const noexcept { return into_.cols(); }
  index_t outputs() const noexcept { return out_of_.rows(); }
  decltype(auto) expert(index_t e) noexcept { return bank_.expert(e); }
  decltype(auto) expert(index_t e) const noexcept { return bank_.expert(e); }
  Bank& bank() noexcept { return bank_; }
  const Bank& bank() const noexcept { return bank_; }
  parameter<scalar>& into() noexcept { return into_; }      ///< V
  parameter<scalar>& out_of() noexcept { return out_of_; }  ///< U

  void forward(tokens_in<scalar> x, const expert_rows& rows, tokens_out<scalar> y, tape& t,
               const executor_ref& executor) const {
    project(x, y.rows(), t, executor);
    bank_.forward(t.latent.map(), rows, t.mixed.map(), t.bank, executor);
    const index_t first = rows.first_row(), count = rows.rows();
    linear_forward<scalar>(t.mixed.map().middleRows(first, count), out_of_, y.middleRows(first, count), executor);
  }

  void backward(tokens_in<scalar> x, const expert_rows& rows, tokens_in<scalar> dy, tokens_out<scalar> dx,
                tape& t, const executor_ref& executor)
    requires DifferentiableBank<Bank>
  {
    const index_t first = rows.first_row(), count = rows.rows();
    dx.middleRows(first, count).setZero();
    prepare_gradients(dy, first, count, t, executor);
    bank_.backward(t.latent.map(), rows, t.dmixed.map(), t.dlatent.map(), t.bank, executor);
    add_gradients(x, dy, dx, {first, first + count}, {first, first + count}, t, executor);
  }

  void forward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_out<scalar> y, tape& t,
                      const executor_ref& executor) const {
    project(x, y.rows(), t, executor);
    detail::clear_rows<scalar>(t.mixed.map(), executor);
    bank_.forward_routed(t.latent.map(), rows, t.mixed.map(), t.bank, executor);
    linear_forward<scalar>(t.mixed.map(), out_of_, y, executor, kernel::write::accumulate);
  }

  void backward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_in<scalar> dy,
                       tokens_out<scalar> dx, tape& t, scalar* dweight, scalar* dinput_scale,
                       const executor_ref& executor)
    requires DifferentiableBank<Bank>
  {
    prepare_gradients(dy, 0, dy.rows(), t, executor);
    bank_.backward_routed(t.latent.map(), rows, t.dmixed.map(), t.dlatent.map(), t.bank, dweight, dinput_scale,
                          executor);
    add_gradients(x, dy, dx, {0, x.rows()}, {0, dy.rows()}, t, executor);
  }

  index_t workspace_bytes(index_t rows, bool training) const {
    const index_t own = rows * (into_.rows() + out_of_.cols()) * static_cast<index_t>(sizeof(scalar));
    return detail::bank_bytes(bank_, rows, training) + (training ? 2 : 1) * own;
  }

  /// The same bank with the weights of its experts rounded to another storage.
  template <typename Storage>
  auto stored_as(const auto&... format) const {
    auto bank = bank_.template stored_as<Storage>(format...);
    latent_bank<decltype(bank)> other(std::move(bank), inputs(), outputs());
    other.into() = into_, other.out_of() = out_of_;
    return other;
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Bank>) Bank::visit_parameters(self.bank_, visit);
    visit("into", self.into_);
    visit("out_of", self.out_of_);
  }

private:
  template <typename F>
  void for_each_bank(tape& t, F&& f) const {
    f(bank_, t.bank, 0);
  }
  void prepare_own(tape& t, index_t rows, bool training) const {
    t.latent.reserve(rows, into_.rows());
    t.mixed.reserve(rows, out_of_.cols());
    if (training) t.dlatent.reserve(rows, into_.rows()), t.dmixed.reserve(rows, out_of_.cols());
  }

  void project(tokens_in<scalar> x, index_t targets, tape& t, const executor_ref& executor) const {
    t.latent.resize(x.rows(), into_.rows());
    t.mixed.resize(targets, out_of_.cols());
    linear_forward<scalar>(x, into_, t.latent.map(), executor);
  }

  void prepare_gradients(tokens_in<scalar> dy, index_t first, index_t count, tape& t, const executor_ref& executor) {
    t.dlatent.set_zero(t.latent.rows(), t.latent.cols());
    t.dmixed.resize(t.mixed.rows(), t.mixed.cols());
    linear_backward_inputs<scalar>(out_of_, dy.middleRows(first, count), t.dmixed.map().middleRows(first, count),
                                   executor, kernel::write::replace);
  }

  // Where u or dz is zero there is nothing to add, and dy or x may be NaN: such rows are not read.
  void add_gradients(tokens_in<scalar> x, tokens_in<scalar> dy, tokens_out<scalar> dx, token_range tokens,
                     token_range targets, tape& t, const executor_ref& executor) {
    detail::for_each_used_run(t.mixed, targets.begin, targets.end, [&](index_t begin, index_t end) {
      add_to_weight(t.mixed.map().middleRows(begin, end - begin), out_of_, dy.middleRows(begin, end - begin), executor);
    });
    detail::for_each_used_run(t.dlatent, tokens.begin, tokens.end, [&](index_t begin, index_t end) {
      const auto dz = t.dlatent.map().middleRows(begin, end - begin);
      linear_backward_inputs<scalar>(into_, dz, dx.middleRows(begin, end - begin), executor);
      add_to_weight(x.middleRows(begin, end - begin), into_, dz, executor);
    });
    into_.ensure_gradient();
    out_of_.ensure_gradient();
  }

  static void add_to_weight(tokens_in<scalar> x, parameter<scalar>& weight, tokens_in<scalar> dy,
                            const executor_ref& executor) {
    weight.ensure_gradient();
    executor.parallel_blocks(
        weight.rows(), detail::linear_weight_block, x.rows() * weight.cols() / 4,
        [&](index_t begin, index_t end) { linear_backward_weight<scalar>(x, weight, dy, begin, end); });
  }

  Bank bank_;
  parameter<scalar> into_;
  parameter<scalar> out_of_;
};

}  // namespace sluice::inline SLUICE_ISA
