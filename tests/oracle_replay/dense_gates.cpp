// Gates that weigh every expert, anneal or estimate, and losses on their own: GG MoE, KAMoE, EvoMoE, SparseMixer,
// sigma-MoE, ShiftAddViT, SpeechMoE, HMoE.
#include "layer_run.hpp"
#include "replays.hpp"

#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/gate/gated_residual.hpp>
#include <sluice/kernel/activation.hpp>
#include <sluice/layer/output_normalized.hpp>
#include <sluice/loss/chosen_balance.hpp>
#include <sluice/loss/entropy.hpp>
#include <sluice/loss/importance.hpp>
#include <sluice/loss/load.hpp>
#include <sluice/loss/sparsity.hpp>
#include <sluice/loss/switch_balance.hpp>
#include <sluice/router/every_expert/dense_sigmoid.hpp>
#include <sluice/router/every_expert/dense_softmax.hpp>
#include <sluice/router/every_expert/gumbel_softmax.hpp>
#include <sluice/router/over_training/dense_to_sparse.hpp>
#include <sluice/router/over_training/mean_active.hpp>
#include <sluice/router/tokens_choose/noisy_top_k.hpp>
#include <sluice/router/tokens_choose/sigmoid_top_k.hpp>
#include <sluice/router/tokens_choose/sparse_mixer.hpp>

#include <array>

namespace oracle {
namespace {

using namespace sluice;

// ---- GG MoE ----------------------------------------------------------------------------------------------------------

/// relu between linear maps without bias: a deeper expert than those of the library.
template <typename Scalar>
class relu_perceptron {
public:
  using scalar = Scalar;

  explicit relu_perceptron(std::vector<index_t> widths) : widths_(std::move(widths)) {
    for (std::size_t l = 0; l + 1 < widths_.size(); ++l)
      maps_.push_back({{widths_[l + 1], widths_[l]}, parameter_role::weight});
  }

  index_t inputs() const { return widths_.front(); }
  index_t outputs() const { return widths_.back(); }
  index_t saved_columns() const {
    index_t sum = 0;
    for (std::size_t l = 1; l + 1 < widths_.size(); ++l) sum += widths_[l];
    return sum;
  }

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tokens_out<Scalar> saved) const {
    matrix<Scalar> h = x;
    index_t column = 0;
    for (std::size_t l = 0; l < maps_.size(); ++l) {
      h = (h * maps_[l].to_matrix().transpose()).eval();
      if (l + 1 == maps_.size()) break;
      h = h.cwiseMax(Scalar(0)).eval();
      saved.middleCols(column, h.cols()) = h;
      column += h.cols();
    }
    y = h;
  }

  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tokens_out<Scalar> saved, tokens_out<Scalar> dx) {
    matrix<Scalar> d = dy;
    index_t column = saved_columns();
    for (std::size_t l = maps_.size(); l-- > 0;) {
      column -= l > 0 ? widths_[l] : 0;
      const matrix<Scalar> h = l > 0 ? matrix<Scalar>(saved.middleCols(column, widths_[l])) : matrix<Scalar>(x);
      matrix_map<Scalar>(maps_[l].gradient().data(), d.cols(), h.cols()) += d.transpose() * h;
      d = (d * maps_[l].to_matrix()).eval();
      if (l > 0) d = d.cwiseProduct((h.array() > Scalar(0)).template cast<Scalar>().matrix()).eval();
    }
    dx = d;
  }

  parameter<Scalar>& map(std::size_t l) { return maps_[l]; }
  std::size_t maps() const { return maps_.size(); }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    constexpr const char* names[] = {"w0", "w1", "w2", "w3"};
    for (std::size_t l = 0; l < self.maps_.size(); ++l) visit(names[l], self.maps_[l]);
  }

private:
  std::vector<index_t> widths_;
  std::vector<parameter<Scalar>> maps_;
};

