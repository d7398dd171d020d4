#include <sluice/kernel/block_storage.hpp>
#include <sluice/kernel/linear_map.hpp>

#include "packed_product.hpp"
#include "support.hpp"

#include <cmath>
#include <limits>
#include <vector>

using namespace sluice;
using namespace sluice::kernel;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

template <typename Storage>
constexpr float most_code = std::same_as<Storage, int8_blocks> ? 127 : 7;

template <typename Storage>
linear_map<Storage> encoded(const matrix<float>& w) {
  linear_map<Storage> map(w.rows(), w.cols());
  map.weight().assign(w);
  return map;
}

/// Weights of very unlike blocks: every block of 32 inputs of every output has a size of its own.
matrix<float> uneven_weights(index_t outputs, index_t inputs, std::uint64_t seed) {
  matrix<float> w = test::random_matrix<float>(outputs, inputs, seed);
  for (index_t o = 0; o < outputs; ++o)
    for (index_t i = 0; i < inputs; ++i) w(o, i) *= std::exp2(static_cast<float>((o + i / 32 * 3) % 7 - 3));
  return w;
}

bool is_a_number(float v) { return !is_nan(v) && std::abs(v) < infinity; }

/// The largest absolute weight of the block that element (o, i) is in.
float largest_around(const matrix<float>& w, index_t o, index_t i) {
  const index_t first = i / 32 * 32;
  return w.row(o).segment(first, std::min<index_t>(32, w.cols() - first)).cwiseAbs().maxCoeff();
}

}  // namespace

TEMPLATE_TEST_CASE("block storages: a weight is off by half a step of its block's scale at most", "[kernel][storage]",
                   int8_blocks, int4_blocks) {
  for (const index_t inputs : {1, 31, 32, 33, 100}) {
    const matrix<float> w = uneven_weights(19, inputs, 1);
    const matrix<float> decoded = encoded<TestType>(w).weight().to_matrix();
    for (index_t o = 0; o < w.rows(); ++o)
      for (index_t i = 0; i < inputs; ++i) {
        // bfloat16 rounds the scale by 2^-9 of itself; the largest code of a block may be off by Most times that.
        const float scale = largest_around(w, o, i) / most_code<TestType> * (1 + 0x1p-8F);
        CAPTURE(inputs, o, i, w(o, i), decoded(o, i));
        CHECK(std::abs(decoded(o, i) - w(o, i)) <= scale * (0.5F + 0x1p-20F));
      }
  }
}

TEMPLATE_TEST_CASE("block storages: decoded weights encode to the same bytes, and convert to the same from a map",
                   "[kernel][storage]", int8_blocks, int4_blocks) {
  const matrix<float> w = uneven_weights(35, 77, 2);
  const linear_map<TestType> once = encoded<TestType>(w);
  const linear_map<TestType> again = encoded<TestType>(once.weight().to_matrix());
  CHECK(std::ranges::equal(once.weight().value(), again.weight().value()));
  linear_map<full_precision<float>> full(35, 77);
  full.weight().assign(w);
  CHECK(std::ranges::equal(full.stored_as<TestType>().weight().value(), once.weight().value()));
  CHECK(test::same_bits(once.template stored_as<full_precision<float>>().weight().to_matrix(), once.weight().to_matrix()));
  for (const index_t i : {0, 76, 77, 35 * 77 - 1})
    CHECK(once.weight().element_at(i) == once.weight().to_matrix().data()[i]);
}

TEMPLATE_TEST_CASE("block storages: known codes, of zero, ties, the smallest and the largest", "[kernel][storage]",
                   int8_blocks, int4_blocks) {
  constexpr float most = most_code<TestType>;
  matrix<float> w = matrix<float>::Zero(6, 32);
  w.row(1).head(4) << most, 2.5F, -3.5F, -most;       // scale 1: ties go to even
  w.row(2).head(2) << most * 0x1p100F, 0x1p100F;      // scale 2^100
  w.row(3).head(2) << most * 0x1p-119F, 0x1p-119F;    // still ordinary
  w.row(4).head(2) << 0x1p-119F, -0x1p-120F;          // below what counts
  w.row(5).head(2) << std::numeric_limits<float>::denorm_min(), 0;
  matrix<float> expected = w;
  expected(1, 1) = 2, expected(1, 2) = -4;
  expected.bottomRows(2).setZero();
  CHECK(encoded<TestType>(w).weight().to_matrix() == expected);
}

TEMPLATE_TEST_CASE("block storages: NaN and infinity stay in their block", "[kernel][storage]", int8_blocks, int4_blocks) {
  matrix<float> w = uneven_weights(3, 64, 3);
  w(0, 40) = std::numeric_limits<float>::quiet_NaN();
  w(1, 3) = -infinity;
  w(1, 4) = 0;
  const matrix<float> decoded = encoded<TestType>(w).weight().to_matrix();
  for (index_t i = 0; i < 64; ++i) {
    CHECK(is_nan(decoded(0, i)) == (i >= 32));
    CHECK(is_a_number(decoded(1, i)) == (i >= 32));
    CHECK(is_a_number(decoded(2, i)));
  }
  CHECK(test::same_bits(matrix<float>(matrix<float>::Constant(1, 1, decoded(1, 3))), matrix<float>(matrix<float>::Constant(1, 1, -infinity))));
}

