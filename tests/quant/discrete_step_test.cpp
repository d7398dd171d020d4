#include <sluice/quant/discrete_step.hpp>

#include "vector_codes_cases.hpp"

using namespace sluice;

namespace {

double squared_error(const tunable_codes<double>& codes, const matrix<double>& wanted) {
  return (codes.to_matrix() - wanted).squaredNorm();
}

/// Which tiles differ.
index_t changed_tiles(const vector_codes& a, const vector_codes& b) {
  index_t count = 0;
  for (index_t t = 0; t < a.indices[0].size(); ++t) {
    bool differs = false;
    for (std::size_t m = 0; m < a.indices.size(); ++m)
      differs = differs || a.indices[m].data()[t] != b.indices[m].data()[t];
    count += differs ? 1 : 0;
  }
  return count;
}

}  // namespace

TEST_CASE("discrete_step: all tiles and no bound is the nearest entry everywhere", "[quant][discrete]") {
  const test::code_case c{
      .outputs = 5, .inputs = 11, .tile_outputs = 2, .tile_inputs = 3, .entries = 9, .scale_inputs = 0};
  vector_codes plain = test::random_codes(c, 1);
  for (index_t o = 0; o + 1 < 5; o += 2) plain.scales.row(o + 1) = plain.scales.row(o) * 3;  // near is by weights
  tunable_codes<double> codes(plain);
  const matrix<double> wanted = 2 * test::random_matrix<double>(5, 11, 2);
  const discrete_step_report report = discrete_step<double>(codes, wanted, {.fraction = 1, .trust = {}});
  CHECK(report.looked_at == 12);
  CHECK(report.changed == changed_tiles(plain, codes.shape()));
  // No single change makes it better.
  const double least = squared_error(codes, wanted);
  for (index_t a = 0; a < 3; ++a)
    for (index_t b = 0; b < 4; ++b)
      for (index_t entry = 0; entry < 9; ++entry) {
        tunable_codes<double> other = codes;
        other.set_index(0, a, b, entry);
        CHECK(squared_error(other, wanted) >= least);
      }
}

TEST_CASE("discrete_step: a fraction of the tiles, those that are farthest off first, never nothing, but for none",
          "[quant][discrete]") {
  const vector_codes plain = test::random_codes({.outputs = 4, .inputs = 20, .tile_inputs = 2, .entries = 16}, 3);
  tunable_codes<double> codes(plain);
  matrix<double> wanted = codes.to_matrix();
  wanted.row(1).segment(4, 2).array() += 50;
  wanted.row(2).segment(0, 2).array() += 60;
  wanted.row(3).segment(6, 2).array() -= 40;
  const auto step = [&](double fraction) {
    tunable_codes<double> copy = codes;
    discrete_step<double>(copy, wanted, {.fraction = fraction, .trust = {}});
    return copy.plain();
  };
  CHECK(changed_tiles(step(0), plain) == 0);
  const vector_codes one = step(1e-9), two = step(0.05);
  CHECK(changed_tiles(one, plain) == 1);
  CHECK(one.indices[0](2, 0) != plain.indices[0](2, 0));
  CHECK(changed_tiles(two, plain) == 2);
  CHECK(two.indices[0](1, 2) != plain.indices[0](1, 2));
  CHECK(changed_tiles(step(1), plain) == 3);  // the others are where they should be
}

TEST_CASE("discrete_step: the change that reaches the bound is the last", "[quant][discrete]") {
  // Entries 0 and 1; all tiles at entry 1, of size 1 each: |Q| = 2. A change to 0 moves by 1, n changes by sqrt(n).
  vector_codes plain{.outputs = 2, .inputs = 2};
  plain.codebooks.push_back((matrix<float>(2, 1) << 0, 1).finished());
  plain.indices.push_back(matrix<std::uint16_t>::Ones(2, 2));
  matrix<double> wanted(2, 2);
  wanted << -0.3, 0.2, -0.2, -0.1;
  const auto left = [&](std::optional<double> trust) {
    tunable_codes<double> codes(plain);
    const discrete_step_report report = discrete_step<double>(codes, wanted, {.fraction = 1, .trust = trust});
    CHECK(report.moved == std::sqrt(static_cast<double>(report.changed)) / 2);
    return codes.to_matrix();
  };
  CHECK(left({}).sum() == 0);
  CHECK(left(0.01).sum() == 3);
  CHECK(left(0.01)(0, 0) == 0);  // the farthest off
  CHECK(left(0.6).sum() == 2);   // 0.5 < 0.6 <= 0.707
  CHECK(left(0.6)(1, 0) == 0);
  CHECK(left(0.8).sum() == 1);
}