template <typename Scalar, typename Router>
void run_gg_moe(oracle_case<Scalar>& c, Router router) {
  std::vector<index_t> widths{c.template setting<index_t>("D")};
  for (index_t l = 0; l < c.template setting<index_t>("hidden_layers"); ++l)
    widths.push_back(c.template setting<index_t>("H"));
  widths.push_back(c.template setting<index_t>("O"));
  moe_layer layer{std::move(router), expert_bank<relu_perceptron<Scalar>>(
                                         c.template setting<index_t>("E"), relu_perceptron<Scalar>(widths))};
  bindings<Scalar> bound;
  bound.bind("gate.weight", layer.router().gate().weight());
  bound.bind("gate.bias", layer.router().gate().bias());
  for (index_t e = 0; e < layer.experts(); ++e)
    for (std::size_t l = 0; l < layer.bank().expert(e).maps(); ++l) {
      auto& map = layer.bank().expert(e).map(l);
      bound.bind("experts.w" + std::to_string(l), map, e * map.size(), layout::transposed);
    }
  bound.load(c);
  routing_context<Scalar> context;
  context.training = c.template setting<bool>("train");
  std::vector<double> draws;
  if (c.has("noise.gumbel")) draws = c.file().template read_vector<double>("noise.gumbel");
  context.random.replay(gumbel_softmax_weights<Scalar>::site, draws);
  typename decltype(layer)::tape tape;
  if (draws.empty() || context.training) return check_task(c, layer, tape, bound, context);

  // At inference the file has draws of its own for every token, the router one set for all: token by token they agree.
  const matrix<Scalar> x = c.rows("x"), dy = c.rows("grad_out");
  matrix<Scalar> y(dy.rows(), dy.cols()), dx(x.rows(), x.cols());
  zero_gradients(layer);
  for (index_t t = 0; t < x.rows(); ++t) {
    if constexpr (requires { layer.router().weights().draws(); }) {
      auto& own = layer.router().weights().draws();
      for (index_t m = 0; m < own.rows(); ++m)
        for (index_t e = 0; e < own.cols(); ++e)
          own(m, e) = static_cast<Scalar>(draws[as_size((m * x.rows() + t) * own.cols() + e)]);
    }
    layer.forward(x.middleRows(t, 1), y.middleRows(t, 1), tape, context);
    layer.backward(dy.middleRows(t, 1), dx.middleRows(t, 1), tape);
  }
  c.check("y", y);
  c.check("grad.x", dx);
  bound.check_gradients(c, "grad");
}

template <typename Scalar>
void gg_moe(oracle_case<Scalar>& c) {
  const linear_gate<Scalar> gate(c.template setting<index_t>("D"), c.template setting<index_t>("E"), {.bias = true});
  const auto gating = c.template setting<std::string>("gating");
  if (gating == "standard")
    run_gg_moe(c, dense_softmax_router<Scalar>(gate));
  else if (gating == "gumbel")
    run_gg_moe(c, gumbel_softmax_router<Scalar>(gate, {.temperature = c.template setting<Scalar>("tau"),
                                                       .samples = c.template setting<index_t>("samples")}));
  else
    throw unsupported("gating " + gating);
}

// ---- EvoMoE ----------------------------------------------------------------------------------------------------------

template <typename Scalar>
void temperatures(oracle_case<Scalar>& c) {
  const auto at = [&](cooling form) {
    const temperature_schedule schedule{.first = c.template setting<double>("max_temperature"),
                                        .last = c.template setting<double>("min_temperature"),
                                        .steps = c.template setting<index_t>("gumbel_decay_factor"),
                                        .form = form};
    std::vector<Scalar> values;
    for (const index_t step : c.integers("steps")) values.push_back(static_cast<Scalar>(schedule(step)));
    return values;
  };
  c.check("linear", at(cooling::linear));
  c.check("exp", at(cooling::exponential));
}

template <typename Scalar>
void check_chosen(oracle_case<Scalar>& c, const sparse_plan<Scalar>& plan) {
  std::vector<index_t> mask(as_size(plan.tokens() * plan.experts()), 0), counts(as_size(plan.experts()), 0);
  for (index_t i = 0; i < plan.size(); ++i) {
    mask[as_size(plan.token(i) * plan.experts() + plan.expert(i))] = 1;
    ++counts[as_size(plan.expert(i))];
  }
  c.check_integers("mask", mask);
  c.check_integers("counts", counts);
}

