/// Normalises what a layer puts out: y = norm(layer(x)), with exact gradients through the norm.
///
///   output_normalized_layer layer{moe_layer{...}, rms_norm<float>{64}};
///
/// Gemma's blocks have one behind every part, Swin-v2's in place of the norm before it. The norms are those of
/// kernel/row_norm.hpp; padding tokens get norm(0), which is zero for those without a bias; a token with NaN gets NaN
/// and reaches no gradient. The calls and the memory rules are those of moe_layer (layer/decorator.hpp).
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/kernel/row_norm.hpp>
#include <sluice/kernel/soft_dispatch.hpp>
#include <sluice/layer/decorator.hpp>

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

template <typename Layer, RowNorm Norm>
class output_normalized_layer
    : public layer_decorator<output_normalized_layer<Layer, Norm>, Layer, detail::output_normalized_workspace<Norm>,
                             detail::output_normalized_tape<Norm>> {
  using base = layer_decorator<output_normalized_layer, Layer, detail::output_normalized_workspace<Norm>,
                               detail::output_normalized_tape<Norm>>;
  friend base;
  static_assert(std::same_as<typename base::scalar, typename Norm::scalar>,
                "sluice: layer and norm need the same scalar");

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  output_normalized_layer(Layer layer, Norm norm) : base(std::move(layer)), norm_(std::move(norm)) {}

  Norm& norm() noexcept { return norm_; }
  const Norm& norm() const noexcept { return norm_; }

private:
  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context, Inner inner) const {
    m.raw.resize(x.rows(), this->outputs());
    inner(x, m.raw.map());
    norm_.forward(m.raw.map(), y, m.norm, context.executor);
  }

  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t, Inner inner) {
    t.dy.resize(dy.rows(), dy.cols());
    t.dy.map() = dy;
    for (index_t r = 0; r < dy.rows(); ++r)
      if (t.context.is_padding(r) || any_nan(t.raw.row(r), t.raw.cols()))
        std::fill_n(t.dy.row(r), t.dy.cols(), scalar(0));
    t.draw.resize(dy.rows(), dy.cols());
    t.draw.map().setZero();
    detail::for_each_used_run(t.dy, 0, dy.rows(), [&](index_t begin, index_t end) {
      const index_t count = end - begin;
      norm_.backward(t.raw.map().middleRows(begin, count), t.dy.map().middleRows(begin, count), t.norm,
                     t.draw.map().middleRows(begin, count), t.context.executor, begin);
    });
    inner(t.draw.map(), dx);
  }

  template <typename Storage, typename Inner>
  auto rebuilt(Inner inner) const {
    return output_normalized_layer<Inner, Norm>(std::move(inner), norm_);
  }

  index_t own_bytes(index_t tokens, bool training) const {
    return tokens * this->outputs() * static_cast<index_t>(sizeof(scalar)) * (training ? 3 : 1);
  }

  template <typename Self, typename Visitor>
  static void visit_own(Self& self, Visitor& visit) {
    if constexpr (HasParameters<Norm>) visit("norm", self.norm_);
  }

  Norm norm_;
};

}  // namespace sluice::inline SLUICE_ISA
