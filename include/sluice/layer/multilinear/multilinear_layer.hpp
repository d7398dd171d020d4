/// Dense mixtures of very many linear experts, factorised: multilinear mixtures of experts (muMoE).
///
///   x [T,I]   a_l = weights of level l's router [T,N_l]   z = norm(x)
///   y = map(a, z),  or  y = map2(a, phi(map1(a, z))) with the same gates                    maps: multilinear_map.hpp
///
///   using gate = batch_normalized_gate<linear_gate<float>>;
///   multilinear_layer<dense_entmax_router<float, gate>> layer{                       64 x 16 experts of rank 128
///       {dense_entmax_router<float, gate>{768, 64}, dense_entmax_router<float, gate>{768, 16}},
///       {{64, 16}, 768, 3072, elementwise_contraction{2, 128}},
///       multilinear_map<float>{{64, 16}, 3072, 768, elementwise_contraction{2, 128}}};
///
/// A router is any dense mixture's (router/every_expert/dense_mixture.hpp); it reads x, never its norm. N_1 N_2 ..
/// experts all have a part in a token, at the cost of few. A token that holds NaN, or whose logits do, gets NaN and
/// reaches nothing; padding gets zero. With batch-normalised gates a training batch is seen as a whole: not causal.
/// Equal bits for every thread count. Experts are linear: what is not linear lies between two maps, and in the gates.
/// map.initialize_alike(seed) starts as the paper does, with gates of zeros. Oldfield et al. 2024, "Multilinear Mixture
/// of Experts", arXiv:2402.12550.
#pragma once

#include <sluice/core/statistics.hpp>
#include <sluice/kernel/activation.hpp>
#include <sluice/kernel/row_norm.hpp>
#include <sluice/layer/multilinear/multilinear_map.hpp>
#include <sluice/layer/token_mixer.hpp>
#include <sluice/router/every_expert/dense_entmax.hpp>

#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Router, typename Map, typename Norm>
struct multilinear_memory {
  using scalar = typename Router::scalar;
  struct level {
    typename Router::plan plan;
    typename Router::tape router;
    typename Router::plan::gradient dplan;
    matrix_buffer<scalar> dgates, more;  ///< of the first map, and of the second
  };

  std::vector<level> levels;
  typename Map::memory first, second;
  typename Norm::tape norm;
  matrix_buffer<scalar> seen;  ///< x without tokens whose logits were NaN, if there were any
  matrix_buffer<scalar> z, dz, between, h, dh;
  bool has_invalid = false;
};

}  // namespace detail

template <typename Router, typename Contraction = elementwise_contraction, typename Phi = gelu,
          typename Norm = no_norm<typename Router::scalar>>
