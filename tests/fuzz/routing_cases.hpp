// Routers for the fuzz target of routing: a gate, a rule, a noise and a capacity policy that are each one of several, so
// that the engine of token choice is compiled once for all that can be put together.
#pragma once

#include <sluice/capacity/batch_priority.hpp>
#include <sluice/capacity/dropless.hpp>
#include <sluice/capacity/position.hpp>
#include <sluice/capacity/probability.hpp>
#include <sluice/capacity/random.hpp>
#include <sluice/gate/activated.hpp>
#include <sluice/gate/connected.hpp>
#include <sluice/gate/frozen.hpp>
#include <sluice/gate/jitter.hpp>
#include <sluice/gate/neuron_magnitude.hpp>
#include <sluice/gate/noisy.hpp>
#include <sluice/gate/normalized.hpp>
#include <sluice/gate/normalized_weights.hpp>
#include <sluice/gate/per_group.hpp>
#include <sluice/gate/random.hpp>
#include <sluice/gate/residual.hpp>
#include <sluice/gate/standardized.hpp>
#include <sluice/gate/tempered.hpp>
#include <sluice/router/assigned/balanced_assignment.hpp>
#include <sluice/router/assigned/sinkhorn.hpp>
#include <sluice/router/assigned/sparse_transport.hpp>
#include <sluice/router/fixed/hash.hpp>
#include <sluice/router/noise.hpp>
#include <sluice/router/rule_calls.hpp>
#include <sluice/router/threshold/skip.hpp>
#include <sluice/router/threshold/top_p.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/router/tokens_choose/chosen_ranks.hpp>
#include <sluice/router/tokens_choose/drawn_tail.hpp>
#include <sluice/router/tokens_choose/gshard_top2.hpp>
#include <sluice/router/tokens_choose/moe_plus_plus.hpp>
#include <sluice/router/tokens_choose/position_share.hpp>
#include <sluice/router/tokens_choose/score_weighted.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>
#include <sluice/router/tokens_choose/sparse_mixer.hpp>
#include <sluice/router/tokens_choose/straight_through.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "../router/batch_rule.hpp"

#include <algorithm>
#include <span>
#include <tuple>
#include <type_traits>
#include <variant>

namespace sluice::test {

/// Logits are context.features [T,E], whatever x is; their gradients go to the matrix that it was told.
class features_gate {
public:
  using scalar = float;
  struct tape {};
  features_gate(index_t inputs, index_t experts, matrix<float>* dlogits = nullptr)
      : inputs_(inputs), experts_(experts), dlogits_(dlogits) {}
  index_t inputs() const { return inputs_; }
  index_t experts() const { return experts_; }
  void forward(tokens_in<float>, const routing_context<float>& context, tokens_out<float> logits, tape&) const {
    logits = context.features.map();
  }
  void backward(tokens_in<float>, const routing_context<float>&, tokens_in<float> dlogits, tape&, tokens_out<float>) {
    if (dlogits_ != nullptr) *dlogits_ = dlogits;
  }

private:
  index_t inputs_;
  index_t experts_;
  matrix<float>* dlogits_;
};

/// The gate above, a gate that decorates it, or one that reads x.
class any_gate {
  template <typename... Gates>
  struct one_of {
    using gate = std::variant<Gates...>;
    using tape = std::tuple<typename Gates::tape...>;
  };
  using kinds = one_of<features_gate, added_jitter_gate<features_gate>, scaled_jitter_gate<features_gate>,
                       standardized_gate<features_gate>, residual_gate<features_gate>, jittered_gate<linear_gate<float>>,
                       normalized_gate<linear_gate<float>, rms_norm<float>>, activated_gate<features_gate>,
                       tempered_gate<linear_gate<float>>, frozen_gate<linear_gate<float>>, random_gate<float>,
                       connected_gate<features_gate>, per_group_gate<linear_gate<float>>,
                       noisy_gate<features_gate>, neuron_magnitude_gate<float>,
                       normalized_weights_gate<float, rms_norm<float>>>;

public:
  using scalar = float;
  using gates = kinds::gate;
  using tape = kinds::tape;

  any_gate(gates gate) : gate_(std::move(gate)) {}

