/// Couplings: how strongly every token of a group and every expert belong together, worked out for all of them at once.
///
///   coupling P [T,E] >= 0 of a group's n tokens, about as large in sum over tokens for every expert
///
///   couple(batch, tape)                        fills the rows of batch.routable of tape.coupling [T,E]
///   zero_is_a_choice                           whether token choice may take entries that are 0
///   reserve(call, tape)                        if it has scratch memory: room for any group of the call
/// and, if its entries can be weights,
///   can_weigh()                                whether this object's are
///   backward(batch, dcoupling, tape, dlogits)  adds their gradient into dlogits [T,E]
///
/// Two routers choose by a coupling. In token choice (coupling_rule) a token goes to the k largest entries of its row;
/// in expert choice (router/experts_choose/expert_choice.hpp) an expert takes the C largest entries of its column.
/// Weights are a rule of their own in the first (router/weighed_rule.hpp), of the noisy logits or of those before the
/// noise, or the entries themselves; in the second the scores, or the entries. The choice is a constant in backward.
/// Batch priority goes by a token's largest entry. Equal entries: the lower expert, the lower token. A token that holds
/// NaN is in no coupling. Not causal.
///
/// The six routers of "Routers in Vision Mixture of Experts" (Liu et al. 2024, arXiv:2401.15969) in the one formulation
/// of that study, dispatch and combine tensors over (token, expert, slot):
///
///   softmax token choice          noisy_top_k_router               dispatch: top k of a token's softmax
///   Sinkhorn token choice         sinkhorn_router                  dispatch: top k of a row of the coupling
///   softmax expert choice         expert_choice_router             dispatch: top C of an expert's column of softmaxes
///   Sinkhorn expert choice        sinkhorn_expert_choice_router    dispatch: top C of a column of the coupling
///   sparsity-constrained choice   sparse_expert_choice_router      the same, with at most C entries a column
///                                 sparse_token_choice_router       the same by rows
///   soft                          soft_moe_router                  both: softmaxes, over tokens and over slots
///
/// Combine is dispatch times the softmax of the token's logits in all but the last.
#pragma once

#include <sluice/core/choices.hpp>
#include <sluice/kernel/top_k.hpp>
#include <sluice/router/rule_calls.hpp>
#include <sluice/router/weighed_rule.hpp>

#include <algorithm>
#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename C, typename Scalar>
concept Coupling = HasTape<C> && requires(const C& c, const choice_batch<Scalar>& batch, typename C::tape& tape) {
  c.couple(batch, tape);
  { tape.coupling } -> std::convertible_to<const matrix_buffer<Scalar>&>;
  { C::zero_is_a_choice } -> std::convertible_to<bool>;
};

/// A coupling whose entries have a gradient.
template <typename C, typename Scalar>
concept DifferentiableCoupling = Coupling<C, Scalar> &&
    requires(const C& c, const choice_batch<Scalar>& batch, const matrix_buffer<Scalar>& dcoupling,
             typename C::tape& tape, matrix_buffer<Scalar>& dlogits) {
      { c.can_weigh() } -> std::convertible_to<bool>;
      c.backward(batch, dcoupling, tape, dlogits);
    };

/// static_assert(explain_coupling<my_coupling, float>()): the first error says what is asked for.
template <typename C, typename Scalar>
consteval bool explain_coupling() {
  static_assert(Coupling<C, Scalar>,
                "sluice: coupling needs a member type `tape` with `matrix_buffer<scalar> coupling`, `void couple(const "
                "choice_batch<scalar>&, tape&) const` and `static constexpr bool zero_is_a_choice`");
  return Coupling<C, Scalar>;
}

struct coupling_options {
  index_t top_k = 1;
  bool training_only = false;      ///< inference goes by the k largest logits of each token alone
  bool weigh_by_coupling = false;  ///< weights are the chosen entries, not those of the rule for weights
  bool weigh_clean = false;        ///< the rule for weights sees the logits before the noise
};

