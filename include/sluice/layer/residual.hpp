/// A layer beside which its input runs on: y = x + layer(x).
///
///   residual_layer block{normalized_layer{moe_layer{...}, rms_norm<float>{64}}};           dx = dy + layer'(dy)
///   residual_layer block{linked_layer{...}, /*columns=*/64};      only these run on, the others are layer(x): a state
///
/// It has the calls of moe_layer (layer/decorator.hpp), so wrappers nest; the inner layer's workspace is
/// workspace.layer. Its widths must be equal. Padding tokens get zero; a NaN token gets NaN, changes no other and has
/// gradient zero. Allocations, threads and bits are the inner layer's. He, Zhang, Ren, Sun 2016, arXiv:1512.03385.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/vector_math.hpp>
#include <sluice/layer/decorator.hpp>

#include <algorithm>
#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// What the inner layer gave, so that y may be x.
template <typename Scalar>
struct residual_workspace {
  matrix_buffer<Scalar> outputs;
};

template <typename Scalar>
struct residual_tape : residual_workspace<Scalar> {
  buffer<std::uint8_t> counts;  ///< [T] neither padding nor NaN
};

}  // namespace detail

template <typename Layer>
class residual_layer
    : public layer_decorator<residual_layer<Layer>, Layer, detail::residual_workspace<typename Layer::scalar>,
                             detail::residual_tape<typename Layer::scalar>> {
  using base = layer_decorator<residual_layer, Layer, detail::residual_workspace<typename Layer::scalar>,
                               detail::residual_tape<typename Layer::scalar>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  /// Throws std::invalid_argument if the layer's widths differ.
  explicit residual_layer(Layer layer) : base(std::move(layer)), columns_(this->inputs()) {
    if (this->inputs() != this->outputs())
      throw_invalid("a residual layer needs equal widths, not ", this->inputs(), " -> ", this->outputs());
  }
  /// Throws std::invalid_argument as well unless 1 <= columns <= D.
  residual_layer(Layer layer, index_t columns) : residual_layer(std::move(layer)) {
    if (columns < 1 || columns > this->inputs())
      throw_invalid("of ", this->inputs(), " columns ", columns, " cannot run on beside a layer");
    columns_ = columns;
  }

  /// Inference of tokens that continue a cache's sequences, if the layer inside has such a call.
  template <typename Cache>
    requires CanContinue<Layer, Cache>
  void forward_cached(tokens_in<scalar> x, tokens_out<scalar> y, Cache& cache, typename base::workspace& ws,
                      const context_type& context = {}) const {
    this->run_cached(x, y, cache, ws, context);
  }

private:
  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context, Inner inner) const {
    m.outputs.resize(x.rows(), this->outputs());
    inner(x, m.outputs.map());
    if constexpr (std::same_as<Memory, tape>) m.counts.resize(x.rows());
    context.executor.parallel_each(x.rows(), x.cols(), [&](index_t t) {
      const scalar* const in = x.data() + t * x.outerStride();
      if constexpr (std::same_as<Memory, tape>) m.counts[t] = !context.is_padding(t) && !any_nan(in, x.cols());
      scalar* const out = y.data() + t * y.outerStride();
      std::copy(m.outputs.row(t) + columns_, m.outputs.row(t) + x.cols(), out + columns_);
      add_row(!context.is_padding(t), in, m.outputs.row(t), out, columns_);
    });
  }

  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t, Inner inner) {
    inner(dy, dx);
    t.context.executor.parallel_each(dx.rows(), dx.cols(), [&](index_t r) {
      scalar* const out = dx.data() + r * dx.outerStride();
      add_row(t.counts[r], dy.data() + r * dy.outerStride(), out, out, columns_);
    });
  }

  /// sum = a + b, or zero for a row that does not count.
  static void add_row(bool counts, const scalar* a, const scalar* b, scalar* sum, index_t count) {
    if (counts)
      kernel::transform(
          count, [](const auto& u, const auto& v) { return u + v; }, sum, a, b);
    else
      std::fill_n(sum, count, scalar(0));
  }

  template <typename Storage, typename Inner>
  auto rebuilt(Inner inner) const {
    return residual_layer<Inner>(std::move(inner), columns_);
  }

  index_t own_bytes(index_t tokens, bool) const {
    return tokens * this->outputs() * static_cast<index_t>(sizeof(scalar));
  }

  index_t columns_;
};

}  // namespace sluice::inline SLUICE_ISA
