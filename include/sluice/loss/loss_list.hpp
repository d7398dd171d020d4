/// The auxiliary losses of a layer with a router, evaluated one after the other on what the router saw.
///
///   loss_list losses{switch_balance{.coefficient = 1e-2}, router_z_loss{}};
///   losses.evaluate(router_tape, plan, context, memory);      memory.losses[i] = coefficient × value of the i-th
///
/// Gradients are added into router_tape.dseen, which starts from zero, so that who calls may add its own afterwards. A
/// token that the plan calls invalid is padding to the losses. What a layer that chooses shares with its tape is
/// loss_values. Parameters of losses are named "loss.0", "loss.1", ... A list may be empty.
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/core/parameter.hpp>
#include <sluice/core/statistics.hpp>

#include <array>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// What the losses of one training call leave in a tape.
template <FloatOrDouble Scalar, std::size_t Count>
struct loss_values {
  std::array<Scalar, Count> losses{};  ///< coefficient × value of each auxiliary loss
  buffer<std::uint8_t> counted;        ///< [T] 1 where losses see the token; empty: as the context says

  Scalar loss() const {
    Scalar sum = 0;
    for (const Scalar value : losses) sum += value;
    return sum;
  }
};

template <typename... Losses>
class loss_list {
public:
  static constexpr std::size_t size = sizeof...(Losses);

  explicit loss_list(Losses... losses) : losses_(std::move(losses)...) {}

  /// For the router's last call, which made the plan.
  template <typename RouterTape, typename Plan, typename Scalar>
  void evaluate(RouterTape& router, const Plan& plan, const routing_context<Scalar>& context,
                loss_values<Scalar, size>& values) const {
    if constexpr (requires { router.dseen.zero_like(router.seen); }) router.dseen.zero_like(router.seen);
    if constexpr (size > 0) {
      if constexpr (requires { router.dseen.reserve_scratch(index_t()); })
        router.dseen.reserve_scratch(context.group_count());
      const routing_context<Scalar> valid = without_invalid(plan, context, values.counted);
      [&]<std::size_t... I>(std::index_sequence<I...>) {
        ((values.losses[I] = std::get<I>(losses_)(router.seen, plan, valid, router.dseen)), ...);
      }
      (std::index_sequence_for<Losses...>{});
    }
  }

  /// Once per optimiser step, for losses that change.
  void after_step(const routing_statistics& statistics) {
    const auto step = [&](auto& loss) {
      if constexpr (requires { loss.after_step(statistics); }) loss.after_step(statistics);
    };
    std::apply([&](auto&... loss) { (step(loss), ...); }, losses_);
  }

  template <std::size_t I>
  auto& get() noexcept {
    return std::get<I>(losses_);
  }
  const std::tuple<Losses...>& all() const noexcept { return losses_; }

  template <typename Self, typename Visitor>
  static void visit_parameters([[maybe_unused]] Self& self, [[maybe_unused]] Visitor&& visit) {
    if constexpr ((HasParameters<Losses> || ...)) {
      const auto one = [&](std::size_t i, auto& loss) {
        if constexpr (HasParameters<std::remove_cvref_t<decltype(loss)>>) visit("loss." + std::to_string(i), loss);
      };
      [&]<std::size_t... I>(std::index_sequence<I...>) { (one(I, std::get<I>(self.losses_)), ...); }
      (std::index_sequence_for<Losses...>{});
    }
  }

private:
  template <typename Plan, typename Scalar>
  static routing_context<Scalar> without_invalid(const Plan& plan, routing_context<Scalar> context,
                                                 buffer<std::uint8_t>& counted) {
    counted.reserve(plan.tokens());
    counted.clear();
    const auto invalid = plan.invalid_tokens();
    if (invalid.empty()) return context;
    counted.resize(plan.tokens());
    for (index_t token = 0; token < plan.tokens(); ++token) counted[token] = !context.is_padding(token);
    for (const index_t token : invalid) counted[token] = 0;
    context.token_mask = counted.span();
    return context;
  }

  std::tuple<Losses...> losses_;
};

}  // namespace sluice::inline SLUICE_ISA