  index_t inputs() const {
    return std::visit([](const auto& g) { return g.inputs(); }, gate_);
  }
  index_t experts() const {
    return std::visit([](const auto& g) { return g.experts(); }, gate_);
  }
  void forward(tokens_in<float> x, const routing_context<float>& context, tokens_out<float> logits, tape& t) const {
    std::visit([&](const auto& g) { g.forward(x, context, logits, own(g, t)); }, gate_);
  }
  void backward(tokens_in<float> x, const routing_context<float>& context, tokens_in<float> dlogits, tape& t,
                tokens_out<float> dx) {
    std::visit([&](auto& g) { g.backward(x, context, dlogits, own(g, t), dx); }, gate_);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    std::visit(
        [&]<typename Gate>(Gate& g) {
          if constexpr (HasParameters<std::remove_const_t<Gate>>) Gate::visit_parameters(g, visit);
        },
        self.gate_);
  }

private:
  template <typename Gate>
  static typename Gate::tape& own(const Gate&, tape& t) {
    return std::get<typename Gate::tape>(t);
  }

  gates gate_;
};
static_assert(explain_differentiable_gate<any_gate>());

/// The same as features_gate for selectors: codes and mixing logits are columns of the features, from the first again after the last.
class features_selectors {
public:
  using scalar = float;
  static constexpr bool per_token = true;
  features_selectors(index_t inputs, index_t, index_t, float) : inputs_(inputs) {}
  index_t inputs() const { return inputs_; }
  void forward(tokens_in<float>, const routing_context<float>& context, tokens_out<float> codes,
               tokens_out<float> mixing) const {
    const auto features = context.features.map();
    for (index_t t = 0; t < codes.rows(); ++t) {
      for (index_t c = 0; c < codes.cols(); ++c) codes(t, c) = features(t, c % features.cols());
      for (index_t c = 0; c < mixing.cols(); ++c) mixing(t, c) = features(t, (codes.cols() + c) % features.cols());
    }
  }
  void backward(tokens_in<float>, const routing_context<float>&, tokens_in<float>, tokens_in<float>,
                tokens_out<float>) {}
  template <typename Self, typename Visitor>
  static void visit_parameters(Self&, Visitor&&) {}

private:
  index_t inputs_;
};

class any_rule {
public:
  using sinkhorn_rule = coupling_rule<float, sinkhorn_coupling<float>, sigmoid_rule<float>>;
  using sparse_rule = coupling_rule<float, sparse_row_coupling<float>, sigmoid_rule<float>>;
  using rules = std::variant<softmax_rule<float>, gshard_rule<float>, sigmoid_rule<float>, sparse_mixer_rule<float>,
                             moe_plus_plus_rule<float>, top_p_rule<float>, skipping_rule<float>, chosen_ranks_rule<float>,
                             straight_through_rule<float>, position_share_rule<float>, score_weighted_rule<float>,
                             drawn_tail_rule<float>, balanced_rule<float>, sinkhorn_rule, sparse_rule,
                             balanced_assignment_rule<float>>;
  using tape = std::tuple<detail::no_rule_tape, position_share_rule<float>::tape, balanced_rule<float>::tape,
                          sinkhorn_rule::tape, sparse_rule::tape, balanced_assignment_rule<float>::tape>;
  static constexpr bool causal = false;

  explicit any_rule(rules rule) : rule_(std::move(rule)) {}
  const rules& held() const { return rule_; }

