/// A layer beside which one expert runs on every token.
///
///   plain   y = layer(x) + shared(x)                                   DeepSeekMoE
///   gated   y = layer(x) + s shared(x),  s = sigmoid(x w^T), w [1,D]   Qwen2-MoE
///           dshared = s dy;  dg = <dy, shared(x)> s (1 - s);  dw += dg^T x;  dx += dg w
///
///   shared_expert_layer layer{moe_layer{...}, swiglu<float>{64, 256}};
///   shared_expert_layer layer{moe_layer{...}, swiglu<float>{64, 256}, gated};
///
/// It has the calls of moe_layer (layer/decorator.hpp), so wrappers nest; the inner workspace is workspace.layer.
/// Padding tokens pass neither part and get zero; a NaN token passes neither, gets NaN and reaches no gradient.
/// Inference is const and thread-safe with a workspace a thread, and allocates nothing once warm. Equal bits for every
/// executor and thread count. Dai et al. 2024, arXiv:2401.06066; Yang et al. 2024 (Qwen2), arXiv:2407.10671.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/expert/bank.hpp>
#include <sluice/kernel/linear.hpp>
#include <sluice/kernel/logistic.hpp>
#include <sluice/layer/decorator.hpp>

#include <array>
#include <cmath>
#include <utility>

