/// Competition (CompeteSMoE): on some training steps every expert runs, the strongest responses win, and a loss teaches
/// the base router to foresee the winners. On all other steps, and at inference, this is the base router bit for bit.
///
///   compete_router router{top_k_router<float>{64, 8, {.top_k = 2}}, {.frequency = 0.07}};
///   moe_layer layer{router, experts, imitation_loss{.coefficient = 0.1}};
///
/// The plan of a competition holds every expert for every token, with weight 0 for losers; weigh() sets the winners'
/// weights once the experts have run, and backward_outputs() sends the weights' gradient into the outputs that they
/// came from (router/over_training/competition.hpp). k is that of the base router, or of the call. The base router's
/// scores then have gradients from losses only (loss/competition.hpp). Other losses see a plan in which every expert
/// has every token and nobody a first choice (ranks start at 1): a balance loss is constant on such a step. Capacity
/// and noise of the base router have no say in it.
///
/// A step is a competition by chance, drawn at competition_site, position 0, or by a list. Padding is not routed. A
/// token whose base logits hold NaN is invalid. T = 0 gives an empty plan. Ties and extreme outputs:
/// router/over_training/competition.hpp. Pham et al. 2024, arXiv:2402.02526; Nguyen et al. 2025, arXiv:2505.13380.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/core/statistics.hpp>
#include <sluice/router/over_training/competition.hpp>

#include <algorithm>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

inline constexpr random_site competition_site("competition");

struct competition_options {
  response responses = response::mean_softplus;
  double frequency = 0.07;  ///< chance that a training step is a competition
  index_t warm_up = 0;      ///< steps (context.step) before the first one
  /// If given, replaces the draw: step s is a competition if steps[s - warm_up] is not 0; past the end none is.
  std::vector<std::uint8_t> steps{};
};

/// Lists for competition_options::steps, one a layer: each step of each layer is drawn with chance `frequency`, but at
/// most `most` layers compete in one step. A draw over that limit moves to the nearest earlier step with room, else to
/// the nearest later one, else it is lost. Throws std::invalid_argument if an argument is negative or frequency above
/// 1.
inline std::vector<std::vector<std::uint8_t>> schedule_competitions(index_t layers, index_t steps, double frequency,
                                                                    index_t most, const random_source& random) {
  if (layers < 0 || steps < 0 || most < 0 || !is_between(frequency, 0, 1))
    throw_invalid("schedule_competitions needs layers, steps, most >= 0 and 0 <= frequency <= 1, not ", layers, ", ",
                  steps, ", ", most, ", ", frequency);
  std::vector<std::vector<std::uint8_t>> lists(static_cast<std::size_t>(layers),
                                               std::vector<std::uint8_t>(static_cast<std::size_t>(steps), 0));
  std::vector<index_t> busy(static_cast<std::size_t>(steps), 0);
  for (index_t layer = 0; layer < layers; ++layer) {
    auto& list = lists[static_cast<std::size_t>(layer)];
    const auto take = [&](index_t step) {
      const auto s = static_cast<std::size_t>(step);
      if (busy[s] >= most || list[s] != 0) return false;
      list[s] = 1;
      ++busy[s];
      return true;
    };
    for (index_t step = 0; step < steps; ++step) {
      if (!(random.uniform(competition_site, layer * steps + step) < frequency)) continue;
      bool taken = take(step);
      for (index_t other = step - 1; other >= 0 && !taken; --other) taken = take(other);
      for (index_t other = step + 1; other < steps && !taken; ++other) taken = take(other);
    }
  }
  return lists;
}

/// The base router's signals, and the results of the competition.
template <FloatOrDouble Scalar, typename BaseSignals>
struct competition_signals : BaseSignals, competition_results<Scalar> {};

template <FloatOrDouble Scalar, typename BaseGradients>
struct competition_gradients : BaseGradients {
  matrix_buffer<Scalar> responses;
  matrix_buffer<Scalar> similarity;

  template <typename Signals>
  void zero_like(const Signals& seen) {
    BaseGradients::zero_like(seen);
    responses.set_zero(seen.responses.rows(), seen.responses.cols());
    similarity.set_zero(seen.similarity.rows(), seen.similarity.cols());
  }
};

