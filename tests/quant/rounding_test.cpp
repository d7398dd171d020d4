#include <sluice/quant/adaptive_group.hpp>
#include <sluice/quant/outlier_rounding.hpp>
#include <sluice/quant/power_codes.hpp>
#include <sluice/quant/sign_codes.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

matrix<float> one_row(std::initializer_list<float> numbers) {
  matrix<float> row(1, static_cast<index_t>(numbers.size()));
  std::copy(numbers.begin(), numbers.end(), row.data());
  return row;
}

std::vector<int> signed_codes(const grouped_codes& codes) {
  std::vector<int> numbers;
  for (index_t o = 0; o < codes.outputs(); ++o)
    for (index_t i = 0; i < codes.inputs(); ++i)
      numbers.push_back(codes.codes(o, i) - static_cast<int>(codes.zeros(o, codes.group_at(i))));
  return numbers;
}

constexpr code_range all_ranges[] = {code_range::full, code_range::restricted, code_range::symmetric,
                                     code_range::min_max};

}  // namespace

TEST_CASE("round_to_nearest: worked numbers of MoQE's two conventions", "[quant][rounding]") {
  const matrix<float> w = one_row({0.9F, -0.3F, 0.1F, -1.0F});
  const auto full = [&](int bits) { return round_to_nearest(w, {.bits = bits}); };
  CHECK(signed_codes(full(2)) == std::vector<int>{1, 0, 0, -2});
  CHECK(signed_codes(full(3)) == std::vector<int>{3, -1, 0, -4});
  CHECK(signed_codes(full(4)) == std::vector<int>{7, -2, 1, -8});
  CHECK(full(2).scales(0, 0) == 2.0F / 3);
  CHECK(full(3).scales(0, 0) == 2.0F / 7);
  CHECK(full(4).scales(0, 0) == 2.0F / 15);
  CHECK(full(2).to_matrix().isApprox(one_row({0.666667F, 0, 0, -1.333333F}), 1e-6F));
  CHECK(full(4).to_matrix().isApprox(one_row({0.933333F, -0.266667F, 0.133333F, -1.066667F}), 1e-6F));
  const grouped_codes restricted = round_to_nearest(w, {.bits = 3, .range = code_range::restricted});
  CHECK(signed_codes(restricted) == std::vector<int>{3, -1, 0, -3});
  CHECK(restricted.scales(0, 0) == 1.0F / 3);
}

TEST_CASE("round_to_nearest: no weight is further than half a step from its value", "[quant][rounding]") {
  const int bits = GENERATE(2, 3, 5, 8);
  const code_range range = GENERATE(from_range(std::begin(all_ranges), std::end(all_ranges)));
  const index_t cols = GENERATE(1, 7, 67);
  matrix<float> w = test::random_matrix<float>(9, cols, 1);
  w.row(3).setZero();
  w.row(4) *= 1e-30F;
  const grouped_codes codes = round_to_nearest(w, {.bits = bits, .group = 16, .range = range});
  codes.validate();
  CHECK(codes.groups() == (cols + 15) / 16);
  for (index_t o = 0; o < w.rows(); ++o)
    for (index_t i = 0; i < cols; ++i) {
      const float step = codes.scale_at(o, i);
      const index_t first = i / 16 * 16;
      const bool clips =
          range == code_range::symmetric && w.block(o, first, 1, std::min<index_t>(16, cols - first)).minCoeff() >= 0;
      if (!clips)
        CHECK(std::abs(codes.value(o, i) - w(o, i)) <= step / 2 * (1 + 1e-5F * static_cast<float>(1 << bits)));
    }
  CHECK(codes.to_matrix().row(3) == matrix<float>(matrix<float>::Zero(1, cols)));
  test::shuffled_threads threads(3);
  CHECK(round_to_nearest(w, {.bits = bits, .group = 16, .range = range}, threads).codes == codes.codes);
}

TEST_CASE("round_to_nearest: the same code wherever a weight stands in a vector, ties to even", "[quant][rounding]") {
  // With a scale of 1/2 every second number is a tie.
  matrix<float> ties(1, 35);
  for (index_t i = 0; i < 35; ++i) ties(0, i) = static_cast<float>(i % 14 - 7) / 4;
  ties(0, 0) = -3.75F;
  const grouped_codes codes = round_to_nearest(ties, {.bits = 4});
  REQUIRE(codes.scales(0, 0) == 0.5F);
  const std::vector<int> numbers = signed_codes(codes);
  CHECK(numbers[0] == -8);  // -7.5 steps
  for (index_t i = 1; i < 35; ++i) CHECK(numbers[as_size(i)] == static_cast<int>(std::nearbyint(ties(0, i) * 2)));
  const matrix<float> w = test::random_matrix<float>(1, 37, 8);
  for (const code_range range : all_ranges) {
    const std::vector<int> vectors = signed_codes(round_to_nearest(w, {.bits = 3, .range = range}));
    const kernel::code_grid grid = fit_code_grid(kernel::range_with_zero(w.data(), 37), range, 3);
    for (index_t i = 0; i < 37; ++i) CHECK(vectors[as_size(i)] == static_cast<int>(grid.nearest(w(0, i))));
  }
}

