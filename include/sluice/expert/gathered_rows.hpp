/// What banks share that add into y themselves: rows that were gathered before are a plan whose weights are 1.
///
///   class my_bank : public gathered_rows_bank<my_bank<Scalar>, Scalar>       y, dx [n,D] are set to zero, then
///   forward -> forward_routed,  backward -> backward_routed                  every row adds into its own
///
/// The bank has forward_routed and backward_routed (RoutedBank in core/concepts.hpp) and gets the two calls of a bank.
/// Only the rows of the view are written; a view without rows writes nothing.
#pragma once

#include <sluice/core/executor.hpp>
#include <sluice/core/routed_rows.hpp>
#include <sluice/core/types.hpp>

namespace sluice::inline SLUICE_ISA {

template <typename Bank, FloatOrDouble Scalar>
class gathered_rows_bank {
public:
  template <typename Tape>
  void forward(tokens_in<Scalar> x, const expert_rows& rows, tokens_out<Scalar> y, Tape& t,
               const executor_ref& executor) const {
    y.middleRows(rows.first_row(), rows.rows()).setZero();
    static_cast<const Bank&>(*this).forward_routed(x, {.by_expert = rows}, y, t, executor);
  }
  template <typename Tape>
  void backward(tokens_in<Scalar> x, const expert_rows& rows, tokens_in<Scalar> dy, tokens_out<Scalar> dx, Tape& t,
                const executor_ref& executor) {
    dx.middleRows(rows.first_row(), rows.rows()).setZero();
    static_cast<Bank&>(*this).backward_routed(x, {.by_expert = rows}, dy, dx, t, nullptr, nullptr, executor);
  }
};

}  // namespace sluice::inline SLUICE_ISA
