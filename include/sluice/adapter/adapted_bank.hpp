/// Adapters inside of frozen experts: expert e gives f_e(x) + a_e(x), and both have one place and weight in the plan.
///
///   y[t] = sum over e of w[t,e] (f_e(x[t]) + a_e(x[t]));   dw[t,e] = <dy[t], f_e(x[t])> + <dy[t], a_e(x[t])>
///
///   auto base = load_layer<olmoe_layer<float, bfloat16_storage>>(model, {.layer = 3});
///   moe_layer layer{base.router(), adapted_bank{base.bank(), expert_bank<low_rank_expert<float>>{64, 2048, 16}}};
///
/// So a mixture is tuned expert by expert, by the choices that its own router makes (PERFT-E); adapters that choose for
/// themselves stand beside the layer instead (adapter/adapted.hpp). The base's experts are frozen for good, in any
/// storage that passes gradients on; of_adapters leaves them out. Names: "experts.base.3.up", "experts.adapters.3.up".
/// Rows, NaN and experts without rows are the banks' affair. Liu et al. 2024 (PERFT), arXiv:2411.08212.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/core/routed_rows.hpp>
#include <sluice/expert/bank_decorator.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// Leaves every parameter as it is, for good.
template <typename Object>
void freeze(Object& object) {
  for_each_unnamed_parameter(object, [](auto& p) { p.set_frozen(true); });
}

}  // namespace detail

template <typename Base, typename Adapters>
class adapted_bank : public bank_decorator<adapted_bank<Base, Adapters>, Base, Adapters> {
  friend bank_decorator<adapted_bank, Base, Adapters>;
  static_assert(RoutedBank<Base> && RoutedBank<Adapters>,
                "sluice: adapted_bank needs banks that gather rows themselves, such as expert_bank");
  static_assert(std::same_as<typename Base::scalar, typename Adapters::scalar>,
                "sluice: experts and their adapters need the same scalar");

public:
  using scalar = typename Base::scalar;
  struct tape {
    typename Base::tape base;
    typename Adapters::tape adapters;
    matrix_buffer<scalar> added;           ///< of rows that were gathered before: what the adapters give, then their dx
    buffer<scalar> dweight, dinput_scale;  ///< the adapters' parts
  };

  /// Throws std::invalid_argument unless there is an adapter for every expert, as wide.
  adapted_bank(Base base, Adapters adapters) : base_(std::move(base)), adapters_(std::move(adapters)) {
    if (base_.experts() != adapters_.experts() || base_.inputs() != adapters_.inputs() ||
        base_.outputs() != adapters_.outputs())
      throw_invalid("adapted_bank needs an adapter for each expert: ", base_.experts(), " experts ", base_.inputs(),
                    " -> ", base_.outputs(), " and ", adapters_.experts(), " adapters ", adapters_.inputs(), " -> ",
                    adapters_.outputs());
    detail::freeze(base_);
  }

  index_t experts() const noexcept { return base_.experts(); }
  index_t inputs() const noexcept { return base_.inputs(); }
  index_t outputs() const noexcept { return base_.outputs(); }
  Base& base() noexcept { return base_; }
  const Base& base() const noexcept { return base_; }
  Adapters& adapters() noexcept { return adapters_; }
  const Adapters& adapters() const noexcept { return adapters_; }

  void forward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_out<scalar> y, tape& t,
                      const executor_ref& executor) const {
    base_.forward_routed(x, rows, y, t.base, executor);
    adapters_.forward_routed(x, rows, y, t.adapters, executor);
  }

  void backward_routed(tokens_in<scalar> x, const routed_rows<scalar>& rows, tokens_in<scalar> dy,
                       tokens_out<scalar> dx, tape& t, scalar* dweight, scalar* dinput_scale,
                       const executor_ref& executor) requires DifferentiableBank<Base> && DifferentiableBank<Adapters> {
    base_.backward_routed(x, rows, dy, dx, t.base, dweight, dinput_scale, executor);
    t.dweight.resize(dweight == nullptr ? 0 : rows.end());
    t.dinput_scale.resize(dinput_scale == nullptr ? 0 : rows.end());
    adapters_.backward_routed(x, rows, dy, dx, t.adapters, dweight == nullptr ? nullptr : t.dweight.data(),
                              dinput_scale == nullptr ? nullptr : t.dinput_scale.data(), executor);
    for (index_t i = rows.begin(); i < t.dweight.size(); ++i) dweight[i] += t.dweight[i];
    for (index_t i = rows.begin(); i < t.dinput_scale.size(); ++i) dinput_scale[i] += t.dinput_scale[i];
  }

  void forward(tokens_in<scalar> x, const expert_rows& rows, tokens_out<scalar> y, tape& t,
               const executor_ref& executor) const {
    base_.forward(x, rows, y, t.base, executor);
    t.added.resize(y.rows(), y.cols());
    adapters_.forward(x, rows, t.added.map(), t.adapters, executor);
    y.middleRows(rows.first_row(), rows.rows()) += t.added.map().middleRows(rows.first_row(), rows.rows());
  }

  void backward(tokens_in<scalar> x, const expert_rows& rows, tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t,
                const executor_ref& executor) requires DifferentiableBank<Base> && DifferentiableBank<Adapters> {
    base_.backward(x, rows, dy, dx, t.base, executor);
    t.added.resize(dx.rows(), dx.cols());
    adapters_.backward(x, rows, dy, t.added.map(), t.adapters, executor);
    dx.middleRows(rows.first_row(), rows.rows()) += t.added.map().middleRows(rows.first_row(), rows.rows());
  }

  index_t workspace_bytes(index_t rows, bool training) const {
    return detail::bank_bytes(base_, rows, training) + detail::bank_bytes(adapters_, rows, training) +
           (training ? 2 * rows * static_cast<index_t>(sizeof(scalar)) : 0);
  }

  /// The same bank with the weights of experts and adapters rounded to another storage.
  template <typename Storage>
  auto stored_as(const auto&... format) const {
    auto base = base_.template stored_as<Storage>(format...);
    auto adapters = adapters_.template stored_as<Storage>(format...);
    return adapted_bank<decltype(base), decltype(adapters)>(std::move(base), std::move(adapters));
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Base>) visit("base", self.base_);
    if constexpr (HasParameters<Adapters>) visit("adapters", self.adapters_);
  }

private:
  template <typename F>
  void for_each_bank(tape& t, F&& f) const {
    f(base_, t.base, 0);
    f(adapters_, t.adapters, 0);
  }
  void prepare_own(tape& t, index_t rows, bool training) const {
    if (training)
      for (auto* numbers : {&t.dweight, &t.dinput_scale}) numbers->reserve(rows);
  }

  Base base_;
  Adapters adapters_;
};

}  // namespace sluice::inline SLUICE_ISA
