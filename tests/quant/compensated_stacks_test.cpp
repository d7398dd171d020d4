#include <sluice/quant/compensated_stacks.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

matrix<double> stack_moments(index_t tokens, index_t inputs, std::uint64_t seed) {
  const matrix<double> x =
      test::random_matrix<double>(tokens, inputs, seed) * test::random_matrix<double>(inputs, inputs, seed + 1);
  return x.transpose() * x / static_cast<double>(tokens);
}

std::vector<double> diagonal_of(const matrix<double>& h) {
  std::vector<double> d;
  for (index_t i = 0; i < h.rows(); ++i) d.push_back(h(i, i));
  return d;
}

double stack_error(const matrix<float>& w, const column_codes& codes, const matrix<double>& h) {
  const matrix<double> error = (w - codes.to_matrix()).cast<double>();
  return (error * h).cwiseProduct(error).sum();
}

}  // namespace

TEST_CASE("compensated_stacks: as many codes as there are stacks, and nothing is lost", "[quant][stacks]") {
  const matrix<float> w = test::random_matrix<float>(10, 6, 1);  // the last stacks padded
  const matrix<double> h = stack_moments(20, 6, 2);
  const inverse_factor factor(h, {.order_by_activity = true});
  const column_codes all = compensated_stacks(w, factor, {}, {.codes = 18, .tile_outputs = 4});
  CHECK(test::same_bits(all.to_matrix(), w));
  const column_codes weighted = compensated_stacks(w, factor, diagonal_of(h), {.codes = 18, .tile_outputs = 4});
  CHECK(test::largest_difference(weighted.to_matrix(), w) < test::bound<float>(1, 4));
  const column_codes split = compensated_stacks(
      w, factor, {},
      {.codes = 12, .tile_outputs = 4, .group_inputs = 2, .outliers = 2, .outlier_codes = 10, .outlier_tile = 2});
  CHECK(test::same_bits(split.to_matrix(), w));
  CHECK(split.main.regions() == 2);
  CHECK(split.permutation == factor.order());
}

TEST_CASE("compensated_stacks: the plain loop over inputs, main and residual", "[quant][stacks]") {
  const matrix<float> w = test::random_matrix<float>(8, 12, 3);
  const matrix<double> h = stack_moments(40, 12, 4);
  const inverse_factor factor(h, {.order_by_activity = true});
  const column_codes codes =
      compensated_stacks(w, factor, diagonal_of(h), {.codes = 4, .residual_codes = 3, .tile_outputs = 2});
  REQUIRE(codes.main.stages() == 2);
  matrix<double> left(8, 12), expected(8, 12);
  for (index_t j = 0; j < 12; ++j) left.col(j) = w.col(codes.permutation[as_size(j)]).cast<double>();
  for (index_t j = 0; j < 12; ++j)
    for (index_t t = 0; t < 4; ++t) {
      matrix<double> rest = left.block(2 * t, j, 2, 1).transpose(), sum = matrix<double>::Zero(1, 2);
      for (index_t m = 0; m < 2; ++m) {
        const matrix<double> book = codes.main.codebook(0, m).cast<double>();
        index_t best = 0;
        for (index_t k = 1; k < book.rows(); ++k)
          if ((rest - book.row(k)).squaredNorm() < (rest - book.row(best)).squaredNorm()) best = k;
        CHECK(codes.main.indices[as_size(m)](t, j) == best);
        rest -= book.row(best);
        sum += book.row(best);
      }
      for (index_t d = 0; d < 2; ++d) {
        const double e = (left(2 * t + d, j) - sum(0, d)) / factor.diagonal(j);
        expected(2 * t + d, codes.permutation[as_size(j)]) = sum(0, d);
        for (index_t later = j + 1; later < 12; ++later) left(2 * t + d, later) -= e * factor.row(j)[later];
      }
    }
  CHECK((codes.to_matrix().cast<double>() - expected).cwiseAbs().maxCoeff() < 1e-6);
}

