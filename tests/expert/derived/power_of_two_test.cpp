#include <sluice/expert/derived/power_of_two.hpp>

#include <sluice/layer/moe_layer.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>

#include "io/messages.hpp"
#include "layer/saved_layer.hpp"

using namespace sluice;

namespace {

matrix<double> first_matrix(const shift_bank<double>& bank, index_t e) {
  return bank.bank().written_out().expert(e).first_map(0).weight().to_matrix();
}

}  // namespace

TEST_CASE("fixed_point: rounds down and clips and leaves NaN", "[kernel][fixed_point]") {
  using small = fixed_point<4, 2>;  // quarters from -8 to 7
  for (const auto& [a, expected] : std::vector<std::pair<double, double>>{
           {0.3, 0.25}, {-0.3, -0.5}, {0.5, 0.5}, {9, 7}, {-9, -8}, {7.9, 7}, {1e300, 7}, {-1e300, -8}}) {
    CHECK(small::value(a) == expected);
    double lanes[kernel::simd_width<double>];
    kernel::store<double>(lanes, small::value(kernel::simd<double>(a)));
    for (const double lane : lanes) CHECK(lane == expected);
  }
  CHECK(is_nan(small::value(quiet_nan<double>())));
  double lanes[kernel::simd_width<double>];
  kernel::store<double>(lanes, small::value(kernel::simd<double>(quiet_nan<double>())));
  CHECK(is_nan(lanes[0]));
}

TEST_CASE("power_of_two: weights by hand", "[expert][derived][power_of_two]") {
  power_of_two_weights<double> weights(1, 4, 2);
  matrix<double> w(2, 4), expected(2, 4);
  w << .3, -.7, 1.1, .05, 0, 1e-9, -0.25, 3;
  weights.assign(0, 0, w);
  weights.assign(0, 1, matrix<double>(matrix<double>::Constant(4, 2, 0.5)));
  expected << .25, -.5, 1, .0625, 0, std::ldexp(1.0, -14), -.25, 1;  // exponents round(-1.74), .. clipped to [-14, 0]
  CHECK(test::same_bits(first_matrix(shift_bank<double>{weights}, 0), expected));
  // A sign of a half or less is zero; the exponent is rounded to even.
  weights.shift(0, 0).fill([](index_t i) { return -0.5 - double(i); });
  weights.sign(0, 0).fill([](index_t i) { return i == 0 ? 0.5 : i == 1 ? -0.51 : 2.0; });
  expected << 0, -.25, .25, .0625, .0625, std::ldexp(1.0, -6), std::ldexp(1.0, -6), std::ldexp(1.0, -8);
  CHECK(test::same_bits(first_matrix(shift_bank<double>{weights}, 0), expected));
  CHECK_THROWS_WITH((power_of_two_weights<double>(1, 4, 2, {.least_shift = 1})), test::contains("cannot be 1"));
}

TEST_CASE("power_of_two: experts of powers of two are the ordinary ones on fixed point - both ways",
          "[expert][derived][power_of_two][gradient]") {
  power_of_two_weights<double> weights(3, 5, 7);
  initialize(weights, 3);
  shift_bank<double> bank{weights};
  for (index_t e = 0; e < 3; ++e)
    for (const std::size_t which : {0U, 1U})
      bank.weights().bias(e, which).fill([](index_t i) { return 0.3 * double(i) - 1; });
  const auto run = [](auto& one, const matrix<double>& x, const matrix<double>& dy, const executor_ref& executor) {
    typename std::remove_cvref_t<decltype(one)>::tape tape;
    matrix<double> y(9, 5), dx(9, 5);
    zero_gradients(one);
    ensure_gradients(one);
    one.prepare(tape, 9, true);
    const std::vector<index_t> offsets{0, 4, 4, 9};
    one.forward(x, offsets, y, tape, executor);
    one.backward(x, offsets, dy, dx, tape, executor);
    return std::pair{y, dx};
  };
  const matrix<double> x = test::random_matrix<double>(9, 5, 4), dy = test::random_matrix<double>(9, 5, 5);
  const auto [y, dx] = run(bank, x, dy, {});
  const matrix<double> dshift = bank.weights().shift(0, 0).gradient_map(),
                       dsign = bank.weights().sign(0, 0).gradient_map();
  auto plain = bank.bank().written_out();  // its activation rounds as well
  const matrix<double> rounded = x.unaryExpr([](double v) { return fixed_point<>::value(v); });
  const auto [expected, dexpected] = run(plain, rounded, dy, {});
  CHECK(test::same_bits(y, expected));
  CHECK(test::same_bits(dx, dexpected));
  const matrix<double> dv = plain.expert(0).up().gradient_matrix(), v = plain.expert(0).up().to_matrix();
  CHECK(test::largest_difference(dsign, dv) <= test::bound<double>(2, 4.0));
  CHECK(test::largest_difference(dshift, matrix<double>(dv.cwiseProduct(v) * std::numbers::ln2)) <=
        test::bound<double>(2, 4.0));
  for (const int threads : {2, 3, 8}) {
    test::shuffled_threads pool(threads);
    const auto [z, dz] = run(bank, x, dy, pool);
    CHECK((test::same_bits(z, y) && test::same_bits(dz, dx)));
    CHECK(test::same_bits(matrix<double>(bank.weights().shift(0, 0).gradient_map()), dshift));
  }
  moe_layer layer{top_k_router<double>{5, 3, {.top_k = 2}}, bank};
  initialize(layer, 6);
  CHECK(test::file_keeps(layer, 7));
}
