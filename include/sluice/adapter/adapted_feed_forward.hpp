/// A frozen feed-forward network with low-rank experts beside both of its linear maps, chosen once for both.
///
///   w [T,E] = router(x);   z = W1 x + b1 + s sum over e of w_e l_e(x);   h = phi(z)
///                          y = W2 h + b2 + s sum over e of w_e u_e(h)                 l_e: D -> H, u_e: H -> D'
///   dw = s (<dz, l_e(x)> + <dy, u_e(h)>)
///
///   adapted_feed_forward block{linear_expert<float>{768, 3072}, linear_expert<float>{3072, 768},
///                              moe_layer{router, adapters, switch_balance{}}, others, 1.0F / 32, quick_gelu{}};
///
/// The adapters act inside the activation, so this is no sum of layers. The moe_layer holds the router, the adapters of
/// the first map and the losses, whose batch is that of the tokens. MoVE-KD's sparse form has the best expert with
/// weight exactly 1, top_k_router with {.top_k = 1, .weights = weighting::post, .constant_weight = true}, whose router
/// learns from its balance loss alone: switch_balance with 0.01 / E, a group an image. Its dense form is
/// dense_softmax_router, and goes without that loss here, which counts choices.
/// Its adapters are ffn<S, no_activation> with biases, s = 1 / rank; both matrices start uniform in +-sqrt(6 / inputs)
/// and are not nothing at first. The base is frozen for good, in any storage that passes gradients on. Padding
/// gets zero, a token with NaN or NaN logits gets NaN; T = 0 is fine. Causal if the router is. Cao et al. 2025
/// (MoVE-KD), arXiv:2501.01709; released code.
#pragma once

#include <sluice/adapter/adapted_bank.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/kernel/activation.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/layer/dense.hpp>
#include <sluice/layer/mixture_layer.hpp>
#include <sluice/layer/token_mixer.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Mixture>
using bank_of_mixture = std::remove_cvref_t<decltype(std::declval<Mixture&>().bank())>;

/// MixtureMemory is the workspace or the tape of the mixture, BaseMemory that of a dense layer.
template <typename Mixture, typename MixtureMemory, typename BaseMemory>
struct feed_forward_memory {
  MixtureMemory layer;
  typename bank_of_mixture<Mixture>::tape second_adapters;
  BaseMemory first, second;
  matrix_buffer<typename Mixture::scalar> z, h;                 ///< [T,H]
  matrix_buffer<typename Mixture::scalar> of_first, of_second;  ///< what adapters add; backward: what they are told
};

template <typename Mixture, typename MixtureMemory, typename BaseMemory>
struct feed_forward_tape : feed_forward_memory<Mixture, MixtureMemory, BaseMemory> {
  matrix_buffer<typename Mixture::scalar> dz;
  buffer<typename Mixture::scalar> dweight;

  auto loss() const { return this->layer.loss(); }
};

template <typename Mixture, typename Base>
using feed_forward_workspace_of = feed_forward_memory<Mixture, typename Mixture::workspace, typename Base::workspace>;
template <typename Mixture, typename Base>
using feed_forward_tape_of = feed_forward_tape<Mixture, typename Mixture::tape, typename Base::tape>;

}  // namespace detail

