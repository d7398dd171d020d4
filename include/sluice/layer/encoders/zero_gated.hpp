/// A branch that a trained model grows: y = x + tanh(a) layer(x), a one number that starts at 0.
///
///   zero_gated_layer block{moe_layer{...}};      dlayer = tanh(a) dy,  da += (1 - tanh(a)^2) <dy, layer(x)>
///
/// At a = 0 the model is what it was, bit for bit, and a alone has a gradient; the branch comes in as a grows. Flamingo
/// adds cross attention to images so, and EVLM, as far as its abstract says, the mixture of experts behind it:
///   sequence{zero_gated_layer{cross_attention<float>{...}}, zero_gated_layer{moe_layer{...}}}
/// which is a reading: number of experts, router and place are not stated there, and evlm_layer stays a free name. It
/// has the calls of moe_layer (layer/decorator.hpp), so wrappers nest. Widths must be equal. Padding gets zero, a token
/// with NaN gets NaN and reaches no gradient. Alayrac et al. 2022 (Flamingo), arXiv:2204.14198; Chen et al. 2024
/// (EVLM), arXiv:2407.14177.
#pragma once

#include <sluice/core/numeric.hpp>
#include <sluice/kernel/vector_math.hpp>
#include <sluice/layer/decorator.hpp>

#include <cmath>
#include <concepts>
#include <cstdint>
#include <utility>

namespace sluice::inline SLUICE_ISA {

namespace detail {

template <typename Scalar>
struct zero_gated_workspace {
  matrix_buffer<Scalar> branch;  ///< [T,D] layer(x)
};

template <typename Scalar>
struct zero_gated_tape : zero_gated_workspace<Scalar> {
  matrix_buffer<Scalar> dbranch;
  buffer<std::uint8_t> counts;  ///< [T] neither padding nor NaN
};

}  // namespace detail

template <typename Layer>
class zero_gated_layer
    : public layer_decorator<zero_gated_layer<Layer>, Layer, detail::zero_gated_workspace<typename Layer::scalar>,
                             detail::zero_gated_tape<typename Layer::scalar>> {
  using base = layer_decorator<zero_gated_layer, Layer, detail::zero_gated_workspace<typename Layer::scalar>,
                               detail::zero_gated_tape<typename Layer::scalar>>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  /// Throws std::invalid_argument if the layer's widths differ.
  explicit zero_gated_layer(Layer layer) : base(std::move(layer)), gate_({1}, parameter_role::vector) {
    if (this->inputs() != this->outputs())
      throw_invalid("a zero-gated layer needs equal widths, not ", this->inputs(), " -> ", this->outputs());
  }

  /// a
  parameter<scalar>& gate() noexcept { return gate_; }

private:
  template <typename L>
  friend class zero_gated_layer;

  scalar strength() const { return std::tanh(gate_.data()[0]); }

  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context, Inner inner) const {
    m.branch.resize(x.rows(), x.cols());
    inner(x, m.branch.map());
    if constexpr (std::same_as<Memory, tape>) m.counts.resize(x.rows());
    const scalar s = strength();
    context.executor.parallel_each(x.rows(), x.cols(), [&](index_t t) {
      const scalar* const in = x.data() + t * x.outerStride();
      scalar* const out = y.data() + t * y.outerStride();
      const bool is_padding = context.is_padding(t);
      if constexpr (std::same_as<Memory, tape>) m.counts[t] = !is_padding && !any_nan(in, x.cols());
      if (is_padding)
        std::fill_n(out, x.cols(), scalar(0));
      else
        kernel::transform(
            x.cols(), [s](const auto& u, const auto& v) { return u + std::remove_cvref_t<decltype(v)>(s) * v; }, out,
            in, static_cast<const scalar*>(m.branch.row(t)));
    });
  }

  template <typename Inner>
  void around_backward(tokens_in<scalar> dy, tokens_out<scalar> dx, tape& t, Inner inner) {
    const scalar s = strength();
    t.dbranch.resize(dy.rows(), dy.cols());
    scalar dgate = 0;
    for (index_t r = 0; r < dy.rows(); ++r) {
      if (t.counts[r]) dgate += kernel::dot(dy.data() + r * dy.outerStride(), t.branch.row(r), dy.cols());
      kernel::copy_scaled(s, dy.data() + r * dy.outerStride(), t.dbranch.row(r), dy.cols());
    }
    gate_.gradient()[0] += (1 - s * s) * dgate;
    inner(t.dbranch.map(), dx);
    t.context.executor.parallel_each(dx.rows(), dx.cols(), [&](index_t r) {
      scalar* const out = dx.data() + r * dx.outerStride();
      if (t.counts[r])
        kernel::add_scaled(scalar(1), dy.data() + r * dy.outerStride(), out, dx.cols());
      else
        std::fill_n(out, dx.cols(), scalar(0));
    });
  }

  template <typename Storage, typename Inner>
  auto rebuilt(Inner inner) const {
    zero_gated_layer<Inner> other(std::move(inner));
    other.gate_ = gate_;
    return other;
  }

  index_t own_bytes(index_t tokens, bool training) const {
    return tokens * this->outputs() * static_cast<index_t>(sizeof(scalar)) * (training ? 2 : 1);
  }

  template <typename Self, typename Visitor>
  static void visit_own(Self& self, Visitor& visit) {
    visit("gate", self.gate_);
  }

  parameter<scalar> gate_;
};

}  // namespace sluice::inline SLUICE_ISA
