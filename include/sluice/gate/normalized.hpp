/// Normalized gate: an inner gate that reads normalised and scaled tokens.
///
///   logits = G(c norm(x)),  c a constant;   dn = c dG/dinput;  dx += norm's backward of dn
///
/// Gemma 4 has rms_norm with a learned gain and c = 1/sqrt(D) in front of a linear gate, while its experts read tokens
/// that are normalised in their own way (expert/normalized_bank.hpp). The norms are those of kernel/row_norm.hpp. NaN
/// stays in its row. T = 0 is fine.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/kernel/row_norm.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner, typename Norm>
class normalized_gate : public gate_decorator<Inner> {
  static_assert(explain_row_norm<Norm>());

public:
  using scalar = typename Inner::scalar;
  struct tape : decorated_tape<Inner> {
    typename Norm::tape norm;
    matrix_buffer<scalar> normalized;   ///< [T,D] what the inner gate reads
    matrix_buffer<scalar> dnormalized;  ///< [T,D]
  };

  /// Throws std::invalid_argument if the factor is 0 or not finite, or the norm is for rows of another width.
  normalized_gate(Inner inner, Norm norm, scalar factor = 1)
      : gate_decorator<Inner>(std::move(inner)), norm_(std::move(norm)), factor_(factor) {
    if (!is_finite(factor) || factor == scalar(0)) throw_invalid("normalized_gate cannot multiply tokens by ", factor);
    check_norm_width("normalized_gate", norm_, this->inputs());
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
    t.dnormalized.set_zero(x.rows(), x.cols());
    this->inner().backward(t.normalized.map(), context, dlogits, t.inner, t.dnormalized.map());
    if (factor_ != scalar(1)) t.dnormalized.map() *= factor_;
    norm_.backward(x, t.dnormalized.map(), t.norm, dx, context.executor);
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
