/// Several unlike banks as one: six FFNs, two constants, one copy and one zero expert in a single layer.
///
///   expert_union experts{expert_bank<swiglu<float>>{6, 64, 128}, expert_bank<identity_expert<float>>{1, 64}};
///
/// Expert numbers run through the banks in the order given. The kinds are chosen at compile time; each bank runs its
/// own code on its own rows, so nothing is decided per row. All banks need equal widths. A bank that gathers rows
/// itself (forward_routed) does so here too; for any other the union gathers them and adds up what it says, with equal
/// bits.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/expert/bank_decorator.hpp>
#include <sluice/kernel/dispatch.hpp>

#include <string>
#include <tuple>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename First, typename... Rest>
class expert_union : public bank_decorator<expert_union<First, Rest...>, First, Rest...> {
  friend bank_decorator<expert_union, First, Rest...>;
  static_assert((std::same_as<detail::scalar_of<First>, detail::scalar_of<Rest>> && ...),
                "sluice: banks of one expert_union need the same scalar");

public:
  using scalar = typename First::scalar;
  /// Rows of the banks that do not gather them themselves: as in the plan, and what is not theirs is unset.
  struct gathered_rows {
    matrix_buffer<scalar> rows, outputs, doutputs, drows;
  };
  struct tape {
    std::tuple<typename First::tape, typename Rest::tape...> banks;
    gathered_rows gathered;
  };

  explicit expert_union(First first, Rest... rest) : banks_(std::move(first), std::move(rest)...) {
    for_each_bank([&](const auto& bank, auto, index_t) {
      if (bank.inputs() != inputs() || bank.outputs() != outputs())
        throw_invalid("banks of one expert_union need equal widths: ", inputs(), " -> ", outputs(), " and ",
                      bank.inputs(), " -> ", bank.outputs());
    });
  }

  index_t experts() const noexcept {
    return std::apply([](const auto&... bank) { return (bank.experts() + ...); }, banks_);
  }
  index_t inputs() const noexcept { return std::get<0>(banks_).inputs(); }
  index_t outputs() const noexcept { return std::get<0>(banks_).outputs(); }

  template <std::size_t I>
  auto& bank() noexcept {
    return std::get<I>(banks_);
  }
  template <std::size_t I>
  const auto& bank() const noexcept {
    return std::get<I>(banks_);
  }

  void forward(tokens_in<scalar> x, const expert_rows& rows, tokens_out<scalar> y, tape& t,
               const executor_ref& executor) const {
    for_each_bank([&](const auto& bank, auto i, index_t first) {
      bank.forward(x, rows.slice(first, bank.experts()), y, std::get<i>(t.banks), executor);
    });
  }

  void backward(tokens_in<scalar> x, const expert_rows& rows, tokens_in<scalar> dy, tokens_out<scalar> dx,
                tape& t, const executor_ref& executor)
    requires(DifferentiableBank<First> && (DifferentiableBank<Rest> && ...))
  {
    index_t first = 0;
    each_index([&](auto i) {
      auto& bank = std::get<i>(banks_);
      bank.backward(x, rows.slice(first, bank.experts()), dy, dx, std::get<i>(t.banks), executor);
      first += bank.experts();
    });
  }

