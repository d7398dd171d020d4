/// Two layers side by side: y = layer(x) + other(x).
///
///   beside_layer both{moe_layer{...}, dense_layer{swiglu<float>{64, 256}}};       dx is the sum of both
///
/// The first layer is the mixture whose plan, router and bank the whole shows; the other may be any layer with the
/// calls of moe_layer: a dense one, normalised before or behind in its own way (Gemma 4), or a sequence of whole
/// blocks, which the mixture then skips (layer/branches/shortcut.hpp where both read one norm). A shared expert that
/// reads and writes as the experts do is layer/shared_expert.hpp. The calls and the memory rules are those of moe_layer
/// (layer/decorator.hpp); padding gets what the layers give it, zero; a token with NaN gets NaN and changes no other.
#pragma once

#include <sluice/layer/branches/two_branches.hpp>

#include <concepts>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Scalar>
struct beside_memory {
  matrix_buffer<Scalar> added;  ///< [T,D'] of the other layer; backward: its dx
};

}  // namespace detail

template <typename Layer, typename Other>
class beside_layer
    : public two_branches<beside_layer<Layer, Other>, Layer, Other, detail::beside_memory<typename Layer::scalar>> {
  using base = two_branches<beside_layer, Layer, Other, detail::beside_memory<typename Layer::scalar>>;
  friend typename base::decorator;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  /// Throws std::invalid_argument if the widths differ.
  beside_layer(Layer layer, Other other) : base(std::move(layer), std::move(other)) { this->require_equal_widths(); }

  /// Inference of tokens that continue a cache's sequences, if the other layer has such a call.
  template <typename Cache>
    requires CanContinue<Other, Cache>
  void forward_cached(tokens_in<scalar> x, tokens_out<scalar> y, Cache& cache, typename base::workspace& ws,
                      const context_type& context = {}) const {
    detail::check_forward<scalar>({this->inputs(), this->outputs()}, x, y, context);
    ws.added.resize(y.rows(), y.cols());
    this->other().forward_cached(x, ws.added.map(), cache, ws.other, base::beside(context));  // first: y may be x
    this->layer().forward(x, y, ws.layer, context);
    y += ws.added.map();
  }

private:
  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context, Inner inner) const {
    m.added.resize(y.rows(), y.cols());
    this->other().forward(x, m.added.map(), m.other, base::beside(context));  // first: y may be x
    inner(x, y);
    y += m.added.map();
  }

  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t, Inner inner) {
    inner(dy, dx);
    t.added.resize(dx.rows(), dx.cols());
    this->other().backward(dy, t.added.map(), t.other);
    dx += t.added.map();
  }

  template <typename Storage, typename Inner>
  auto rebuilt(Inner inner) const {
    auto other = this->other().template stored_as<Storage>();
    return beside_layer<Inner, decltype(other)>(std::move(inner), std::move(other));
  }

  index_t own_bytes(index_t tokens, bool training) const { return this->branch_bytes(tokens, training, 1); }
};

}  // namespace sluice::inline SLUICE_ISA
