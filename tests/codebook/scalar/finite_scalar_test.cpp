#include <sluice/codebook/scalar/finite_scalar.hpp>

#include "../codebook_checks.hpp"
#include "../quantizer_calls.hpp"

using namespace sluice;

namespace {

/// One number by the formulas of the paper's code (narrow) or of the library that most use (wide), in double.
struct readable_fsq {
  bool narrow = false;
  double epsilon = 1e-3;

  double half(index_t levels) const {
    return static_cast<double>(levels - 1) * (1 + (narrow ? -epsilon : epsilon)) / 2;
  }
  static double offset(index_t levels) { return levels % 2 == 0 ? 0.5 : 0; }
  double shift(index_t levels) const {
    const double ratio = offset(levels) / half(levels);
    return narrow ? std::tan(ratio) : std::atanh(ratio);
  }
  double bounded(double z, index_t levels) const {
    return std::tanh(z + shift(levels)) * half(levels) - offset(levels);
  }
  double rounded(double z, index_t levels) const { return std::nearbyint(bounded(z, levels)); }
  double slope(double z, index_t levels) const {
    const double t = std::tanh(z + shift(levels));
    return half(levels) * (1 - t * t) / static_cast<double>(levels / 2);
  }
};

matrix<index_t> ids_up_to(index_t count) {
  matrix<index_t> ids(count, 1);
  for (index_t i = 0; i < count; ++i) ids(i, 0) = i;
  return ids;
}

template <typename Rounding>
void check_fsq_formulas(bool narrow) {
  using S = double;
  const std::vector<index_t> levels{8, 5, 2, 4, 3};
  const readable_fsq readable{narrow};
  finite_scalar_quantizer<S, Rounding> fsq(levels);
  const index_t D = 5, T = 300;
  const matrix<S> x = test::random_matrix<S>(T, D, 3);
  const matrix<S> dy = test::random_matrix<S>(T, D, 4);
  const test::trained run(fsq, x, dy);
  CHECK(run.tape.loss() == 0);
  for (index_t t = 0; t < T; ++t) {
    index_t id = 0, stride = 1;
    for (index_t d = 0; d < D; ++d) {
      const index_t L = levels[as_size(d)];
      const double r = readable.rounded(x(t, d), L);
      CHECK(run.y(t, d) == Approx(r / static_cast<double>(L / 2)).margin(1e-15));
      CHECK(run.dx(t, d) == Approx(readable.slope(x(t, d), L) * dy(t, d)).epsilon(1e-12).margin(1e-14));
      id += (static_cast<index_t>(r) + L / 2) * stride;
      stride *= L;
    }
    CHECK(run.tape.ids(t, 0) == id);
  }
  CHECK(test::same_bits(run.y, test::inferred(fsq, x)));
  CHECK(test::same_bits(run.y, test::decoded(fsq, test::encoded(fsq, x))));
}

template <typename Rounding>
void check_every_grid_id(const std::vector<index_t>& levels, bool zero_is_zero) {
  const finite_scalar_quantizer<float, Rounding> fsq(levels);
  const matrix<index_t> ids = ids_up_to(fsq.codes(0));
  const matrix<float> codes = test::decoded(fsq, ids);
  matrix<index_t> again(ids.rows(), 1);
  fsq.ids_of_codes(codes, again);
  CHECK(again == ids);
  CHECK(codes.minCoeff() == -1);
  CHECK(codes.maxCoeff() <= 1);
  for (index_t a = 1; a < codes.rows(); ++a) CHECK(!test::same_bits(codes.row(a), codes.row(a - 1)));
  const matrix<float> zero = matrix<float>::Zero(1, fsq.inputs());
  CHECK(test::inferred(fsq, zero).isZero(0) == zero_is_zero);
}

}  // namespace

TEST_CASE("finite_scalar: both unsymmetric forms, one by one from the formulas", "[codebook][scalar][fsq][gradient]") {
  check_fsq_formulas<zero_centred_rounding<double>>(false);
  check_fsq_formulas<original_rounding<double>>(true);
}

TEST_CASE("finite_scalar: the symmetric form, with tanh and with a clamp", "[codebook][scalar][fsq][gradient]") {
  const std::vector<index_t> levels{7, 6, 2};
  const matrix<double> x = 1.5 * test::random_matrix<double>(200, 3, 5), dy = test::random_matrix<double>(200, 3, 6);
  const auto check = [&](auto fsq, auto&& squash, auto&& slope) {
    const test::trained run(fsq, x, dy);
    for (index_t t = 0; t < 200; ++t)
      for (index_t d = 0; d < 3; ++d) {
        const auto gaps = static_cast<double>(levels[as_size(d)] - 1);
        const double level = std::min(std::floor(gaps * (squash(x(t, d)) + 1) / 2 + 0.5), gaps);
        CHECK(run.y(t, d) == Approx(2 / gaps * level - 1).margin(1e-15));
        CHECK(run.dx(t, d) == Approx(slope(x(t, d)) * dy(t, d)).margin(1e-14));
      }
  };
  check(
      finite_scalar_quantizer<double, symmetric_rounding<double>>(levels), [](double z) { return std::tanh(z); },
      [](double z) { return 1 - std::tanh(z) * std::tanh(z); });
  check(
      finite_scalar_quantizer<double, symmetric_rounding<double, hard_tanh>>(levels),
      [](double z) { return std::clamp(z, -1.0, 1.0); }, [](double z) { return std::abs(z) <= 1 ? 1.0 : 0.0; });
}

