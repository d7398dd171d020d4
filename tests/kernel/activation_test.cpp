#include <sluice/kernel/activation.hpp>

#include <sluice/core/numeric.hpp>
#include <sluice/kernel/vector_math.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

template <typename Phi, typename Scalar>
Scalar on_vector(Scalar z, bool derivative) {
  std::vector<Scalar> in(static_cast<std::size_t>(kernel::simd_width<Scalar>), z), out(in.size());
  if (derivative)
    kernel::transform(
        kernel::simd_width<Scalar>, [](auto v) { return Phi::derivative(v); }, out.data(), in.data());
  else
    kernel::transform(
        kernel::simd_width<Scalar>, [](auto v) { return Phi::value(v); }, out.data(), in.data());
  return out[0];
}

/// Values at a few points, the derivative against central differences, and vectors against single numbers.
template <typename Phi, typename Scalar, typename Exact>
void check(Exact exact, bool smooth_at_zero) {
  const double eps = static_cast<double>(std::numeric_limits<Scalar>::epsilon());
  for (int i = -400; i <= 400; ++i) {
    const double z = 0.025 * i;
    const auto s = static_cast<Scalar>(z);
    const double value = exact(static_cast<double>(s));
    CAPTURE(z);
    // A dozen operations and the library's exp, erf or tanh (a few units in the last place) on numbers of size |z| + 1.
    const double bound = 32 * eps * (std::abs(z) + 1);
    CHECK(std::abs(static_cast<double>(Phi::value(s)) - value) <= bound);
    CHECK(std::abs(static_cast<double>(on_vector<Phi, Scalar>(s, false)) - value) <= bound);
    if (i == 0 && !smooth_at_zero) continue;
    const double h = 1e-5;
    const double slope = (exact(static_cast<double>(s) + h) - exact(static_cast<double>(s) - h)) / (2 * h);
    // Central differences of functions whose third derivative is below 2: h^2 / 3 and rounding 1e-16 / h.
    const double difference_error = 1e-10 + 2e-16 * (std::abs(z) + 1) / h;
    CHECK(std::abs(static_cast<double>(Phi::derivative(s)) - slope) <= 4 * bound + difference_error);
    CHECK(std::abs(static_cast<double>(on_vector<Phi, Scalar>(s, true)) - slope) <= 4 * bound + difference_error);
  }
}

}  // namespace

TEMPLATE_TEST_CASE("activations: values and derivatives, one by one and on vectors", "[expert][activation][gradient]",
                   float, double) {
  check<relu, TestType>([](double z) { return z > 0 ? z : 0; }, false);
  check<sigmoid, TestType>([](double z) { return 1 / (1 + std::exp(-z)); }, true);
  check<silu, TestType>([](double z) { return z / (1 + std::exp(-z)); }, true);
  check<gelu, TestType>([](double z) { return z * 0.5 * std::erfc(-z / std::sqrt(2.0)); }, true);
  check<gelu_tanh, TestType>(
      [](double z) { return 0.5 * z * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (z + 0.044715 * z * z * z))); },
      true);
  check<elu, TestType>([](double z) { return z < 0 ? std::expm1(z) : z; },
                       false);  // bent once more: its second slope jumps
  check<hyperbolic_tangent, TestType>([](double z) { return std::tanh(z); }, true);
  check<no_activation, TestType>([](double z) { return z; }, true);
}

TEMPLATE_TEST_CASE("activations: known numbers", "[expert][activation]", float, double) {
  const double eps = 16 * static_cast<double>(std::numeric_limits<TestType>::epsilon());
  CHECK(static_cast<double>(silu::value(TestType(1))) == Approx(0.7310585786300049).epsilon(eps));
  CHECK(static_cast<double>(gelu::value(TestType(1))) == Approx(0.8413447460685429).epsilon(eps));
  CHECK(static_cast<double>(gelu_tanh::value(TestType(1))) == Approx(0.8411919906082768).epsilon(eps));
  CHECK(sigmoid::value(TestType(0)) == TestType(0.5));
  CHECK((cube::value(TestType(-2)) == -8 && cube::derivative(TestType(-2)) == 12));
  CHECK(relu::value(TestType(-2)) == 0);
  CHECK((squared_relu::value(TestType(3)) == 9 && squared_relu::derivative(TestType(3)) == 6));
  CHECK((squared_relu::value(TestType(-3)) == 0 && squared_relu::derivative(TestType(-3)) == 0));
  for (const TestType z : {TestType(-3), TestType(0), TestType(3)})
    for (const bool derivative : {false, true})
      CHECK(on_vector<squared_relu, TestType>(z, derivative) ==
            (derivative ? squared_relu::derivative(z) : squared_relu::value(z)));
  for (const auto& [z, value, slope] :
       {std::array<TestType, 3>{-2, -1, 0}, {-1, -1, 1}, {0.25, 0.25, 1}, {1, 1, 1}, {3, 1, 0}}) {
    CHECK((hard_tanh::value(z) == value && on_vector<hard_tanh, TestType>(z, false) == value));
    CHECK((hard_tanh::derivative(z) == slope && on_vector<hard_tanh, TestType>(z, true) == slope));
  }
  CHECK(relu::derivative(TestType(0)) == 0);  // the derivative at the bend is 0 by convention
}

TEMPLATE_TEST_CASE("activations: NaN stays NaN, one by one and on vectors", "[expert][activation]", float, double) {
  const TestType nan = quiet_nan<TestType>();
  const auto passes_on = [&]<typename Phi>(Phi) {
    CHECK(is_nan(Phi::value(nan)));
    CHECK(is_nan(on_vector<Phi, TestType>(nan, false)));
  };
  passes_on(relu{});
  passes_on(sigmoid{});
  passes_on(silu{});
  passes_on(gelu{});
  passes_on(gelu_tanh{});
  passes_on(squared_relu{});
  passes_on(elu{});
  passes_on(hyperbolic_tangent{});
  passes_on(hard_tanh{});
  passes_on(no_activation{});
}

TEMPLATE_TEST_CASE("activations: far out they are the identity or zero, not NaN", "[expert][activation]", float,
                   double) {
  for (const TestType far : {TestType(100), TestType(1e4)}) {
    CHECK(silu::value(far) == far);
    CHECK(gelu::value(far) == far);
    CHECK(gelu_tanh::value(far) == far);
    CHECK(on_vector<gelu_tanh, TestType>(far, false) == far);
    CHECK((on_vector<hyperbolic_tangent, TestType>(far, false) == 1 &&
           on_vector<hyperbolic_tangent, TestType>(-far, false) == -1));
    CHECK(on_vector<hyperbolic_tangent, TestType>(far, true) == 0);
    CHECK(sigmoid::value(far) == 1);
    CHECK(std::abs(silu::value(-far)) < TestType(1e-30));
    CHECK(std::abs(gelu::value(-far)) < TestType(1e-30));
    CHECK(std::abs(gelu_tanh::value(-far)) < TestType(1e-30));
    CHECK(std::abs(gelu::derivative(-far)) < TestType(1e-30));
    CHECK(std::abs(silu::derivative(far) - 1) < TestType(1e-6));
  }
}