  index_t top_k() const {
    return std::visit([](const auto& r) { return r.top_k(); }, rule_);
  }
  void validate(index_t experts) const {
    std::visit(
        [&](const auto& r) {
          if constexpr (requires { r.validate(experts); }) r.validate(experts);
        },
        rule_);
  }
  void validate_call(const choice_call<float>& call) const {
    std::visit(
        [&](const auto& r) {
          if constexpr (requires { r.validate_call(call); }) r.validate_call(call);
        },
        rule_);
  }
  void score(const choice_row<float>& row, float* scores) const {
    std::visit([&](const auto& r) { r.score(row, scores); }, rule_);
  }
  index_t choose(const choice_row<float>& row, index_t* ids) const {
    return std::visit([&](const auto& r) { return detail::choose(r, row, ids); }, rule_);
  }
  bool assigns(const routing_context<float>& context) const {
    return std::visit([&](const auto& r) { return detail::assigns(r, context); }, rule_);
  }
  void assign(const choice_batch<float>& batch, choice_table<float>& choices, tape& t) const {
    std::visit([&](const auto& r) { detail::assign(r, batch, choices, own(r, t)); }, rule_);
  }
  void assign_backward(const choice_batch<float>& batch, choice_table<float>& choices,
                       const matrix_buffer<float>& dweights, tape& t, matrix_buffer<float>& dlogits) const {
    std::visit(
        [&]<typename Rule>(const Rule& r) {
          if constexpr (CanAssignBackward<Rule, float>) r.assign_backward(batch, choices, dweights, own(r, t), dlogits);
        },
        rule_);
  }
  bool keeps(const choice_row<float>& row, index_t rank, float weight) const {
    return std::visit([&](const auto& r) { return detail::keeps(r, row, rank, weight); }, rule_);
  }
  void weigh(const choice_row<float>& row, std::span<const index_t> ids, float* weights) const {
    std::visit([&](const auto& r) { r.weigh(row, ids, weights); }, rule_);
  }
  void backward(const choice_row<float>& row, const weighed_experts<float>& weighed, float* dlogits) const {
    std::visit([&](const auto& r) { r.backward(row, weighed, dlogits); }, rule_);
  }

private:
  template <typename Rule>
  static detail::rule_tape<Rule>& own(const Rule&, tape& t) {
    return std::get<detail::rule_tape<Rule>>(t);
  }

  rules rule_;
};
static_assert(explain_choice_rule<any_rule, float>());

/// What weighs experts that a table has chosen.
class any_weights {
public:
  using rules = std::variant<even_weights<float>, softmax_rule<float>, sigmoid_rule<float>>;

  any_weights(rules rule) : rule_(std::move(rule)) {}
  const rules& held() const { return rule_; }

  void score(const choice_row<float>& row, float* scores) const {
    std::visit([&](const auto& r) { r.score(row, scores); }, rule_);
  }
  void weigh(const choice_row<float>& row, std::span<const index_t> ids, float* weights) const {
    std::visit([&](const auto& r) { r.weigh(row, ids, weights); }, rule_);
  }
  void backward(const choice_row<float>& row, const weighed_experts<float>& weighed, float* dlogits) const {
    std::visit([&](const auto& r) { r.backward(row, weighed, dlogits); }, rule_);
  }

private:
  rules rule_;
};

class any_noise {
public:
  using noises = std::variant<no_noise<float>, gaussian_noise<float>, gumbel_noise<float>, logistic_noise<float>,
                              learned_noise<float>, uniform_noise<float>>;
  struct tape {
    no_noise<float>::tape none;
    learned_noise<float>::tape learned;

    no_noise<float>::tape& of(const no_noise<float>&) { return none; }
    learned_noise<float>::tape& of(const learned_noise<float>&) { return learned; }
  };

  explicit any_noise(noises noise = {}) : noise_(std::move(noise)) {}

  void apply(tokens_in<float> x, const routing_context<float>& context, score_signals<float>& seen, tape& t) const {
    std::visit([&](const auto& n) { n.apply(x, context, seen, t.of(n)); }, noise_);
  }
  void backward(tokens_in<float> x, const routing_context<float>& context, const score_signals<float>& seen,
                const matrix_buffer<float>& dnoisy, const matrix_buffer<float>& dstd, tape& t, tokens_out<float> dx) {
    std::visit([&](auto& n) { n.backward(x, context, seen, dnoisy, dstd, t.of(n), dx); }, noise_);
  }

private:
  noises noise_;
};

class any_capacity {
public:
  using policies =
      std::variant<dropless, position_capacity, batch_priority_capacity, probability_capacity, random_capacity>;
  static constexpr bool causal = false;

  explicit any_capacity(policies policy = {}) : policy_(std::move(policy)) {}
  bool is_dropless() const { return std::holds_alternative<dropless>(policy_); }

  template <typename Scalar>
  void serve(choice_table<Scalar>& choices, token_range group, index_t experts,
             const routing_context<Scalar>& context) const {
    std::visit([&](const auto& policy) { policy.serve(choices, group, experts, context); }, policy_);
  }

private:
  policies policy_;
};

using any_token_choice = token_choice_router<any_gate, any_rule, any_noise, any_capacity>;

}  // namespace sluice::test
