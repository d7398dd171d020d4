/// Normalises tokens before a layer: y = layer(norm(x)), with exact gradients through the norm.
///
///   normalized_layer layer{moe_layer{...}, rms_norm<float>{64}};
///
/// Router, experts and everything else inside see norm(x) only: a pre-norm block, and the form of Soft MoE whose slots
/// average normalised tokens. Any layer with forward and backward goes inside, another wrapper too. The norms are those
/// of kernel/row_norm.hpp. The calls and the memory rules are those of moe_layer (layer/decorator.hpp).
#pragma once

#include <sluice/layer/norm_decorator.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Norm>
struct normalized_workspace {
  typename Norm::tape norm;
  matrix_buffer<typename Norm::scalar> normalized;
};

template <typename Norm>
struct normalized_tape : normalized_workspace<Norm> {
  matrix_buffer<typename Norm::scalar> x;
  matrix_buffer<typename Norm::scalar> dnormalized;
};

}  // namespace detail

template <typename Layer, typename Norm>
class normalized_layer
    : public norm_decorator<normalized_layer, Layer, Norm, detail::normalized_workspace<Norm>,
                            detail::normalized_tape<Norm>> {
  using base = norm_decorator<sluice::normalized_layer, Layer, Norm, detail::normalized_workspace<Norm>,
                              detail::normalized_tape<Norm>>;
  friend typename base::decorator;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  /// Throws std::invalid_argument if the norm is for rows of another width than the layer's inputs.
  normalized_layer(Layer layer, Norm norm) : base(std::move(layer), std::move(norm)) {
    check_norm_width("normalized_layer", this->norm(), this->inputs());
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
    m.normalized.resize(x.rows(), x.cols());
    this->norm().forward(x, m.normalized.map(), m.norm, context.executor);
    if constexpr (std::same_as<Memory, tape>) {
      m.x.resize(x.rows(), x.cols());
      m.x.map() = x;
    }
    inner(m.normalized.map(), y);
  }

  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t, Inner inner) {
    t.dnormalized.resize(dx.rows(), dx.cols());
    inner(dy, t.dnormalized.map());
    dx.setZero();
    detail::backward_of_used_rows(this->norm(), t.x.map(), t.dnormalized, t.norm, dx, t.context.executor);
  }
};

}  // namespace sluice::inline SLUICE_ISA
