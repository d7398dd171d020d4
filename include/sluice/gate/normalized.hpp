/// Normalized gate: an inner gate that reads normalised and scaled tokens.
///
///   logits = G(c norm(x)),  c a constant;   dn = c dG/dinput;  dx += norm's backward of dn
///
/// Gemma 4 has rms_norm with a learned gain and c = 1/sqrt(D) in front of a linear gate, while its experts read tokens
/// that are normalised in their own way (expert/normalized_bank.hpp). The norms are those of kernel/row_norm.hpp. NaN
/// stays in its row; tokens without a gradient add nothing, whatever they hold. T = 0 is fine.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/kernel/row_norm.hpp>
#include <sluice/kernel/soft_dispatch.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <DifferentiableGate Inner, RowNorm Norm>
class normalized_gate : public gate_decorator<Inner> {
public:
  using scalar = typename Inner::scalar;
  struct tape : decorated_tape<Inner> {
    typename Norm::tape norm;
    matrix_buffer<scalar> normalized;   ///< [T,D] what the inner gate reads
    matrix_buffer<scalar> kept;         ///< [T,D] the same for backward, without tokens that have no gradient
    matrix_buffer<scalar> dnormalized;  ///< [T,D]
    matrix_buffer<scalar> dlogits;      ///< [T,E]
  };

  /// Throws std::invalid_argument if the factor is no number or 0.
  normalized_gate(Inner inner, Norm norm, scalar factor = 1)
      : gate_decorator<Inner>(std::move(inner)), norm_(std::move(norm)), factor_(factor) {
    if (is_nan(factor) || factor == scalar(0))
      throw_invalid("normalized_gate cannot multiply tokens by ", factor);
  }

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    t.normalized.resize(x.rows(), x.cols());
    norm_.forward(x, t.normalized.map(), t.norm, context.executor);
    if (factor_ != scalar(1)) t.normalized.map() *= factor_;
    this->inner().forward(t.normalized.map(), context, logits, t.inner);
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    t.dlogits.resize(x.rows(), this->experts());
    t.dlogits.map() = dlogits;
    t.dnormalized.resize(x.rows(), x.cols());
    t.dnormalized.map().setZero();
    // What has no gradient is hidden from sums over tokens: it may be NaN.
    t.kept.resize(x.rows(), x.cols());
    t.kept.map().setZero();
    detail::for_each_used_run(t.dlogits, 0, x.rows(), [&](index_t begin, index_t end) {
      t.kept.map().middleRows(begin, end - begin) = t.normalized.map().middleRows(begin, end - begin);
    });
    this->inner().backward(t.kept.map(), context, t.dlogits.map(), t.inner, t.dnormalized.map());
    if (factor_ != scalar(1)) t.dnormalized.map() *= factor_;
    detail::for_each_used_run(t.dlogits, 0, x.rows(), [&](index_t begin, index_t end) {
      const index_t count = end - begin;
      norm_.backward(x.middleRows(begin, count), t.dnormalized.map().middleRows(begin, count), t.norm,
                     dx.middleRows(begin, count), context.executor, begin);
    });
  }

  Norm& norm() noexcept { return norm_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    gate_decorator<Inner>::visit_parameters(self, visit);
    if constexpr (HasParameters<Norm>) visit("norm", self.norm_);
  }

private:
  Norm norm_;
  scalar factor_;
};

static_assert(DifferentiableGate<normalized_gate<linear_gate<float>, rms_norm<float>>>);

}  // namespace sluice::inline SLUICE_ISA
