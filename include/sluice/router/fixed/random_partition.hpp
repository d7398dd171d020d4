/// Random uniform partition: in training every token goes to one expert by chance alone, and every expert gets as many.
///
///   training    the group's n tokens are shuffled, the i-th goes to expert i mod E with weight 1: ceil(n/E) tokens for
///               the first n mod E experts, floor(n/E) for the others
///   inference   y[t] = mean over all e of f_e(x[t]), until average_experts and mean_expert (train/average_experts.hpp)
///               have made one expert of them
///
/// There is no gate, no parameter and no gradient. With experts that are pulled together after each step this is
/// experts weights averaging: a mixture that trains better than one expert and costs as much as one afterwards. The
/// shuffle orders tokens by their draws at partition_rule::site, the token's place being the position; equal draws by
/// place. Padding and tokens with NaN are in no part. Which k a call may ask for is settled by the above: 1 in
/// training, E at inference. Not causal, for the parts depend on how many tokens there are. T = 0 is fine. Huang et al.
/// 2023, "Experts Weights Averaging: A New General Training Scheme for Vision Transformers", arXiv:2308.06093.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/gate/none.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/weighed_rule.hpp>

#include <algorithm>
#include <numeric>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// The rule of the random partition, for one group.
template <FloatOrDouble Scalar>
class partition_rule : public even_weights<Scalar> {
public:
  static constexpr random_site site{"random_partition.order"};

  struct tape {
    struct card {
      double draw;
      index_t token;
    };
    buffer<card> deck;  ///< the group's tokens
  };

  /// Throws std::invalid_argument unless E >= 1.
  explicit partition_rule(index_t experts) : experts_(experts) {
    if (experts < 1) throw_invalid("a random partition needs E >= 1, not E = ", experts);
  }

  index_t top_k() const noexcept { return 1; }
  index_t top_k(const routing_context<Scalar>& context) const noexcept { return context.training ? 1 : experts_; }
  bool assigns(const routing_context<Scalar>& context) const noexcept { return context.training; }

  void validate(index_t experts) const {
    if (experts != experts_)
      throw_invalid("the random partition is for ", experts_, " experts, the router has E = ", experts);
  }
  void validate_call(const choice_call<Scalar>& call) const {
    if (call.k != top_k(call.context))
      throw_invalid("a random partition gives a token ", top_k(call.context), " of ", experts_, " experts ",
                    call.context.training ? "in training" : "at inference", "; the call asks for k = ", call.k);
  }

  void reserve(const choice_call<Scalar>& call, tape& t) const { t.deck.reserve(call.tokens); }
  void assign(const choice_batch<Scalar>& batch, choice_table<Scalar>& choices, tape& t) const {
    t.deck.clear();
    for (const index_t token : batch.routable) t.deck.push_back({batch.context.random.uniform(site, token), token});
    std::sort(t.deck.begin(), t.deck.end(),
              [](const auto& a, const auto& b) { return a.draw != b.draw ? a.draw < b.draw : a.token < b.token; });
    for (index_t i = 0; i < t.deck.size(); ++i) choices.ids(t.deck[i].token)[0] = i % batch.experts;
  }
  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    std::iota(ids, ids + row.k, index_t{0});
    return row.k;
  }

private:
  index_t experts_;
};

/// sluice::random_partition_router<float> router{64, 8};
template <FloatOrDouble Scalar>
class random_partition_router : public token_choice_router<no_gate<Scalar>, partition_rule<Scalar>> {
  using base = token_choice_router<no_gate<Scalar>, partition_rule<Scalar>>;

public:
  /// Throws std::invalid_argument unless D >= 1 and E >= 1.
  random_partition_router(index_t inputs, index_t experts)
      : base(no_gate<Scalar>(inputs, experts), partition_rule<Scalar>(experts)) {}
};

static_assert(explain_choice_rule<partition_rule<float>, float>());
static_assert(DifferentiableRouter<random_partition_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