/// What the release does at a temperature of 0 or below.
template <typename Scalar>
void evomoe_dense(oracle_case<Scalar>& c, index_t D, index_t E) {
  moe_layer layer{dense_softmax_router<Scalar>(D, E),
                  expert_bank<swiglu<Scalar>>(E, D, c.template setting<index_t>("H"))};
  bindings<Scalar> bound;
  bound.bind("router.weight", layer.router().gate().weight());
  bind_gated(bound, layer.bank());
  bound.load(c);
  routing_context<Scalar> context;
  context.training = true;
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check("logits", copy(tape.router.seen.clean));
  c.check("gates", copy(tape.router.weights));
  c.check("combine", tape.plan.dense_weights());
  const index_t T = tape.plan.tokens();
  c.check_integers("mask", std::vector<index_t>(as_size(T * E), 1));
  c.check_integers("counts", std::vector<index_t>(as_size(E), T));
}

template <typename Scalar>
void evomoe(oracle_case<Scalar>& c) {
  if (c.has("expected.linear")) return temperatures(c);
  if (c.template setting<std::string>("activation") != "silu_glu") throw unsupported("activation");
  const auto mode = c.template setting<std::string>("mode");
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E");
  if (mode == "dense") return evomoe_dense(c, D, E);
  if (mode != "soft" && mode != "hard" && mode != "eval") throw unsupported("mode " + mode);
  const auto tau = c.template setting<double>("temperature");
  const bool gumbel = c.template setting<bool>("use_gumbel_gates");
  const auto run = [&](auto router) {
    const auto bind_gate = [](auto& r, bindings<Scalar>& b) { b.bind("router.weight", r.gate().weight()); };
    routing_context<Scalar> context;
    context.training = mode != "eval";
    std::vector<double> draws;
    if (c.has("noise.gumbel")) draws = c.file().template read_vector<double>("noise.gumbel");
    context.random.replay(noise_site, draws);
    moe_layer layer{router, expert_bank<swiglu<Scalar>>(E, D, c.template setting<index_t>("H"))};
    bindings<Scalar> bound;
    bind_gate(layer.router(), bound);
    bind_gated(bound, layer.bank());
    bound.load(c);
    typename decltype(layer)::tape tape;
    check_task(c, layer, tape, bound, context);
    c.check("logits", copy(tape.router.seen.clean));
    c.check("gates", copy(tape.router.scores));
    c.check("combine", tape.plan.dense_weights());
    check_chosen(c, tape.plan);
    if (mode == "eval")
      check_losses(c, "aux_loss", router, bind_gate, context, 0,
                   switch_balance{.coefficient = 1, .logits = loss_logits::clean});
    else
      check_losses(c, "aux_loss", router, bind_gate, context, 0,
                   chosen_balance{.coefficient = 1,
                                  .logits = gumbel ? loss_logits::noisy : loss_logits::clean,
                                  .temperature = gumbel ? tau : 1});
  };
  const typename dense_to_sparse_rule<Scalar>::options options{.temperature = {.first = tau},
                                                               .threshold = c.template setting<Scalar>("threshold"),
                                                               .hard_from = mode == "hard" ? 0 : index_t{1} << 40,
                                                               .gumbel_weights = gumbel};
  if (mode == "eval") {
    const auto fraction = c.template setting<double>("moe_eval_capacity_token_fraction");  // 0 or below: no limit
    run(dense_to_sparse_router<Scalar, linear_gate<Scalar>, position_capacity>(
        D, E, options, evaluation_capacity(fraction > 0 ? fraction : 1)));
  } else {
    run(dense_to_sparse_router<Scalar>(D, E, options));
  }
}

// ---- SparseMixer, version one ----------------------------------------------------------------------------------------

