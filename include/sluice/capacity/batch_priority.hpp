/// Batch Priority Routing: when experts overflow, the tokens that the router is least sure of lose.
///
/// As capacity by position, but within a rank tokens are served by falling priority: their best score (the published
/// code), or the sum of their combine weights. The same order holds for every rank. Equal priorities: the lower token
/// first. It looks at the whole group, so it is not causal. Riquelme et al. 2021, arXiv:2106.05974, section 4.
#pragma once

#include <sluice/capacity/position.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

enum class batch_priority { best_score, sum_of_weights };

class batch_priority_capacity {
public:
  static constexpr bool causal = false;

  explicit batch_priority_capacity(capacity_limit limit, batch_priority by = batch_priority::best_score)
      : limit_(std::move(limit)), by_(by) {}

  template <typename Scalar>
  void serve(choice_table<Scalar>& choices, token_range group, index_t experts,
             const routing_context<Scalar>& context) const {
    const index_t first = choices.order.size();
    const index_t k = choices.top_k;
    buffer<index_t>& tokens = choices.queue;  // free until the choices are served
    tokens.clear();
    for (index_t t = group.begin; t < group.end; ++t) {
      if (!asks(choices, t)) continue;
      tokens.push_back(t);
      if (by_ == batch_priority::sum_of_weights) choices.priority[t] = weight_sum(choices, t);
    }
    std::sort(tokens.begin(), tokens.end(), largest_first{std::as_const(choices.priority).data()});
    for (index_t rank = 0; rank < k; ++rank)
      for (const index_t t : tokens)
        if (choices.asked[t * k + rank]) choices.order.push_back(t * k + rank);
    detail::serve_in_order(limit_, choices, first, group, experts, context);
  }

  const capacity_limit& limit() const noexcept { return limit_; }

private:
  template <typename Scalar>
  static bool asks(const choice_table<Scalar>& choices, index_t t) {
    const std::uint8_t* asked = &choices.asked[t * choices.top_k];
    return std::any_of(asked, asked + choices.top_k, [](std::uint8_t a) { return a != 0; });
  }
  template <typename Scalar>
  static Scalar weight_sum(const choice_table<Scalar>& choices, index_t t) {
    Scalar sum = 0;
    for (index_t pair = t * choices.top_k; pair < (t + 1) * choices.top_k; ++pair)
      if (choices.expert[pair] != no_expert) sum += choices.weight[pair];
    return sum;
  }

  capacity_limit limit_;
  batch_priority by_;
};

static_assert(CapacityPolicy<batch_priority_capacity>);

}  // namespace sluice::inline SLUICE_ISA
