/// Random capacity: in training an expert that overflows keeps C of its choices drawn at random, so that no place in
/// the batch is favoured; at inference it goes by position.
///
/// Each choice has an independent uniform priority, the draw at random_capacity::site, position j*T + t for rank
/// j of token t in the whole batch of T; the largest survive. Not causal. DeepSpeed's random token selection: Kim et
/// al. 2021, arXiv:2109.10465.
#pragma once

#include <sluice/capacity/survivors.hpp>

namespace sluice::inline SLUICE_ISA {

class random_capacity {
public:
  static constexpr bool causal = false;
  static constexpr random_site site{"random_capacity"};

  explicit random_capacity(capacity_limit limit) : limit_(std::move(limit)) {}

  template <typename Scalar>
  void serve(choice_table<Scalar>& choices, token_range group, index_t experts,
             const routing_context<Scalar>& context) const {
    if (!context.training) {
      const index_t first = choices.order.size();
      detail::append_by_rank(choices, group);
      detail::serve_in_order(limit_, choices, first, group, experts, context);
      return;
    }
    // The draws wait in the slots, which are not given out before the order is settled: as integers that order alike.
    for (index_t t = group.begin; t < group.end; ++t)
      for (index_t rank = 0; rank < choices.top_k; ++rank)
        if (const index_t pair = t * choices.top_k + rank; choices.asked[pair])
          choices.slot[pair] = order_key(context.random.uniform(site, rank * choices.tokens + t));
    detail::serve_survivors(limit_, choices, group, experts, context, [&](index_t a, index_t b) {
      return choices.slot[a] != choices.slot[b] ? choices.slot[a] > choices.slot[b] : a < b;
    });
  }

  const capacity_limit& limit() const noexcept { return limit_; }

private:
  capacity_limit limit_;
};

static_assert(CapacityPolicy<random_capacity>);

}  // namespace sluice::inline SLUICE_ISA
