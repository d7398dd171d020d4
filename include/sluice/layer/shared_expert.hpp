/// A layer beside which one expert runs on every token.
///
///   plain   y = layer(x) + shared(x)                                   DeepSeekMoE
///   gated   y = layer(x) + s shared(x),  s = sigmoid(x w^T), w [1,D]   Qwen2-MoE
///           dshared = s dy;  dg = <dy, shared(x)> s (1 - s);  dw += dg^T x;  dx += dg w
///
///   shared_expert_layer layer{moe_layer{...}, swiglu<float>{64, 256}};
///   shared_expert_layer layer{moe_layer{...}, swiglu<float>{64, 256}, gated};
///
/// It has the calls of moe_layer, so wrappers nest; the inner layer's workspace is workspace.layer. Padding tokens pass
/// neither part and get zero; a NaN token gets NaN and changes no other. Inference is const and thread-safe with a
/// workspace a thread, and allocates nothing once warm. Equal bits for every executor and thread count. Dai et al.
/// 2024, arXiv:2401.06066; Yang et al. 2024 (Qwen2), arXiv:2407.10671.
#pragma once

#include <sluice/expert/bank.hpp>
#include <sluice/kernel/linear.hpp>
#include <sluice/kernel/logistic.hpp>

#include <array>
#include <cmath>
#include <utility>

namespace sluice::inline SLUICE_ISA {

/// moe_layer and the wrappers around it: what a wrapper may wrap.
template <typename L>
concept MixtureLayer = HasScalar<L> && HasInputs<L> && HasOutputs<L> &&
    requires(const L& layer, tokens_in<typename L::scalar> x, tokens_out<typename L::scalar> y,
             typename L::workspace& workspace, typename L::tape& tape, const typename L::context_type& context) {
      layer.forward(x, y, workspace, context);
      layer.forward(x, y, tape, context);
    };

template <typename L>
concept TrainableLayer = MixtureLayer<L> &&
    requires(L& layer, tokens_in<typename L::scalar> dy, tokens_out<typename L::scalar> dx, typename L::tape& tape) {
      layer.backward(dy, dx, tape);
      layer.after_step(tape);
    };

struct gated_tag {};
/// shared_expert_layer layer{inner, expert, gated}: each token weighs the shared expert by a sigmoid.
inline constexpr gated_tag gated{};

template <MixtureLayer Layer, ExpertFunctor Expert, bool Gated = false>
class shared_expert_layer {
  static_assert(std::same_as<typename Layer::scalar, typename Expert::scalar>,
                "sluice: layer and shared expert need the same scalar");

public:
  using scalar = typename Layer::scalar;
  using context_type = typename Layer::context_type;
  static constexpr bool causal = Layer::causal;

  /// What the shared expert works on: the n tokens that are no padding.
  struct shared_rows {
    buffer<index_t> tokens;         ///< [n]
    matrix_buffer<scalar> x;        ///< [n,D]
    matrix_buffer<scalar> outputs;  ///< [n,D']
    matrix_buffer<scalar> gate;     ///< [n,1] the sigmoid, if gated
    typename expert_bank<Expert>::tape expert;
  };
  struct workspace {
    typename Layer::workspace layer;
    shared_rows shared;
  };
  struct tape {
    typename Layer::tape layer;
    shared_rows shared;
    executor_ref executor;
    matrix_buffer<scalar> doutputs;
    matrix_buffer<scalar> dgate;
    matrix_buffer<scalar> drows;

    scalar loss() const { return layer.loss(); }
  };

  /// Throws std::invalid_argument if the expert's widths are not the layer's.
  explicit shared_expert_layer(Layer layer, Expert shared) : layer_(std::move(layer)), shared_(1, std::move(shared)) {
    if (shared_.inputs() != layer_.inputs() || shared_.outputs() != layer_.outputs())
      throw_invalid("the layer maps ", layer_.inputs(), " -> ", layer_.outputs(), ", its shared expert ",
                    shared_.inputs(), " -> ", shared_.outputs());
    if constexpr (Gated)
      gate_ = {{1, inputs()},
               parameter_role::weight,
               initial_values::normal(1 / std::sqrt(static_cast<double>(inputs())))};
  }
  shared_expert_layer(Layer layer, Expert shared, gated_tag)
    requires Gated
      : shared_expert_layer(std::move(layer), std::move(shared)) {}

  index_t inputs() const noexcept { return layer_.inputs(); }
  index_t outputs() const noexcept { return layer_.outputs(); }
  index_t experts() const noexcept { return layer_.experts(); }

  /// Inference: y [T,D'] is overwritten. Throws std::invalid_argument if shapes do not fit.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, workspace& ws, const context_type& context = {}) const {
    layer_.forward(x, y, ws.layer, context);
    add_shared(x, y, ws.shared, context);
  }

