/// Follows a choice that was made elsewhere: by another layer, a program outside, a trace.
///
///   S = the experts of row t of routing_context::expert_ids [T,K], best first, up to the first no_expert
///   w = weights of S, a rule of its own (router/weighed_rule.hpp):
///
///   given_weights (the default)   w = the same places of routing_context::expert_weights [T,K]; without them 1/k
///   sigmoid_rule, softmax_rule    over a gate of this router's own
///
/// So adapters beside a frozen mixture follow its choice (PERFT), and a choice that a master network or a search made
/// is carried out. A token-choice router's tape has both tables as they are wanted here:
///
///   const auto& made = tape.router.choices;
///   context.expert_ids = {made.expert.data(), made.tokens, made.top_k};      // dropped choices too
///   context.expert_weights = {made.weight.data(), made.tokens, made.top_k};
///
/// The gradient of given weights goes no further than tape.dweights [T,K] of this router, where backward leaves it for
/// whoever made them. A call may ask for the first k <= K of each row. Refused with its numbers: a call without ids, an
/// expert outside 0..E-1, one that stands twice in a row or behind no_expert, weights of another shape. Rows of padding
/// may hold anything. A plan as a whole is run by forward_planned, without any router. NaN and T = 0 as everywhere.
/// Causal, as far as this router is concerned. Liu et al. 2024 (PERFT), arXiv:2411.08212.
#pragma once

#include <sluice/gate/none.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/weighed_rule.hpp>

#include <algorithm>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// The weights that stand beside the experts in the context; if there are none, all alike.
template <FloatOrDouble Scalar>
struct given_weights : even_weights<Scalar> {
  void validate_call(const choice_call<Scalar>& call) const {
    const auto& w = call.context.expert_weights;
    const auto& ids = call.context.expert_ids;
    if (w && (w.rows != ids.rows || w.cols != ids.cols))
      throw_invalid("routing_context.expert_weights is [", w.rows, ", ", w.cols, "], expert_ids [", ids.rows, ", ",
                    ids.cols, "]");
  }
  void weigh(const choice_row<Scalar>& row, std::span<const index_t> ids, Scalar* weights) const {
    const auto& given = row.context.expert_weights;
    if (!given) return even_weights<Scalar>::weigh(row, ids, weights);
    const index_t* const named = row.context.expert_ids.data + row.token * given.cols;
    for (std::size_t j = 0; j < ids.size(); ++j)  // some may have been dropped
      weights[j] = given.data[row.token * given.cols + (std::find(named, named + row.k, ids[j]) - named)];
  }
};

/// The rule that follows, for one token.
template <FloatOrDouble Scalar, typename Weights = given_weights<Scalar>>
class given_rule : public weighed_by<Scalar, Weights> {
  using base = weighed_by<Scalar, Weights>;

public:
  explicit given_rule(Weights weights = {}) : base(std::move(weights)) {}

  index_t top_k() const noexcept { return 1; }
  index_t top_k(const routing_context<Scalar>& context) const noexcept {
    return context.expert_ids ? context.expert_ids.cols : 1;
  }

  void validate_call(const choice_call<Scalar>& call) const {
    base::validate_call(call);
    const auto& given = call.context.expert_ids;
    if (call.tokens == 0) return;
    if (!given)
      throw_invalid("following a choice needs routing_context.expert_ids, a row for each of ", call.tokens, " tokens");
    if (call.k > given.cols)
      throw_invalid("routing_context.expert_ids has ", given.cols, " experts a token, the call asks for k = ", call.k);
    for (index_t t = 0; t < call.tokens; ++t)
      if (!call.context.is_padding(t)) check_row(given.data + t * given.cols, t, call);
  }

  index_t choose(const choice_row<Scalar>& row, index_t* ids) const {
    const index_t* const given = row.context.expert_ids.data + row.token * row.context.expert_ids.cols;
    const index_t* const end = std::find(given, given + row.k, no_expert);
    std::copy(given, end, ids);
    return end - given;
  }

private:
  static void check_row(const index_t* row, index_t token, const choice_call<Scalar>& call) {
    for (index_t j = 0; j < call.k; ++j) {
      if (row[j] == no_expert) {
        if (std::count(row + j, row + call.k, no_expert) != call.k - j)
          throw_invalid("token ", token, " is given an expert behind no_expert");
        return;
      }
      if (row[j] < 0 || row[j] >= call.experts)
        throw_invalid("token ", token, " is given expert ", row[j], ", of E = ", call.experts);
      if (std::find(row, row + j, row[j]) != row + j)
        throw_invalid("token ", token, " is given expert ", row[j], " twice");
    }
  }
};

/// sluice::given_router<float> router(sluice::no_gate<float>(64, 8));
template <FloatOrDouble Scalar, typename GateType = no_gate<Scalar>, typename Weights = given_weights<Scalar>,
          typename Capacity = dropless>
class given_router : public token_choice_router<GateType, given_rule<Scalar, Weights>, no_noise<Scalar>, Capacity> {
  using base = token_choice_router<GateType, given_rule<Scalar, Weights>, no_noise<Scalar>, Capacity>;

public:
  explicit given_router(GateType gate, Weights weights = {}, Capacity capacity = {})
      : base(std::move(gate), given_rule<Scalar, Weights>(std::move(weights)), {}, std::move(capacity)) {}
};

static_assert(explain_choice_rule<given_rule<float>, float>());
static_assert(DifferentiableRouter<given_router<float>>);

}  // namespace sluice::inline SLUICE_ISA