template <typename Base, typename Mixture, Activation<typename Mixture::scalar> Phi = gelu>
class adapted_feed_forward : public token_mixer<adapted_feed_forward<Base, Mixture, Phi>, typename Mixture::scalar,
                                                detail::feed_forward_workspace_of<Mixture, dense_layer<Base>>,
                                                detail::feed_forward_tape_of<Mixture, dense_layer<Base>>> {
  using base = token_mixer<adapted_feed_forward, typename Mixture::scalar,
                           detail::feed_forward_workspace_of<Mixture, dense_layer<Base>>,
                           detail::feed_forward_tape_of<Mixture, dense_layer<Base>>>;
  friend base;
  using bank_type = detail::bank_of_mixture<Mixture>;
  static_assert(RoutedBank<bank_type> && RoutedPlan<typename Mixture::plan_type>,
                "sluice: adapted_feed_forward needs experts and a router whose plans are run in one pass");

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  static constexpr bool causal = is_causal<Mixture>;
  static constexpr bool mixes_tokens = is_token_mixer<Mixture>;

  /// Throws std::invalid_argument unless the widths fit: D -> H beside the first map, H -> D' beside the second.
  adapted_feed_forward(Base first, Base second, Mixture mixture, bank_type second_adapters, scalar scale = 1, Phi = {})
      : first_(std::move(first)),
        second_(std::move(second)),
        mixture_(std::move(mixture)),
        second_adapters_(std::move(second_adapters)),
        scale_(scale) {
    if (first_.outputs() != second_.inputs() || mixture_.inputs() != first_.inputs() ||
        mixture_.outputs() != first_.outputs() || second_adapters_.inputs() != second_.inputs() ||
        second_adapters_.outputs() != second_.outputs() || second_adapters_.experts() != mixture_.experts())
      throw_invalid("adapted_feed_forward's maps go ", first_.inputs(), " -> ", first_.outputs(), " and ",
                    second_.inputs(), " -> ", second_.outputs(), "; its adapters, ", mixture_.experts(), " and ",
                    second_adapters_.experts(), ", go ", mixture_.inputs(), " -> ", mixture_.outputs(), " and ",
                    second_adapters_.inputs(), " -> ", second_adapters_.outputs());
    detail::freeze(first_);
    detail::freeze(second_);
  }

  index_t inputs() const noexcept { return first_.inputs(); }
  index_t hidden() const noexcept { return first_.outputs(); }
  index_t outputs() const noexcept { return second_.outputs(); }
  index_t experts() const noexcept { return mixture_.experts(); }

  Mixture& layer() noexcept { return mixture_; }
  const Mixture& layer() const noexcept { return mixture_; }
  auto& router() noexcept { return mixture_.router(); }
  bank_type& first_adapters() noexcept { return mixture_.bank(); }
  bank_type& second_adapters() noexcept { return second_adapters_; }
  Base& first() noexcept { return first_.expert(); }
  Base& second() noexcept { return second_.expert(); }

  void after_step(tape& t) { mixture_.after_step(t.layer); }

  index_t workspace_bytes(index_t rows, bool training = false) const {
    const index_t own = rows * (3 * hidden() + outputs()) * static_cast<index_t>(sizeof(scalar));
    return own + first_.workspace_bytes(rows, training) + second_.workspace_bytes(rows, training) +
           mixture_.workspace_bytes(rows, training) + second_adapters_.workspace_bytes(rows, training);
  }

  /// The same layer with all weights but the router's rounded to another storage, for inference.
  template <typename Storage>
  auto stored_as() const {
    auto first = first_.expert().template stored_as<Storage>();
    auto mixture = mixture_.template stored_as<Storage>();
    return adapted_feed_forward<decltype(first), decltype(mixture), Phi>(
        std::move(first), second_.expert().template stored_as<Storage>(), std::move(mixture),
        second_adapters_.template stored_as<Storage>(), scale_);
  }

  static consteval bool explain_training() { return explain_trainable_layer<Mixture>(); }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("base.first", self.first_);
    visit("base.second", self.second_);
    visit("adapters", self.mixture_);
    visit("adapters.second", self.second_adapters_);
  }

