#include <sluice/codebook/structure/modality.hpp>

#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/structure/residual.hpp>
#include <sluice/codebook/vector_quantizer.hpp>

#include "../../layer/plain_checks.hpp"
#include "../codebook_checks.hpp"
#include "../quantizer_calls.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
auto modality_part(index_t codes, std::uint64_t seed) {
  vector_quantizer part{learned_codes<Scalar>{codes, 3}};
  part.codebook().table().assign(test::random_matrix<Scalar>(codes, 3, seed));
  return part;
}

}  // namespace

TEST_CASE("modality_quantizer: a token meets the codebook of its modality, as if it were alone", "[codebook][structure]") {
  modality_quantizer q{std::vector{modality_part<float>(5, 1), modality_part<float>(7, 2)}};
  REQUIRE(q.codes() == 12);
  const matrix<float> x = test::random_matrix<float>(9, 3, 4), dy = test::random_matrix<float>(9, 3, 5);
  const std::vector<index_t> modalities{0, 1, 1, 0, 0, 1, 0, 1, 0};
  const test::trained r(q, x, dy, {.modality_ids = modalities});
  const auto ids = test::encoded(q, x, {.modality_ids = modalities});
  CHECK(ids == r.tape.ids.map());
  CHECK(test::same_bits(test::inferred(q, x, {.modality_ids = modalities}), r.y));
  CHECK(test::same_bits(test::decoded(q, ids), r.y));
  float loss = 0;
  for (index_t m = 0; m < 2; ++m) {
    auto part = q.part(m);
    std::vector<index_t> rows;
    for (index_t t = 0; t < 9; ++t)
      if (modalities[as_size(t)] == m) rows.push_back(t);
    const matrix<float> own_x = x(rows, Eigen::all), own_dy = dy(rows, Eigen::all);
    zero_gradients(part);
    const test::trained own(part, own_x, own_dy);
    loss += own.tape.loss();
    CHECK(test::same_bits(matrix<float>(r.y(rows, Eigen::all)), own.y));
    CHECK(test::same_bits(matrix<float>(r.dx(rows, Eigen::all)), own.dx));
    CHECK(test::same_bits(q.part(m).codebook().table().gradient_matrix(), part.codebook().table().gradient_matrix()));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto t = static_cast<index_t>(i);
      CHECK(ids(rows[i], 0) == own.tape.ids(t, 0) + q.codes_before(m));
    }
  }
  CHECK(r.tape.loss() == Approx(loss));
}

TEST_CASE("modality_quantizer: says what does not fit", "[codebook][structure]") {
  using residual = residual_quantizer<vector_quantizer<learned_codes<float>>>;
  CHECK_THROWS_WITH((modality_quantizer{std::vector{residual{modality_part<float>(5, 1), 1}, residual{modality_part<float>(5, 1), 2}}}),
                    Catch::Contains("modality 1"));
  modality_quantizer q{std::vector<residual>(2, residual{modality_part<float>(5, 1), 2})};
  const matrix<float> x = test::random_matrix<float>(2, 3, 4);
  CHECK_THROWS_WITH(test::encoded(q, x), Catch::Contains("modality_ids"));
  std::vector<index_t> modalities{0, 2};
  CHECK_THROWS_WITH(test::encoded(q, x, {.modality_ids = modalities}), Catch::Contains("token 1 has modality 2"));
  const std::vector<std::uint8_t> mask{1, 0};
  CHECK(test::encoded(q, x, {.token_mask = mask, .modality_ids = modalities})(1, 0) == no_code);
  matrix<index_t> ids(1, 2);
  ids << 1, 6;
  CHECK_THROWS_WITH(test::decoded(q, ids), Catch::Contains("different modalities"));
  ids << 1, no_code;
  CHECK(test::same_bits(test::decoded(q, ids), matrix<float>(q.part(0).stage(0).codebook().table().map().row(1))));
}

TEST_CASE("modality_quantizer: every promise of a layer", "[codebook][structure][conformance]") {
  modality_quantizer q{std::vector(2, vector_quantizer{moving_average_codes<double>{7, 3}})};
  initialize(q, 1);
  const layer_check_options<double> defaults;
  std::vector<index_t> modalities(as_size(defaults.tokens));
  for (std::size_t t = 0; t < modalities.size(); ++t) modalities[t] = t % 3 == 0 ? 1 : 0;
  const auto report = check_layer(q, {.seed = 1, .context = {.modality_ids = modalities}});
  INFO(report.describe());
  CHECK(report.passed());
}