/// The rule of token choice by a coupling, for one group.
template <FloatOrDouble Scalar, typename CouplingType, typename Weights>
class coupling_rule : public weighed_by<Scalar, Weights> {
  using base = weighed_by<Scalar, Weights>;
  static_assert(explain_coupling<CouplingType, Scalar>());
  static constexpr bool has_gradient = DifferentiableCoupling<CouplingType, Scalar>;

public:
  static constexpr bool assigns_priority = true;
  struct tape : CouplingType::tape {
    matrix_buffer<Scalar> dcoupling;  ///< [T,E]
  };

  /// Throws std::invalid_argument if weights are to be entries of which there are none at inference, or that cannot
  /// weigh.
  coupling_rule(CouplingType coupling, Weights weights, coupling_options o)
      : base(std::move(weights)), coupling_(std::move(coupling)), options_(o) {
    if (o.weigh_by_coupling && o.training_only)
      throw_invalid("entries of a coupling cannot be weights where inference has none");
    bool can_weigh = false;
    if constexpr (has_gradient) can_weigh = coupling_.can_weigh();
    if (o.weigh_by_coupling && !can_weigh)
      throw_invalid("entries of this coupling are for choosing, they cannot weigh");
  }

  index_t top_k() const noexcept { return options_.top_k; }
  const CouplingType& coupling() const noexcept { return coupling_; }
  bool assigns(const routing_context<Scalar>& context) const noexcept {
    return context.training || !options_.training_only;
  }

  void score(const choice_row<Scalar>& row, Scalar* scores) const { base::score(seen(row), scores); }

  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    kernel::top_k(row.logits, row.experts, row.k, ids);
    return row.k;
  }

  void reserve(const choice_call<Scalar>& call, tape& t) const {
    detail::make_room(coupling_, call, t);
    if (options_.weigh_by_coupling && call.context.training) t.dcoupling.reserve(call.tokens, call.experts);
  }
  void assign(const choice_batch<Scalar>& batch, choice_table<Scalar>& choices, tape& t) const {
    coupling_.couple(batch, t);
    for_tokens(batch, [&](index_t token) {
      const Scalar* entries = t.coupling.row(token);
      index_t* const ids = choices.ids(token);
      kernel::top_k(entries, batch.experts, batch.k, ids);
      choices.priority[token] = entries[ids[0]];
      for (index_t j = 0; j < batch.k; ++j) {
        choices.weights(token)[j] = entries[ids[j]];
        if (!CouplingType::zero_is_a_choice && !(entries[ids[j]] > Scalar(0))) ids[j] = no_expert;
      }
    });
  }

  bool weighs_clean() const { return options_.weigh_clean || base::weighs_clean(); }
  void weigh(const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) const {
    if (!options_.weigh_by_coupling) base::weigh(seen(row), ids, weights);
  }
  void backward(const choice_row<Scalar>& row, const weighed_experts<Scalar>& weighed, Scalar* dlogits) const {
    if (!options_.weigh_by_coupling) base::backward(seen(row), weighed, dlogits);
  }

  void assign_backward(const choice_batch<Scalar>& batch, choice_table<Scalar>& choices,
                       const matrix_buffer<Scalar>& dweights, tape& t,
                       matrix_buffer<Scalar>& dlogits) const
    requires has_gradient
  {
    if (!options_.weigh_by_coupling) return;
    t.dcoupling.resize(batch.tokens, batch.experts);
    for (const index_t token : batch.routable) {
      std::fill_n(t.dcoupling.row(token), batch.experts, Scalar(0));
      for (index_t j = 0; j < batch.k && choices.ids(token)[j] != no_expert; ++j)
        t.dcoupling(token, choices.ids(token)[j]) = dweights(token, j);
    }
    coupling_.backward(batch, t.dcoupling, t, dlogits);
  }

private:
  template <typename F>
  static void for_tokens(const choice_batch<Scalar>& batch, F&& f) {
    const auto count = static_cast<index_t>(batch.routable.size());
    batch.context.executor.parallel_each(count, 4 * batch.experts,
                                         [&](index_t i) { f(batch.routable[static_cast<std::size_t>(i)]); });
  }

  /// The row that weights are made of.
  choice_row<Scalar> seen(choice_row<Scalar> row) const noexcept {
    if (options_.weigh_clean) row.logits = row.clean;
    return row;
  }

  CouplingType coupling_;
  coupling_options options_;
};

}  // namespace sluice::inline SLUICE_ISA
