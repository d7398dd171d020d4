/// Normalises the tokens that a bank of experts reads, and nothing else: the router sees them as they are.
///
///   rows = norm(x);  y = the bank's on these rows;   dx += norm's backward of the bank's dx
///
///   moe_layer layer{top_k_router<float>{64, 8},
///                   normalized_bank{expert_bank<swiglu<float>>{8, 64, 128}, rms_norm<float>{64}}};
///
/// A token is normalised once, however many experts it has. Banks that gather rows themselves still do. The norms are
/// those of kernel/row_norm.hpp; a layer whose router is to see normalised tokens too is layer/normalized.hpp. Gemma 4
/// 2026.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/core/routed_rows.hpp>
#include <sluice/expert/bank_decorator.hpp>
#include <sluice/kernel/row_norm.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Bank, typename Norm>
class normalized_bank : public bank_decorator<normalized_bank<Bank, Norm>, Bank> {
  friend bank_decorator<normalized_bank, Bank>;
  static_assert(explain_row_norm<Norm>());

public:
  using scalar = typename Bank::scalar;
  struct tape {
    typename Bank::tape bank;
    typename Norm::tape norm;
    matrix_buffer<scalar> normalized;
    matrix_buffer<scalar> dnormalized;
  };

  /// Throws std::invalid_argument if the norm is for rows of another width than the bank's inputs.
  normalized_bank(Bank bank, Norm norm) : bank_(std::move(bank)), norm_(std::move(norm)) {
    check_norm_width("normalized_bank", norm_, bank_.inputs());
  }

  index_t experts() const noexcept { return bank_.experts(); }
  index_t inputs() const noexcept { return bank_.inputs(); }
  index_t outputs() const noexcept { return bank_.outputs(); }
  decltype(auto) expert(index_t e) noexcept { return bank_.expert(e); }
  decltype(auto) expert(index_t e) const noexcept { return bank_.expert(e); }
  Bank& bank() noexcept { return bank_; }
  const Bank& bank() const noexcept { return bank_; }
  Norm& norm() noexcept { return norm_; }
  const Norm& norm() const noexcept { return norm_; }

  void forward(tokens_in<scalar> x, const expert_rows& rows, tokens_out<scalar> y, tape& t,
               const executor_ref& executor) const {
    normalize(x, t, executor);
    bank_.forward(t.normalized.map(), rows, y, t.bank, executor);
  }

  void backward(tokens_in<scalar> x, const expert_rows& rows, tokens_in<scalar> dy, tokens_out<scalar> dx,
                tape& t, const executor_ref& executor)
    requires DifferentiableBank<Bank>
  {
    t.dnormalized.set_zero(x.rows(), x.cols());
    bank_.backward(t.normalized.map(), rows, dy, t.dnormalized.map(), t.bank, executor);
    dx.middleRows(rows.first_row(), rows.rows()).setZero();
    detail::backward_of_used_rows(norm_, x, t.dnormalized, t.norm, dx, executor);
  }

  void forward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_out<scalar> y, tape& t,
                      const executor_ref& executor) const
    requires RoutedBank<Bank>
  {
    normalize(x, t, executor);
    bank_.forward_routed(t.normalized.map(), rows, y, t.bank, executor);
  }

  void backward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_in<scalar> dy,
                       tokens_out<scalar> dx, tape& t, scalar* dweight, scalar* dinput_scale,
                       const executor_ref& executor)
    requires RoutedBank<Bank> && DifferentiableBank<Bank>
  {
    t.dnormalized.set_zero(x.rows(), x.cols());
    bank_.backward_routed(t.normalized.map(), rows, dy, t.dnormalized.map(), t.bank, dweight, dinput_scale, executor);
    detail::backward_of_used_rows(norm_, x, t.dnormalized, t.norm, dx, executor);
  }

  index_t workspace_bytes(index_t rows, bool training) const {
    const index_t own = rows * inputs() * static_cast<index_t>(sizeof(scalar));
    return detail::bank_bytes(bank_, rows, training) + (training ? 2 : 1) * own;
  }

  /// The same bank with the weights of its experts rounded to another storage.
  template <typename Storage>
  auto stored_as(const auto&... format) const {
    auto bank = bank_.template stored_as<Storage>(format...);
    return normalized_bank<decltype(bank), Norm>(std::move(bank), norm_);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Bank>) Bank::visit_parameters(self.bank_, visit);
    if constexpr (HasParameters<Norm>) visit("norm", self.norm_);
  }

private:
  template <typename F>
  void for_each_bank(tape& t, F&& f) const {
    f(bank_, t.bank, 0);
  }
  void prepare_own(tape& t, index_t rows, bool training) const {
    t.normalized.reserve(rows, inputs());
    if (training) t.dnormalized.reserve(rows, inputs());
  }

  void normalize(tokens_in<scalar> x, tape& t, const executor_ref& executor) const {
    t.normalized.resize(x.rows(), x.cols());
    norm_.forward(x, t.normalized.map(), t.norm, executor);
  }

  Bank bank_;
  Norm norm_;
};

}  // namespace sluice::inline SLUICE_ISA
