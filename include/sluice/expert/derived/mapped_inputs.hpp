/// Experts that read a function of every number of a token, such as its value in fixed point; the router reads the
/// token.
///
///   y = the bank's on M(x), M(x)[t,d] = Map::value(x[t,d])           dx = the bank's: straight through M
///
///   mapped_inputs_bank<expert_bank<ffn<float>>, fixed_point<>> bank{{8, 64, 256}};
///
/// Map has a static value(v) for vectors and numbers. Its derivative is taken for 1, which is what roundings want. A
/// token is mapped once, however many experts it has. Parameters, gradients, bits and no rows: the bank's. Bengio et
/// al. 2013 (straight-through), arXiv:1308.3432.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/expert/bank_decorator.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Bank, typename Map>
class mapped_inputs_bank : public bank_decorator<mapped_inputs_bank<Bank, Map>, Bank> {
  friend bank_decorator<mapped_inputs_bank, Bank>;
  static_assert(RoutedBank<Bank>,
                "sluice: mapped_inputs_bank needs a bank that gathers rows itself, such as expert_bank");

public:
  using scalar = typename Bank::scalar;
  struct tape {
    typename Bank::tape bank;
    matrix_buffer<scalar> x;  ///< M(x)
  };

  explicit mapped_inputs_bank(Bank bank) : bank_(std::move(bank)) {}

  index_t experts() const noexcept { return bank_.experts(); }
  index_t inputs() const noexcept { return bank_.inputs(); }
  index_t outputs() const noexcept { return bank_.outputs(); }
  Bank& bank() noexcept { return bank_; }
  const Bank& bank() const noexcept { return bank_; }

  void forward(tokens_in<scalar> x, const expert_rows& rows, tokens_out<scalar> y, tape& t,
               const executor_ref& executor) const {
    map(x, t, executor);
    bank_.forward(t.x.map(), rows, y, t.bank, executor);
  }
  void backward(tokens_in<scalar>, const expert_rows& rows, tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t,
                const executor_ref& executor) requires DifferentiableBank<Bank> {
    bank_.backward(t.x.map(), rows, dy, dx, t.bank, executor);
  }
  void forward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_out<scalar> y, tape& t,
                      const executor_ref& executor) const {
    map(x, t, executor);
    bank_.forward_routed(t.x.map(), rows, y, t.bank, executor);
  }
  void backward_routed(tokens_in<scalar>, const routed_rows<scalar>& rows, tokens_in<scalar> dy, tokens_out<scalar> dx,
                       tape& t, scalar* dweight, scalar* dinput_scale,
                       const executor_ref& executor) requires DifferentiableBank<Bank> {
    bank_.backward_routed(t.x.map(), rows, dy, dx, t.bank, dweight, dinput_scale, executor);
  }

  index_t workspace_bytes(index_t rows, bool training) const {
    return detail::bank_bytes(bank_, rows, training) + rows * inputs() * static_cast<index_t>(sizeof(scalar));
  }

  /// The same bank with the weights of its experts rounded to another storage.
  template <typename Storage>
  auto stored_as(const auto&... format) const {
    auto bank = bank_.template stored_as<Storage>(format...);
    return mapped_inputs_bank<decltype(bank), Map>(std::move(bank));
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Bank>) visit("", self.bank_);
  }

private:
  template <typename F>
  void for_each_bank(tape& t, F&& f) const {
    f(bank_, t.bank, 0);
  }
  void prepare_own(tape& t, index_t rows, bool) const { t.x.reserve(rows, inputs()); }

  void map(tokens_in<scalar> x, tape& t, const executor_ref& executor) const {
    t.x.resize(x.rows(), inputs());
    executor.parallel_each(x.rows(), inputs(), [&](index_t r) {
      kernel::transform<scalar>(
          inputs(), [](auto v) -> decltype(Map::value(v)) { return Map::value(v); }, t.x.row(r),
          x.data() + r * x.outerStride());
    });
  }

  Bank bank_;
};

}  // namespace sluice::inline SLUICE_ISA
