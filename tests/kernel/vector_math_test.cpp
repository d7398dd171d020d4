#include <sluice/kernel/vector_math.hpp>

#include "../guarded.hpp"
#include "../support.hpp"

using namespace sluice;
using test::guard;
using test::guarded_array;

namespace {

template <typename Scalar>
void fill(guarded_array<Scalar>& array, std::uint64_t seed) {
  const matrix<Scalar> numbers = test::random_matrix<Scalar>(1, array.size(), seed);
  std::copy_n(numbers.data(), array.size(), array.data());
}

}  // namespace

TEMPLATE_TEST_CASE("dot: every length equals the naive sum, beside forbidden memory", "[kernel][vector]", float,
                   double) {
  for (index_t n = 0; n <= 150; ++n)
    for (const guard where : {guard::before, guard::behind}) {
      guarded_array<TestType> a(n, where), b(n, where);
      fill(a, 1);
      fill(b, 2);
      long double sum = 0, size = 0;
      for (index_t i = 0; i < n; ++i) {
        const long double product = static_cast<long double>(a.data()[i]) * static_cast<long double>(b.data()[i]);
        sum += product, size += std::abs(product);
      }
      const auto unit =
          static_cast<long double>(2 * (n + 1)) * static_cast<long double>(std::numeric_limits<TestType>::epsilon());
      CAPTURE(n);
      CHECK(std::abs(static_cast<long double>(kernel::dot(a.data(), b.data(), n)) - sum) <= unit * size);
    }
}

TEMPLATE_TEST_CASE("dot: the bits do not depend on alignment", "[kernel][vector][determinism]", float, double) {
  std::vector<TestType> a(200), b(200);
  const matrix<TestType> x = test::random_matrix<TestType>(2, 100, 3);
  TestType first = 0;
  for (std::size_t shift = 0; shift < 32; ++shift) {
    std::copy_n(&x(0, 0), 100, a.data() + shift);
    std::copy_n(&x(1, 0), 100, b.data() + (31 - shift));
    const TestType sum = kernel::dot<TestType>(a.data() + shift, b.data() + (31 - shift), 100);
    if (shift == 0) first = sum;
    CHECK(std::memcmp(&sum, &first, sizeof sum) == 0);
  }
}

TEMPLATE_TEST_CASE("add_scaled, copy_scaled: every length, beside forbidden memory", "[kernel][vector]", float,
                   double) {
  const TestType eps = std::numeric_limits<TestType>::epsilon();
  for (index_t n = 0; n <= 70; ++n)
    for (const guard where : {guard::before, guard::behind}) {
      guarded_array<TestType> x(n, where), y(n, where), z(n, where), copy(n, where);
      fill(x, 4);
      fill(y, 5);
      fill(z, 5);
      const TestType alpha = TestType(-1.25);
      kernel::add_scaled(alpha, x.data(), y.data(), n);
      kernel::copy_scaled(alpha, x.data(), copy.data(), n);
      bool right = true;
      for (index_t i = 0; i < n; ++i) {
        const TestType size = std::abs(alpha * x.data()[i]) + std::abs(z.data()[i]);
        right &= std::abs(y.data()[i] - (z.data()[i] + alpha * x.data()[i])) <= 2 * eps * size;
        right &= copy.data()[i] == alpha * x.data()[i];
      }
      CAPTURE(n);
      CHECK(right);
    }
}

TEMPLATE_TEST_CASE("copy_scaled: with factor 1 the bits are copied, NaN included", "[kernel][vector]", float, double) {
  const TestType nan = std::numeric_limits<TestType>::signaling_NaN();
  const std::vector<TestType> x{1, nan, -0.0, std::numeric_limits<TestType>::denorm_min()};
  std::vector<TestType> y(4);
  kernel::copy_scaled(TestType(1), x.data(), y.data(), 4);
  CHECK(std::memcmp(x.data(), y.data(), 4 * sizeof(TestType)) == 0);
}

TEMPLATE_TEST_CASE("transform: functions of vectors and of single numbers give the same", "[kernel][vector]", float,
                   double) {
  for (index_t n = 0; n <= 40; ++n) {
    guarded_array<TestType> x(n, guard::behind), y(n, guard::behind), out(n, guard::behind),
        scalar_out(n, guard::behind);
    fill(x, 6);
    fill(y, 7);
    int calls = 0;
    kernel::transform(
        n, [](auto a, auto b) { return a * b; }, out.data(), x.data(), y.data());
    kernel::transform(
        n, [&](TestType a, TestType b) { return ++calls, a * b; }, scalar_out.data(), x.data(), y.data());
    CHECK(calls == n);
    for (index_t i = 0; i < n; ++i) CHECK(out.data()[i] == scalar_out.data()[i]);
  }
}

TEMPLATE_TEST_CASE("transform: equal numbers have equal results wherever they stand", "[kernel][vector][ties]", float,
                   double) {
  for (index_t n = 1; n <= 40; ++n) {
    guarded_array<TestType> x(n, guard::behind), out(n, guard::behind);
    for (index_t i = 0; i < n; ++i) x.data()[i] = TestType(-1.37);
    kernel::transform(
        n,
        [](const auto& v) {
          using std::exp;
          return exp(v);
        },
        out.data(), static_cast<const TestType*>(x.data()));
    for (index_t i = 0; i < n; ++i) CHECK(out.data()[i] == out.data()[0]);
  }
}

TEST_CASE("simd: the lanes' sum", "[kernel][vector]") {
  std::vector<double> lanes(static_cast<std::size_t>(kernel::simd_width<double>));
  double sum = 0;
  for (std::size_t i = 0; i < lanes.size(); ++i) sum += lanes[i] = static_cast<double>(1 << i);
  CHECK(kernel::sum_lanes<double>(kernel::load(lanes.data())) == sum);
}

TEMPLATE_TEST_CASE("add_weighted: adds to so many lanes and no more, and nothing with weight 0", "[kernel]", float,
                   double) {
  constexpr index_t width = kernel::simd_width<TestType>;
  const kernel::simd<TestType> three(TestType(3));
  for (index_t count = 0; count <= width + 1; ++count) {
    std::vector<TestType> out(static_cast<std::size_t>(width + 1), TestType(1));
    kernel::add_weighted(TestType(2), three, count, out.data());
    for (index_t i = 0; i <= width; ++i)
      CHECK(out[static_cast<std::size_t>(i)] == (i < std::min(count, width) ? TestType(7) : TestType(1)));
    kernel::add_weighted(TestType(0), kernel::simd<TestType>(std::numeric_limits<TestType>::infinity()), count, out.data());
    CHECK(out[0] == (count > 0 ? TestType(7) : TestType(1)));
  }
}