TEST_CASE("round_to_nearest: scales of sixteen bits are in the codes already", "[quant][rounding]") {
  matrix<float> w = test::random_matrix<float>(8, 64, 9);
  w.row(5) *= 1e-9F;  // too small for a scale of float16
  for (const code_range range : all_ranges)
    for (const scale_type type : {scale_type::float16, scale_type::bfloat16}) {
      const grouped_codes codes = round_to_nearest(w, {.bits = 5, .group = 32, .range = range, .scales = type});
      codes.validate();
      for (index_t o = 0; o < 8; ++o)
        for (index_t i = 0; i < 64; ++i) {
          const float scale = codes.scale_at(o, i);
          CHECK(scale == (type == scale_type::float16 ? to_float(round_to<float16>(scale))
                                                      : to_float(round_to<bfloat16>(scale))));
          if (range == code_range::min_max) CHECK(std::abs(codes.value(o, i) - w(o, i)) <= scale * 0.63F + 1e-8F);
        }
      CHECK((codes.scales.row(5).maxCoeff() == 0) == (type == scale_type::float16));
    }
  w(0, 0) = 7e4F;
  CHECK_THROWS_WITH(round_to_nearest(w, {.scales = scale_type::float16}),
                    Catch::Matchers::StartsWith("sluice: the weight of output 0 and input 0 is 70000"));
  CHECK(round_to_nearest(w, {.scales = scale_type::bfloat16}).scales(0, 0) > 9000);
}

TEST_CASE("round_to_nearest: from least to most, a zero halfway between two codes is the even one",
          "[quant][rounding]") {
  // Of lo = -hi the zero is (2^b - 1) / 2: 3.5, 7.5, 127.5. So is -lo over the scale, hence the lowest code of lo.
  for (const int bits : {3, 4, 8}) {
    CAPTURE(bits);
    const auto middle = static_cast<float>(1 << (bits - 1));
    const grouped_codes codes =
        round_to_nearest(one_row({-0.5F, 0.5F, 0.0F, -0.25F}), {.bits = bits, .range = code_range::min_max});
    CHECK(codes.zeros(0, 0) == middle);
    CHECK(static_cast<int>(codes.codes(0, 0)) == 0);
    CHECK(static_cast<int>(codes.codes(0, 1)) == (1 << bits) - 1);
    CHECK(codes.value(0, 2) == 0);
    // A group of zeros has the scale of -1 .. 1.
    const grouped_codes zeros = round_to_nearest(one_row({0, 0}), {.bits = bits, .range = code_range::min_max});
    CHECK(zeros.scales(0, 0) == 2 / static_cast<float>((1 << bits) - 1));
    CHECK(zeros.zeros(0, 0) == middle);
    CHECK(zeros.to_matrix().isZero(0));
  }
}

TEST_CASE("round_to_nearest: a row without negatives has half the scale in GPTQ's symmetric form",
          "[quant][rounding]") {
  const matrix<float> w = one_row({0.0F, 1.0F, 3.0F, 15.0F});
  const grouped_codes trap = round_to_nearest(w, {.bits = 4, .range = code_range::symmetric});
  CHECK(trap.scales(0, 0) == 1.0F);
  CHECK(signed_codes(trap) == std::vector<int>{0, 1, 3, 7});  // 15 is clipped
  const grouped_codes full = round_to_nearest(w, {.bits = 4, .range = code_range::full});
  CHECK(full.scales(0, 0) == 2.0F);
  CHECK(signed_codes(full) == std::vector<int>{0, 0, 2, 7});
}

