#include <sluice/quant/candidate_codes.hpp>

#include "vector_codes_cases.hpp"

using namespace sluice;

namespace {

const test::code_case candidate_case{.outputs = 5, .inputs = 8, .tile_inputs = 2, .entries = 6};

}  // namespace

TEST_CASE("candidate_codes: one candidate is plain vector quantisation", "[quant][candidates]") {
  const matrix<float> w = test::random_matrix<float>(5, 8, 1);
  const vector_codes plain = test::random_codes(candidate_case, 2);
  const candidate_codes<float> codes(w, plain, {.candidates = 1});
  CHECK(test::same_bits(codes.to_matrix(), codes.chosen().to_matrix()));
  const matrix<float> tiles = to_tiles<float>(w, {1, 2}), now = to_tiles<float>(codes.to_matrix(), {1, 2});
  for (index_t t = 0; t < tiles.rows(); ++t)
    for (index_t k = 0; k < 6; ++k)
      CHECK((tiles.row(t) - now.row(t)).squaredNorm() <=
            (tiles.row(t) - plain.codebooks[0].row(k)).squaredNorm() + 1e-5F);
}

TEST_CASE("candidate_codes: the nearest first, ties to the lowest, ratios all alike or by distance",
          "[quant][candidates]") {
  vector_codes plain{.outputs = 1, .inputs = 2};
  plain.codebooks.push_back((matrix<float>(4, 1) << 3, 1, -1, 1).finished());
  plain.indices.push_back(matrix<std::uint16_t>::Zero(1, 2));
  matrix<double> w(1, 2);
  w << 0, 2.5;
  const candidate_codes<double> even(w, plain, {.candidates = 3});
  CHECK(even.ids() == (matrix<index_t>(2, 3) << 1, 2, 3, 0, 1, 3).finished());
  CHECK(std::abs(even.to_matrix()(0, 0) - 1.0 / 3) < 1e-12);
  const candidate_codes<double> sharp(w, plain, {.candidates = 3, .sharpness = 2});
  const double e = std::exp(-2 * (1.5 * 1.5 - 0.25));
  CHECK(std::abs(sharp.ratios()(1, 1) - e / (1 + 2 * e)) < 1e-12);
  CHECK(sharp.chosen().indices[0] == (matrix<std::uint16_t>(1, 2) << 1, 0).finished());
}

TEST_CASE("candidate_codes: gradients are slopes, of the decoded weights and of the loss of ratios",
          "[quant][candidates][gradient]") {
  const matrix<double> w = test::random_matrix<double>(5, 7, 3);  // the last tiles padded
  test::code_case c = candidate_case;
  c.inputs = 7;
  candidate_codes<double> codes(w, test::random_codes(c, 4), {.candidates = 3, .sharpness = 0.3});
  const auto loss = [&] { return 0.5 * (codes.to_matrix() - w).squaredNorm() + 4 * codes.ratio_loss(); };
  codes.backward(codes.to_matrix() - w);
  codes.ratio_loss(4);
  for_each_parameter(codes, [&](const std::string& name, parameter<double>& p) {
    CAPTURE(name);
    for (index_t i = 0; i < p.size(); ++i)
      CHECK(std::abs(test::slope_at(p.data()[i], loss) - p.gradient()[as_size(i)]) < 1e-6);
  });
}

TEST_CASE("candidate_codes: zero-data calibration decides, and outputs come nearer", "[quant][candidates]") {
  // Outputs of generated inputs; descent on codebook and ratios together, and the ratios' own loss more and more.
  const matrix<double> w = test::random_matrix<double>(6, 8, 5);
  candidate_codes<double> codes(w, test::random_codes({.outputs = 6, .inputs = 8, .tile_inputs = 2, .entries = 6}, 6),
                                {.candidates = 2});
  const double nearest = (candidate_codes<double>(w, codes.chosen(), {.candidates = 1}).to_matrix() - w).squaredNorm();
  CHECK(std::abs(codes.ratio_loss() - 1) < 1e-12);
  for (std::uint64_t step = 0; step < 300; ++step) {
    const matrix<double> x = test::random_matrix<double>(16, 8, 100 + step);
    zero_gradients(codes);
    codes.backward((codes.to_matrix() - w) * x.transpose() * x / 16);
    codes.ratio_loss(static_cast<double>(step) / 10);
    for_each_parameter(codes, [](const std::string&, parameter<double>& p) { p.map() -= 0.05 * p.gradient_map(); });
  }
  CHECK(codes.ratio_loss() < 0.2);
  const double calibrated = (codes.chosen().to_matrix().cast<double>() - w).squaredNorm();
  CHECK(calibrated < nearest);
}

TEST_CASE("candidate_codes: equal bits for any thread count, empty matrices, what it needs", "[quant][candidates]") {
  const matrix<float> w = test::random_matrix<float>(40, 32, 7);
  const vector_codes plain = test::random_codes({.outputs = 40, .inputs = 32, .tile_inputs = 4, .entries = 64}, 8);
  const candidate_codes<float> serial(w, plain, {.candidates = 4});
  test::shuffled_threads threads(3);
  CHECK(candidate_codes<float>(w, plain, {.candidates = 4}, threads).ids() == serial.ids());
  CHECK(candidate_codes<float>(matrix<float>(0, 8), test::random_codes({.outputs = 0, .inputs = 8}, 9))
            .to_matrix()
            .rows() == 0);
  CHECK_THROWS_AS(candidate_codes<float>(w, plain, {.candidates = 65}), std::invalid_argument);
  CHECK_THROWS_AS(candidate_codes<float>(w.leftCols(8), plain), std::invalid_argument);
  CHECK_THROWS_WITH(candidate_codes<float>(w.topLeftCorner(6, 10), test::random_codes({.stages = 2}, 10)),
                    Catch::Matchers::Contains("one stage, one codebook and no scales, not 2"));
  matrix<float> broken = w;
  broken(2, 2) = quiet_nan<float>();
  CHECK_THROWS_WITH(candidate_codes<float>(broken, plain), Catch::Matchers::Contains("NaN"));
}