private:
  template <typename Memory>
  void mix(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context) const {
    constexpr bool trains = std::same_as<Memory, tape>;
    const context_type seen = m.kept.visible(context);
    auto& plan = m.layer.plan;
    mixture_.router().route(x, seen, plan, m.layer.router);
    for (auto* numbers : {&m.z, &m.h, &m.of_first}) numbers->resize(x.rows(), hidden());
    m.of_second.resize(x.rows(), outputs());
    prepare(mixture_.bank(), m.layer.experts, plan.most_rows(), trains);
    prepare(second_adapters_, m.second_adapters, plan.most_rows(), trains);
    detail::read_context(mixture_.bank(), m.layer.experts, plan.routed(), seen);
    detail::read_context(second_adapters_, m.second_adapters, plan.routed(), seen);

    first_.forward(x, m.z.map(), m.first, seen);
    add_adapters(mixture_.bank(), x, plan.routed(), m.of_first, m.z.map(), m.layer.experts, seen.executor);
    seen.executor.parallel_each(x.rows(), 4 * hidden(), [&](index_t t) {
      kernel::transform(
          hidden(), [](const auto& z) { return Phi::value(z); }, m.h.row(t), m.z.row(t));
    });
    second_.forward(m.h.map(), y, m.second, seen);
    add_adapters(second_adapters_, m.h.map(), plan.routed(), m.of_second, y, m.second_adapters, seen.executor);
    for (const index_t token : plan.invalid_tokens()) y.row(token).setConstant(quiet_nan<scalar>());

    m.layer.statistics.count(plan, x.rows() - m.kept.counted());
    if constexpr (trains) {
      m.layer.context = seen;
      mixture_.evaluate_losses(m.layer);
      m.layer.record.keep(&mixture_, plan.rows());
    }
  }

  void mix_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    auto& plan = t.layer.plan;
    t.layer.record.validate(&mixture_, plan.rows());
    const context_type seen = t.kept.visible(t.context);
    const executor_ref& executor = seen.executor;
    auto& dweight = t.layer.dplan.weight;
    t.layer.dplan.input_scale.resize(0);
    for (auto* numbers : {&dweight, &t.dweight}) {
      numbers->reserve(plan.most_rows());
      numbers->resize(plan.rows());
    }
    t.dz.resize(dy.rows(), hidden());

    t.of_second.map() = scale_ * dy;
    second_.backward(dy, t.dz.map(), t.second);
    second_adapters_.backward_routed(t.h.map(), plan.routed(), t.of_second.map(), t.dz.map(), t.second_adapters,
                                     t.dweight.data(), nullptr, executor);
    executor.parallel_each(dy.rows(), 4 * hidden(), [&](index_t r) {
      kernel::transform(
          hidden(), [](const auto& z, const auto& dh) { return dh * Phi::derivative(z); }, t.dz.row(r), t.z.row(r),
          t.dz.row(r));
    });
    t.of_first.map() = scale_ * t.dz.map();
    first_.backward(t.dz.map(), dx, t.first);
    mixture_.bank().backward_routed(t.kept.x(), plan.routed(), t.of_first.map(), dx, t.layer.experts, dweight.data(),
                                    nullptr, executor);
    for (index_t i = 0; i < dweight.size(); ++i) dweight[i] += t.dweight[i];
    mixture_.router().backward(t.kept.x(), seen, plan, t.layer.dplan, t.layer.router, dx);
  }

  static void prepare(const bank_type& bank, typename bank_type::tape& t, index_t rows, bool training) {
    if constexpr (requires { bank.prepare(t, rows, training); }) bank.prepare(t, rows, training);
  }

  /// to += scale * the bank's of `from`.
  void add_adapters(const bank_type& bank, tokens_in<scalar> from, const routed_rows<scalar>& rows,
                    matrix_buffer<scalar>& own, tokens_out<scalar> to, typename bank_type::tape& t,
                    const executor_ref& executor) const {
    detail::clear_rows<scalar>(own.map(), executor);
    bank.forward_routed(from, rows, own.map(), t, executor);
    executor.parallel_each(to.rows(), 4 * hidden(), [&](index_t r) {
      kernel::add_scaled(scale_, own.row(r), to.data() + r * to.outerStride(), to.cols());
    });
  }

  dense_layer<Base> first_, second_;
  Mixture mixture_;
  bank_type second_adapters_;
  scalar scale_;
};

}  // namespace sluice::inline SLUICE_ISA
