/// Normalises what a layer puts out: y = norm(layer(x)), with exact gradients through the norm.
///
///   output_normalized_layer layer{moe_layer{...}, rms_norm<float>{64}};
///
/// Gemma's blocks have one behind every part, Swin-v2's in place of the norm before it. The norms are those of
/// kernel/row_norm.hpp; padding tokens get norm(0), which is zero for those without a bias; a token with NaN gets NaN
/// and reaches no gradient. The calls and the memory rules are those of moe_layer (layer/decorator.hpp).
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/layer/norm_decorator.hpp>

#include <algorithm>
#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Norm>
struct output_normalized_workspace {
  typename Norm::tape norm;
  matrix_buffer<typename Norm::scalar> raw;  ///< [T,D'] of the inner layer
};

template <typename Norm>
struct output_normalized_tape : output_normalized_workspace<Norm> {
  matrix_buffer<typename Norm::scalar> dy;    ///< without the rows that do not count
  matrix_buffer<typename Norm::scalar> draw;  ///< of the inner layer
};

}  // namespace detail

template <typename Layer, typename Norm>
class output_normalized_layer
    : public norm_decorator<output_normalized_layer, Layer, Norm, detail::output_normalized_workspace<Norm>,
                            detail::output_normalized_tape<Norm>> {
  using base = norm_decorator<sluice::output_normalized_layer, Layer, Norm, detail::output_normalized_workspace<Norm>,
                              detail::output_normalized_tape<Norm>>;
  friend typename base::decorator;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  /// Throws std::invalid_argument if the norm is for rows of another width than the layer's outputs.
  output_normalized_layer(Layer layer, Norm norm) : base(std::move(layer), std::move(norm)) {
    check_norm_width("output_normalized_layer", this->norm(), this->outputs());
  }

private:
  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context, Inner inner) const {
    m.raw.resize(x.rows(), this->outputs());
    inner(x, m.raw.map());
    this->norm().forward(m.raw.map(), y, m.norm, context.executor);
  }

  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t, Inner inner) {
    t.dy.resize(dy.rows(), dy.cols());
    t.dy.map() = dy;
    for (index_t r = 0; r < dy.rows(); ++r)
      if (t.context.is_padding(r) || any_nan(t.raw.row(r), t.raw.cols()))
        std::fill_n(t.dy.row(r), t.dy.cols(), scalar(0));
    t.draw.set_zero(dy.rows(), dy.cols());
    detail::backward_of_used_rows(this->norm(), t.raw.map(), t.dy, t.norm, t.draw.map(), t.context.executor);
    inner(t.draw.map(), dx);
  }
};

}  // namespace sluice::inline SLUICE_ISA
