/// A layer to whose output one learned vector is added, once a token whatever its experts: y = layer(x) + b.
///
///   output_bias_layer layer{moe_layer{...}};              b [D'], initially zero;  db += sum over tokens of dy
///
/// It has the calls of moe_layer (layer/decorator.hpp), so wrappers nest; the inner layer's workspace is
/// workspace.layer. Padding tokens get zero and add nothing to db; a NaN token gets NaN and changes no other.
/// Allocations, threads and bits are the inner layer's. Shen et al. 2024 (JetMoE), arXiv:2404.07413.
#pragma once

#include <sluice/kernel/vector_math.hpp>
#include <sluice/layer/decorator.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Layer>
class output_bias_layer : public layer_decorator<output_bias_layer<Layer>, Layer> {
  using base = layer_decorator<output_bias_layer, Layer>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  explicit output_bias_layer(Layer layer)
      : base(std::move(layer)), bias_({this->outputs()}, parameter_role::vector) {}

  /// b [D']
  parameter<scalar>& bias() noexcept { return bias_; }
  const parameter<scalar>& bias() const noexcept { return bias_; }

private:
  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory&, const context_type& context, Inner inner) const {
    inner(x, y);
    for (index_t token = 0; token < y.rows(); ++token)
      if (!context.is_padding(token))
        kernel::add_scaled(scalar(1), bias_.data(), y.data() + token * y.outerStride(), y.cols());
  }

  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t, Inner inner) {
    inner(dy, dx);
    scalar* const gradient = bias_.gradient().data();
    for (index_t token = 0; token < dy.rows(); ++token)
      if (!t.context.is_padding(token))
        kernel::add_scaled(scalar(1), dy.data() + token * dy.outerStride(), gradient, dy.cols());
  }

  template <typename Storage, typename Inner>
  auto rebuilt(Inner inner) const {
    output_bias_layer<Inner> other(std::move(inner));
    other.bias() = bias_;
    return other;
  }

  template <typename Self, typename Visitor>
  static void visit_own(Self& self, Visitor& visit) {
    visit("bias", self.bias_);
  }

  parameter<scalar> bias_;
};

}  // namespace sluice::inline SLUICE_ISA
