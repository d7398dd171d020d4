#include <sluice/quant/tunable_codes.hpp>

#include "vector_codes_cases.hpp"

using namespace sluice;

namespace {

const test::code_case tunable_cases[] = {
    {.stages = 1},
    {.stages = 3, .scale_inputs = 0},
    {.outputs = 7, .inputs = 9, .tile_outputs = 2, .tile_inputs = 3, .stages = 2, .scale_inputs = 4},
    {.outputs = 9, .inputs = 4, .tile_outputs = 4, .tile_inputs = 1, .region_inputs = 2},
    {.outputs = 6, .inputs = 12, .tile_inputs = 2, .region_outputs = 3, .region_inputs = 8, .scale_inputs = 4},
};

}  // namespace

TEST_CASE("tiles: a matrix and back, padded with zeros", "[quant][tiles]") {
  const matrix<double> w = test::random_matrix<double>(5, 7, 1);
  const tile_shape tile{2, 3};
  const matrix<double> rows = to_tiles<double>(w, tile);
  REQUIRE(rows.rows() == 9);
  REQUIRE(rows.cols() == 6);
  CHECK(rows(4, 1) == w(2, 4));
  CHECK(rows(4, 5) == w(3, 5));
  CHECK(rows(8, 1) == 0);
  CHECK(from_tiles<double>(rows, 5, 7, tile) == w);
  CHECK(to_tiles<double>(matrix<double>(0, 7), tile).rows() == 0);
  CHECK_THROWS_AS(to_tiles<double>(w, {0, 3}), std::invalid_argument);
  CHECK_THROWS_WITH(from_tiles<double>(rows, 5, 10, tile), Catch::Matchers::Contains("are not the 12 tiles"));
}

TEST_CASE("tunable_codes: the bits of the plain codes, there and back", "[quant][tunable]") {
  for (const test::code_case& c : tunable_cases) {
    const vector_codes plain = test::random_codes(c, 2);
    const tunable_codes<float> codes(plain);
    CHECK(test::same_bits(codes.to_matrix(), plain.to_matrix()));
    const vector_codes again = codes.plain();
    CHECK(again.codebooks == plain.codebooks);
    CHECK(again.indices == plain.indices);
    CHECK(again.scales == plain.scales);
    CHECK(test::same_bits(again.to_matrix(), plain.to_matrix()));
  }
}

TEST_CASE("tunable_codes: gradients are the slopes of any function of the matrix", "[quant][tunable][gradient]") {
  for (const test::code_case& c : tunable_cases) {
    tunable_codes<double> codes(test::random_codes(c, 3));
    const matrix<double> target = test::random_matrix<double>(c.outputs, c.inputs, 4);
    const auto loss = [&] { return 0.5 * (codes.to_matrix() - target).squaredNorm(); };
    codes.backward(codes.to_matrix() - target);
    for_each_parameter(codes, [&](const std::string& name, parameter<double>& p) {
      for (index_t i = 0; i < p.size(); ++i) {
        CAPTURE(name, i);
        const double kept = p.data()[i], step = 1e-5;
        p.data()[i] = kept + step;
        const double more = loss();
        p.data()[i] = kept - step;
        const double less = loss();
        p.data()[i] = kept;
        CHECK(std::abs((more - less) / (2 * step) - p.gradient()[as_size(i)]) < 1e-7);
      }
    });
  }
}

TEST_CASE("tunable_codes: entries that no tile uses get no gradient, gradients add up", "[quant][tunable]") {
  vector_codes plain = test::random_codes({.outputs = 2, .inputs = 4, .tile_inputs = 2, .entries = 3}, 5);
  plain.indices[0] << 0, 2, 2, 2;
  tunable_codes<double> codes(plain);
  matrix<double> dw(2, 4);
  dw << 1, 2, 3, 4, 5, 6, 7, 8;
  codes.backward(dw);
  matrix<double> expected(3, 2);
  expected << 1, 2, 0, 0, 15, 18;
  CHECK(codes.codebook(0, 0).gradient_map() == expected);
  codes.backward(dw);
  CHECK(codes.codebook(0, 0).gradient_map() == 2 * expected);
}

TEST_CASE("tunable_codes: what does not fit is refused, empty matrices are none of that", "[quant][tunable]") {
  vector_codes plain = test::random_codes({}, 6);
  tunable_codes<float> codes(plain);
  CHECK_THROWS_WITH(codes.backward(matrix<float>::Zero(6, 9)),
                    Catch::Matchers::Contains("[6, 10] have no gradient [6, 9]"));
  CHECK_THROWS_WITH(codes.set_index(0, 1, 1, 5), Catch::Matchers::Contains("the index 5 into 5 entries"));
  plain.indices[0](1, 1) = 7;
  CHECK_THROWS_AS(tunable_codes<float>(plain), std::invalid_argument);
  tunable_codes<float> none(test::random_codes({.outputs = 0}, 7));
  CHECK(none.to_matrix().rows() == 0);
  none.backward(matrix<float>(0, 10));
}
