// Mixtures with another branch: DeepSpeed's residual MoE, and LongCat-Flash's mixture with its shortcut.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/capacity/position.hpp>
#include <sluice/capacity/random.hpp>
#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/expert/union.hpp>
#include <sluice/layer/branches/shortcut.hpp>
#include <sluice/layer/branches/weighed.hpp>
#include <sluice/layer/normalized.hpp>
#include <sluice/layer/residual.hpp>
#include <sluice/layer/sequence.hpp>
#include <sluice/layer/token_mixer.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/tokens_choose/gshard_top2.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

namespace oracle {
namespace {

using namespace sluice;

// ---- residual MoE ----------------------------------------------------------------------------------------------------

const auto bind_first_router = [](auto& router, auto& b) { b.bind("router.weight", router.gate().weight()); };

template <typename Scalar, typename Router>
void run_residual(oracle_case<Scalar>& c, const Router& router, const routing_context<Scalar>& context) {
  const auto D = c.template setting<index_t>("D");
  const auto H = c.template setting<index_t>("H");
  weighed_branches layer{moe_layer{router, expert_bank<ffn<Scalar, gelu>>{router.experts(), D, H, {.bias = true}}},
                         dense_layer{ffn<Scalar, gelu>{D, H, {.bias = true}}}};
  bindings<Scalar> bound;
  bind_first_router(layer.router(), bound);
  bound.bind("coefficient.weight", layer.weighing().weight());
  bound.bind("coefficient.bias", layer.weighing().bias());
  bind_ffn(bound, layer.bank(), {"experts.w1", "experts.w2", layout::as_stored, layout::as_stored, "experts.b1", "experts.b2"}, true);
  bind_ffn(bound, layer.other().bank(), {"mlp.w1", "mlp.w2", layout::as_stored, layout::as_stored, "mlp.b1", "mlp.b2"}, true);
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check("coefficient", copy(tape.weights));
  c.check("combine", tape.layer.plan.dense_weights());
  check_losses(c, "aux_loss", router, bind_first_router, context, 0, switch_balance{.coefficient = 1});
}

template <typename Scalar>
void residual(oracle_case<Scalar>& c) {
  const auto E = c.template setting<index_t>("E");
  const linear_gate<Scalar> gate(c.template setting<index_t>("D"), E);
  const auto limit = capacity_limit::megatron(c.template setting<double>("capacity_factor"), c.template setting<index_t>("min_capacity"));
  routing_context<Scalar> context;
  context.training = true;
  if (c.template setting<index_t>("k") == 1) {
    // The file has a draw for every expert; what counts is that of the one that a token asks for.
    const matrix<Scalar> logits = c.rows("x") * c.rows("router.weight").transpose(), uniform = c.rows("uniform");
    std::vector<double> draws;
    for (index_t t = 0; t < logits.rows(); ++t) {
      index_t best = 0;
      logits.row(t).maxCoeff(&best);
      draws.push_back(static_cast<double>(uniform(t, best)));
    }
    context.random.replay(random_capacity::site, draws);
    run_residual<Scalar>(c, top_k_router<Scalar, dynamic, dynamic, linear_gate<Scalar>, no_noise<Scalar>, random_capacity>{
        gate, {.top_k = 1, .weights = weighting::pre}, {}, random_capacity(limit)}, context);
    return;
  }
  const choice_policy<Scalar> further{.policy = further_choices::all, .sampled = true};
  const auto gumbel = c.file().template read_vector<double>("noise.gumbel");
  context.random.replay(gshard_rule<Scalar>::sampling_site, gumbel);
  run_residual<Scalar>(c, gshard_router<Scalar>{gate,
                                                {.top_k = 2,
                                                 .training = further,
                                                 .inference = further,
                                                 .smallest_sum = std::numeric_limits<Scalar>::epsilon(),
                                                 .renormalize_after_drop = true},
                                                position_capacity(limit)},
                       context);
}

// ---- LongCat-Flash ---------------------------------------------------------------------------------------------------

/// Stands for attention in the file: y = M x, M [T,T] a parameter.
template <typename Scalar>
class fixed_mixing : public token_mixer<fixed_mixing<Scalar>, Scalar> {
  using base = token_mixer<fixed_mixing<Scalar>, Scalar>;
  friend base;

public:
  using typename base::context_type;
  using typename base::tape;
  static constexpr bool causal = false;

  fixed_mixing(index_t tokens, index_t width) : weight_({tokens, tokens}, parameter_role::weight), width_(width) {}

