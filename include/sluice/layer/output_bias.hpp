/// A layer to whose output one learned vector is added, once a token whatever its experts: y = layer(x) + b.
///
///   output_bias_layer layer{moe_layer{...}};              b [D'], initially zero;  db += sum over tokens of dy
///
/// It has the calls of moe_layer, so wrappers nest; the inner layer's workspace is workspace.layer. Padding tokens get zero
/// and add nothing to db; a NaN token gets NaN and changes no other. Allocations, threads and bits are the inner layer's.
/// Shen et al. 2024 (JetMoE), arXiv:2404.07413.
#pragma once

#include <sluice/kernel/vector_math.hpp>
#include <sluice/layer/shared_expert.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <MixtureLayer Layer>
class output_bias_layer {
public:
  using scalar = typename Layer::scalar;
  using context_type = typename Layer::context_type;
  static constexpr bool causal = Layer::causal;

  struct workspace {
    typename Layer::workspace layer;
  };
  struct tape {
    typename Layer::tape layer;
    context_type context;

    scalar loss() const { return layer.loss(); }
  };

  explicit output_bias_layer(Layer layer)
      : layer_(std::move(layer)), bias_({layer_.outputs()}, parameter_role::vector) {}

  index_t inputs() const noexcept { return layer_.inputs(); }
  index_t outputs() const noexcept { return layer_.outputs(); }
  index_t experts() const noexcept { return layer_.experts(); }

  /// Inference: y [T,D'] is overwritten. Throws std::invalid_argument if shapes do not fit.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, workspace& ws, const context_type& context = {}) const {
    layer_.forward(x, y, ws.layer, context);
    add_bias(y, context);
  }

  /// Training, with training = true and everything else of the context left out.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t) const {
    context_type context;
    context.training = true;
    forward(x, y, t, context);
  }
  /// What the context refers to must live until backward has returned.
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t, const context_type& context) const {
    layer_.forward(x, y, t.layer, context);
    add_bias(y, context);
    t.context = context;
  }

  /// Runs the inner layer on the plan in ws.layer.
  void forward_planned(tokens_in<scalar> x, tokens_out<scalar> y, workspace& ws,
                       const context_type& context = {}) const {
    layer_.forward_planned(x, y, ws.layer, context);
    add_bias(y, context);
  }

  /// Writes dx [T,D] and adds the gradients of all parameters, for the last training forward call of this tape.
  void backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t)
    requires TrainableLayer<Layer>
  {
    layer_.backward(dy, dx, t.layer);
    scalar* const gradient = bias_.gradient().data();
    for (index_t token = 0; token < dy.rows(); ++token)
      if (!t.context.is_padding(token))
        kernel::add_scaled(scalar(1), dy.data() + token * dy.outerStride(), gradient, outputs());
  }

  void after_step(tape& t) { layer_.after_step(t.layer); }

  Layer& layer() noexcept { return layer_; }
  const Layer& layer() const noexcept { return layer_; }
  /// b [D']
  parameter<scalar>& bias() noexcept { return bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("layer", self.layer_);
    visit("bias", self.bias_);
  }

private:
  void add_bias(tokens_out<scalar> y, const context_type& context) const {
    for (index_t token = 0; token < y.rows(); ++token)
      if (!context.is_padding(token))
        kernel::add_scaled(scalar(1), bias_.data(), y.data() + token * y.outerStride(), outputs());
  }

  Layer layer_;
  parameter<scalar> bias_;
};

}  // namespace sluice::inline SLUICE_ISA