TEST_CASE(
    "compensated_stacks: outputs lose less than without compensation, and less with residuals, ranges and outliers",
    "[quant][stacks]") {
  matrix<float> w = test::random_matrix<float>(48, 24, 5);
  for (index_t i = 0; i < 24; ++i) w.col(i) *= static_cast<float>(1 + i % 5);
  const matrix<double> h = stack_moments(80, 24, 6);
  const std::vector<double> activity = diagonal_of(h);
  const inverse_factor factor(h, {.order_by_activity = true});
  stack_options o{.codes = 16, .tile_outputs = 4};
  const double plain = stack_error(w, compensated_stacks(w, inverse_factor(24), activity, o), h);
  const double swept = stack_error(w, compensated_stacks(w, factor, activity, o), h);
  o.normalise = true;
  const double ranged = stack_error(w, compensated_stacks(w, factor, activity, o), h);
  o.outliers = 3;
  o.outlier_codes = 32;
  o.outlier_tile = 2;
  const double outliers = stack_error(w, compensated_stacks(w, factor, activity, o), h);
  o.residual_codes = 16;
  const double residual = stack_error(w, compensated_stacks(w, factor, activity, o), h);
  WARN("output error of stacks of 4 at 1 bit a weight: nearest " << plain << ", swept " << swept << ", over ranges "
                                                                 << ranged << ", with outliers " << outliers
                                                                 << ", 1 bit more " << residual);
  CHECK(swept < plain);
  CHECK(ranged < swept);
  CHECK(outliers < ranged);
  CHECK(residual < outliers);
}

TEST_CASE("compensated_stacks: a residual codebook with a zero entry never adds to what a stack alone loses",
          "[quant][stacks]") {
  const matrix<float> w = test::random_matrix<float>(12, 8, 7);
  column_codes codes = compensated_stacks(w, inverse_factor(8), {}, {.codes = 4, .tile_outputs = 3});
  const double before = (codes.to_matrix() - w).squaredNorm();
  codes.main.codebooks.push_back(0.3F * test::random_matrix<float>(5, 3, 8));
  codes.main.codebooks[1].row(2).setZero();
  codes.main.indices.push_back(codes.main.indices[0]);
  codes.main.indices[1].setZero();
  sweep_stacks(w, inverse_factor(8), codes);
  CHECK((codes.to_matrix() - w).squaredNorm() <= before);
}

TEST_CASE("compensated_stacks: dead inputs, constant inputs, zeros, empty matrices, equal bits for any thread count",
          "[quant][stacks]") {
  matrix<float> w = test::random_matrix<float>(40, 10, 9);
  w.col(4).setConstant(2.5F);
  matrix<double> h = stack_moments(30, 10, 10);
  h.row(3).setZero();
  h.col(3).setZero();
  const inverse_factor factor(h, {.order_by_activity = true});
  const stack_options o{.codes = 8, .residual_codes = 4, .tile_outputs = 4, .normalise = true};
  const column_codes serial = compensated_stacks(w, factor, diagonal_of(h), o);
  serial.validate();
  CHECK(serial.to_matrix().allFinite());
  for (const int count : {2, 3}) {
    test::shuffled_threads threads(count);
    CHECK(test::same_bits(compensated_stacks(w, factor, diagonal_of(h), o, threads).to_matrix(), serial.to_matrix()));
  }
  const matrix<float> zeros = matrix<float>::Zero(8, 10);
  CHECK(compensated_stacks(zeros, factor, {}, {.codes = 4, .tile_outputs = 4}).to_matrix().isZero());
  CHECK(compensated_stacks(matrix<float>(0, 10), factor, {}, o).to_matrix().rows() == 0);
  CHECK(compensated_stacks(matrix<float>(8, 0), inverse_factor(0)).to_matrix().cols() == 0);
}

TEST_CASE("compensated_stacks: what it needs", "[quant][stacks]") {
  matrix<float> w = test::random_matrix<float>(8, 6, 11);
  const inverse_factor factor(6);
  CHECK_THROWS_AS(compensated_stacks(w, inverse_factor(5)), std::invalid_argument);
  CHECK_THROWS_AS(compensated_stacks(w, factor, std::vector<double>(5, 1.0)), std::invalid_argument);
  CHECK_THROWS_WITH(compensated_stacks(w, factor, {}, {.outliers = 7}), Catch::Matchers::Contains("0 to 6 outliers"));
  CHECK_THROWS_WITH(compensated_stacks(w, factor, {}, {.group_inputs = -3, .rounds = -2}),
                    Catch::Matchers::Contains("-3 and -2"));
  CHECK_THROWS_AS(compensated_stacks(w, factor, {}, {.codes = 70000}), std::invalid_argument);
  column_codes codes = compensated_stacks(w, factor, {}, {.codes = 2});
  codes.permutation[2] = 1;
  CHECK_THROWS_WITH(codes.validate(), Catch::Matchers::Contains("in a permutation"));
  w(1, 1) = quiet_nan<float>();
  CHECK_THROWS_AS(compensated_stacks(w, factor), std::invalid_argument);
}
