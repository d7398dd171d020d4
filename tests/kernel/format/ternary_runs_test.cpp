#include <sluice/kernel/format/ternary_runs.hpp>

#include "support.hpp"

#include <cmath>

using namespace sluice;

namespace {

/// Levels of halves; `zeros` of a hundred weights are zero.
matrix<float> drawn_ternary(index_t outputs, index_t inputs, int zeros, std::uint64_t seed) {
  const random_source random(seed);
  matrix<float> w(outputs, inputs);
  for (index_t i = 0; i < w.size(); ++i) {
    const double u = 100 * random.uniform(random_site::user_site, i);
    const float level = static_cast<float>(i / inputs % 7 + 1) / 2;
    w.data()[i] = u < zeros ? 0.0F : u < zeros + (100 - zeros) / 2.0 ? level : -2 * level;
  }
  return w;
}

}  // namespace

TEST_CASE("ternary dictionary: every pair and every beginning is a run, and runs are numbered as defined",
          "[kernel][format]") {
  const ternary_dictionary& d = ternary_dictionary::shared();
  CHECK(d.words(0) == std::array<std::uint32_t, 2>{1, 1});
  std::vector<bool> is_pair(9);
  std::uint64_t hash = 1469598103934665603U;  // FNV-1a of QMoE's own table, from its words low byte first
  for (index_t r = 0; r < d.runs; ++r) {
    const auto run = static_cast<std::uint16_t>(r);
    if (d.pairs(run) == 1) is_pair[as_size(d.value(run, 0) + 3 * d.value(run, 1))] = true;
    for (const std::uint32_t word : d.words(run))
      for (int byte = 0; byte < 4; ++byte) hash = (hash ^ (word >> (8 * byte) & 0xFFU)) * 1099511628211U;
  }
  CHECK(is_pair == std::vector<bool>(9, true));
  CHECK(hash == 9278214029271177853U);
}

TEST_CASE("ternary runs: rows come back, and as small as they should be", "[kernel][format]") {
  for (const index_t inputs : {0, 1, 2, 29, 300})
    for (const int zeros : {0, 50, 90, 100}) {
      const matrix<float> w = drawn_ternary(5, inputs, zeros, 3);
      const ternary_runs runs = ternary_runs::of(w);
      CHECK(test::same_bits(runs.to_matrix(), w));
      const ternary_runs again(inputs, runs.runs(), runs.first(), {5, round_to<bfloat16>(-1.0F)}, {5, bfloat16{}});
      CHECK(again.to_matrix().rows() == 5);
    }
  // Two thousand weights of which 88.5 % are zero: 0.73 bits and a 32nd of one for the row's own.
  CHECK(std::abs(ternary_runs::of(drawn_ternary(30, 2048, 88, 4)).bits_a_weight() - 0.76) < 0.04);
  // Nothing but zeros of a row with both levels: 28 weights a run.
  matrix<float> sparse = matrix<float>::Zero(1, 28 * 7);
  sparse(0, 0) = 1;
  sparse(0, 1) = -1;
  CHECK(ternary_runs::of(sparse).runs().size() <= 8);
  CHECK(ternary_runs().to_matrix().size() == 0);
}

TEST_CASE("ternary runs: a token's product is its own, whatever stands beside it", "[kernel][format]") {
  const index_t inputs = 157;
  const matrix<float> w = drawn_ternary(70, inputs, 80, 5);
  const ternary_runs runs = ternary_runs::of(w);
  matrix<float> x = test::random_matrix<float>(35, inputs, 6);
  const matrix<float> expected = (x.cast<double>() * w.cast<double>().transpose()).cast<float>();
  matrix<float> y(35, 70), alone(1, 70), threaded(35, 70);
  buffer<float> columns;
  runs.multiply(x, y, columns);
  CHECK(test::largest_difference(y, expected) <= test::bound<float>(inputs, 7 * x.cwiseAbs().maxCoeff()));
  for (const index_t t : {0, 16, 34}) {
    runs.multiply(x.row(t), alone, columns);
    CHECK(test::same_bits(alone, matrix<float>(y.row(t))));
  }
  test::shuffled_threads threads(3);
  runs.multiply(x, threaded, columns, executor_ref(threads));
  CHECK(test::same_bits(threaded, y));
  x(3, 7) = std::numeric_limits<float>::quiet_NaN();
  runs.multiply(x, threaded, columns);
  CHECK(test::same_bits(matrix<float>(threaded.bottomRows(31)), matrix<float>(y.bottomRows(31))));
  matrix<float> none(0, 70);
  runs.multiply(x.topRows(0), none, columns);
  CHECK_THROWS_AS(runs.multiply(x.leftCols(9), y, columns), std::invalid_argument);
}

TEST_CASE("ternary runs: what is not ternary, or no row, is refused", "[kernel][format]") {
  matrix<float> w = drawn_ternary(2, 9, 50, 7);
  const ternary_runs good = ternary_runs::of(w);
  w(1, 3) = 0.125F;
  CHECK_THROWS_AS(ternary_runs::of(w), std::invalid_argument);
  w(1, 3) = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_AS(ternary_runs::of(w), std::invalid_argument);
  CHECK_THROWS_AS(ternary_runs::of(matrix<float>::Constant(1, 2, 1.0001F)), std::invalid_argument);
  const std::vector<bfloat16> levels(2);
  CHECK_THROWS_AS(ternary_runs(11, good.runs(), good.first(), levels, levels), std::invalid_argument);
  CHECK_THROWS_AS(ternary_runs(9, good.runs(), {0, 1}, levels, levels), std::invalid_argument);
  // A run of one pair whose second value stands beside an odd row's end.
  const std::uint16_t beside = ternary_dictionary::shared().single(3);
  CHECK_THROWS_AS(ternary_runs(1, {beside}, {0, 1}, {bfloat16{}}, {bfloat16{}}), std::invalid_argument);
}
