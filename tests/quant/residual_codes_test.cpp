#include <sluice/quant/residual_codes.hpp>

#include "support.hpp"

using namespace sluice;

TEST_CASE("residual_codes: every stage leaves less, as many codes as tiles leave nothing", "[quant][residual]") {
  const matrix<float> w = test::random_matrix<float>(12, 22, 1);
  for (const bool scales : {false, true}) {
    float before = w.squaredNorm();
    for (const index_t stages : {1, 2, 3}) {
      const vector_codes codes = residual_codes(
          w, {.tile = {1, 4}, .stages = stages, .codes = 8, .scales = scales, .random = random_source(2)});
      codes.validate();
      const float now = (codes.to_matrix() - w).squaredNorm();
      CHECK(now < 0.8F * before);
      before = now;
    }
  }
  CHECK(test::same_bits(residual_codes(w, {.tile = {3, 2}, .codes = 44}).to_matrix(), w));
}

TEST_CASE("residual_codes: each tile has the nearest entry, and each entry is the mean of its tiles",
          "[quant][residual]") {
  const matrix<float> w = test::random_matrix<float>(20, 8, 3);
  const vector_codes codes = residual_codes(w, {.tile = {2, 2}, .codes = 5, .rounds = 200});
  const matrix<float> tiles = to_tiles<float>(w, {2, 2}), book = codes.codebooks[0];
  matrix<float> means = matrix<float>::Zero(5, 4);
  std::vector<float> counts(5, 0.0F);
  for (index_t t = 0; t < 40; ++t) {
    const index_t id = codes.indices[0].data()[t];
    means.row(id) += tiles.row(t);
    counts[as_size(id)] += 1;
    for (index_t k = 0; k < 5; ++k)
      CHECK((tiles.row(t) - book.row(id)).squaredNorm() <= (tiles.row(t) - book.row(k)).squaredNorm() + 1e-5F);
  }
  for (index_t k = 0; k < 5; ++k)
    CHECK((means.row(k) / counts[as_size(k)] - book.row(k)).cwiseAbs().maxCoeff() < 1e-5F);
}

TEST_CASE("residual_codes: scales make rows alike, zeros, one code, empty matrices, threads, what it needs",
          "[quant][residual]") {
  // The same rows in all sizes: with scales one matrix of codes does for all.
  const matrix<float> row = test::random_matrix<float>(1, 16, 4);
  matrix<float> w(5, 16);
  for (index_t r = 0; r < 5; ++r) w.row(r) = row.row(0) * std::ldexp(1.0F, static_cast<int>(3 * r));
  const residual_code_options few{.tile = {1, 4}, .codes = 4, .scales = true};
  CHECK((residual_codes(w, few).to_matrix() - w).cwiseAbs().maxCoeff() < 1e-5F * w.cwiseAbs().maxCoeff());

  w.row(2).setZero();
  CHECK(residual_codes(w, few).to_matrix().row(2).cwiseAbs().maxCoeff() < 8);
  CHECK(residual_codes(matrix<float>::Zero(4, 8), few).to_matrix().isZero());
  const vector_codes one = residual_codes(w, {.tile = {1, 1}, .codes = 1});
  CHECK(std::abs(one.to_matrix()(0, 0) - w.mean()) <= test::bound<float>(80, w.cwiseAbs().maxCoeff()));
  CHECK(residual_codes(matrix<float>(0, 8)).to_matrix().rows() == 0);
  test::shuffled_threads threads(3);
  const matrix<float> large = test::random_matrix<float>(64, 32, 5);
  CHECK(test::same_bits(residual_codes(large, {.stages = 2, .codes = 16}, threads).to_matrix(),
                        residual_codes(large, {.stages = 2, .codes = 16}).to_matrix()));
  CHECK_THROWS_AS(residual_codes(w, {.stages = 0}), std::invalid_argument);
  CHECK_THROWS_AS(residual_codes(w, {.codes = 65537}), std::invalid_argument);
  w(1, 1) = std::numeric_limits<float>::infinity();
  CHECK_THROWS_WITH(residual_codes(w), Catch::Matchers::Contains("output 1 and input 1"));
}