template <typename Scalar>
void sparsemixer(oracle_case<Scalar>& c) {
  if (c.template setting<std::string>("activation") != "silu_glu") throw unsupported("activation");
  if (c.template setting<index_t>("k") != 1) throw unsupported("more than one expert");
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E");
  const auto jitter = c.template setting<Scalar>("jitter_eps");
  const index_t T = c.rows("x").rows();
  routing_context<Scalar> context;
  context.training = c.template setting<bool>("train");
  std::vector<double> draws;
  if (context.training) {
    const auto exponential = c.file().template read_vector<double>("noise.exponential");
    const auto uniform = c.file().template read_vector<double>("uniform");
    for (index_t t = 0; t < T; ++t) {
      for (index_t e = 0; e < E; ++e) draws.push_back(-std::log(exponential[as_size(t * E + e)]));
      draws.push_back(uniform[as_size(t)]);
    }
  }
  context.random.replay(sparse_mixer_rule<Scalar>::site, draws);
  const sparse_mixer_router<Scalar> router(D, E,
                                           {.top_k = 1, .jitter = jitter, .version = sparse_mixer_version::one});
  const auto bind_gate = [](auto& r, bindings<Scalar>& b) { b.bind("router.weight", r.gate().weight()); };
  output_normalized_layer layer{moe_layer{router, expert_bank<swiglu<Scalar>>(E, D, c.template setting<index_t>("H"))},
                                gain_only<Scalar>(D)};
  bindings<Scalar> bound;
  bind_gate(layer.layer().router(), bound);
  bind_gated(bound, layer.layer().bank());
  bound.bind("omega", layer.norm().gain());
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  const auto& seen = tape.layer.router.seen.clean;
  const auto& choices = tape.layer.router.choices;
  c.check("logits", copy(seen));
  c.check_integers("indices", choices.expert.span());
  c.check("multiplier", choices.weight.span());
  // What survives, and the softmax over it, as the balance loss sees them.
  matrix_buffer<Scalar> gates;
  const sluice::detail::group_probabilities<Scalar> p(seen, context, {0, T}, loss_probability::near_rivals, gates,
                                                      static_cast<double>(jitter));
  std::vector<index_t> masked, first_order;
  for (index_t i = 0; i < gates.size(); ++i) masked.push_back(gates.data()[i] == Scalar(0));
  for (index_t t = 0; t < T; ++t) first_order.push_back(choices.weight[t] > Scalar(0.75) * gates(t, choices.expert[t]));
  c.check("gates", copy(gates));
  c.check_integers("masked", masked);
  c.check_integers("first_order", first_order);
  // The source divides counts by their sum + 1e-6.
  const auto tokens = static_cast<double>(T);
  check_losses(c, "aux_loss", router, bind_gate, context, 0,
               switch_balance{.coefficient = tokens / (tokens + 1e-6),
                              .logits = loss_logits::clean,
                              .probability = loss_probability::near_rivals,
                              .jitter = static_cast<double>(jitter)});
}

// ---- sigma-MoE -------------------------------------------------------------------------------------------------------

template <typename Scalar>
void sigma_moe(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E");
  const auto H = c.template setting<index_t>("H"), V = c.template setting<index_t>("V");
  const sigmoid_router<Scalar> router(
      D, E, {.top_k = c.template setting<index_t>("k"), .renormalize = false, .selection_bias = false});
  const auto bind_gate = [](auto& r, bindings<Scalar>& b) { b.bind("router.weight", r.gate().weight()); };
  moe_layer layer{router, expert_bank<ffn<Scalar>>(E, ffn<Scalar>(D, H, {.outputs = V}))};
  bindings<Scalar> bound;
  bind_gate(layer.router(), bound);
  bind_ffn(bound, layer.bank(), {"experts.keys", "experts.values", layout::transposed, layout::transposed}, false);
  bound.load(c);
  const auto sequences = c.groups();  // the regulariser is a mean over them
  routing_context<Scalar> context;
  context.training = c.template setting<bool>("train");
  context.groups = sequences;
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check("scores", copy(tape.router.scores));
  check_choices(c, tape.router, tape.plan);
  check_losses(c, "aux_loss", router, bind_gate, context, 0, entropy_loss{.coefficient = 1});
}

// ---- ShiftAddViT -----------------------------------------------------------------------------------------------------

