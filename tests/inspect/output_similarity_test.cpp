#include <sluice/inspect/output_similarity.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("output_similarity: cosines 1, 0, -1 and .5", "[inspect]") {
  std::vector<matrix<double>> outputs(4, matrix<double>(1, 2));
  outputs[0] << 2, 0;
  outputs[1] << 0, 3;
  outputs[2] << -1, 0;
  outputs[3] << 0.5, std::sqrt(0.75);
  const matrix<double> s = output_similarity(outputs);
  CHECK(s(0, 0) == 1);
  CHECK(s(0, 1) == 0.5);
  CHECK_THAT(s(0, 2), Catch::WithinAbs(0, 1e-15));
  CHECK_THAT(s(0, 3), Catch::WithinAbs(2.0 / 3, 1e-15));
  CHECK(s == s.transpose());
}

TEST_CASE("output_similarity: a mean over tokens - zeros are at right angles, NaN is left out", "[inspect]") {
  std::vector<matrix<float>> outputs(3, matrix<float>(3, 2));
  outputs[0] << 1, 0, 0, 0, quiet_nan<float>(), 1;
  outputs[1] << 1, 0, 0, 5, 1, 1;
  outputs[2] << quiet_nan<float>(), 0, 0, std::numeric_limits<float>::infinity(), quiet_nan<float>(), 0;
  const matrix<double> s = output_similarity(outputs);
  CHECK(s(0, 1) == 0.75);  // (1 + .5) / 2
  CHECK(s(0, 0) == 0.75);
  CHECK(s(1, 1) == 1);
  CHECK(is_nan(s(2, 1)));
  CHECK(is_nan(s(2, 2)));
  CHECK(is_nan(output_similarity(std::vector<matrix<float>>(2, matrix<float>(0, 4)))(0, 1)));
  CHECK(output_similarity(std::vector<matrix<float>>{}).size() == 0);
  CHECK_THROWS_AS(output_similarity(std::vector<matrix<float>>{matrix<float>(1, 2), matrix<float>(2, 2)}),
                  std::invalid_argument);
}

TEST_CASE("output_similarity: near-equal outputs keep their digits", "[inspect]") {
  std::vector<matrix<double>> outputs(2, matrix<double>(1, 2));
  outputs[0] << 1, 0;
  outputs[1] << 1, 1e-9;  // an arccos of the cosine, 1 - 5e-19, says 0
  CHECK_THAT((1 - output_similarity(outputs)(0, 1)) * 3.14159265358979323846, Catch::WithinRel(1e-9, 1e-6));
}
