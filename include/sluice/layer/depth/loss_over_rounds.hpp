/// One value of an auxiliary loss for what a router saw in all rounds of repeated layers: experts of shared layers
/// should be busy over the rounds together, and may rest in some of them.
///
///   loss_over_rounds<float, entropy_loss> balance{{.coefficient = 0.01}};
///   stack.forward(x, y, tape, context);
///   value = balance(tape, stack.layers(), g, [](auto& round) -> auto& { return mixture in round; }, context);
///   stack.backward(dy, dx, tape);
///
/// The function finds the memory with `router` in the tape of a round: a mixture layer's tape, or attention's of a
/// side. The router scores every token (it has `seen` and `screen`). g is the place of its layer among those that take
/// turns. A group of the context has its tokens of all rounds, one round after the other; gradients join those of the
/// rounds' own losses (dseen). The loss must do without a plan, as entropy_loss and router_z_loss do. Tokens that a
/// round did not route, padding and NaN, do not count there. MoEUT (Csordas et al. 2024, arXiv:2405.16039) has
/// entropy_loss for each sequence, with 0.01 for mixtures and 0.001 for each router of attention.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/context.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/signals.hpp>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, typename Loss>
class loss_over_rounds {
public:
  explicit loss_over_rounds(Loss loss) : loss_(std::move(loss)) {}

  /// Coefficient × value, for the last training forward call with the tape and this context. Throws
  /// std::invalid_argument unless the tape has applications of `layers` layers and 0 <= g < layers.
  template <typename Tape, typename RoutingOf>
  Scalar operator()(Tape& tape, index_t layers, index_t g, const RoutingOf& routing_of,
                    const routing_context<Scalar>& context) {
    const auto depth = static_cast<index_t>(tape.rounds.size());
    if (g < 0 || g >= layers || depth == 0 || depth % layers != 0)
      throw_invalid("loss_over_rounds: ", depth, " applications are no rounds with a layer ", g, " of ", layers);
    const index_t rounds = depth / layers;
    const auto routing = [&](index_t round) -> auto& { return routing_of(tape.rounds[as_size(round * layers + g)]); };
    const index_t tokens = routing(0).router.seen.clean.rows();
    join(rounds, tokens, routing, context);
    gradients_.zero_like(seen_);
    gradients_.reserve_scratch(context.group_count());
    routing_context<Scalar> own;
    own.training = context.training;
    own.step = context.step;
    own.executor = context.executor;
    own.groups = groups_.span();
    own.token_mask = mask_.span();
    const Scalar value = loss_(seen_, no_plan{}, own, gradients_);
    for_each_row(rounds, tokens, context, [&](index_t round, index_t t, index_t row) {
      const auto add = [&](const matrix_buffer<Scalar>& from, matrix_buffer<Scalar>& to) {
        for (index_t e = 0; e < from.cols() && !to.empty(); ++e) to(t, e) += from(row, e);
      };
      add(gradients_.clean, routing(round).router.dseen.clean);
      if (seen_.has_noise) add(gradients_.noisy, routing(round).router.dseen.noisy);
    });
    return value;
  }

  Loss& loss() noexcept { return loss_; }

private:
  /// What a loss that needs no plan is given for one.
  struct no_plan {};

  /// f(round, token, row of the joined signals).
  template <typename F>
  static void for_each_row(index_t rounds, index_t tokens, const routing_context<Scalar>& context, F&& f) {
    index_t row = 0;
    for (index_t group = 0; group < context.group_count(); ++group) {
      const token_range range = context.group(group, tokens);
      for (index_t round = 0; round < rounds; ++round)
        for (index_t t = range.begin; t < range.end; ++t) f(round, t, row++);
    }
  }

  template <typename Routing>
  void join(index_t rounds, index_t tokens, const Routing& routing, const routing_context<Scalar>& context) {
    const auto& first = routing(0).router.seen;
    const index_t experts = first.clean.cols();
    seen_.has_noise = first.has_noise;
    seen_.top_k = first.top_k;
    seen_.clean.resize(rounds * tokens, experts);
    seen_.noisy_storage.resize(first.has_noise ? rounds * tokens : 0, experts);
    mask_.resize(rounds * tokens);
    groups_.assign(context.group_count() + 1, 0);
    for (index_t group = 0; group < context.group_count(); ++group)
      groups_[group + 1] = rounds * context.group(group, tokens).end;
    for_each_row(rounds, tokens, context, [&](index_t round, index_t t, index_t row) {
      const auto& seen = routing(round).router.seen;
      std::copy_n(seen.clean.row(t), experts, seen_.clean.row(row));
      if (seen_.has_noise) std::copy_n(seen.noisy_storage.row(t), experts, seen_.noisy_storage.row(row));
      mask_[row] = routing(round).router.screen.is_routed(t);
    });
  }

  Loss loss_;
  score_signals<Scalar> seen_;
  score_gradients<Scalar> gradients_;
  buffer<index_t> groups_;
  buffer<std::uint8_t> mask_;
};

}  // namespace sluice::inline SLUICE_ISA
