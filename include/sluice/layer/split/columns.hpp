/// Two layers over the columns of a token, side by side: each reads and writes its own.
///
///   x = [a | b] [T, D + F]  ->  y = [layer(a) | other(b)]  [T, D' + F'];      dx = [layer'(dy_a) | other'(dy_b)]
///
///   column_layers both{residual_layer{moe_layer{...}}, dense_layer{identity_expert<float>{64}}};      b passes unchanged
///
/// Where tokens carry more than one vector: a layer that knows nothing of the state of a chain
/// (layer/depth/state_chain.hpp), two streams that advance apart, modalities side by side. The first layer is the
/// mixture whose plan, router and bank the whole shows; the other one draws apart. NaN anywhere in a token hides it
/// from both and makes all of its output NaN; padding gets zero; T = 0 is fine. Causal if both layers are. The calls
/// and the memory rules are those of moe_layer (layer/decorator.hpp).
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/layer/branches/two_branches.hpp>

#include <algorithm>
#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

/// What the layers read, whole rows of NaN where there is one.
template <typename Scalar>
struct column_memory {
  matrix_buffer<Scalar> a, b;
};

}  // namespace detail

template <typename Layer, typename Other>
class column_layers
    : public two_branches<column_layers<Layer, Other>, Layer, Other, detail::column_memory<typename Layer::scalar>> {
  using base = two_branches<column_layers, Layer, Other, detail::column_memory<typename Layer::scalar>>;
  friend typename base::decorator;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  column_layers(Layer layer, Other other) : base(std::move(layer), std::move(other)) {}

  index_t inputs() const noexcept { return this->layer().inputs() + this->other().inputs(); }
  index_t outputs() const noexcept { return this->layer().outputs() + this->other().outputs(); }

private:
  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context, Inner inner) const {
    const index_t first = this->layer().inputs();
    m.a.resize(x.rows(), first);
    m.b.resize(x.rows(), x.cols() - first);
    context.executor.parallel_each(x.rows(), x.cols(), [&](index_t t) {
      const scalar* const row = x.data() + t * x.outerStride();
      if (any_nan(row, x.cols())) {
        std::fill_n(m.a.row(t), m.a.cols(), quiet_nan<scalar>());
        std::fill_n(m.b.row(t), m.b.cols(), quiet_nan<scalar>());
      } else {
        std::copy_n(row, first, m.a.row(t));
        std::copy_n(row + first, m.b.cols(), m.b.row(t));
      }
    });
    inner(m.a.map(), y.leftCols(this->layer().outputs()));
    this->other().forward(m.b.map(), y.rightCols(this->other().outputs()), m.other, base::beside(context));
  }

  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t, Inner inner) {
    inner(dy.leftCols(this->layer().outputs()), dx.leftCols(this->layer().inputs()));
    this->other().backward(dy.rightCols(this->other().outputs()), dx.rightCols(this->other().inputs()), t.other);
  }

  template <typename Storage, typename Inner>
  auto rebuilt(Inner inner) const {
    auto other = this->other().template stored_as<Storage>();
    return column_layers<Inner, decltype(other)>(std::move(inner), std::move(other));
  }

  index_t own_bytes(index_t tokens, bool training) const {
    return this->other().workspace_bytes(tokens, training) + tokens * inputs() * static_cast<index_t>(sizeof(scalar));
  }
};

}  // namespace sluice::inline SLUICE_ISA