TEST_CASE("quant: NaN, infinity and what has no code are refused by name", "[quant][rounding]") {
  matrix<float> w = test::random_matrix<float>(70, 5, 2);
  const auto whose = Catch::Matchers::StartsWith("sluice: the weight of output 66 and input 3 is ");
  for (const float bad : {quiet_nan<float>(), -std::numeric_limits<float>::infinity(), 3e38F}) {
    w(66, 3) = bad;
    CHECK_THROWS_WITH(round_to_nearest(w), whose);
    CHECK_THROWS_WITH(round_to_powers(w), whose);
    CHECK_THROWS_WITH(sign_codes(w), whose);
    CHECK_THROWS_WITH(adaptive_group(w, {}), whose);
    CHECK_THROWS_WITH(round_around_outliers(w, matrix<float>::Zero(70, 5)), whose);
  }
  CHECK_THROWS_WITH(round_to_nearest(w, {.bits = 1}), "sluice: codes of weights have 2 to 8 bits, not 1");
  CHECK_THROWS_WITH(round_to_nearest(w, {.group = -1}), "sluice: a scale cannot be that of -1 inputs");
  CHECK_THROWS_AS(round_to_powers(w, {.bits = 9}), std::invalid_argument);
  CHECK_THROWS_AS(adaptive_group(w, {.gain = 1}), std::invalid_argument);
  CHECK_THROWS_AS(round_around_outliers(w, matrix<float>::Zero(70, 5), {.fraction = 1.1}), std::invalid_argument);
  CHECK_THROWS_AS(round_around_outliers(w, matrix<float>::Zero(5, 70)), std::invalid_argument);
}

TEST_CASE("quant: empty matrices have empty codes", "[quant][rounding]") {
  for (const auto& [rows, cols] : {std::pair<index_t, index_t>{0, 5}, {4, 0}, {0, 0}}) {
    const matrix<float> w(rows, cols);
    for (const grouped_codes& codes : {round_to_nearest(w), sign_codes(w, 2), round_around_outliers(w, w).rest}) {
      codes.validate();
      CHECK(codes.to_matrix().rows() == rows);
      CHECK(codes.to_matrix().cols() == cols);
    }
    CHECK(round_to_powers(w).to_matrix().size() == 0);
    CHECK(adaptive_group(w, {}).ratios.empty());
  }
}

TEST_CASE("adaptive_group: finer groups where a single weight spoils a range", "[quant][adaptive_group]") {
  matrix<float> w = matrix<float>::Ones(1, 64);
  w(0, 63) = 100;
  const grouped_codes coarse = round_to_nearest(w, {.bits = 4, .group = 64}),
                      fine = round_to_nearest(w, {.bits = 4, .group = 32});
  CHECK(coarse.to_matrix().leftCols(63).isZero());  // a step is 13.3
  CHECK((fine.to_matrix().leftCols(32).array() - 1).abs().maxCoeff() <= 0.0667F);
  const adaptive_group_report report = adaptive_group(w, {.least = 8});
  CHECK(report.group == 8);  // (100 + 1) / 2 : 100, (100 + 3) / 4 : 101 / 2, ...
  REQUIRE(report.ratios.size() == 3);
  CHECK(report.ratios[0] == Approx(0.505));
  CHECK(report.ratios[1] == Approx(103.0 / 202));
  // What a whole row has for a scale is MoQE, bit for bit.
  const grouped_codes whole =
      round_to_nearest(w, {.bits = 4, .group = adaptive_group(matrix<float>::Ones(2, 64), {}).group});
  CHECK(whole.codes == round_to_nearest(w, {.bits = 4}).codes);
  // Halving never makes a range larger, and odd widths stay whole.
  const matrix<float> random = test::random_matrix<float>(6, 64, 3);
  for (const double ratio : adaptive_group(random, {.gain = 1e-6, .least = 1}).ratios) CHECK(ratio <= 1);
  CHECK(adaptive_group(test::random_matrix<float>(3, 63, 4), {.least = 1}).group == 63);
  CHECK(adaptive_group(matrix<float>::Zero(3, 64), {.least = 1}).group == 64);
  // The largest range of all never shrinks.
  CHECK(adaptive_group(w, {.least = 8}, largest_range{}).group == 64);
  CHECK(adaptive_group(w, {.least = 8}, largest_range{}).ratios == std::vector<double>{1});
}

TEST_CASE("power_codes: the nearest power of two, the lower one where two are as near", "[quant][power_codes]") {
  // Largest 8; thirds of powers of two times 3/2 are ties: 6 lies between 4 and 8, 3 between 2 and 4.
  const power_codes codes = round_to_powers(one_row({8, 6, 6.01F, -5.9F, 3, -3.01F, 0.9F, 0}), {.bits = 3});
  CHECK(codes.to_matrix() == one_row({8, 4, 8, -4, 2, -4, 1, 1}));
  CHECK(round_to_powers(matrix<float>::Zero(2, 3)).to_matrix().isZero());
  const matrix<float> w = test::random_matrix<float>(5, 40, 5);
  const power_codes many = round_to_powers(w, {.bits = 4});
  for (index_t o = 0; o < 5; ++o)
    for (index_t i = 0; i < 40; ++i) {
      float nearest = 0;
      for (int p = 0; p > -8; --p) {
        const float value = std::ldexp(many.scales[as_size(o)], p);
        if (p == 0 || std::abs(value - std::abs(w(o, i))) <= std::abs(nearest - std::abs(w(o, i)))) nearest = value;
      }
      CHECK(std::abs(many.value(o, i)) == nearest);
    }
}