template <typename Scalar, typename Router, typename Bind>
void run_shiftaddvit(oracle_case<Scalar>& c, Router router, Bind bind, const routing_context<Scalar>& context,
                     const importance_loss& importance, const load_loss& load) {
  bindings<Scalar> bound;
  bind(router, bound);
  bound.load(c);
  typename Router::plan plan;
  typename Router::tape tape;
  const matrix<Scalar> x = c.rows("x"), grad_weights = c.rows("grad_weights");
  router.route(x, context, plan, tape);
  c.check("clean_logits", copy(tape.seen.clean));
  c.check("noisy_logits", copy(tape.seen.noisy()));
  c.check_integers("indices", tape.choices.expert.span());
  c.check("combine", plan.dense_weights());
  tape.dseen.zero_like(tape.seen);
  typename Router::plan::gradient dplan;
  dplan.weight.resize(plan.size());
  for (index_t i = 0; i < plan.size(); ++i) dplan.weight[i] = grad_weights(plan.token(i), plan.expert(i));
  matrix<Scalar> dx = matrix<Scalar>::Zero(x.rows(), x.cols());
  zero_gradients(router);
  ensure_gradients(router);
  router.backward(x, context, plan, dplan, tape, dx);
  c.check("grad_weights.x", dx);
  bound.check_gradients(c, "grad_weights");

  // What the losses square and sum is not for anybody to see: it is worked out here, the load in float's precision only.
  const std::vector<double>& cost = importance.cost;
  matrix<Scalar> mass = importance.source == importance_source::sparse_gates ? plan.dense_weights() : copy(tape.seen.clean);
  if (importance.source == importance_source::probabilities)
    for (index_t t = 0; t < mass.rows(); ++t) kernel::softmax(&mass(t, 0), &mass(t, 0), mass.cols());
  matrix<Scalar> sums = mass.colwise().sum(), loads = matrix<Scalar>::Zero(1, mass.cols());
  const bool is_count = !tape.seen.has_noise || tape.seen.top_k == mass.cols();
  for (index_t t = 0; t < mass.rows(); ++t) {
    std::vector<Scalar> row(tape.seen.noisy().row(t), tape.seen.noisy().row(t) + mass.cols());
    if (load.noise == load_form::logits_over_scores) kernel::softmax(row.data(), row.data(), mass.cols());
    std::sort(row.rbegin(), row.rend());
    for (index_t e = 0; e < mass.cols() && !is_count; ++e) {
      const Scalar last = row[as_size(tape.seen.top_k - 1)], next = row[as_size(tape.seen.top_k)];
      const Scalar tau = tape.seen.noisy()(t, e) > next ? next : last;
      const Scalar std = load.noise == load_form::learned_noise ? tape.seen.noise_std(t, e)
                                                                : tape.seen.sigma;
      loads(0, e) += std::erfc((tau - tape.seen.clean(t, e)) / std / std::sqrt(Scalar(2))) / 2;
    }
  }
  if (is_count)
    for (index_t i = 0; i < plan.size(); ++i) loads(0, plan.expert(i)) += 1;
  for (index_t e = 0; e < mass.cols(); ++e) {
    sums(0, e) *= static_cast<Scalar>(cost[as_size(e)]);
    if (tape.seen.has_noise) loads(0, e) *= static_cast<Scalar>(cost[as_size(e)]);
  }
  c.check("importance", sums);
  c.check("load", loads);
  const auto value = [&](const auto& loss) {
    tape.dseen.zero_like(tape.seen);
    return loss(tape.seen, plan, context, tape.dseen);
  };
  c.check("importance_loss", value(importance));
  c.check("load_loss", value(load));
  check_losses(c, "aux_loss", router, bind, context, 0, importance, load);
}

