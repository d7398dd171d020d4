#include <sluice/kernel/block_storage.hpp>
#include <sluice/kernel/grouped_gemm.hpp>

#include "packed_product.hpp"
#include "support.hpp"

#include <vector>

using namespace sluice;
using namespace sluice::kernel;
using test::packed_matrix;
using test::packed_product;

namespace {

template <typename Scalar>
linear_map<full_precision<Scalar>> random_map(index_t outputs, index_t inputs, std::uint64_t seed) {
  linear_map<full_precision<Scalar>> w(outputs, inputs);
  w.weight().assign(test::random_matrix<Scalar>(outputs, inputs, seed));
  return w;
}

template <typename Scalar>
double difference(const matrix<Scalar>& got, const matrix<double>& expected) {
  return got.size() == 0 ? 0 : (got.template cast<double>() - expected).cwiseAbs().maxCoeff();
}

}  // namespace

TEMPLATE_TEST_CASE("multiply_panels: equals the product in double, for every shape of edge", "[kernel][gemm]", float,
                   double) {
  const index_t n = GENERATE(index_t(0), index_t(1), index_t(2), index_t(5), index_t(13), index_t(14), index_t(15),
                             index_t(29), index_t(300));
  const index_t inputs = GENERATE(index_t(1), index_t(15), index_t(16), index_t(33), index_t(512), index_t(1030));
  // 14 panels are 7 pairs: a low tile takes 4, 2 and 1. Two pairs meet the several chunks of 300 rows.
  const index_t seven_pairs = 13 * simd_width<TestType> + 1, two_pairs = 2 * simd_width<TestType> + 1;
  const index_t outputs = n == 300 ? two_pairs
                          : inputs > 100
                              ? 19
                              : GENERATE_COPY(index_t(1), index_t(16), index_t(17), index_t(40), seven_pairs);
  CAPTURE(n, inputs, outputs);
  const auto w = random_map<TestType>(outputs, inputs, 3);
  const matrix<TestType> x = test::random_matrix<TestType>(n, inputs, 4);
  const matrix<double> expected =
      x.template cast<double>() * w.weight().to_matrix().template cast<double>().transpose();
  CHECK(difference(packed_product(x, w), expected) <= static_cast<double>(test::bound<TestType>(inputs, 16)));
}

TEMPLATE_TEST_CASE("multiply_panels: a row has the same bits alone and among any others", "[kernel][gemm]", float,
                   double) {
  const auto w = random_map<TestType>(13 * simd_width<TestType> + 1, 700, 5);
  const matrix<TestType> x = test::random_matrix<TestType>(3 * tile_rows + 1, 700, 6);
  const matrix<TestType> all = packed_product(x, w);
  for (index_t n = 1; n <= x.rows(); ++n) CHECK(test::same_bits(packed_product(x.bottomRows(n), w), all.bottomRows(n)));
}

TEMPLATE_TEST_CASE("multiply_panels: sixteen-bit weights give what their float values give, bit for bit",
                   "[kernel][gemm]", bfloat16_storage, float16_storage) {
  const auto w = random_map<float>(13 * simd_width<float> + 1, 45, 7);
  const auto half = w.template stored_as<TestType>();
  const auto widened = half.template stored_as<full_precision<float>>();
  const matrix<float> x = test::random_matrix<float>(GENERATE(index_t(1), index_t(3), index_t(17)), 45, 8);
  CHECK(test::same_bits(packed_product(x, half), packed_product(x, widened)));
  const double most = w.weight().to_matrix().cwiseAbs().maxCoeff();
  const double unit = std::same_as<TestType, bfloat16_storage> ? 0x1p-8 : 0x1p-11;
  CHECK((half.weight().to_matrix() - w.weight().to_matrix()).cwiseAbs().maxCoeff() <= unit * most);
}

TEMPLATE_TEST_CASE("multiply_transposed: dx^T = W^T dy^T, added up over two maps", "[kernel][gemm]", float, double) {
  constexpr index_t lanes = simd_width<TestType>;
  const index_t n = GENERATE(index_t(1), index_t(16), index_t(39));
  const index_t outputs = GENERATE(index_t(1), index_t(17), index_t(300));
  const index_t inputs = GENERATE(index_t(3), index_t(64));
  const auto w1 = random_map<TestType>(outputs, inputs, 12);
  const auto w2 = random_map<TestType>(outputs, inputs, 13);
  const matrix<TestType> dy = test::random_matrix<TestType>(n, outputs, 14);
  const index_t groups = lane_rows<TestType>::groups(n);
  buffer<TestType> numbers(groups * lanes * outputs, TestType(0));
  const lane_rows<TestType> in_lanes{numbers.data(), outputs};
  for (index_t i = 0; i < n; ++i)
    for (index_t k = 0; k < outputs; ++k) in_lanes.group(i / lanes)[k * lanes + i % lanes] = dy(i, k);
  const index_t begin = inputs / 3;
  buffer<TestType> sums(groups * (inputs - begin) * lanes, TestType(99));
  multiply_transposed(w1, begin, inputs, in_lanes, 0, groups, sums.data(), false);
  multiply_transposed(w2, begin, inputs, in_lanes, 0, groups, sums.data(), true);
  matrix<TestType> got(n, inputs - begin);
  for (index_t i = 0; i < n; ++i)
    for (index_t c = 0; c < inputs - begin; ++c)
      got(i, c) = sums[(i / lanes * (inputs - begin) + c) * lanes + i % lanes];
  const matrix<double> both = (w1.weight().to_matrix() + w2.weight().to_matrix()).template cast<double>();
  const matrix<double> expected = dy.template cast<double>() * both.rightCols(inputs - begin);
  CHECK(difference(got, expected) <= static_cast<double>(test::bound<TestType>(2 * outputs, 32)));
}

TEMPLATE_TEST_CASE("add_weight_gradient: dW += dy^T x, for every number of rows", "[kernel][gemm]", float, double) {
  using storage = full_precision<TestType>;
  const index_t n = GENERATE(index_t(1), index_t(6), index_t(14), index_t(15), index_t(50));
  const index_t inputs = GENERATE(index_t(1), index_t(16), index_t(27), index_t(40));
  const index_t outputs = 40;
  const matrix<TestType> x = test::random_matrix<TestType>(n, inputs, 15),
                         dy = test::random_matrix<TestType>(n, outputs, 16);
  packed_matrix<storage> packed_x(x), packed_dy(dy);
  linear_map<storage> w(outputs, inputs);
  for (auto& g : w.weight().gradient()) g = 1;
  for (index_t p = 0; p < w.panels(); p += 2) {
    const index_t second = std::min(p + 1, w.panels() - 1);
    add_weight_gradient<TestType>(packed_x.rows, packed_x.view(), {packed_dy.view(), packed_dy.view()}, {p, second},
                                  {w.gradient_panel(p), second == p ? nullptr : w.gradient_panel(second)});
  }
  const matrix<double> expected =
      ((dy.template cast<double>().transpose() * x.template cast<double>()).array() + 1).matrix();
  CHECK(difference(w.weight().gradient_matrix(), expected) <= static_cast<double>(test::bound<TestType>(n, 16)));
}