namespace sluice::inline SLUICE_ISA {

struct gated_tag {};
/// shared_expert_layer layer{inner, expert, gated}: each token weighs the shared expert by a sigmoid.
inline constexpr gated_tag gated{};

namespace detail {

/// What the shared expert works on: the n tokens that are no padding and hold no NaN.
template <typename Expert>
struct shared_rows {
  using scalar = typename Expert::scalar;
  buffer<index_t> tokens;         ///< [n]
  matrix_buffer<scalar> x;        ///< [n,D]
  matrix_buffer<scalar> outputs;  ///< [n,D']
  matrix_buffer<scalar> gate;     ///< [n,1] the sigmoid, if gated
  typename expert_bank<Expert>::tape expert;
};

template <typename Expert>
struct shared_workspace {
  shared_rows<Expert> shared;
};

template <typename Expert>
struct shared_tape : shared_workspace<Expert> {
  using scalar = typename Expert::scalar;
  matrix_buffer<scalar> doutputs;
  matrix_buffer<scalar> dgate;
  matrix_buffer<scalar> drows;
};

}  // namespace detail

template <typename Layer, typename Expert, bool Gated = false>
class shared_expert_layer
    : public layer_decorator<shared_expert_layer<Layer, Expert, Gated>, Layer, detail::shared_workspace<Expert>,
                             detail::shared_tape<Expert>, DifferentiableExpert<Expert>> {
  using base = layer_decorator<shared_expert_layer, Layer, detail::shared_workspace<Expert>,
                               detail::shared_tape<Expert>, DifferentiableExpert<Expert>>;
  friend base;
  static_assert(explain_expert<Expert>());
  static_assert(std::same_as<typename base::scalar, detail::scalar_of<Expert>>,
                "sluice: layer and shared expert need the same scalar");

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  /// Throws std::invalid_argument if the expert's widths are not the layer's.
  shared_expert_layer(Layer layer, Expert shared) : base(std::move(layer)), shared_(1, std::move(shared)) {
    if (shared_.inputs() != this->inputs() || shared_.outputs() != this->outputs())
      throw_invalid("the layer maps ", this->inputs(), " -> ", this->outputs(), ", its shared expert ",
                    shared_.inputs(), " -> ", shared_.outputs());
    if constexpr (Gated)
      gate_ = {{1, this->inputs()},
               parameter_role::weight,
               initial_values::normal(1 / std::sqrt(static_cast<double>(this->inputs())))};
  }
  shared_expert_layer(Layer layer, Expert shared, gated_tag)
    requires Gated
      : shared_expert_layer(std::move(layer), std::move(shared)) {}

  Expert& shared() noexcept { return shared_.expert(0); }
  const Expert& shared() const noexcept { return shared_.expert(0); }
  /// w [1,D]
  parameter<scalar>& gate() noexcept
    requires Gated
  {
    return gate_;
  }

  static consteval bool explain_training() {
    return base::explain_training() && explain_differentiable_expert<Expert>();
  }

private:
  template <typename L, typename E, bool G>
  friend class shared_expert_layer;
  using shared_rows = detail::shared_rows<Expert>;

  static std::array<index_t, 2> offsets(index_t n) { return {0, n}; }

  static const scalar* row_of(tokens_in<scalar> m, index_t r) { return m.data() + r * m.outerStride(); }
  static scalar* row_of(tokens_out<scalar>& m, index_t r) { return m.data() + r * m.outerStride(); }

  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context, Inner inner) const {
    check_initialized(shared(), "shared");
    if constexpr (Gated) check_initialized(gate_, "shared_gate");
    // Before the inner layer runs, which may write over x.
    shared_rows& rows = m.shared;
    shared_.prepare(rows.expert, x.rows(), std::same_as<Memory, tape>);
    rows.tokens.reserve(x.rows());
    rows.x.reserve(x.rows(), x.cols());
    rows.outputs.reserve(x.rows(), y.cols());
    rows.gate.reserve(Gated ? x.rows() : 0, 1);
    rows.tokens.clear();
    for (index_t t = 0; t < x.rows(); ++t)
      if (!context.is_padding(t) && !any_nan(row_of(x, t), x.cols())) rows.tokens.push_back(t);
    const index_t n = rows.tokens.size();
    rows.x.resize(n, x.cols());
    rows.outputs.resize(n, y.cols());
    rows.gate.resize(Gated ? n : 0, 1);
    context.executor.parallel_each(n, x.cols(), [&](index_t i) {
      kernel::copy_scaled(scalar(1), row_of(x, rows.tokens[i]), rows.x.row(i), x.cols());
    });
    shared_.forward(rows.x.map(), offsets(n), rows.outputs.map(), rows.expert, context.executor);
    inner(x, y);
    context.executor.parallel_each(n, x.cols(), [&](index_t i) {
      scalar s = 1;
      if constexpr (Gated)
        s = rows.gate(i, 0) = kernel::logistic(kernel::dot(gate_.data(), rows.x.row(i), rows.x.cols()));
      kernel::add_scaled(s, rows.outputs.row(i), row_of(y, rows.tokens[i]), y.cols());
    });
  }

  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t, Inner inner) {
    inner(dy, dx);
    const executor_ref& executor = t.context.executor;
    shared_rows& rows = t.shared;
    const index_t n = rows.tokens.size();
    t.doutputs.reserve(dy.rows(), dy.cols());
    t.drows.reserve(dy.rows(), dx.cols());
    t.dgate.reserve(Gated ? dy.rows() : 0, 1);
    t.doutputs.resize(n, dy.cols());
    t.drows.resize(n, dx.cols());
    t.dgate.resize(Gated ? n : 0, 1);
    executor.parallel_each(n, dx.cols(), [&](index_t i) {
      const scalar* upstream = row_of(dy, rows.tokens[i]);
      const scalar s = Gated ? rows.gate(i, 0) : scalar(1);
      kernel::copy_scaled(s, upstream, t.doutputs.row(i), dy.cols());
      if (Gated) t.dgate(i, 0) = kernel::dot(upstream, rows.outputs.row(i), dy.cols()) * s * (1 - s);
    });
    shared_.backward(rows.x.map(), offsets(n), t.doutputs.map(), t.drows.map(), rows.expert, executor);
    if constexpr (Gated) linear_backward(rows.x.map(), gate_, t.dgate.map(), t.drows.map(), executor);
    executor.parallel_each(n, dx.cols(), [&](index_t i) {
      kernel::add_scaled(scalar(1), t.drows.row(i), row_of(dx, rows.tokens[i]), dx.cols());
    });
  }

  template <typename Storage, typename Inner>
  auto rebuilt(Inner inner) const {
    auto shared = detail::stored_as_or_copied<Storage>(this->shared());
    shared_expert_layer<Inner, decltype(shared), Gated> other(std::move(inner), std::move(shared));
    other.gate_ = gate_;
    return other;
  }

  index_t own_bytes(index_t tokens, bool training) const {
    const index_t numbers = tokens * (this->inputs() + this->outputs()) * (training ? 2 : 1);
    return numbers * static_cast<index_t>(sizeof(scalar)) + shared_.workspace_bytes(tokens, training);
  }

  template <typename Self, typename Visitor>
  static void visit_own(Self& self, Visitor& visit) {
    if constexpr (HasParameters<Expert>) visit("shared", self.shared());
    if constexpr (Gated) visit("shared_gate", self.gate_);
  }

  expert_bank<Expert> shared_;
  parameter<scalar> gate_;
};

template <typename Layer, typename Expert>
shared_expert_layer(Layer, Expert) -> shared_expert_layer<Layer, Expert, false>;
template <typename Layer, typename Expert>
shared_expert_layer(Layer, Expert, gated_tag) -> shared_expert_layer<Layer, Expert, true>;

}  // namespace sluice::inline SLUICE_ISA