  /// Training, with training = true and everything else of the context left out.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t) const {
    context_type context;
    context.training = true;
    forward(x, y, t, context);
  }
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t, const context_type& context) const {
    layer_.forward(x, y, t.layer, context);
    add_shared(x, y, t.shared, context);
    t.executor = context.executor;
  }

  /// Runs the inner layer on the plan in ws.layer.
  void forward_planned(tokens_in<scalar> x, tokens_out<scalar> y, workspace& ws,
                       const context_type& context = {}) const {
    layer_.forward_planned(x, y, ws.layer, context);
    add_shared(x, y, ws.shared, context);
  }

  /// Writes dx [T,D] and adds the gradients of all parameters, for the last training forward call of this tape.
  void backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t)
    requires TrainableLayer<Layer> && DifferentiableExpert<Expert>
  {
    layer_.backward(dy, dx, t.layer);
    const shared_rows& rows = t.shared;
    const index_t n = rows.tokens.size();
    t.doutputs.resize(n, outputs());
    t.drows.resize(n, inputs());
    t.dgate.resize(Gated ? n : 0, 1);
    for_rows(n, t.executor, [&](index_t i) {
      const scalar* upstream = row_of(dy, rows.tokens[i]);
      const scalar s = Gated ? rows.gate(i, 0) : scalar(1);
      kernel::copy_scaled(s, upstream, t.doutputs.row(i), outputs());
      if (Gated) t.dgate(i, 0) = kernel::dot(upstream, rows.outputs.row(i), outputs()) * s * (1 - s);
    });
    detail::for_each_unnamed_parameter(shared_, [](auto& p) { p.ensure_gradient(); });
    shared_.backward(rows.x.map(), offsets(n), t.doutputs.map(), t.drows.map(), t.shared.expert, t.executor);
    if constexpr (Gated) linear_backward(rows.x.map(), gate_, t.dgate.map(), t.drows.map(), t.executor);
    for_rows(n, t.executor,
             [&](index_t i) { kernel::add_scaled(scalar(1), t.drows.row(i), row_of(dx, rows.tokens[i]), inputs()); });
  }

  void after_step(tape& t) { layer_.after_step(t.layer); }

  Layer& layer() noexcept { return layer_; }
  const Layer& layer() const noexcept { return layer_; }
  Expert& shared() noexcept { return shared_.expert(0); }
  const Expert& shared() const noexcept { return shared_.expert(0); }
  /// w [1,D]
  parameter<scalar>& gate() noexcept
    requires Gated
  {
    return gate_;
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("layer", self.layer_);
    if constexpr (HasParameters<Expert>) visit("shared", self.shared());
    if constexpr (Gated) visit("shared_gate", self.gate_);
  }

private:
  static std::array<index_t, 2> offsets(index_t n) { return {0, n}; }

  static const scalar* row_of(tokens_in<scalar> m, index_t r) { return m.data() + r * m.outerStride(); }
  static scalar* row_of(tokens_out<scalar>& m, index_t r) { return m.data() + r * m.outerStride(); }

  template <typename F>
  static void for_rows(index_t n, const executor_ref& executor, F&& f) {
    constexpr index_t rows_per_task = 32;
    executor.parallel_blocks(n, rows_per_task, [&](index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i) f(i);
    });
  }

  void add_shared(tokens_in<scalar> x, tokens_out<scalar> y, shared_rows& rows, const context_type& context) const {
    rows.tokens.clear();
    for (index_t t = 0; t < x.rows(); ++t)
      if (!context.is_padding(t)) rows.tokens.push_back(t);
    const index_t n = rows.tokens.size();
    rows.x.resize(n, inputs());
    rows.outputs.resize(n, outputs());
    rows.gate.resize(Gated ? n : 0, 1);
    for_rows(n, context.executor,
             [&](index_t i) { kernel::copy_scaled(scalar(1), row_of(x, rows.tokens[i]), rows.x.row(i), inputs()); });
    shared_.forward(rows.x.map(), offsets(n), rows.outputs.map(), rows.expert, context.executor);
    for_rows(n, context.executor, [&](index_t i) {
      scalar s = 1;
      if constexpr (Gated)
        s = rows.gate(i, 0) = kernel::logistic(kernel::dot(gate_.data(), rows.x.row(i), inputs()));
      kernel::add_scaled(s, rows.outputs.row(i), row_of(y, rows.tokens[i]), outputs());
    });
  }

  Layer layer_;
  expert_bank<Expert> shared_;
  parameter<scalar> gate_;
};

template <MixtureLayer Layer, ExpertFunctor Expert>
shared_expert_layer(Layer, Expert) -> shared_expert_layer<Layer, Expert, false>;
template <MixtureLayer Layer, ExpertFunctor Expert>
shared_expert_layer(Layer, Expert, gated_tag) -> shared_expert_layer<Layer, Expert, true>;

}  // namespace sluice::inline SLUICE_ISA
