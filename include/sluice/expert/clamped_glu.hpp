/// Clamped gated expert: the hidden units of GPT-OSS.
///
///   a = gate x + b_gate,  b = up x + b_up;   a' = min(a, c),  b' = max(-c, min(b, c))
///   h = (b' + 1) a' s,  s = sigmoid(alpha a');   y = W_down h + b_down
///   da = dh (b' + 1) s (1 + alpha a' (1 - s)),  0 where a > c;   db = dh a' s,  0 where |b| > c
///
/// Everything else is gated_ffn's: shapes, parameters, storage. GPT-OSS has alpha = 1.702, c = 7 and biases:
///   clamped_glu<float> expert(64, 128, {.bias = true});
/// NaN passes the clamps and stays in its row. OpenAI 2025, arXiv:2508.10925.
#pragma once

#include <sluice/expert/gated_ffn.hpp>
#include <sluice/kernel/logistic.hpp>

#include <array>

namespace sluice::inline SLUICE_ISA {

template <std::floating_point Scalar>
struct clamped_gating {
  using vector = kernel::simd<Scalar>;

  Scalar alpha = Scalar(1.702);
  Scalar limit = 7;

  vector value(const vector& a, const vector& b) const {
    const vector z = capped(a);
    return (clamped(b) + vector(Scalar(1))) * z * kernel::logistic(vector(alpha) * z);
  }

  std::array<vector, 2> gradients(const vector& a, const vector& b, const vector& dh) const {
    const vector one(Scalar(1)), zero(Scalar(0)), most(limit);
    const vector z = capped(a);
    const vector s = kernel::logistic(vector(alpha) * z);
    const vector da = dh * (clamped(b) + one) * s * (one + vector(alpha) * z * (one - s));
    return {select(a > most, zero, da), select(abs(b) > most, zero, dh * z * s)};
  }

private:
  // In this order of arguments the vector instructions pass NaN on.
  vector capped(const vector& a) const { return min(vector(limit), a); }
  vector clamped(const vector& b) const { return max(vector(-limit), min(vector(limit), b)); }
};

template <std::floating_point Scalar, WeightStorage Storage = full_precision<Scalar>>
using clamped_glu = gated_ffn<Scalar, clamped_gating<Scalar>, Storage>;

static_assert(MadeOfLinearMaps<clamped_glu<float>> && DifferentiableExpert<clamped_glu<double>>);

}  // namespace sluice::inline SLUICE_ISA