TEST_CASE("finite_scalar: the worked example of 8, 5, 5, 5", "[codebook][scalar][fsq]") {
  const finite_scalar_quantizer<double> fsq{{8, 5, 5, 5}};
  CHECK(fsq.codes(0) == 1000);
  CHECK(fsq.code_columns() == 1);
  matrix<double> z(1, 4);
  z << 0.3, -1.2, 0.9, 0;
  const matrix<index_t> ids = test::encoded(fsq, z);
  CHECK(ids(0, 0) == 525);
  const std::array<index_t, 4> levels{5, 0, 3, 2};
  for (index_t d = 0; d < 4; ++d) CHECK(fsq.level(525, d) == levels[as_size(d)]);
}

TEST_CASE("finite_scalar: every id decodes to codes of its own, which go back to it", "[codebook][scalar][fsq]") {
  check_every_grid_id<zero_centred_rounding<float>>({8, 5, 5, 5}, true);
  check_every_grid_id<zero_centred_rounding<float>>({2, 3}, true);
  check_every_grid_id<original_rounding<float>>({7, 5, 5, 5}, true);
  check_every_grid_id<original_rounding<float>>({2, 4}, true);
  check_every_grid_id<symmetric_rounding<float>>({7, 6, 4}, false);
  check_every_grid_id<symmetric_rounding<float>>({7, 5}, true);
}

TEST_CASE("finite_scalar: halves go to even levels, or up", "[codebook][scalar][fsq][ties]") {
  // A position is what rounding sees: 0.5, 1.5 and -0.5 of six levels, of which the third has code 0.
  const zero_centred_rounding<float> even(6);
  CHECK(even.level(0.5f) == 3);
  CHECK(even.level(1.5f) == 5);
  CHECK(even.level(-0.5f) == 3);
  CHECK(even.level(-1.5f) == 1);
  const symmetric_rounding<float, hard_tanh> up(5);  // codes -1, -0.5, 0, 0.5, 1
  CHECK(up.level(0.5f) == 1);
  CHECK(up.level(1.5f) == 2);
  CHECK(up.level(2.5f) == 3);
  matrix<float> x(1, 1);
  x << -0.75f;  // exactly between two codes
  const finite_scalar_quantizer<float, symmetric_rounding<float, hard_tanh>> fsq(std::vector<index_t>{5});
  CHECK(test::inferred(fsq, x)(0, 0) == -0.5f);
}

TEST_CASE("finite_scalar: quantising codes again, which squashing moves and a clamp does not",
          "[codebook][scalar][fsq]") {
  const matrix<float> x = test::random_matrix<float>(400, 2, 7);
  const finite_scalar_quantizer<float, symmetric_rounding<float, hard_tanh>> clamped{{7, 6}};
  const matrix<float> once = test::inferred(clamped, x);
  CHECK(test::same_bits(test::inferred(clamped, once), once));
  const finite_scalar_quantizer<float> squashed{{8, 5}};
  const matrix<float> first = test::inferred(squashed, x);
  CHECK(!test::same_bits(test::inferred(squashed, first), first));
  matrix<index_t> ids(400, 1);
  squashed.ids_of_codes(first, ids);
  CHECK(ids == test::encoded(squashed, x));
}

TEST_CASE("finite_scalar: infinities take the outermost levels, NaN none", "[codebook][scalar][fsq][nan]") {
  const auto check = [](const auto& fsq) {
    const index_t D = fsq.inputs();
    matrix<float> x(4, D);
    x.row(0).setConstant(std::numeric_limits<float>::infinity());
    x.row(1).setConstant(-std::numeric_limits<float>::infinity());
    x.row(2).setConstant(1e30f);
    x.row(3).setZero();
    x(3, D - 1) = quiet_nan<float>();
    const matrix<index_t> ids = test::encoded(fsq, x);
    CHECK(ids(0, 0) == fsq.codes(0) - 1);
    CHECK(ids(1, 0) == 0);
    CHECK(ids(2, 0) == fsq.codes(0) - 1);
    CHECK(ids(3, 0) == no_code);
    const matrix<float> y = test::inferred(fsq, x);
    for (index_t d = 0; d < D; ++d) CHECK(is_nan(y(3, d)));
    matrix<index_t> none(1, 1);
    none << no_code;
    CHECK(test::decoded(fsq, none).isZero(0));
  };
  check(finite_scalar_quantizer<float>{{8, 5, 2}});
  check(finite_scalar_quantizer<float, original_rounding<float>>{{8, 5, 3}});
  check(finite_scalar_quantizer<float, symmetric_rounding<float>>{{8, 5, 2}});
  check(finite_scalar_quantizer<float, symmetric_rounding<float, hard_tanh>>{{8, 5, 2}});
  check(finite_scalar_quantizer<float>{{5000, 3000}});  // so wide that (1 + epsilon) passes the outermost level
}

