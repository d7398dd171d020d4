/// Normalises tokens before a layer: y = layer(norm(x)), with exact gradients through the norm.
///
///   normalized_layer layer{moe_layer{...}, rms_norm<float>{64}};
///
/// Router, experts and everything else inside see norm(x) only: a pre-norm block, and the form of Soft MoE whose slots
/// average normalised tokens. Any layer with forward and backward goes inside, another wrapper too. The norms are those
/// of kernel/row_norm.hpp. The calls and the memory rules are those of moe_layer (layer/decorator.hpp).
#pragma once

#include <sluice/kernel/row_norm.hpp>
#include <sluice/kernel/soft_dispatch.hpp>
#include <sluice/layer/decorator.hpp>

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
    : public layer_decorator<normalized_layer<Layer, Norm>, Layer, detail::normalized_workspace<Norm>,
                             detail::normalized_tape<Norm>> {
  using base =
      layer_decorator<normalized_layer, Layer, detail::normalized_workspace<Norm>, detail::normalized_tape<Norm>>;
  friend base;
  static_assert(explain_row_norm<Norm>());
  static_assert(std::same_as<typename base::scalar, typename Norm::scalar>,
                "sluice: layer and norm need the same scalar");

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  normalized_layer(Layer layer, Norm norm) : base(std::move(layer)), norm_(std::move(norm)) {}

  Norm& norm() noexcept { return norm_; }
  const Norm& norm() const noexcept { return norm_; }

private:
  template <typename Memory, typename Inner>
  void around(tokens_in<scalar> x, tokens_out<scalar> y, Memory& m, const context_type& context, Inner inner) const {
    m.normalized.resize(x.rows(), x.cols());
    norm_.forward(x, m.normalized.map(), m.norm, context.executor);
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
    // A token that had no part in anything has gradient zero, and its numbers may be NaN: it is not read.
    detail::for_each_used_run(t.dnormalized, 0, dx.rows(), [&](index_t begin, index_t end) {
      norm_.backward(t.x.map().middleRows(begin, end - begin), t.dnormalized.map().middleRows(begin, end - begin),
                     t.norm, dx.middleRows(begin, end - begin), t.context.executor, begin);
    });
  }

  template <typename Storage, typename Inner>
  auto rebuilt(Inner inner) const {
    return normalized_layer<Inner, Norm>(std::move(inner), norm_);
  }

  index_t own_bytes(index_t tokens, bool training) const {
    return tokens * this->inputs() * static_cast<index_t>(sizeof(scalar)) * (training ? 3 : 1);
  }

  template <typename Self, typename Visitor>
  static void visit_own(Self& self, Visitor& visit) {
    if constexpr (HasParameters<Norm>) visit("norm", self.norm_);
  }

  Norm norm_;
};

}  // namespace sluice::inline SLUICE_ISA
