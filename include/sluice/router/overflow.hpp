/// What a full expert refuses goes to one more expert: E + 1 experts, of which the last has no limit.
///
///   the plan of a dropless router over E experts;  a capacity policy says which of its assignments stay
///   those refused: expert E, once a token, with the sum of their weights         each has the gradient of that sum
///
/// With a copy expert in that place (expert/simple.hpp) a token that finds no room carries its input, w x, where a
/// router with a capacity leaves it zero:
///
///   moe_layer layer{overflow_router{switch_router<float, dynamic, linear_gate<float>, dropless>{gate, {}}, capacity},
///                   expert_union{expert_bank<ffn<float>>{8, 64, 256}, expert_bank<identity_expert<float>>{1, 64}}};
///
/// Order, groups and draws are the capacity policy's; choices, ties, NaN, padding and T = 0 the inner router's, which
/// may not scale the experts' inputs. Losses cannot look into this router's tape (they would find E logits beside E + 1
/// experts); put none on the layer. Jawahar et al. 2023 (AutoMoE), arXiv:2210.07535, whose dropped tokens keep their
/// input.
#pragma once

#include <sluice/capacity/dropless.hpp>
#include <sluice/core/choices.hpp>
#include <sluice/router/plan_rewriter.hpp>

#include <algorithm>
#include <limits>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner, typename Capacity>
class overflow_router : public plan_rewriter<Inner> {
  using base = plan_rewriter<Inner>;
  static_assert(explain_capacity<Capacity, typename Inner::scalar>());

public:
  using typename base::plan;
  using typename base::scalar;
  static constexpr bool causal = is_causal<Inner> && Capacity::causal;

  struct tape : base::tape {
    choice_table<scalar> choices;
  };

  overflow_router(Inner inner, Capacity capacity) : base(std::move(inner)), capacity_(std::move(capacity)) {}

  index_t experts() const noexcept { return base::experts() + 1; }

  void route(tokens_in<scalar> x, const routing_context<scalar>& context, plan& p, tape& t) const {
    this->inner().route(x, context, t.own, t.inner);
    const plan& own = t.own;
    const index_t tokens = x.rows();
    index_t ranks = 1;
    for (index_t i = 0; i < own.size(); ++i) ranks = (std::max)(ranks, own.rank(i) + 1);
    choice_table<scalar>& choices = t.choices;
    choices.reset(tokens, ranks);
    choices.queue.reserve((std::max)(tokens, 2 * experts()));
    for (index_t token = 0; token < tokens; ++token) {
      choices.priority[token] = 0;
      for (const index_t i : own.of_token(token)) {
        const index_t pair = token * ranks + own.rank(i);
        choices.expert[pair] = own.expert(i);
        choices.weight[pair] = own.weight(i);
        choices.asked[pair] = 1;
        choices.priority[token] = (std::max)(choices.priority[token], own.weight(i));
      }
    }
    for (index_t g = 0; g < context.group_count(); ++g)
      capacity_.serve(choices, context.group(g, tokens), base::experts(), context);
    if (own.has_input_scale()) throw_invalid("what overflows cannot have the input scales of several choices");
    base::begin(own, p, experts(), own.most_rows());
    for (index_t token = 0; token < tokens; ++token) {
      scalar refused = 0;
      index_t first_refused = no_rank;
      for (const index_t i : own.of_token(token))
        if (is_kept(t, own, i))
          p.add(token, own.expert(i), own.weight(i), own.rank(i));
        else
          refused += own.weight(i), first_refused = (std::min)(first_refused, own.rank(i));
      if (first_refused != no_rank) p.add(token, base::experts(), refused, first_refused);
    }
    base::end(own, p);
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<scalar> dx) {
    const plan& own = t.own;
    base::room_for_gradients(t);
    for (index_t token = 0; token < x.rows(); ++token) {
      const auto theirs = p.of_token(token);
      std::size_t next = 0;
      for (const index_t i : own.of_token(token))
        t.down.weight[i] = dplan.weight[is_kept(t, own, i) ? theirs[next++] : theirs.back()];
    }
    base::pass_back(x, context, t, dx);
  }

  const Capacity& capacity() const noexcept { return capacity_; }

private:
  static constexpr index_t no_rank = (std::numeric_limits<index_t>::max)();

  static bool is_kept(const tape& t, const plan& own, index_t i) {
    return t.choices.kept[own.token(i) * t.choices.top_k + own.rank(i)] != 0;
  }

  Capacity capacity_;
};

}  // namespace sluice::inline SLUICE_ISA
