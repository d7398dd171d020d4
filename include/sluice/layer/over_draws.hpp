/// What a mixture says on average over draws of its router, with experts that run once.
///
///   u[e,t] = f_e(x[t]), once          of draw m the router's weights w_m:   y_m[t] = sum over e of w_m[t,e] u[e,t]
///   y[t]   = mean over m = 1 .. M of finish(y_m[t])
///
///   over_draws<decltype(layer)> workspace;
///   workspace.mean(layer, x, y, {.draws = 10});                      // regression: the mean of outputs
///   workspace.mean(layer, x, y, {.draws = 10}, softmax_of_rows{});   // classification: the mean of probabilities
///
/// How GG MoE is evaluated: inference by Monte Carlo for a router that draws in training, with the same draws. The
/// router is asked as in training, once a draw, each with randomness of its own (context.random.split(m)); experts are
/// not. A mean of probabilities is not the probability of a mean: without `finish` gumbel_softmax_router's own
/// inference, which averages weights, says the same in one call and less work. finish(row) changes a row of numbers in
/// place (std::span).
///
/// Any router whose plan is a sum over experts goes (RoutedPlan), sparse ones too, but every expert runs on every
/// token: worth it for small experts, or dense plans; experts that mix tokens are refused. The same source gives the
/// same y, whatever the executor. Padding gets 0 and goes nowhere; a token with NaN, or that a draw found invalid, gets
/// NaN; a token whom a draw sends nowhere counts with finish of zeros. Sums go draw by draw. y may be x. T = 0 is fine.
/// A warm call allocates nothing. Chernov 2025, "(GG) MoE vs. MLP on Tabular Data", arXiv:2502.03608.
#pragma once

#include <sluice/core/dense_plan.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/layer/call_checks.hpp>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// A row as it is.
struct rows_as_they_are {
  template <typename Scalar>
  void operator()(std::span<Scalar>) const noexcept {}
};
/// A row of logits becomes probabilities.
struct softmax_of_rows {
  template <typename Scalar>
  void operator()(std::span<Scalar> row) const {
    kernel::softmax(row.data(), row.data(), static_cast<index_t>(row.size()));
  }
};

struct over_draws_options {
  index_t draws = 10;  ///< M
};

/// The memory of such calls, one a thread, for layers of one type (moe_layer).
template <typename Layer>
class over_draws {
  using router_type = std::remove_cvref_t<decltype(std::declval<const Layer&>().router())>;
  using bank_type = std::remove_cvref_t<decltype(std::declval<const Layer&>().bank())>;

public:
  using scalar = typename Layer::scalar;
  static_assert(RoutedPlan<typename router_type::plan> && !WeighsAfterExperts<router_type>,
                "sluice: a mean over draws needs a router whose plan is a weighted sum of experts that it fixes before "
                "they run");
  static_assert(!is_token_mixer<bank_type>,
                "sluice: a mean over draws runs every expert on all tokens; experts that mix tokens want those alone "
                "that they are sent");

  /// Throws std::invalid_argument if shapes do not fit, M < 1, or the router scales inputs.
  template <typename Finish = rows_as_they_are>
  void mean(const Layer& layer, tokens_in<scalar> x, tokens_out<scalar> y, over_draws_options o = {},
            const Finish& finish = {}, const routing_context<scalar>& context = {}) {
    detail::check_forward<scalar>({layer.inputs(), layer.outputs()}, x, y, context);
    if (o.draws < 1) throw_invalid("a mean over draws needs one, not ", o.draws);
    record_.check_values(layer);
    run_experts(layer, x, context);
    invalid_.assign(x.rows(), 0);
    sum_.set_zero(x.rows(), layer.outputs());
    one_.resize(x.rows(), layer.outputs());
    routing_context<scalar> drawing = context;
    drawing.training = true;
    for (index_t m = 0; m < o.draws; ++m) {
      drawing.random = context.random.split(m);
      layer.router().route(x, drawing, plan_, router_);
      add_draw(finish, context.executor);
    }
    const auto share = scalar(1) / static_cast<scalar>(o.draws);
    for (index_t t = 0; t < x.rows(); ++t)
      for (index_t c = 0; c < y.cols(); ++c)
        y(t, c) = place_[t] < 0 ? scalar(0) : invalid_[t] != 0 ? quiet_nan<scalar>() : share * sum_(t, c);
  }

private:
  void run_experts(const Layer& layer, tokens_in<scalar> x, const routing_context<scalar>& context) {
    const index_t T = x.rows(), E = layer.experts();
    all_.reset(T, E);
    place_.resize(T);
    index_t count = 0;
    for (index_t t = 0; t < T; ++t) {
      place_[t] = context.is_padding(t) ? index_t{-1} : count++;
      if (place_[t] >= 0) all_.add(t);
    }
    all_.finish();
    rows_.resize(all_.rows(), layer.inputs());
    outputs_.resize(all_.rows(), layer.outputs());
    if constexpr (requires { layer.bank().prepare(experts_, all_.rows(), false); })
      layer.bank().prepare(experts_, all_.rows(), false);
    detail::read_context(layer.bank(), experts_, all_.routed(), context);
    dispatch(all_, x, rows_.map(), context.executor);
    layer.bank().forward(rows_.map(), all_.by_expert(), outputs_.map(), experts_, context.executor);
  }

  template <typename Finish>
  void add_draw(const Finish& finish, const executor_ref& executor) {
    const routed_rows<scalar> view = plan_.routed();
    if (view.input_scales != nullptr)
      throw_invalid("a mean over draws runs experts once: the router scales their inputs");
    taken_.reserve(plan_.most_rows(), outputs_.cols());
    taken_.resize(view.size(), outputs_.cols());
    for (const auto& [expert, begin, end] : view.by_expert)
      for (index_t i = begin; i < end; ++i)
        std::copy_n(outputs_.row(all_.row(expert, place_[view.token(i)])), outputs_.cols(), taken_.row(i));
    one_.set_zero(sum_.rows(), sum_.cols());
    add_rows<scalar>(view, taken_.map(), one_.map(), executor);
    for (const index_t t : plan_.invalid_tokens()) invalid_[t] = 1;
    for (index_t t = 0; t < sum_.rows(); ++t) {
      if (place_[t] < 0 || invalid_[t] != 0) continue;
      finish(std::span<scalar>(one_.row(t), as_size(one_.cols())));
      for (index_t c = 0; c < sum_.cols(); ++c) sum_(t, c) += one_(t, c);
    }
  }

  dense_plan<scalar> all_;  ///< every token that is not padding at every expert
  typename router_type::plan plan_;
  typename router_type::tape router_;
  typename bank_type::tape experts_;
  buffer<index_t> place_;  ///< of a token among those; -1: padding
  buffer<std::uint8_t> invalid_;
  matrix_buffer<scalar> rows_, outputs_, taken_, one_, sum_;
  detail::forward_record record_;
};

}  // namespace sluice::inline SLUICE_ISA