TEST_CASE("int4_blocks: outputs are those of the decoded weights, bit for bit", "[kernel][storage]") {
  for (const index_t inputs : {5, 32, 33, 600}) {
    const auto w = encoded<int4_blocks>(uneven_weights(13 * simd_width<float> + 1, inputs, 4));
    const auto decoded = w.stored_as<full_precision<float>>();
    for (const index_t n : {1, 3, 17}) {
      const matrix<float> x = test::random_matrix<float>(n, inputs, 5);
      CHECK(test::same_bits(test::packed_product(x, w), test::packed_product(x, decoded)));
    }
  }
}

TEST_CASE("int8_blocks: outputs are sums of whole numbers a block, scaled", "[kernel][storage]") {
  for (const index_t inputs : {3, 32, 70, 2100}) {
    const auto w = encoded<int8_blocks>(uneven_weights(40, inputs, 6));
    const matrix<float> weights = w.weight().to_matrix();
    const matrix<float> x = test::random_matrix<float>(17, inputs, 7);
    const matrix<float> y = test::packed_product(x, w);
    for (index_t t = 0; t < x.rows(); ++t)
      for (index_t o = 0; o < y.cols(); ++o) {
        double sum = 0, sizes = 0;
        for (index_t first = 0; first < inputs; first += 32) {
          const auto block = x.row(t).segment(first, std::min<index_t>(32, inputs - first));
          const float scale = block.cwiseAbs().maxCoeff() / 127;
          for (index_t i = 0; i < block.size(); ++i) {
            const double term = std::nearbyint(block(i) / scale) * scale * weights(o, first + i);
            sum += term, sizes += std::abs(term);
          }
        }
        CAPTURE(inputs, t, o);
        // Whole numbers are exact; a block's three roundings and the sum over blocks are not, nor a code at a tie.
        const double blocks = static_cast<double>((inputs + 31) / 32);
        CHECK(std::abs(y(t, o) - sum) <= (blocks + 4) * 0x1p-23 * sizes + 0x1p-23);
      }
  }
}

TEST_CASE("int8_blocks: a row has the same bits alone and among any others", "[kernel][storage]") {
  const auto w = encoded<int8_blocks>(uneven_weights(13 * simd_width<float> + 1, 700, 8));
  const matrix<float> x = test::random_matrix<float>(2 * tile_rows + 1, 700, 9);
  const matrix<float> all = test::packed_product(x, w);
  for (const index_t n : {index_t(1), index_t(2), index_t(6), index_t(7), x.rows()}) CHECK(test::same_bits(test::packed_product(x.bottomRows(n), w), all.bottomRows(n)));
}

TEST_CASE("int8_blocks: activations that are NaN, infinite, zero or tiny", "[kernel][storage]") {
  const auto w = encoded<int8_blocks>(matrix<float>::Constant(3, 64, 0.5F));
  matrix<float> x = matrix<float>::Constant(5, 64, 1.0F);
  x(0, 35) = std::numeric_limits<float>::quiet_NaN();
  x(1, 0) = infinity;
  x.row(2).setZero();
  x.row(3).setConstant(0x1p-130F);
  const matrix<float> y = test::packed_product(x, w);
  for (index_t o = 0; o < 3; ++o) {
    CHECK(is_nan(y(0, o)));
    CHECK(!is_a_number(y(1, o)));
    CHECK(y(2, o) == 0);
    CHECK(y(3, o) == 0);
    CHECK(std::abs(y(4, o) - 32) <= 32 * 0x1p-8F);
  }
}

TEST_CASE("encoded_matrix: a weight like any other that is only read", "[kernel][storage]") {
  const auto w = encoded<int8_blocks>(uneven_weights(5, 40, 10));
  CHECK(w.weight().rows() == 5);
  CHECK(w.weight().cols() == 40);
  CHECK(parameter_count(w) == 200);
  CHECK(w.weight().value().size() == static_cast<std::size_t>((5 + simd_width<float> - 1) / simd_width<float> * int8_blocks::bytes(64)));
  linear_map<int8_blocks> fresh(5, 40);
  CHECK_THROWS_AS(check_initialized(fresh), std::invalid_argument);
  CHECK_THROWS_AS(fresh.weight().assign(matrix<float>::Zero(5, 41)), std::invalid_argument);
  fresh.weight().assign(w.weight().to_matrix());
  CHECK_NOTHROW(check_initialized(fresh));
  ensure_gradients(fresh);
  CHECK(fresh.weight().gradient().empty());
}

TEST_CASE("linear_map_view: a part of a map is a smaller map", "[kernel][storage]") {
  const matrix<float> numbers = test::random_matrix<float>(5 * simd_width<float>, 50, 11);
  linear_map<full_precision<float>> w(numbers.rows(), 50);
  w.weight().assign(numbers);
  const index_t first = 2, outputs = 2 * simd_width<float> + 1, inputs = 37;
  const auto part = w.view().part(first, outputs, inputs);
  const matrix<float> x = test::random_matrix<float>(9, inputs, 12);
  linear_map<full_precision<float>> copy(outputs, inputs);
  copy.weight().assign(matrix<float>(numbers.block(first * simd_width<float>, 0, outputs, inputs)));
  CHECK(test::same_bits(test::packed_product(x, part), test::packed_product(x, copy)));
  CHECK_THROWS_AS(w.view().part(4, simd_width<float> + 1, 50), std::invalid_argument);
  CHECK_THROWS_AS(w.view().part(0, 1, 51), std::invalid_argument);
}
