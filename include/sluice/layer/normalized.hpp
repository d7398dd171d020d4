/// Normalises tokens before a layer: y = layer(norm(x)), with exact gradients through the norm.
///
///   normalized_layer layer{moe_layer{...}, rms_norm<float>{64}};
///
/// Router, experts and everything else inside see norm(x) only: a pre-norm block, and the form of Soft MoE whose slots
/// average normalised tokens. Any layer with forward and backward goes inside, another wrapper too. The norms are those
/// of kernel/row_norm.hpp. forward, backward, after_step and the memory rules are those of moe_layer.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/kernel/row_norm.hpp>
#include <sluice/kernel/soft_dispatch.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Layer, RowNorm Norm>
class normalized_layer {
public:
  using scalar = typename Layer::scalar;
  using context_type = typename Layer::context_type;
  static constexpr bool causal = Layer::causal;
  static_assert(std::same_as<scalar, typename Norm::scalar>, "sluice: layer and norm need the same scalar");

  struct workspace {
    typename Layer::workspace layer;
    typename Norm::tape norm;
    matrix_buffer<scalar> normalized;
  };
  struct tape {
    typename Layer::tape layer;
    typename Norm::tape norm;
    matrix_buffer<scalar> x;
    matrix_buffer<scalar> normalized;
    matrix_buffer<scalar> dnormalized;
    executor_ref executor;

    scalar loss() const { return layer.loss(); }
  };

  normalized_layer(Layer layer, Norm norm) : layer_(std::move(layer)), norm_(std::move(norm)) {}

  index_t inputs() const noexcept { return layer_.inputs(); }
  index_t outputs() const noexcept { return layer_.outputs(); }
  index_t experts() const noexcept { return layer_.experts(); }

  void forward(tokens_in<scalar> x, tokens_out<scalar> y, workspace& ws, const context_type& context = {}) const {
    normalize(x, ws.normalized, ws.norm, context);
    layer_.forward(ws.normalized.map(), y, ws.layer, context);
  }
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t) const {
    context_type context;
    context.training = true;
    forward(x, y, t, context);
  }
  void forward(tokens_in<scalar> x, tokens_out<scalar> y, tape& t, const context_type& context) const {
    normalize(x, t.normalized, t.norm, context);
    t.x.resize(x.rows(), x.cols());
    t.x.map() = x;
    t.executor = context.executor;
    layer_.forward(t.normalized.map(), y, t.layer, context);
  }

  /// Writes dx and adds the gradients of all parameters, for the last training forward call of this tape.
  void backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t) requires requires(Layer& layer) {
    layer.backward(dy, dx, t.layer);
  }
  {
    if (dx.rows() != t.x.rows() || dx.cols() != inputs())
      throw_invalid("backward needs dx [", t.x.rows(), ", ", inputs(), "], not [", dx.rows(), ", ", dx.cols(), "]");
    t.dnormalized.resize(t.x.rows(), inputs());
    layer_.backward(dy, t.dnormalized.map(), t.layer);
    dx.setZero();
    // A token that had no part in anything has gradient zero, and its numbers may be NaN: it is not read.
    detail::for_each_unnamed_parameter(norm_, [](auto& p) { p.ensure_gradient(); });
    detail::for_each_used_run(t.dnormalized, 0, dx.rows(), [&](index_t begin, index_t end) {
      norm_.backward(t.x.map().middleRows(begin, end - begin), t.dnormalized.map().middleRows(begin, end - begin),
                     t.norm, dx.middleRows(begin, end - begin), t.executor, begin);
    });
  }

  void after_step(tape& t) { layer_.after_step(t.layer); }

  Norm& norm() noexcept { return norm_; }
  const Norm& norm() const noexcept { return norm_; }
  Layer& layer() noexcept { return layer_; }
  const Layer& layer() const noexcept { return layer_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    if constexpr (HasParameters<Layer>) visit("layer", self.layer_);
    if constexpr (HasParameters<Norm>) visit("norm", self.norm_);
  }

private:
  void normalize(tokens_in<scalar> x, matrix_buffer<scalar>& normalized, typename Norm::tape& t,
                 const context_type& context) const {
    if (x.cols() != inputs())
      throw_invalid("the layer reads tokens of width ", inputs(), "; x is [", x.rows(), ", ", x.cols(), "]");
    normalized.resize(x.rows(), inputs());
    norm_.forward(x, normalized.map(), t, context.executor);
  }

  Layer layer_;
  Norm norm_;
};

}  // namespace sluice::inline SLUICE_ISA