template <typename Scalar>
void shiftaddvit(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E"), k = c.template setting<index_t>("k");
  const auto gate = c.template setting<std::string>("gate");
  const auto latency = c.config().at("latency").template get<std::vector<double>>();
  std::vector<double> draws;
  if (c.has("noise.normal")) draws = c.file().template read_vector<double>("noise.normal");
  routing_context<Scalar> context;
  context.training = c.template setting<bool>("train") || gate == "v1";  // whose noise is on at evaluation too
  context.random.replay(noise_site, draws);
  if (gate == "v1") {
    const auto bind = [](auto& r, bindings<Scalar>& b) {
      b.bind("router.weight", r.gate().weight());
      b.bind("router.noise_weight", r.noise().weight());
    };
    run_shiftaddvit(c,
                    learned_noise_top_k_router<Scalar>(
                        D, E, {.top_k = k, .noise_epsilon = c.template setting<Scalar>("noise_epsilon")}),
                    bind, context,
                    importance_loss{
                        .source = importance_source::sparse_gates, .form = variance::unbiased, .cost = latency},
                    load_loss{.noise = load_form::learned_noise, .form = variance::unbiased, .cost = latency});
  } else if (gate == "v2") {
    const auto bind = [](auto& r, bindings<Scalar>& b) { b.bind("router.weight", r.gate().weight()); };
    run_shiftaddvit(c, noisy_top_k_router<Scalar>(D, E, {.top_k = k}), bind, context,
                    importance_loss{.form = variance::unbiased, .cost = latency},
                    load_loss{.noise = load_form::logits_over_scores,
                              .form = variance::unbiased,
                              .counts_without_noise = true,
                              .cost = latency});
  } else {
    throw unsupported("gate " + gate);
  }
}

// ---- losses on given logits ------------------------------------------------------------------------------------------

template <typename Scalar>
struct given_logits {
  score_signals<Scalar> seen;
  score_gradients<Scalar> gradients;
  sparse_plan<Scalar> plan;

  explicit given_logits(const oracle_case<Scalar>& c) {
    const auto logits = c.rows("logits");
    seen.clean.resize(logits.rows(), logits.cols());
    seen.clean.map() = logits;
  }

  template <typename Loss>
  void check(oracle_case<Scalar>& c, const std::string& name, const Loss& loss, Scalar added = 0) {
    gradients.zero_like(seen);
    c.check(name, added + loss(seen, plan, {}, gradients));
    c.check("grad_" + name + ".logits", copy(gradients.clean));
  }
};

template <typename Scalar>
void speechmoe(oracle_case<Scalar>& c) {
  given_logits<Scalar> given(c);
  matrix<Scalar> p = copy(given.seen.clean);
  for (index_t t = 0; t < p.rows(); ++t) kernel::softmax(&p(t, 0), &p(t, 0), p.cols());
  c.check("gates", p);
  // Padding is in the sum, only not in the divisor.
  const double share = static_cast<double>(p.rows()) / c.template setting<double>("num_nonpadding");
  given.check(c, "sparsity_l1_loss", sparsity_loss{.coefficient = share});
  given.check(c, "mean_importance_loss", importance_loss{}, Scalar(1));
}

template <typename Scalar>
void hmoe(oracle_case<Scalar>& c) {
  given_logits<Scalar> given(c);
  const auto k = c.template setting<index_t>("k");
  const index_t T = given.seen.clean.rows(), E = given.seen.clean.cols();
  std::vector<index_t> ids(as_size(T * k));
  given.plan.reset(T, E);
  for (index_t t = 0; t < T; ++t) {
    kernel::top_k(given.seen.clean.row(t), E, k, &ids[as_size(t * k)]);
    for (index_t j = 0; j < k; ++j) given.plan.add(t, ids[as_size(t * k + j)], Scalar(1), j);
  }
  given.plan.finish();
  given.seen.top_k = k;
  c.check_integers("indices", ids);
  std::vector<Scalar> fraction;
  for (index_t e = 0; e < E; ++e) fraction.push_back(static_cast<Scalar>(given.plan.load(e)) / static_cast<Scalar>(T));
  c.check("fraction", std::span<const Scalar>(fraction));
  std::vector<double> cost;
  for (const index_t width : c.integers("hidden_sizes")) cost.push_back(static_cast<double>(width));
  const double widest = *std::max_element(cost.begin(), cost.end());
  for (double& one : cost) one /= widest;
  given.check(c, "p_penalty_loss", switch_balance{.coefficient = 1, .share = balance_share::per_token, .cost = cost});
}

// ---- KAMoE -----------------------------------------------------------------------------------------------------------