class multilinear_layer
    : public token_mixer<
          multilinear_layer<Router, Contraction, Phi, Norm>, typename Router::scalar,
          detail::multilinear_memory<Router, multilinear_map<typename Router::scalar, Contraction>, Norm>> {
public:
  using scalar = typename Router::scalar;
  using map_type = multilinear_map<scalar, Contraction>;

private:
  using memory = detail::multilinear_memory<Router, map_type, Norm>;
  using base = token_mixer<multilinear_layer, scalar, memory>;
  friend base;

public:
  using context_type = typename base::context_type;
  using tape = typename base::tape;
  static constexpr bool causal = is_causal<Router>;

  /// A router a level. Throws std::invalid_argument if widths do not fit.
  multilinear_layer(std::vector<Router> levels, map_type map, std::optional<map_type> second = std::nullopt,
                    std::optional<Norm> norm = std::nullopt)
      : levels_(std::move(levels)),
        first_(std::move(map)),
        second_(std::move(second)),
        norm_(norm ? std::move(*norm) : Norm(first_.inputs())) {
    check_gates(first_);
    for (const Router& router : levels_)
      if (router.inputs() != first_.inputs())
        throw_invalid("a router reads tokens of width ", router.inputs(), ", the experts of width ", first_.inputs());
    if (!second_) return;
    check_gates(*second_);
    if (second_->inputs() != first_.outputs())
      throw_invalid("the second map reads ", second_->inputs(), " numbers, the first gives ", first_.outputs());
  }

  index_t inputs() const noexcept { return first_.inputs(); }
  index_t outputs() const noexcept { return second_ ? second_->outputs() : first_.outputs(); }
  index_t levels() const noexcept { return static_cast<index_t>(levels_.size()); }
  Router& router(index_t level) noexcept { return levels_[as_size(level)]; }
  map_type& first() noexcept { return first_; }
  map_type& second() { return second_.value(); }
  Norm& norm() noexcept { return norm_; }

  /// Updates what routers learn without gradients, such as running means.
  void after_step(tape& t) {
    for (std::size_t l = 0; l < levels_.size(); ++l)
      if constexpr (requires(const routing_statistics& s) { levels_[l].after_step(s, t.levels[l].router); })
        levels_[l].after_step(routing_statistics(), t.levels[l].router);
  }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    index_t numbers = first_.token_numbers() + 2 * inputs();
    if (second_) numbers += second_->token_numbers() + 2 * first_.outputs();
    for (const Router& router : levels_) numbers += 4 * router.experts();
    return rows * numbers * static_cast<index_t>(sizeof(scalar)) * (training ? 2 : 1);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    for (std::size_t l = 0; l < self.levels_.size(); ++l) visit("level." + std::to_string(l), self.levels_[l]);
    if constexpr (HasParameters<Norm>) visit("norm", self.norm_);
    visit("first", self.first_);
    if (self.second_) visit("second", *self.second_);
  }