template <DifferentiableRouter Base>
class compete_router {
public:
  using scalar = typename Base::scalar;
  using plan = typename Base::plan;
  static constexpr bool causal = is_causal<Base>;
  static constexpr bool exact_gradient = has_exact_gradient<Base>;
  static_assert(std::same_as<plan, sparse_plan<scalar>>,
                "sluice: compete_router needs a base router with a sparse plan");
  static_assert(
      requires(const Base& base, typename Base::tape& t) { base.top_k(), t.seen.clean, t.dseen; },
      "sluice: compete_router needs a base router with `index_t top_k() const` whose tape has `seen.clean` and "
      "`dseen`");

private:
  using base_signals = decltype(std::declval<typename Base::tape&>().seen);
  using base_gradients = decltype(std::declval<typename Base::tape&>().dseen);

public:
  struct tape {
    competition_signals<scalar, base_signals> seen;
    competition_gradients<scalar, base_gradients> dseen;
    typename Base::tape base;
    plan base_plan;  ///< in a competition: what the base router would have done
    typename plan::gradient no_gradient;
    matrix_buffer<scalar> dresponses;
  };

  /// Throws std::invalid_argument unless 0 <= frequency <= 1 and warm_up >= 0.
  explicit compete_router(Base base, competition_options o = {}) : base_(std::move(base)), options_(std::move(o)) {
    if (!is_between(options_.frequency, 0, 1) || options_.warm_up < 0)
      throw_invalid("compete_router needs 0 <= frequency <= 1 and warm_up >= 0, not ", options_.frequency, " and ",
                    options_.warm_up);
  }

  index_t inputs() const noexcept { return base_.inputs(); }
  index_t experts() const noexcept { return base_.experts(); }
  index_t top_k() const noexcept { return base_.top_k(); }

  /// Whether a call with this context is a competition.
  bool competes(const routing_context<scalar>& context) const {
    const index_t step = context.step - options_.warm_up;
    if (!context.training || step < 0) return false;
    if (!options_.steps.empty())
      return step < static_cast<index_t>(options_.steps.size()) && options_.steps[static_cast<std::size_t>(step)] != 0;
    return options_.frequency > 0 && context.random.uniform(competition_site, 0) < options_.frequency;
  }

  void route(tokens_in<scalar> x, const routing_context<scalar>& context, plan& p, tape& t) const {
    auto& s = t.seen;
    s.competing = competes(context);
    base_.route(x, context, s.competing ? t.base_plan : p, t.base);
    static_cast<base_signals&>(s) = t.base.seen;
    const bool may_compete = context.training && (options_.frequency > 0 || !options_.steps.empty());
    if (may_compete) s.reset(x.rows(), experts(), context.top_k == 0 ? top_k() : context.top_k);
    if (!s.competing) {
      if (may_compete) make_room(p, t);
      return s.reset(0, experts(), 0);
    }
    p.reset(x.rows(), experts(), x.rows() * experts());
    const auto invalid = t.base_plan.invalid_tokens();
    for (const index_t token : invalid) p.mark_invalid(token);
    for (index_t token = 0; token < x.rows(); ++token) {
      if (context.is_padding(token) || std::find(invalid.begin(), invalid.end(), token) != invalid.end()) continue;
      for (index_t e = 0; e < experts(); ++e) p.add(token, e, scalar(0), e + 1);
    }
    p.finish();
  }

  /// Whether the plan is that of a competition: it holds every expert for every token. Plans of other calls, and those
  /// made elsewhere, stay as they are.
  bool needs_outputs(const routing_context<scalar>& context, const plan& p, const tape& t) const {
    if (!t.seen.competing || !context.training || p.tokens() != t.seen.winners.rows()) return false;
    index_t routed = -static_cast<index_t>(p.invalid_tokens().size());
    for (index_t token = 0; token < p.tokens(); ++token) routed += !context.is_padding(token);
    return p.size() == routed * experts();
  }