/// tanh(x K + k), the expert of KAMoE.
template <typename Scalar>
class tanh_expert {
public:
  using scalar = Scalar;
  tanh_expert(index_t inputs, index_t outputs) : map_(inputs, outputs) {}
  index_t inputs() const { return map_.inputs(); }
  index_t outputs() const { return map_.outputs(); }
  index_t saved_columns() const { return outputs(); }
  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tokens_out<Scalar> saved) const {
    typename dense_map<Scalar, hyperbolic_tangent>::tape tape;
    map_.forward(x, y, tape, {});
    saved = tape.raw.map();
  }
  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tokens_out<Scalar> saved, tokens_out<Scalar> dx) {
    typename dense_map<Scalar, hyperbolic_tangent>::tape tape;
    tape.raw.resize(saved.rows(), saved.cols());
    tape.raw.map() = saved;
    dx.setZero();
    map_.backward(x, dy, tape, dx, {});
  }
  dense_map<Scalar, hyperbolic_tangent>& map() { return map_; }
  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("map", self.map_);
  }

private:
  dense_map<Scalar, hyperbolic_tangent> map_;
};

template <typename Scalar, typename Map>
void bind_dense(bindings<Scalar>& b, const std::string& kernel, const std::string& bias, Map& map) {
  b.bind(kernel, map.weight(), 0, layout::transposed);
  b.bind(bias, map.bias());
}

template <typename Scalar>
void bind_branch(bindings<Scalar>& b, grkan_gate<Scalar>& gate) {
  const auto bind_spline = [&](const std::string& name, auto& map) {
    b.bind(name + ".base_kernel", map.base(), 0, layout::transposed);
    b.bind(name + ".spline_kernel", map.spline(), 0, layout::transposed);
  };
  bind_spline("kan1", gate.first_map());
  bind_spline("kan2", gate.second_map());
}
template <typename Scalar>
void bind_branch(bindings<Scalar>& b, grn_gate<Scalar>& gate) {
  bind_dense(b, "dense1.kernel", "dense1.bias", gate.first_map());
  bind_dense(b, "dense2.kernel", "dense2.bias", gate.second_map());
}

template <typename Scalar, typename Router>
void run_kamoe(oracle_case<Scalar>& c, Router router) {
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E"), O = c.template setting<index_t>("O");
  moe_layer layer{std::move(router), expert_bank<tanh_expert<Scalar>>(E, tanh_expert<Scalar>(D, O))};
  bindings<Scalar> bound;
  auto& gate = layer.router().gate();
  bind_dense(bound, "hidden.kernel", "hidden.bias", gate.hidden_map());
  bind_dense(bound, "skip.kernel", "skip.bias", gate.skip_map());
  bind_dense(bound, "gate.kernel", "gate.bias", gate.gate_map());
  bind_dense(bound, "gate.sigmoid_kernel", "gate.sigmoid_bias", gate.sigmoid_map());
  bind_branch(bound, gate);
  bound.bind("norm.gamma", gate.norm().gain());
  bound.bind("norm.beta", gate.norm().bias());
  for (index_t e = 0; e < E; ++e) {
    auto& map = layer.bank().expert(e).map();
    bound.bind("experts.kernel", map.weight(), e * D * O, layout::transposed);
    bound.bind("experts.bias", map.bias(), e * O);
  }
  // kappa has a number for every input of a sample, which may be a sequence of tokens.
  const matrix<Scalar> x = c.rows("x"), dy = c.rows("grad_out");
  gain_only<Scalar> kappa(static_cast<index_t>(c.numbers("kappa").size()));
  typename gain_only<Scalar>::tape kappa_tape;
  bound.bind("kappa", kappa.gain());
  bound.load(c);
  zero_gradients(kappa);
  zero_gradients(layer);
  const index_t samples = x.size() / kappa.gain().size();
  const auto as_samples = [&](matrix<Scalar>& m) { return Eigen::Map<matrix<Scalar>>(m.data(), samples, m.size() / samples); };
  matrix<Scalar> given = x, scaled(x.rows(), x.cols()), dscaled(x.rows(), x.cols()), dx = matrix<Scalar>::Zero(x.rows(), x.cols());
  kappa.forward(as_samples(given), as_samples(scaled), kappa_tape, {});
  typename decltype(layer)::tape tape;
  matrix<Scalar> y(dy.rows(), dy.cols());
  layer.forward(scaled, y, tape);
  layer.backward(dy, dscaled, tape);
  kappa.backward(as_samples(given), as_samples(dscaled), kappa_tape, as_samples(dx), {});
  c.check("y", y);
  c.check("weights", tape.plan.dense_weights());
  c.check("kan1", copy(tape.router.gate.first));
  c.check("grad.x", dx);
  bound.check_gradients(c, "grad");
}

