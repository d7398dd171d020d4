#include <sluice/kernel/logistic.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
Scalar on_vector(Scalar z) {
  Scalar lanes[kernel::simd_width<Scalar>];
  kernel::store<Scalar>(lanes, kernel::logistic(kernel::simd<Scalar>(z)));
  return lanes[0];
}
template <typename Scalar>
Scalar softplus_on_vector(Scalar z) {
  Scalar lanes[kernel::simd_width<Scalar>];
  kernel::store<Scalar>(lanes, kernel::softplus(kernel::simd<Scalar>(z)));
  return lanes[0];
}

}  // namespace

TEMPLATE_TEST_CASE("logistic: numbers and vectors equal the definition", "[kernel][logistic]", float, double) {
  const double eps = static_cast<double>(std::numeric_limits<TestType>::epsilon());
  for (int i = -800; i <= 800; ++i) {
    const auto z = static_cast<TestType>(0.1 * i);
    const long double exact = 1 / (1 + std::exp(-static_cast<long double>(z)));
    CAPTURE(z);
    // exp of a rounded argument is exact to a few units in the last place; a sum and a quotient follow.
    CHECK(std::abs(static_cast<double>(kernel::logistic(z) - exact)) <= 8 * eps * static_cast<double>(exact));
    CHECK(std::abs(static_cast<double>(on_vector(z) - exact)) <= 8 * eps * static_cast<double>(exact));
    const double plus = std::log1p(std::exp(static_cast<double>(z)));
    CHECK(std::abs(static_cast<double>(kernel::softplus(z)) - plus) <= 8 * eps * std::max(plus, 1e-3));
    CHECK(std::abs(static_cast<double>(softplus_on_vector(z)) - plus) <=
          8 * eps * std::max(plus, static_cast<double>(std::numeric_limits<TestType>::min())));
  }
}

TEMPLATE_TEST_CASE("logistic: the far ends are 0 and 1, never NaN", "[kernel][logistic]", float, double) {
  const TestType huge = GENERATE(TestType(100), TestType(1000), TestType(1e30), std::numeric_limits<TestType>::max());
  CHECK(kernel::logistic(huge) == TestType(1));
  CHECK(on_vector(huge) == TestType(1));
  // exp(-100) = 3.7e-44, a denormal float, which some flags flush and others compare as 0.
  const TestType nothing = std::max(TestType(1e-43), std::numeric_limits<TestType>::min());
  CHECK(kernel::logistic(-huge) <= nothing);
  CHECK(on_vector(-huge) <= nothing);
  CHECK(kernel::softplus(huge) == huge);
  CHECK(kernel::softplus(-huge) <= nothing);
  CHECK(softplus_on_vector(huge) == huge);
  CHECK(softplus_on_vector(-huge) <= nothing);
}

TEMPLATE_TEST_CASE("logistic: NaN stays NaN, infinities have limits", "[kernel][logistic]", float, double) {
  const TestType infinity = std::numeric_limits<TestType>::infinity();
  CHECK(is_nan(kernel::logistic(quiet_nan<TestType>())));
  CHECK(is_nan(on_vector(quiet_nan<TestType>())));
  CHECK(is_nan(softplus_on_vector(quiet_nan<TestType>())));
#ifndef __FAST_MATH__  // which promises the compiler that there are no infinities
  CHECK(kernel::logistic(infinity) == TestType(1));
  CHECK(kernel::logistic(-infinity) == TestType(0));
  CHECK(on_vector(infinity) == TestType(1));
  CHECK(on_vector(-infinity) == TestType(0));
#endif
}