TEST_CASE("discrete_step: several stages never lose, and all at once is not worse than one", "[quant][discrete]") {
  const vector_codes plain =
      test::random_codes({.outputs = 8, .inputs = 24, .stages = 3, .entries = 12, .scale_inputs = 8}, 5);
  tunable_codes<double> codes(plain);
  const matrix<double> wanted = 2 * test::random_matrix<double>(8, 24, 6);
  double error = squared_error(codes, wanted);
  for (int step = 0; step < 6; ++step) {
    const discrete_step_report report = discrete_step<double>(codes, wanted, {.fraction = 0.4, .trust = 0.5});
    const double now = squared_error(codes, wanted);
    CHECK(now <= error);
    CHECK((report.changed == 0) == (now == error));
    error = now;
  }
}

TEST_CASE("discrete_step: on a quadratic of unit curvature no step makes the loss larger", "[quant][discrete]") {
  // Loss |Q - target|^2 / 2; a gradient step of length 1 leads to the target.
  const matrix<double> target = test::random_matrix<double>(6, 12, 7);
  tunable_codes<double> codes(test::random_codes({.outputs = 6, .inputs = 12, .tile_inputs = 3, .entries = 7}, 8));
  double loss = squared_error(codes, target);
  for (int step = 0; step < 5; ++step) {
    const matrix<double> gradient = codes.to_matrix() - target;
    discrete_step<double>(codes, codes.to_matrix() - gradient, {.fraction = 0.3, .trust = 0.2});
    CHECK(squared_error(codes, target) <= loss);
    loss = squared_error(codes, target);
  }
}

TEST_CASE("discrete_step: a temperature draws tiles, the same from the same source, none that is right",
          "[quant][discrete]") {
  const vector_codes plain = test::random_codes({.outputs = 10, .inputs = 20, .tile_inputs = 2, .entries = 16}, 9);
  tunable_codes<double> codes(plain);
  matrix<double> wanted = codes.to_matrix();
  wanted.rightCols(10).array() += 3;
  const auto drawn = [&](std::uint64_t seed) {
    tunable_codes<double> copy = codes;
    discrete_step<double>(copy, wanted,
                          {.fraction = 0.1, .trust = {}, .temperature = 2, .random = random_source(seed)});
    return copy.plain();
  };
  CHECK(drawn(1).indices == drawn(1).indices);
  CHECK(drawn(1).indices != drawn(2).indices);
  CHECK(drawn(1).indices[0].leftCols(5) == plain.indices[0].leftCols(5));
  CHECK(changed_tiles(drawn(1), plain) <= 10);
}

TEST_CASE("discrete_step: NaN, zero scales, zero matrices, equal bits for any thread count", "[quant][discrete]") {
  const test::code_case c{
      .outputs = 12, .inputs = 40, .stages = 2, .entries = 30, .region_outputs = 4, .scale_inputs = 0};
  vector_codes plain = test::random_codes(c, 10);
  plain.scales.row(3).setZero();
  tunable_codes<double> codes(plain);
  matrix<double> wanted = test::random_matrix<double>(12, 40, 11);
  wanted(0, 1) = quiet_nan<double>();
  tunable_codes<double> serial = codes;
  discrete_step<double>(serial, wanted, {.fraction = 1, .trust = {}});
  CHECK(serial.index(0, 0, 0) == codes.index(0, 0, 0));
  for (index_t b = 0; b < 10; ++b) CHECK(serial.index(1, 3, b) == codes.index(1, 3, b));
  CHECK(changed_tiles(serial.shape(), plain) > 80);
  for (const int threads : {2, 3}) {
    test::shuffled_threads pool(threads);
    tunable_codes<double> copy = codes;
    discrete_step<double>(copy, wanted, {.fraction = 1, .trust = {}}, pool);
    CHECK(copy.shape().indices == serial.shape().indices);
  }
  for (matrix<float>& book : plain.codebooks) book.setZero();
  tunable_codes<double> zeros(plain);
  CHECK(discrete_step<double>(zeros, wanted, {.fraction = 1}).changed == 0);
}

TEST_CASE("discrete_step: what it needs", "[quant][discrete]") {
  tunable_codes<float> codes(test::random_codes({}, 12));
  CHECK_THROWS_WITH(discrete_step<float>(codes, matrix<float>::Zero(6, 9)),
                    Catch::Matchers::Contains("[6, 10] cannot go to one of [6, 9]"));
  const matrix<float> w = matrix<float>::Zero(6, 10);
  CHECK_THROWS_AS(discrete_step<float>(codes, w, {.fraction = 1.5}), std::invalid_argument);
  CHECK_THROWS_AS(discrete_step<float>(codes, w, {.trust = 0}), std::invalid_argument);
  CHECK_THROWS_AS(discrete_step<float>(codes, w, {.temperature = -1}), std::invalid_argument);
}
