/// Row operations that every sum in sluice is made of: dot, squared difference, axpy, scaled copy.
///
/// The order of additions depends on the length only, never on alignment or on the thread count, so equal inputs give
/// equal bits. Nothing is read or written past count.
#pragma once

#include <sluice/kernel/simd.hpp>

#include <algorithm>
#include <concepts>
#include <type_traits>

namespace sluice::inline SLUICE_ISA::kernel {

namespace detail {

/// Sum over i of a[i] * of(b[i]); `of` takes a vector or a number.
template <typename Scalar, typename Of>
Scalar dot_with(const Scalar* a, const Scalar* b, index_t count, const Of& of) noexcept {
  constexpr index_t width = simd_width<Scalar>;
  simd<Scalar> sum0(Scalar(0));
  simd<Scalar> sum1(Scalar(0));
  index_t i = 0;
  for (; i + 2 * width <= count; i += 2 * width) {
    sum0 = multiply_add<Scalar>(load(a + i), of(load(b + i)), sum0);
    sum1 = multiply_add<Scalar>(load(a + i + width), of(load(b + i + width)), sum1);
  }
  for (; i + width <= count; i += width) sum0 = multiply_add<Scalar>(load(a + i), of(load(b + i)), sum0);
  Scalar sum = sum_lanes<Scalar>(sum0 + sum1);
  for (; i < count; ++i) sum += a[i] * of(b[i]);
  return sum;
}

}  // namespace detail

/// Sum over i of a[i] * b[i].
template <typename Scalar>
Scalar dot(const Scalar* a, const Scalar* b, index_t count) noexcept {
  return detail::dot_with(a, b, count, [](const auto& v) { return v; });
}

/// Sum over i of a[i] * (factor * b[i]): the dot product with what copy_scaled makes of b, bit for bit.
template <typename Scalar>
Scalar dot_scaled(const Scalar* a, Scalar factor, const Scalar* b, index_t count) noexcept {
  return detail::dot_with(a, b, count, [factor, factors = simd<Scalar>(factor)](const auto& v) {
    if constexpr (std::same_as<std::remove_cvref_t<decltype(v)>, Scalar>)
      return factor * v;
    else
      return factors * v;
  });
}

/// Sum over i of (a[i] - b[i])^2.
template <typename Scalar>
Scalar squared_difference(const Scalar* a, const Scalar* b, index_t count) noexcept {
  constexpr index_t width = simd_width<Scalar>;
  simd<Scalar> sums(Scalar(0));
  index_t i = 0;
  for (; i + width <= count; i += width) {
    const simd<Scalar> difference = load(a + i) - load(b + i);
    sums = multiply_add<Scalar>(difference, difference, sums);
  }
  Scalar sum = sum_lanes<Scalar>(sums);
  for (; i < count; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

/// y[i] += alpha * x[i].
template <typename Scalar>
void add_scaled(Scalar alpha, const Scalar* x, Scalar* y, index_t count) noexcept {
  constexpr index_t width = simd_width<Scalar>;
  const simd<Scalar> factor(alpha);
  index_t i = 0;
  for (; i + width <= count; i += width) store(y + i, multiply_add<Scalar>(factor, load(x + i), load(y + i)));
  for (; i < count; ++i) y[i] += alpha * x[i];
}

/// y[i] = alpha * x[i]. With alpha 1 the bits are copied.
template <typename Scalar>
void copy_scaled(Scalar alpha, const Scalar* x, Scalar* y, index_t count) noexcept {
  if (alpha == Scalar(1)) {
    std::copy_n(x, count, y);
    return;
  }
  constexpr index_t width = simd_width<Scalar>;
  const simd<Scalar> factor(alpha);
  index_t i = 0;
  for (; i + width <= count; i += width) store(y + i, factor * load(x + i));
  for (; i < count; ++i) y[i] = alpha * x[i];
}

/// f(vector or number) applied to every element: out[i] = f(in[i]...). f takes simd<Scalar>, and then the last elements
/// go through a vector too: equal numbers have equal results wherever they stand, as routers need for ties. If it takes
/// only Scalar, the loop is left to the compiler. A generic lambda that may not fit vectors names its return type, so
/// that this can be seen without compiling its body.
template <typename Scalar, typename F, typename... Inputs>
void transform(index_t count, F&& f, Scalar* out, const Inputs*... in) {
  if constexpr (requires(simd<Scalar> v) {
                  { f((static_cast<void>(in), v)...) } -> std::convertible_to<simd<Scalar>>;
                }) {
    constexpr index_t width = simd_width<Scalar>;
    index_t i = 0;
    for (; i + width <= count; i += width) store<Scalar>(out + i, f(load(in + i)...));
    if (i < count) store_part<Scalar>(out + i, f(load_part(in + i, count - i, Scalar(0))...), count - i);
  } else {
    for (index_t i = 0; i < count; ++i) out[i] = f(in[i]...);
  }
}

}  // namespace sluice::inline SLUICE_ISA::kernel