  /// Sets the weights of a competition.
  void weigh(tokens_in<scalar> outputs, const routing_context<scalar>& context, plan& p, tape& t) const {
    if (!needs_outputs(context, p, t)) return;
    const competition<scalar> contest(options_.responses, outputs.cols());
    const index_t work = experts() * outputs.cols();
    context.executor.parallel_each(p.tokens(), work, [&](index_t token) {
      const auto own = p.of_token(token);
      if (own.empty()) return;
      for (const index_t i : own) weight(p, i) = 0;
      contest.judge(outputs_of(own, outputs), token, t.seen,
                    [&](index_t e, scalar w) { weight(p, own[static_cast<std::size_t>(e)]) = w; });
      kernel::softmax(t.seen.clean.row(token), t.seen.policy.row(token), experts());
    });
  }

  /// Adds the gradients of weights, responses and similarities to those of the outputs.
  void backward_outputs(tokens_in<scalar> outputs, const routing_context<scalar>& context, const plan& p,
                        const typename plan::gradient& dplan, tape& t, tokens_out<scalar> doutputs) {
    if (!needs_outputs(context, p, t)) return;
    const competition<scalar> contest(options_.responses, outputs.cols());
    t.dresponses = t.dseen.responses;
    const index_t work = experts() * outputs.cols();
    context.executor.parallel_each(p.tokens(), work, [&](index_t token) {
      const auto own = p.of_token(token);
      if (own.empty()) return;
      const auto f = outputs_of(own, outputs);
      const auto df = [&](index_t e) {
        return doutputs.data() + own[static_cast<std::size_t>(e)] * doutputs.outerStride();
      };
      scalar* da = t.dresponses.row(token);
      contest.backward_weights(
          t.seen, token, [&](index_t e) { return p.weight(own[static_cast<std::size_t>(e)]); },
          [&](index_t e) { return dplan.weight[own[static_cast<std::size_t>(e)]]; }, da);
      for (index_t e = 0; e < experts(); ++e)
        if (da[e] != scalar(0)) contest.backward_response(f(e), t.seen.responses(token, e), da[e], df(e));
      contest.backward_similarity(f, t.seen, t.dseen.similarity.row(token), token, df);
    });
  }

  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, const plan& p,
                const typename plan::gradient& dplan, tape& t, tokens_out<scalar> dx) {
    std::swap(t.base.dseen, static_cast<base_gradients&>(t.dseen));
    t.no_gradient.weight.reserve(t.base_plan.most_rows());
    t.no_gradient.input_scale.reserve(t.base_plan.has_input_scale() ? t.base_plan.most_rows() : 0);
    if (t.seen.competing) {  // the base router's weights were not used: only its scores have gradients
      t.no_gradient.weight.assign(t.base_plan.size(), scalar(0));
      t.no_gradient.input_scale.assign(t.base_plan.has_input_scale() ? t.base_plan.size() : 0, scalar(0));
      base_.backward(x, context, t.base_plan, t.no_gradient, t.base, dx);
    } else {
      base_.backward(x, context, p, dplan, t.base, dx);
    }
    std::swap(t.base.dseen, static_cast<base_gradients&>(t.dseen));
  }

  void after_step(const routing_statistics& statistics, tape& t) {
    if constexpr (requires { base_.after_step(statistics, t.base); }) base_.after_step(statistics, t.base);
  }

  Base& base() noexcept { return base_; }
  const Base& base() const noexcept { return base_; }

  /// The names of the base router's parameters, so that files fit both.
  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Base>) Base::visit_parameters(self.base_, visit);
  }

private:
  static scalar& weight(plan& p, index_t i) { return p.weights()[static_cast<std::size_t>(i)]; }

  /// A token's assignments stand in the order of the experts.
  static auto outputs_of(std::span<const index_t> own, tokens_in<scalar> outputs) {
    return [own, data = outputs.data(), stride = outputs.outerStride()](index_t e) {
      return data + own[static_cast<std::size_t>(e)] * stride;
    };
  }

  /// For the competitions to come, on a step that is none.
  void make_room(plan& p, tape& t) const {
    t.base_plan.reset(p.tokens(), experts(), p.most_rows());
    t.base_plan.finish();
    for (auto* m : {&t.dresponses, &t.dseen.responses}) m->reserve(p.tokens(), experts());
    t.dseen.similarity.reserve(p.tokens(), t.seen.similarity.cols());
    p.reserve(p.tokens() * experts());
  }

  Base base_;
  competition_options options_;
};

}  // namespace sluice::inline SLUICE_ISA
