/// Several unlike banks as one: six FFNs, two constants, one copy and one zero expert in a single layer.
///
///   expert_union experts{expert_bank<swiglu<float>>{6, 64, 128}, expert_bank<identity_expert<float>>{1, 64}};
///
/// Expert numbers run through the banks in the order given. The kinds are chosen at compile time; each bank runs its
/// own code on its own rows, so nothing is decided per row. All banks need equal widths.
#pragma once

#include <sluice/core/concepts.hpp>

#include <string>
#include <tuple>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename First, typename... Rest>
class expert_union {
  static_assert(explain_bank<First>() && (explain_bank<Rest>() && ...));
  static_assert((std::same_as<detail::scalar_of<First>, detail::scalar_of<Rest>> && ...),
                "sluice: banks of one expert_union need the same scalar");

public:
  using scalar = typename First::scalar;
  struct tape {
    std::tuple<typename First::tape, typename Rest::tape...> banks;
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

  /// Any bank may get all the rows.
  void prepare(tape& t, index_t rows, bool training) const {
    for_each_bank([&](const auto& bank, auto i, index_t) {
      if constexpr (requires { bank.prepare(std::get<i>(t.banks), rows, training); })
        bank.prepare(std::get<i>(t.banks), rows, training);
    });
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

  /// The same banks, those of linear maps with their weights rounded to another storage.
  template <typename Storage>
  auto stored_as() const {
    const auto converted = [](auto... bank) { return expert_union<decltype(bank)...>(std::move(bank)...); };
    return std::apply([&](const auto&... bank) { return converted(detail::stored_as_or_copied<Storage>(bank)...); },
                      banks_);
  }

  static consteval bool explain_training() {
    return explain_differentiable_bank<First>() && (explain_differentiable_bank<Rest>() && ...);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    each_index([&](auto i) { visit(std::to_string(i()), std::get<i>(self.banks_)); });
  }

private:
  template <typename F>
  static void each_index(F&& f) {
    [&]<std::size_t... I>(std::index_sequence<I...>) { (f(std::integral_constant<std::size_t, I>{}), ...); }
    (std::index_sequence_for<First, Rest...>{});
  }

  template <typename F>
  void for_each_bank(F&& f) const {
    index_t first = 0;
    each_index([&](auto i) {
      f(std::get<i>(banks_), i, first);
      first += std::get<i>(banks_).experts();
    });
  }

  std::tuple<First, Rest...> banks_;
};

}  // namespace sluice::inline SLUICE_ISA