TEST_CASE("sign_codes: mean magnitude times the sign, by groups", "[quant][sign_codes]") {
  const grouped_codes codes = sign_codes(one_row({1, -3, 0, 0, -0.5F}), 2);
  CHECK(codes.to_matrix() == one_row({2, -2, 0, 0, -0.5F}));
  CHECK(codes.bits == 1);
  codes.validate();
}

TEST_CASE("round_around_outliers: the share of weights with the largest gradients is exact", "[quant][outliers]") {
  const matrix<float> w = test::random_matrix<float>(6, 50, 6), gradient = test::random_matrix<float>(6, 50, 7);
  const outlier_options o{.fraction = 0.05, .rest = {.bits = 3, .group = 25}};
  const outlier_codes codes = round_around_outliers(w, gradient, o);
  codes.outliers.validate();
  CHECK(codes.outliers.size() == 15);
  matrix<float> zeroed = w;
  int kept = 0;
  float smallest = 1e9F;
  for (index_t r = 0; r < 6; ++r)
    for (index_t k = codes.outliers.first[as_size(r)]; k < codes.outliers.first[as_size(r + 1)]; ++k, ++kept) {
      const index_t c = codes.outliers.input[as_size(k)];
      CHECK(codes.to_matrix()(r, c) == w(r, c));
      CHECK(codes.rest.value(r, c) == 0);
      smallest = std::min(smallest, std::abs(gradient(r, c)));
      zeroed(r, c) = 0;
    }
  CHECK(kept == 15);
  CHECK((gradient.array().abs() > smallest).count() == 14);
  CHECK(codes.rest.codes == round_to_nearest(zeroed, o.rest).codes);

  CHECK(round_around_outliers(w, gradient, {.fraction = 0, .rest = o.rest}).to_matrix() ==
        round_to_nearest(w, o.rest).to_matrix());
  CHECK(round_around_outliers(w, gradient, {.fraction = 1}).to_matrix() == w);
  matrix<float> equal = matrix<float>::Ones(2, 4);
  equal(0, 0) = quiet_nan<float>();
  const sparse_weights first = round_around_outliers(matrix<float>::Ones(2, 4), equal, {.fraction = 0.25}).outliers;
  CHECK(first.input == std::vector<std::int32_t>{1, 2});
}

TEST_CASE("power_codes: the scale of the least error is better than any on a fine grid", "[quant][power_codes]") {
  // The scales and errors are minima over 400,000 scales, by an independent program that rounds by logarithms.
  const auto squares = [](const matrix<float>& w, const matrix<float>& q) {
    return (w.cast<double>() - q.cast<double>()).squaredNorm();
  };
  struct wanted {
    matrix<float> w;
    int bits;
    double scale, error;
  };
  for (const auto& [w, bits, scale, error] : {wanted{one_row({0.9F, -0.3F, 0.1F, -1}), 2, 0.84, 0.146},
                                              wanted{one_row({0.9F, -0.3F, 0.1F, -1}), 3, 0.956389, 0.00917293},
                                              wanted{one_row({3, -2, 7, 0.4F, -5, 1, 0, 6}), 3, 6.00557, 2.9973953},
                                              wanted{one_row({5, -5, 5, 1}), 2, 4.76923, 2.0769231}}) {
    const power_codes best = round_to_powers(w, {.bits = bits, .scale = power_scale::least_error});
    CHECK(best.scales[0] == Approx(scale).epsilon(1e-5));
    CHECK(squares(w, best.to_matrix()) == Approx(error).epsilon(1e-5));
  }
  const matrix<float> w = test::random_matrix<float>(3, 50, 6);
  const power_codes plain = round_to_powers(w), best = round_to_powers(w, {.scale = power_scale::least_error});
  for (index_t o = 0; o < 3; ++o)
    CHECK(squares(w.row(o), best.to_matrix().row(o)) < squares(w.row(o), plain.to_matrix().row(o)));
  CHECK(round_to_powers(matrix<float>::Zero(2, 3), {.scale = power_scale::least_error}).to_matrix().isZero());
}