TEST_CASE("finite_scalar: several codebooks, scales and an epsilon of one's own", "[codebook][scalar][fsq]") {
  const finite_scalar_quantizer<double> two{{5, 4}, {.codebooks = 2}};
  const finite_scalar_quantizer<double> one{{5, 4}};
  CHECK((two.inputs() == 4 && two.code_columns() == 2 && two.codes(1) == 20));
  const matrix<double> x = test::random_matrix<double>(50, 4, 8);
  const matrix<index_t> ids = test::encoded(two, x);
  CHECK(ids.col(0) == test::encoded(one, x.leftCols(2)));
  CHECK(ids.col(1) == test::encoded(one, x.rightCols(2)));
  matrix<index_t> half = ids;
  half.col(1).setConstant(no_code);
  const matrix<double> y = test::decoded(two, half);
  CHECK(test::same_bits(y.leftCols(2), test::inferred(one, x.leftCols(2))));
  CHECK(y.rightCols(2).isZero(0));

  using rounding = zero_centred_rounding<double>;
  const std::vector<rounding> scaled{rounding(5, {.scale = 0.25}), rounding(4, {.scale = 0.25})};
  finite_scalar_quantizer<double> small(scaled);
  const matrix<double> z = x.leftCols(2), narrow = z / 4, dy = test::random_matrix<double>(50, 2, 9);
  CHECK(test::largest_difference(test::inferred(small, narrow), matrix<double>(test::inferred(one, z) / 4)) < 1e-15);
  finite_scalar_quantizer<double> plain = one;
  CHECK(test::largest_difference(test::trained(plain, z, dy).dx, test::trained(small, narrow, dy).dx) <
        1e-14);  // the scale of the code and of its argument cancel

  const original_rounding<double> wide(8, {.epsilon = 0.2});
  CHECK(wide.position(0.0) == Approx(std::tanh(std::tan(0.5 / 2.8)) * 2.8 - 0.5));
}

TEST_CASE("finite_scalar: what does not fit is refused", "[codebook][scalar][fsq]") {
  const auto with = [](std::vector<index_t> levels) { return finite_scalar_quantizer<float>(levels); };
  CHECK_THROWS_AS(with({}), std::invalid_argument);
  CHECK_THROWS_AS(with({4, 1}), std::invalid_argument);
  CHECK_THROWS_AS(with({0}), std::invalid_argument);
  CHECK_THROWS_AS(with(std::vector<index_t>(63, 2)), std::invalid_argument);
  CHECK(with(std::vector<index_t>(62, 2)).codes(0) == index_t(1) << 62);
  CHECK_THROWS_AS((finite_scalar_quantizer<float>{{4, 4}, {.codebooks = 0}}), std::invalid_argument);
  CHECK_THROWS_AS((zero_centred_rounding<float>{4, {.scale = 0}}), std::invalid_argument);
  CHECK_THROWS_AS((zero_centred_rounding<float>{4, {.epsilon = 0.5}}), std::invalid_argument);
  CHECK_THROWS_AS((zero_centred_rounding<double>{4, {.scale = quiet_nan<double>()}}), std::invalid_argument);
  const finite_scalar_quantizer<float> fsq{{4, 4}};
  matrix<index_t> past(1, 1);
  past << 16;
  CHECK_THROWS_AS(test::decoded(fsq, past), std::invalid_argument);
  matrix<index_t> wrong(1, 2);
  CHECK_THROWS_AS(fsq.ids_of_codes(matrix<float>::Zero(1, 2), wrong), std::invalid_argument);
}

TEST_CASE("finite_scalar: every promise of a layer", "[codebook][scalar][fsq][conformance]") {
  test::check_quantizer_promises(finite_scalar_quantizer<double>{{8, 5, 5, 5}}, 1);
  test::check_quantizer_promises(finite_scalar_quantizer<double, original_rounding<double>>{{8, 6, 5}}, 2);
  test::check_quantizer_promises(
      finite_scalar_quantizer<double, symmetric_rounding<double, hard_tanh>>{{7, 6}, {.codebooks = 2}}, 3);
}

TEST_CASE("finite_scalar: a token's result does not depend on its neighbours", "[codebook][scalar][fsq]") {
  const finite_scalar_quantizer<float> fsq{{8, 5, 5}};
  const matrix<float> x = test::random_matrix<float>(77, 3, 10);
  const matrix<float> all = test::inferred(fsq, x);
  for (const index_t t : {0, 31, 32, 63, 64, 76})
    CHECK(test::same_bits(test::inferred(fsq, matrix<float>(x.row(t))), matrix<float>(all.row(t))));
  CHECK(test::inferred(fsq, matrix<float>(0, 3)).rows() == 0);
}