  index_t inputs() const noexcept { return width_; }
  index_t workspace_bytes(index_t, bool = false) const { return 0; }
  parameter<Scalar>& weight() noexcept { return weight_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.weight_);
  }

private:
  template <typename Memory>
  void mix(tokens_in<Scalar> x, tokens_out<Scalar> y, Memory&, const context_type&) const {
    y = weight_.map() * x;
  }
  void mix_backward(tokens_in<Scalar> dy, tokens_out<Scalar> dx, tape& t) {
    dx += weight_.map().transpose() * dy;
    weight_.gradient_map() += dy * t.kept.x().transpose();
  }

  parameter<Scalar> weight_;
  index_t width_;
};

template <typename Scalar>
auto longcat_mixture(const oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto E = c.template setting<index_t>("E");
  const auto copies = c.template setting<index_t>("zero_experts");
  return moe_layer{
      sigmoid_router<Scalar>{linear_gate<Scalar>(D, E + copies),
                             {.top_k = c.template setting<index_t>("k"),
                              .renormalize = false,
                              .scaling = c.template setting<Scalar>("routed_scaling"),
                              .scores = expert_scores::softmax}},
      expert_union{expert_bank<swiglu<Scalar>>{E, D, c.template setting<index_t>("H")}, expert_bank<identity_expert<Scalar>>(copies, D)}};
}

template <typename Scalar, typename Layer>
void bind_mixture(const oracle_case<Scalar>& c, bindings<Scalar>& bound, Layer& layer) {
  bound.bind("router.weight", layer.router().gate().weight());
  const auto bias = c.numbers("router.bias");
  std::copy(bias.begin(), bias.end(), layer.router().bias().begin());
  auto& experts = layer.bank().template bank<0>();
  for (index_t e = 0; e < experts.experts(); ++e) {
    auto& expert = experts.expert(e);
    const index_t half = expert.gate().size();
    bound.bind("experts.gate_up", expert.gate(), 2 * e * half);
    bound.bind("experts.gate_up", expert.up(), (2 * e + 1) * half);
    bound.bind("experts.down", expert.down(), e * expert.down().size());
  }
}

template <typename Scalar, typename Expert>
void bind_dense(bindings<Scalar>& bound, const std::string& prefix, Expert& expert) {
  bound.bind(prefix + "gate", expert.gate());
  bound.bind(prefix + "up", expert.up());
  bound.bind(prefix + "down", expert.down());
}

template <typename Scalar, typename Tape>
void check_mixture(oracle_case<Scalar>& c, const Tape& tape) {
  c.check("scores", copy(tape.router.scores));
  c.check_integers("indices", tape.router.choices.expert.span());
  c.check("weights", tape.router.choices.weight.span());
}

template <typename Scalar>
void longcat_block(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D");
  const auto T = c.template setting<index_t>("T");
  const auto norm = [&] { return rms_norm<Scalar>{D, {.epsilon = Scalar(1e-6)}}; };
  const auto sublayer = [&](auto part) { return residual_layer{normalized_layer{std::move(part), norm()}}; };
  const auto dense = [&] { return dense_layer{swiglu<Scalar>{D, c.template setting<index_t>("dense_H")}}; };
  sequence layer{sublayer(fixed_mixing<Scalar>(T, D)),
                 shortcut_layer{longcat_mixture(c), norm(), dense(),
                                sequence{sublayer(fixed_mixing<Scalar>(T, D)), sublayer(dense())}}};
  auto& attention = layer.template layer<0>();
  auto& skipping = layer.template layer<1>();
  auto& second = skipping.rest().template layer<0>();
  auto& third = skipping.rest().template layer<1>();
  bindings<Scalar> bound;
  bind_mixture(c, bound, skipping.layer());
  bound.bind("mix.0", attention.layer().layer().weight());
  bound.bind("input_norm.0", attention.layer().norm().gain());
  bound.bind("post_norm.0", skipping.norm().gain());
  bind_dense(bound, "mlp.0.", skipping.first().expert());
  bound.bind("mix.1", second.layer().layer().weight());
  bound.bind("input_norm.1", second.layer().norm().gain());
  bound.bind("post_norm.1", third.layer().norm().gain());
  bind_dense(bound, "mlp.1.", third.layer().layer().expert());
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, {});
  check_mixture(c, std::get<1>(tape.layers).layer);
}

template <typename Scalar>
void longcat(oracle_case<Scalar>& c) {
  if (c.template setting<bool>("block")) return longcat_block(c);
  auto layer = longcat_mixture(c);
  bindings<Scalar> bound;
  bind_mixture(c, bound, layer);
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, {});
  check_mixture(c, tape);
}

}  // namespace

std::vector<replayer> branches() {
  return {{"residual_moe", residual<float>, residual<double>}, {"longcat_shortcut", longcat<float>, longcat<double>}};
}

}  // namespace oracle