template <typename Scalar>
void kamoe(oracle_case<Scalar>& c) {
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E"), O = c.template setting<index_t>("O");
  const auto with_activation = [&](auto gate) {
    using gate_type = decltype(gate);
    const auto activation = c.template setting<std::string>("gating_activation");
    if (activation == "sigmoid")
      run_kamoe(c, dense_sigmoid_router<Scalar, gate_type>(std::move(gate)));
    else if (activation == "softmax")
      run_kamoe(c, dense_softmax_router<Scalar, gate_type>(std::move(gate)));
    else
      throw unsupported("activation " + activation);
  };
  const auto kind = c.template setting<std::string>("gate");
  if (kind == "GRN") return with_activation(grn_gate<Scalar>(D, E, O));
  if (kind != "GRKAN") throw unsupported("gate " + kind);
  const auto grid = c.numbers("grid");
  const typename spline_map<Scalar>::options o{.intervals = c.template setting<index_t>("grid_size"),
                                               .order = c.template setting<index_t>("spline_order"),
                                               .knots = {grid.begin(), grid.end()}};
  const auto options_of = [&](auto map) {
    using map_type = decltype(map);
    return typename map_type::options{.intervals = o.intervals, .order = o.order, .knots = o.knots};
  };
  using first = spline_map<Scalar, elu>;
  using second = spline_map<Scalar, relu>;
  with_activation(grkan_gate<Scalar>(D, first(O, E, options_of(first(1, 1))), second(E, E, options_of(second(1, 1)))));
}

}  // namespace

template <typename Scalar>
void mean_active_gate(oracle_case<Scalar>& c) {
  if (c.template setting<std::string>("activation") != "silu_glu") throw unsupported("activation");
  const auto D = c.template setting<index_t>("D"), E = c.template setting<index_t>("E"), k = c.template setting<index_t>("k");
  const mean_active_router<Scalar> router(linear_gate<Scalar>(D, E, {.bias = true}),
                                          {.top_k = k,
                                           .temperature = {.first = c.template setting<double>("temperature")},
                                           .threshold = c.template setting<Scalar>("threshold")});
  std::vector<double> draws;
  if (c.has("uniform"))  // guarded as the source guards its logarithms
    for (const double u : c.file().template read_vector<double>("uniform"))
      draws.push_back(-std::log(1e-10 - std::log(u + 1e-10)));
  routing_context<Scalar> context;
  context.training = c.template setting<bool>("train");
  context.random.replay(noise_site, draws);
  moe_layer layer{router, expert_bank<swiglu<Scalar>>(E, D, c.template setting<index_t>("H"))};
  bindings<Scalar> bound;
  bound.bind("router.weight", layer.router().gate().weight());
  bound.bind("router.bias", layer.router().gate().bias());
  bind_gated(bound, layer.bank());
  bound.load(c);
  typename decltype(layer)::tape tape;
  check_task(c, layer, tape, bound, context);
  c.check("logits", copy(tape.router.seen.clean));
  c.check("gates", copy(tape.router.scores));
  c.check("combine", tape.plan.dense_weights());
  check_chosen(c, tape.plan);
  const index_t used = static_cast<index_t>(tape.plan.of_token(0).size());
  c.check_integers("k", std::span(&used, 1));
}
template void mean_active_gate(oracle_case<float>&);
template void mean_active_gate(oracle_case<double>&);

std::vector<replayer> dense_gates() {
  return {{"gg_moe", gg_moe<float>, gg_moe<double>},
          {"kamoe", kamoe<float>, kamoe<double>},
          {"evomoe", evomoe<float>, evomoe<double>},
          {"sparsemixer", sparsemixer<float>, sparsemixer<double>},
          {"sigma_moe", sigma_moe<float>, sigma_moe<double>},
          {"shiftaddvit", shiftaddvit<float>, shiftaddvit<double>},
          {"speechmoe", speechmoe<float>, speechmoe<double>},
          {"hmoe", hmoe<float>, hmoe<double>}};
}

}  // namespace oracle
