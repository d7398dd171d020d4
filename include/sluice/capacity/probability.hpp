/// Capacity by probability: an expert that overflows keeps the C choices with the largest combine weights.
///
/// First and further choices compete together. Equal weights: the lower token. Weights are those before any dropping.
/// It looks at the whole group, so it is not causal. Megatron-Core's token drop policy "probs".
#pragma once

#include <sluice/capacity/survivors.hpp>

namespace sluice::inline SLUICE_ISA {

class probability_capacity {
public:
  static constexpr bool causal = false;

  explicit probability_capacity(capacity_limit limit) : limit_(std::move(limit)) {}

  template <typename Scalar>
  void serve(choice_table<Scalar>& choices, token_range group, index_t experts,
             const routing_context<Scalar>& context) const {
    detail::serve_survivors(limit_, choices, group, experts, context,
                            largest_first{std::as_const(choices.weight).data()});
  }

  const capacity_limit& limit() const noexcept { return limit_; }

private:
  capacity_limit limit_;
};

static_assert(CapacityPolicy<probability_capacity>);

}  // namespace sluice::inline SLUICE_ISA
