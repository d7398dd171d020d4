/// Clamped gated expert: the hidden units of GPT-OSS and of DeepSeek-V4.
///
///   a = gate x + b_gate,  b = up x + b_up;   a' = min(a, c),  b' = max(-c, min(b, c))
///   h = (b' + u) a' s,  s = sigmoid(alpha a');   y = W_down h + b_down
///   da = dh (b' + u) s (1 + alpha a' (1 - s)),  0 where a > c;   db = dh a' s,  0 where |b| > c
///
/// Everything else is gated_ffn's: shapes, parameters, storage. GPT-OSS has alpha = 1.702, c = 7, u = 1 and biases:
///   clamped_glu<float> expert(64, 128, {.bias = true});
/// With alpha = 1 and u = 0 it is SwiGLU but for the clamps (DeepSeek-V4, c = 10).
/// NaN passes the clamps and stays in its row. OpenAI 2025, arXiv:2508.10925.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/expert/gated_ffn.hpp>
#include <sluice/kernel/logistic.hpp>

#include <array>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
struct clamped_gating {
  using vector = kernel::simd<Scalar>;

  Scalar alpha = Scalar(1.702);
  Scalar limit = 7;
  Scalar up_offset = 1;  ///< u

  /// Throws std::invalid_argument if the numbers make no sense.
  void validate() const {
    if (is_nan(alpha) || is_nan(limit) || is_nan(up_offset) || !(limit > Scalar(0)))
      throw_invalid("a clamped gate needs numbers alpha and up_offset and a limit above 0, not ", alpha, ", ",
                    up_offset, " and ", limit);
  }

  vector value(const vector& a, const vector& b) const {
    const vector z = capped(a);
    return (clamped(b) + vector(up_offset)) * z * kernel::logistic(vector(alpha) * z);
  }

  std::array<vector, 2> gradients(const vector& a, const vector& b, const vector& dh) const {
    const vector one(Scalar(1)), zero(Scalar(0)), most(limit);
    const vector z = capped(a);
    const vector s = kernel::logistic(vector(alpha) * z);
    const vector da = dh * (clamped(b) + vector(up_offset)) * s * (one + vector(alpha) * z * (one - s));
    return {select(a > most, zero, da), select(fabs(b) > most, zero, dh * z * s)};
  }

private:
  // By comparison, which is false for NaN: compilers may swap the arguments of min and max, and then NaN would be cut
  // off.
  vector capped(const vector& a) const { return select(a > vector(limit), vector(limit), a); }
  vector clamped(const vector& b) const { return select(b < vector(-limit), vector(-limit), capped(b)); }
};

template <std::floating_point Scalar, MapStorage Storage = full_precision<Scalar>>
using clamped_glu = gated_ffn<Scalar, clamped_gating<Scalar>, Storage>;

static_assert(MadeOfLinearMaps<clamped_glu<float>> && DifferentiableExpert<clamped_glu<double>>);

}  // namespace sluice::inline SLUICE_ISA