private:
  void check_gates(const map_type& map) const {
    if (map.levels() != levels())
      throw_invalid("a map of ", map.levels(), " levels of gates has ", levels(), " routers");
    for (index_t l = 0; l < levels(); ++l)
      if (map.experts(l) != levels_[as_size(l)].experts())
        throw_invalid("level ", l, " has ", map.experts(l), " experts, its router ", levels_[as_size(l)].experts());
  }

  /// The weights of a level, [T,N]: of tokens that are not routed zero.
  static auto gates_of(memory& m) {
    return [&m](index_t l) { return std::as_const(m.levels[as_size(l)].router.weights).map(); };
  }
  /// What the maps read: x without tokens whose logits overflowed.
  static const_matrix_map<scalar> seen(const memory& m, const_matrix_map<scalar> x) {
    return m.has_invalid ? m.seen.map() : x;
  }
  /// What the first map reads.
  static const_matrix_map<scalar> normed(const memory& m, const_matrix_map<scalar> x) {
    if constexpr (leaves_rows<Norm>)
      return seen(m, x);
    else
      return m.z.map();
  }

  template <typename Memory>
  void mix(tokens_in<scalar>, tokens_out<scalar> y, Memory& m, const context_type& context) const {
    constexpr bool training = std::same_as<Memory, tape>;
    const const_matrix_map<scalar> x = m.kept.x();
    const context_type visible = m.kept.visible(context);
    if (m.levels.size() != levels_.size()) m.levels.resize(levels_.size());
    for (std::size_t l = 0; l < levels_.size(); ++l) {
      auto& level = m.levels[l];
      levels_[l].route(x, visible, level.plan, level.router);
      if constexpr (requires { level.router.dseen.zero_like(level.router.seen); })
        level.router.dseen.zero_like(level.router.seen);
      for (index_t t = 0; t < x.rows(); ++t)
        if (!m.kept.counts(t)) std::fill_n(level.router.weights.row(t), level.plan.experts(), scalar(0));
    }
    hide_invalid(x, m);
    if constexpr (!leaves_rows<Norm>) {
      m.z.resize(x.rows(), x.cols());
      norm_.forward(seen(m, x), m.z.map(), m.norm, context.executor);
    }
    if (!second_) {
      first_.forward(gates_of(m), normed(m, x), y, m.first, training, context.executor);
    } else {
      m.between.resize(x.rows(), first_.outputs());
      m.h.resize(x.rows(), first_.outputs());
      first_.forward(gates_of(m), normed(m, x), m.between.map(), m.first, training, context.executor);
      context.executor.parallel_each(x.rows(), 256, [&](index_t t) {
        kernel::transform<scalar>(
            first_.outputs(), [](auto v) -> decltype(Phi::value(v)) { return Phi::value(v); }, m.h.row(t),
            std::as_const(m.between).row(t));
      });
      second_->forward(gates_of(m), m.h.map(), y, m.second, training, context.executor);
    }
    for_invalid(m, [&](index_t t) { y.row(t).setConstant(quiet_nan<scalar>()); });
  }

  void mix_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    const executor_ref& executor = t.context.executor;
    const auto x = t.kept.x();
    for_invalid(t, [&](index_t token) { t.kept.gradient().row(token).setZero(); });
    for (auto& level : t.levels) {
      level.dgates.resize(x.rows(), level.plan.experts());
      level.more.resize(x.rows(), second_ ? level.plan.experts() : 0);
    }
    const auto dgates = [&](index_t l) { return t.levels[as_size(l)].dgates.map(); };
    if (second_) {
      t.dh.resize(x.rows(), first_.outputs());
      second_->backward(
          gates_of(t), t.h.map(), dy, [&](index_t l) { return t.levels[as_size(l)].more.map(); }, t.dh.map(), t.second,
          executor);
      executor.parallel_each(x.rows(), 256, [&](index_t r) {
        kernel::transform<scalar>(
            first_.outputs(), [](auto d, auto v) -> decltype(d * Phi::derivative(v)) { return d * Phi::derivative(v); },
            t.dh.row(r), std::as_const(t.dh).row(r), std::as_const(t.between).row(r));
      });
    }
    t.dz.resize(x.rows(), x.cols());
    if (second_)
      first_.backward(gates_of(t), normed(t, x), t.dh.map(), dgates, t.dz.map(), t.first, executor);
    else
      first_.backward(gates_of(t), normed(t, x), dy, dgates, t.dz.map(), t.first, executor);
    norm_.backward(seen(t, x), t.dz.map(), t.norm, dx, executor);
    const context_type visible = t.kept.visible(t.context);
    for (std::size_t l = 0; l < levels_.size(); ++l) {
      auto& level = t.levels[l];
      if (second_) level.dgates.map() += level.more.map();
      level.dplan.weight.resize(level.plan.rows());
      const auto tokens = level.plan.routed_tokens();
      for (index_t e = 0; e < level.plan.experts(); ++e)
        for (index_t j = 0; j < static_cast<index_t>(tokens.size()); ++j)
          level.dplan.weight[level.plan.row(e, j)] = level.dgates(tokens[as_size(j)], e);
      levels_[l].backward(x, visible, level.plan, level.dplan, level.router, dx);
    }
    for_invalid(t, [&](index_t token) { dx.row(token).setZero(); });
  }

  /// Tokens whose logits were NaN in one level have no part in any.
  void hide_invalid(const_matrix_map<scalar> x, memory& m) const {
    m.seen.reserve(x.rows(), x.cols());
    m.has_invalid = false;
    for_invalid(m, [&](index_t) { m.has_invalid = true; });
    if (!m.has_invalid) return;
    m.seen.resize(x.rows(), x.cols());
    m.seen.map() = x;
    for_invalid(m, [&](index_t t) {
      m.seen.map().row(t).setZero();
      for (auto& level : m.levels) std::fill_n(level.router.weights.row(t), level.plan.experts(), scalar(0));
    });
  }
  template <typename F>
  static void for_invalid(const memory& m, F&& f) {
    for (const auto& level : m.levels)
      for (const index_t t : level.plan.invalid_tokens()) f(t);
  }

  std::vector<Router> levels_;
  map_type first_;
  std::optional<map_type> second_;
  Norm norm_;
};

}  // namespace sluice::inline SLUICE_ISA
