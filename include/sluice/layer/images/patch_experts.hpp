/// Experts on patches: every image is cut into windows, a router gives each expert some of them, and what an expert
/// made of its own is averaged. A convolution of which every filter looks at the patches that concern it.
///
///   x [T, C H W], a row an image -> n windows of Dp = C kh kw numbers each (expert/images/image_windows.hpp)
///   router and bank over the T n windows, the windows of an image being a group:  u_i = f_e(scale_i window_i) [W]
///   y[t, e W + w] = 1/m sum over the windows i of image t that e has of weight_i phi(u_i[w])          [T, E W]
///   m = n (of_all), or as many as e has in that image (of_taken)
///
///   pmoe_layer<float> layer({3, 32, 32}, window_shape::square(4, 4), /*experts=*/8, /*filters=*/16, /*patches=*/16);
///   patch_experts_layer own{router, bank, image_windows{image, window}};
///   sequence model{layer, linear_layer<float>{8 * 16, 10}};
///
/// pMoE: pmoe_router, whose weights act on windows before the experts see them, bias-free linear experts, phi = ReLU; a
/// share l/n of a convolution's products. Experts that are networks on patches are as good (convolution_expert). An
/// image that holds NaN gets NaN and padding zero, and neither is routed; images do not see each other. An expert
/// without windows in an image has zeros there. T = 0 is fine. Inference is const, a workspace a thread. Windows may
/// overlap. Chowdhury et al. 2023, "Patch-level Routing in Mixture-of-Experts is Provably Sample-efficient for
/// Convolutional Neural Networks", arXiv:2306.04073.
#pragma once

#include <sluice/expert/bank.hpp>
#include <sluice/expert/images/image_windows.hpp>
#include <sluice/expert/linear.hpp>
#include <sluice/kernel/activation.hpp>
#include <sluice/kernel/dispatch.hpp>
#include <sluice/layer/split/own_context.hpp>
#include <sluice/layer/token_mixer.hpp>
#include <sluice/router/experts_choose/patch_level.hpp>

#include <cstdint>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// What the sum over an expert's windows is divided by.
enum class patch_mean { of_all, of_taken };

namespace detail {

template <typename Router, typename Bank>
struct patch_memory {
  using scalar = typename Router::scalar;
  matrix_buffer<scalar> windows;      ///< [T n, Dp]
  own_context own;                    ///< with borders of the images, and what is hidden
  matrix_buffer<scalar> rows, units;  ///< [rows of the plan, Dp] and W
  matrix_buffer<scalar> shares;       ///< [T,E] 1/m
  typename Router::plan plan;
  typename Router::tape router;
  typename Bank::tape experts;
};

template <typename Router, typename Bank>
struct patch_tape : patch_memory<Router, Bank> {
  matrix_buffer<typename Router::scalar> dunits, drows, dwindows;
  typename Router::plan::gradient dplan;
};

}  // namespace detail

template <typename Router, typename Bank, typename Phi = relu>
class patch_experts_layer : public token_mixer<patch_experts_layer<Router, Bank, Phi>, typename Router::scalar,
                                               detail::patch_memory<Router, Bank>, detail::patch_tape<Router, Bank>> {
  static_assert(explain_differentiable_router<Router>() && explain_differentiable_bank<Bank>());
  static_assert(std::same_as<typename Router::plan, sparse_plan<typename Router::scalar>>,
                "sluice: patch_experts_layer needs a router whose plan is a sparse_plan");
  using base = token_mixer<patch_experts_layer, typename Router::scalar, detail::patch_memory<Router, Bank>,
                           detail::patch_tape<Router, Bank>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;
  static constexpr bool causal = true;
  static constexpr bool mixes_tokens = false;  // a row is a whole image

  /// Throws std::invalid_argument unless router and bank read windows and agree on E.
  patch_experts_layer(Router router, Bank bank, image_windows windows, patch_mean mean = patch_mean::of_all)
      : router_(std::move(router)), bank_(std::move(bank)), windows_(windows), mean_(mean) {
    if (router_.inputs() != windows_.size() || bank_.inputs() != windows_.size())
      throw_invalid("a window has ", windows_.size(), " numbers; the router reads ", router_.inputs(), ", the experts ",
                    bank_.inputs());
    if (router_.experts() != bank_.experts())
      throw_invalid("the router chooses among ", router_.experts(), " experts, the layer holds ", bank_.experts());
  }

  index_t inputs() const noexcept { return windows_.image().size(); }
  index_t outputs() const noexcept { return bank_.experts() * bank_.outputs(); }
  index_t experts() const noexcept { return bank_.experts(); }
  const image_windows& windows() const noexcept { return windows_; }

  Router& router() noexcept { return router_; }
  const Router& router() const noexcept { return router_; }
  Bank& bank() noexcept { return bank_; }
  const Bank& bank() const noexcept { return bank_; }

  /// The same layer with the weights of its experts rounded to another storage, for inference.
  template <typename Storage>
  auto stored_as() const {
    auto bank = detail::stored_as_or_copied<Storage>(bank_);
    return patch_experts_layer<Router, decltype(bank), Phi>(router_, std::move(bank), windows_, mean_);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Router>) visit("router", self.router_);
    if constexpr (HasParameters<Bank>) visit("experts", self.bank_);
  }