  void forward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_out<scalar> y, tape& t,
                      const executor_ref& executor) const {
    if constexpr (!all_gather) {
      t.gathered.rows.resize(rows.end(), inputs());
      t.gathered.outputs.resize(rows.end(), outputs());
    }
    for_each_bank([&](const auto& bank, auto i, index_t first) {
      const routed_rows<scalar> own = rows.slice(first, bank.experts());
      auto& memory = std::get<i>(t.banks);
      if constexpr (RoutedBank<std::remove_cvref_t<decltype(bank)>>) {
        bank.forward_routed(x, own, y, memory, executor);
      } else {
        gather_rows(own, x, t.gathered.rows.map(), executor);
        bank.forward(t.gathered.rows.map(), own.by_expert, t.gathered.outputs.map(), memory, executor);
        add_rows(own, t.gathered.outputs.map(), y, executor);
      }
    });
  }

  void backward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_in<scalar> dy,
                       tokens_out<scalar> dx, tape& t, scalar* dweight, scalar* dinput_scale,
                       const executor_ref& executor)
    requires(DifferentiableBank<First> && (DifferentiableBank<Rest> && ...))
  {
    if constexpr (!all_gather) {
      t.gathered.doutputs.resize(rows.end(), outputs());
      t.gathered.drows.resize(rows.end(), inputs());
    }
    index_t first = 0;
    each_index([&](auto i) {
      auto& bank = std::get<i>(banks_);
      const routed_rows<scalar> own = rows.slice(first, bank.experts());
      auto& memory = std::get<i>(t.banks);
      first += bank.experts();
      if constexpr (RoutedBank<std::remove_cvref_t<decltype(bank)>>) {
        bank.backward_routed(x, own, dy, dx, memory, dweight, dinput_scale, executor);
      } else {
        weigh_rows(own, dy, t.gathered.outputs.map(), t.gathered.doutputs.map(), dweight, executor);
        bank.backward(t.gathered.rows.map(), own.by_expert, t.gathered.doutputs.map(), t.gathered.drows.map(), memory,
                      executor);
        add_input_rows(own, x, t.gathered.drows.map(), dx, dinput_scale, executor);
      }
    });
  }

  /// Bytes of a tape that has run `rows` rows, forward or (training) both ways: any bank may get all of them.
  index_t workspace_bytes(index_t rows, bool training) const {
    const index_t gathered = all_gather ? 0 : rows * (inputs() + outputs()) * static_cast<index_t>(sizeof(scalar));
    index_t bytes = training ? 2 * gathered : gathered;
    for_each_bank([&](const auto& bank, auto, index_t) { bytes += detail::bank_bytes(bank, rows, training); });
    return bytes;
  }

  /// The same banks, those of linear maps with their weights rounded to another storage.
  template <typename Storage>
  auto stored_as(const Storage& format = {}) const {
    return rebuilt([&](const auto& bank, index_t) { return detail::stored_as_or_copied<Storage>(bank, format); });
  }
  /// The same, to what format(expert, matrix) says, experts counted through all banks.
  template <typename Storage, std::invocable<index_t, int> Format>
  auto stored_as(const Format& format) const {
    return rebuilt([&](const auto& bank, index_t first) {
      return detail::stored_as_or_copied<Storage>(
          bank, [&, first](index_t e, int matrix) { return format(first + e, matrix); });
    });
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    each_index([&](auto i) { visit(std::to_string(i()), std::get<i>(self.banks_)); });
  }

private:
  static constexpr bool all_gather = RoutedBank<First> && (RoutedBank<Rest> && ...);

  template <typename F>
  static void each_index(F&& f) {
    [&]<std::size_t... I>(std::index_sequence<I...>) { (f(std::integral_constant<std::size_t, I>{}), ...); }
    (std::index_sequence_for<First, Rest...>{});
  }

  /// Any bank may get all the rows.
  template <typename F>
  void for_each_bank(tape& t, F&& f) const {
    for_each_bank([&](const auto& bank, auto i, index_t first) { f(bank, std::get<i>(t.banks), first); });
  }
  void prepare_own(tape& t, index_t rows, bool training) const {
    if constexpr (!all_gather) {
      t.gathered.rows.reserve(rows, inputs());
      t.gathered.outputs.reserve(rows, outputs());
      t.gathered.doutputs.reserve(training ? rows : 0, outputs());
      t.gathered.drows.reserve(training ? rows : 0, inputs());
    }
  }

  template <typename F>
  void for_each_bank(F&& f) const {
    index_t first = 0;
    each_index([&](auto i) {
      f(std::get<i>(banks_), i, first);
      first += std::get<i>(banks_).experts();
    });
  }

  /// made_of(bank, its first expert) for every bank.
  template <typename F>
  auto rebuilt(F&& made_of) const {
    const auto join = [](auto&... bank) {
      return expert_union<std::remove_cvref_t<decltype(bank)>...>(std::move(bank)...);
    };
    return std::apply(
        [&](const auto&... bank) {
          index_t next = 0;
          const auto made = [&](const auto& one) { return made_of(one, std::exchange(next, next + one.experts())); };
          std::tuple<decltype(made(bank))...> converted{made(bank)...};  // braces: from left to right
          return std::apply(join, converted);
        },
        banks_);
  }

  std::tuple<First, Rest...> banks_;
};

}  // namespace sluice::inline SLUICE_ISA
