/// What banks made of other banks share: what the banks within are told and what they are, passed on.
///
///   template <typename Bank>
///   class doubled_bank : public bank_decorator<doubled_bank<Bank>, Bank> {
///     friend bank_decorator<doubled_bank, Bank>;
///   public:
///     struct tape { typename Bank::tape bank;  ... };               // widths, forward and backward: as in any bank
///   private:
///     template <typename F>
///     void for_each_bank(tape& t, F&& f) const { f(bank_, t.bank, 0); }     // a bank, its memory, its first expert
///     void prepare_own(tape& t, index_t rows, bool training) const;         // room of the wrapper's own
///   };
///
/// (tests/expert/bank_decorator_test.cpp has one.) The whole is causal if all banks within are, mixes tokens if one
/// does, and has read_context if one has it: each bank then hears of the rows of its experts, which are those of the
/// whole from its first expert on. So a network that looks at the call's sequences or encoders
/// (layer/encoders/network_bank.hpp) may lie as deep as wanted.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/routed_rows.hpp>

namespace sluice::inline SLUICE_ISA {

template <typename Derived, typename... Banks>
class bank_decorator {
  static_assert((explain_bank<Banks>() && ...));

public:
  static constexpr bool causal = (is_causal<Banks> && ...);
  static constexpr bool mixes_tokens = (is_token_mixer<Banks> || ...);

  /// Makes room for calls of up to so many rows, whichever experts they go to, and says whether backward calls will
  /// follow.
  template <typename Tape>
  void prepare(Tape& t, index_t rows, bool training) const {
    self().for_each_bank(t, [&](const auto& bank, auto& memory, index_t) {
      if constexpr (requires { bank.prepare(memory, rows, training); }) bank.prepare(memory, rows, training);
    });
    self().prepare_own(t, rows, training);
  }

  template <typename Tape, typename Scalar>
  void read_context(Tape& t, const routed_rows<Scalar>& rows, const routing_context<Scalar>& context) const
      requires(ReadsContext<Banks> || ...) {
    self().for_each_bank(t, [&](const auto& bank, auto& memory, index_t first) {
      detail::read_context(bank, memory, rows.slice(first, bank.experts()), context);
    });
  }

  static consteval bool explain_training() { return (explain_differentiable_bank<Banks>() && ...); }

private:
  const Derived& self() const noexcept { return static_cast<const Derived&>(*this); }
};

}  // namespace sluice::inline SLUICE_ISA