private:
  template <typename Memory>
  void mix(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context) const {
    const index_t images = x.rows(), n = windows_.count();
    m.windows.resize(images * n, windows_.size());
    m.own.cut_rows(context, std::span(m.kept.counts(), as_size(images)), n);
    for_images(images, context.executor, [&](index_t t) {
      windows_.gather(x.data() + t * x.outerStride(), 0, n, m.windows.row(t * n));
    });
    const context_type own = m.own.seen_by(context);
    router_.route(m.windows.map(), own, m.plan, m.router);
    const index_t most = m.plan.most_rows();
    if constexpr (requires { bank_.prepare(m.experts, most, true); })
      bank_.prepare(m.experts, most, std::same_as<Memory, tape>);
    detail::read_context(bank_, m.experts, m.plan.routed(), own);
    m.rows.reserve(most, windows_.size());
    m.units.reserve(most, bank_.outputs());
    m.rows.resize(m.plan.rows(), windows_.size());
    m.units.resize(m.plan.rows(), bank_.outputs());
    dispatch(m.plan, m.windows.map(), m.rows.map(), context.executor);
    bank_.forward(m.rows.map(), m.plan.by_expert(), m.units.map(), m.experts, context.executor);
    m.shares.resize(images, experts());
    for_images(images, context.executor, [&](index_t t) {
      find_shares(m, t);
      y.row(t).setZero();
      for_rows_of(m, t, [&](index_t i, scalar share, index_t first) {
        const scalar factor = share * m.plan.weight(i);
        for (index_t w = 0; w < bank_.outputs(); ++w) y(t, first + w) += factor * Phi::value(m.units(i, w));
      });
    });
  }

  void mix_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) {
    const executor_ref& executor = t.context.executor;
    const index_t images = dy.rows(), n = windows_.count(), rows = t.plan.rows();
    t.dunits.resize(rows, bank_.outputs());
    t.drows.resize(rows, windows_.size());
    t.dwindows.set_zero(images * n, windows_.size());
    t.dplan.weight.resize(rows);
    for_images(images, executor, [&](index_t image) {
      for_rows_of(t, image, [&](index_t i, scalar share, index_t first) {
        scalar dweight = 0;
        for (index_t w = 0; w < bank_.outputs(); ++w) {
          const scalar pulled = share * dy(image, first + w), unit = t.units(i, w);
          dweight += pulled * Phi::value(unit);
          t.dunits(i, w) = pulled * t.plan.weight(i) * Phi::derivative(unit);
        }
        t.dplan.weight[i] = dweight;
      });
    });
    bank_.backward(t.rows.map(), t.plan.by_expert(), t.dunits.map(), t.drows.map(), t.experts, executor);
    dispatch_backward(t.plan, t.windows.map(), t.drows.map(), t.dwindows.map(), t.dplan, executor);
    const context_type own = t.own.seen_by(t.context);
    if constexpr (requires { t.router.dseen.zero_like(t.router.seen); }) t.router.dseen.zero_like(t.router.seen);
    router_.backward(t.windows.map(), own, t.plan, t.dplan, t.router, t.dwindows.map());
    for_images(images, executor, [&](index_t image) {
      windows_.add_back(t.dwindows.row(image * n), 0, n, dx.data() + image * dx.outerStride());
    });
  }

  template <typename Memory>
  void find_shares(Memory& m, index_t image) const {
    scalar* const shares = m.shares.row(image);
    std::fill_n(shares, experts(), static_cast<scalar>(mean_ == patch_mean::of_all ? windows_.count() : 0));
    if (mean_ == patch_mean::of_taken)
      for_rows_of(m, image, [&](index_t i, scalar, index_t) { shares[m.plan.expert(i)] += 1; });
    for (index_t e = 0; e < experts(); ++e) shares[e] = shares[e] == scalar(0) ? scalar(0) : 1 / shares[e];
  }

  /// f(row of the plan, share, its expert's first column of y) for the windows of an image, in order.
  template <typename Memory, typename F>
  void for_rows_of(const Memory& m, index_t image, F&& f) const {
    for (index_t token = m.own.groups[image]; token < m.own.groups[image + 1]; ++token)
      for (const index_t i : m.plan.of_token(token))
        f(i, m.shares(image, m.plan.expert(i)), m.plan.expert(i) * bank_.outputs());
  }

  template <typename F>
  void for_images(index_t images, const executor_ref& executor, F&& f) const {
    executor.for_work(images * windows_.count() * windows_.size()).parallel_for(images, f);
  }

  Router router_;
  Bank bank_;
  image_windows windows_;
  patch_mean mean_;
};

/// pMoE with `filters` of every expert over the `patches` that it takes of an image.
template <FloatOrDouble Scalar>
class pmoe_layer : public patch_experts_layer<pmoe_router<Scalar>, expert_bank<linear_expert<Scalar>>> {
  using base = patch_experts_layer<pmoe_router<Scalar>, expert_bank<linear_expert<Scalar>>>;

public:
  pmoe_layer(image_shape image, window_shape window, index_t experts, index_t filters, index_t patches,
             patch_gate form = patch_gate::over_patches, patch_mean mean = patch_mean::of_all)
      : pmoe_layer(image_windows(image, window), experts, filters, patches, form, mean) {}

private:
  pmoe_layer(const image_windows& windows, index_t experts, index_t filters, index_t patches, patch_gate form,
             patch_mean mean)
      : base(pmoe_router<Scalar>(windows.size(), experts, patches, form),
             expert_bank<linear_expert<Scalar>>(experts, linear_expert<Scalar>(windows.size(), filters)), windows,
             mean) {}
};

}  // namespace sluice::inline SLUICE_ISA
