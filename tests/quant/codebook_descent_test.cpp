#include <sluice/quant/codebook_descent.hpp>

#include <sluice/quant/compensated_tuples.hpp>
#include <sluice/quant/low_rank_codes.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

matrix<double> descent_moments(index_t tokens, index_t inputs, std::uint64_t seed) {
  const matrix<double> x =
      test::random_matrix<double>(tokens, inputs, seed) * test::random_matrix<double>(inputs, inputs, seed + 1);
  return x.transpose() * x / static_cast<double>(tokens);
}

}  // namespace

TEST_CASE("codebook_descent: codes of a sweep lose less after it, and indices stay", "[quant][descent]") {
  const matrix<float> w = test::random_matrix<float>(24, 16, 1);
  const matrix<double> h = descent_moments(60, 16, 2);
  auto codes = compensated_tuples<double>(w, inverse_factor(h), {.codes = 8, .tile_inputs = 2, .rounds = 10});
  const auto indices = codes.shape().indices;
  const descent_report report = codebook_descent(codes, w.cast<double>(), h, {.rate = 0.02});
  const matrix<double> error = codes.to_matrix() - w.cast<double>();
  CHECK(std::abs((error * h).cwiseProduct(error).sum() - report.after) < 1e-9 * report.before);
  WARN("output error of tuples: swept " << report.before << ", after 25 steps of descent " << report.after << ", "
                                        << report.taken_back << " of them taken back");
  CHECK(report.after < 0.96 * report.before);
  CHECK(codes.shape().indices == indices);
}

TEST_CASE("codebook_descent: the loss never rises, however large the rate, the gradient's way is down",
          "[quant][descent]") {
  const matrix<double> w = test::random_matrix<double>(6, 8, 3), h = descent_moments(30, 8, 4);
  low_rank_codes<double> codes(w, {1, 4}, {.codes = 4, .width = 2, .random = random_source(5)});
  const matrix<double> start = codes.to_matrix();
  const descent_report wild = codebook_descent(codes, w, h, {.steps = 3, .rate = 1e3});
  CHECK(wild.taken_back == 3);
  CHECK(wild.after == wild.before);
  CHECK(codes.to_matrix() == start);
  const descent_report careful =
      codebook_descent(codes, w, h, {.steps = 20, .rate = 1e3});  // ten times less, until it fits
  CHECK(careful.after < careful.before);
  CHECK(careful.taken_back >= 3);
}

TEST_CASE("codebook_descent: nothing to gain, equal bits for any thread count, what it needs", "[quant][descent]") {
  const matrix<float> w = test::random_matrix<float>(70, 12, 6);
  const matrix<double> h = descent_moments(40, 12, 7);
  const auto start = compensated_tuples(w, inverse_factor(h), {.codes = 8, .rounds = 5});
  auto serial = start, threaded = start, still = start;
  codebook_descent(serial, w, h);
  test::shuffled_threads threads(3);
  codebook_descent(threaded, w, h, {}, threads);
  CHECK(test::same_bits(serial.to_matrix(), threaded.to_matrix()));
  CHECK(codebook_descent(still, w, matrix<double>::Zero(12, 12)).after == 0);
  CHECK(test::same_bits(still.to_matrix(), start.to_matrix()));
  CHECK_THROWS_AS(codebook_descent(still, w, descent_moments(40, 11, 8)), std::invalid_argument);
  CHECK_THROWS_AS(codebook_descent(still, w, h, {.rate = 0}), std::invalid_argument);
  matrix<double> broken = h;
  broken(1, 2) = quiet_nan<double>();
  CHECK_THROWS_WITH(codebook_descent(still, w, broken), Catch::Matchers::Contains("inputs 1 and 2"));
}
