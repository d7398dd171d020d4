#include <sluice/expert/clamped_glu.hpp>

#include <sluice/core/numeric.hpp>
#include <sluice/train/conformance.hpp>
#include <sluice/train/initialize.hpp>

#include "../io/messages.hpp"
#include "../support.hpp"

using namespace sluice;

namespace {

/// One hidden unit as the definition has it.
long double unit(long double a, long double b, long double alpha, long double limit) {
  a = std::min(a, limit);
  b = std::clamp(b, -limit, limit);
  return (b + 1) * a / (1 + std::exp(-alpha * a));
}

template <typename Scalar>
clamped_glu<Scalar> random_expert(index_t inputs, index_t hidden, Scalar limit) {
  clamped_glu<Scalar> expert(inputs, hidden, {.bias = true, .gating = {.limit = limit}});
  initialize(expert, 3);
  for (auto* const bias : {&expert.gate_bias(), &expert.up_bias(), &expert.down_bias()})
    bias->fill([](index_t i) { return Scalar(0.3) * static_cast<Scalar>(i % 5 - 2); });
  return expert;
}

}  // namespace

TEMPLATE_TEST_CASE("clamped_glu: equals plain loops in long double, some units clamped", "[expert][clamped_glu]", float,
                   double) {
  using scalar = TestType;
  const index_t n = 9, D = 7, H = 19;
  const scalar limit = scalar(0.75);  // near the spread of the units, so that every clamp is met
  auto expert = random_expert<scalar>(D, H, limit);
  const matrix<scalar> x = test::random_matrix<scalar>(n, D, 4);
  matrix<scalar> y(n, D), saved(n, expert.saved_columns());
  expert.forward(x, y, saved);

  const matrix<scalar> gate = expert.gate().to_matrix(), up = expert.up().to_matrix(), down = expert.down().to_matrix();
  int clamped[3] = {0, 0, 0};
  for (index_t t = 0; t < n; ++t) {
    std::vector<long double> h;
    for (index_t j = 0; j < H; ++j) {
      long double a = expert.gate_bias().data()[j], b = expert.up_bias().data()[j];
      for (index_t d = 0; d < D; ++d) {
        a += static_cast<long double>(x(t, d)) * gate(j, d);
        b += static_cast<long double>(x(t, d)) * up(j, d);
      }
      clamped[0] += a > limit, clamped[1] += b > limit, clamped[2] += b < -limit;
      h.push_back(unit(a, b, 1.702L, limit));
    }
    for (index_t o = 0; o < D; ++o) {
      long double expected = expert.down_bias().data()[o];
      for (index_t j = 0; j < H; ++j) expected += h[static_cast<std::size_t>(j)] * down(o, j);
      // Dot products of length D inside one of length H; units are below 2, weights below 4.
      CHECK(std::abs(static_cast<long double>(y(t, o)) - expected) <= test::bound<scalar>(D + H, 8));
    }
  }
  for (const int count : clamped) CHECK(count > 0);
}

TEST_CASE("clamped_glu: gradients and every promise of an expert", "[expert][clamped_glu][gradient]") {
  for (const double limit : {7.0, 0.75}) {
    const auto report = check_expert(random_expert<double>(5, 17, limit));
    INFO(report.describe());
    CHECK(report.passed());
  }
}

TEST_CASE("clamped_glu: with alpha 1 and no offset it is SwiGLU inside the limits", "[expert][clamped_glu][gradient]") {
  const clamped_glu<double>::options deepseek{.gating = {.alpha = 1, .limit = 10, .up_offset = 0}};
  clamped_glu<double> clamped(6, 9, deepseek);
  swiglu<double> usual(6, 9);
  initialize(clamped, 5);
  initialize(usual, 5);
  const matrix<double> x = test::random_matrix<double>(8, 6, 6);
  matrix<double> a(8, 6), b(8, 6), saved_a(8, clamped.saved_columns()), saved_b(8, usual.saved_columns());
  clamped.forward(x, a, saved_a);
  usual.forward(x, b, saved_b);
  CHECK((a - b).cwiseAbs().maxCoeff() <= test::bound<double>(6 + 9, 8));
  const auto report = check_expert(clamped_glu<double>(5, 17, {.gating = {.alpha = 1, .limit = 0.75, .up_offset = 0}}));
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("clamped_glu: a clamped unit passes no gradient to what clamps it", "[expert][clamped_glu][gradient]") {
  const clamped_gating<double> gating{.alpha = 1.702, .limit = 2};
  const auto lane = [](const kernel::simd<double>& v) {
    double lanes[kernel::simd_width<double>];
    kernel::store<double>(lanes, v);
    return lanes[0];
  };
  const auto gradients = [&](double a, double b) {
    const auto [da, db] = gating.gradients(kernel::simd<double>(a), kernel::simd<double>(b), kernel::simd<double>(1.0));
    return std::pair(lane(da), lane(db));
  };
  CHECK(gradients(2.5, 1).first == 0);  // a is clamped from above ...
  CHECK(gradients(-9, 1).first != 0);   // ... never from below
  CHECK(gradients(1, 2.5).second == 0);
  CHECK(gradients(1, -2.5).second == 0);
  CHECK(gradients(2, 2).first != 0);  // at the limit itself it passes, as in the published code
  CHECK(gradients(2, -2).second != 0);
  CHECK(lane(gating.value(kernel::simd<double>(50.0), kernel::simd<double>(-50.0))) ==
        lane(gating.value(kernel::simd<double>(2.0), kernel::simd<double>(-2.0))));
}

TEMPLATE_TEST_CASE("clamped_glu: NaN passes the clamps", "[expert][clamped_glu][nan]", float, double) {
  auto expert = random_expert<TestType>(5, 8, 7);
  matrix<TestType> x = test::random_matrix<TestType>(3, 5, 1), y(3, 5), saved(3, expert.saved_columns());
  x(1, 2) = quiet_nan<TestType>();
  expert.forward(x, y, saved);
  for (index_t t = 0; t < 3; ++t)
    for (index_t o = 0; o < 5; ++o) CHECK(is_nan(y(t, o)) == (t == 1));
}

TEST_CASE("clamped_glu: another storage keeps the limit", "[expert][clamped_glu]") {
  auto expert = random_expert<float>(5, 8, 0.5f);
  for (auto* const p : {&expert.gate(), &expert.up(), &expert.down()}) {
    matrix<float> m = p->to_matrix();
    for (index_t i = 0; i < m.size(); ++i) m.data()[i] = to_float(to_element<bfloat16>(m.data()[i]));
    p->assign(m);
  }
  const auto small = expert.stored_as<bfloat16_storage>();
  const matrix<float> x = test::random_matrix<float>(6, 5, 2);
  matrix<float> y(6, 5), z(6, 5), saved(6, expert.saved_columns());
  expert.forward(x, y, saved);
  small.forward(x, z, saved);
  CHECK(test::same_bits(y, z));
}

TEST_CASE("clamped_glu: limits that make no sense are refused", "[expert][clamped_glu]") {
  CHECK_THROWS_WITH((clamped_glu<float>(5, 8, {.gating = {.limit = -1}})), test::contains("-1"));
  CHECK_THROWS_AS((clamped_glu<float>(5, 8, {.gating = {.limit = 0}})), std::invalid_argument);
  CHECK_THROWS_AS((clamped_glu<double>(5, 8, {.gating = {.alpha = quiet_nan<double>()}})), std::invalid_argument);
}
