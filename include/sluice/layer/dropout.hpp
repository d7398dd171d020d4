/// Dropout before a layer: in training every number of x is left out with probability p, and what stays grows in turn.
///
///   f[t,d] = 1 / (1 - p) where a draw from (0, 1) is p or more, else 0
///   y = layer(f x);   dx = f (dx of the layer)                      without training, or with p = 0, the layer alone
///
///   adapted_layer layer{frozen, dropout_layer{dense_layer{low_rank_expert<float>{64, 8}}, 0.1}};    // LoRA's
///
/// Router and experts inside see f x alike. Draw D t + d of the context's random source at dropout_site is element d of
/// token t: the same for any number of threads, and other ones at every place of a model (context.for_layer). NaN stays
/// NaN, padding stays padding. The calls and the memory rules are those of moe_layer (layer/decorator.hpp).
/// Srivastava et al. 2014; in adapters: Hu et al. 2022, arXiv:2106.09685.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/layer/decorator.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

inline constexpr random_site dropout_site{"dropout_layer.factors"};

namespace detail {

/// What the number at a position is multiplied by.
template <typename Scalar>
Scalar dropout_factor(const random_source& random, random_site site, index_t position, double p) {
  return random.uniform(site, position) < p ? Scalar(0) : static_cast<Scalar>(1 / (1 - p));
}
inline double checked_dropout(const char* layer, double p) {
  if (!is_between(p, 0, 1) || p == 1) throw_invalid(layer, " needs a dropout of 0 <= p < 1, not ", p);
  return p;
}

template <typename Scalar>
struct dropout_memory {
  matrix_buffer<Scalar> factors;  ///< f [T,D]; empty: all are 1
  matrix_buffer<Scalar> dropped;  ///< f x
};

}  // namespace detail

template <typename Layer>
class dropout_layer
    : public layer_decorator<dropout_layer<Layer>, Layer, detail::dropout_memory<typename Layer::scalar>> {
  using base = layer_decorator<dropout_layer, Layer, detail::dropout_memory<typename Layer::scalar>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  /// Throws std::invalid_argument unless 0 <= p < 1.
  dropout_layer(Layer layer, double p)
      : base(std::move(layer)), p_(detail::checked_dropout("dropout_layer", p)) {}

  double probability() const noexcept { return p_; }

private:
  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context, Inner inner) const {
    m.factors.resize(0, x.cols());
    if (!context.training || p_ == 0) return inner(x, y);
    m.factors.resize(x.rows(), x.cols());
    m.dropped.resize(x.rows(), x.cols());
    context.executor.parallel_each(x.rows(), 20 * x.cols(), [&](index_t r) {
      const scalar* const from = x.data() + r * x.outerStride();
      for (index_t d = 0; d < x.cols(); ++d) {
        m.factors(r, d) = detail::dropout_factor<scalar>(context.random, dropout_site, r * x.cols() + d, p_);
        m.dropped(r, d) = m.factors(r, d) * from[d];
      }
    });
    inner(m.dropped.map(), y);
  }

  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t, Inner inner) {
    inner(dy, dx);
    t.context.executor.parallel_each(t.factors.rows(), 20 * dx.cols(), [&](index_t r) {
      scalar* const to = dx.data() + r * dx.outerStride();
      for (index_t d = 0; d < dx.cols(); ++d) to[d] *= t.factors(r, d);
    });
  }

  template <typename Storage, typename Inner>
  auto rebuilt(Inner inner) const {
    return dropout_layer<Inner>(std::move(inner), p_);
  }

  index_t own_bytes(index_t tokens, bool training) const {
    return training ? 2 * tokens * this->inputs() * static_cast<index_t>(sizeof(scalar)) : 0;
  }

  double p_;
};

}  // namespace sluice::inline SLUICE_ISA
