#include <sluice/codebook/structure/pyramid.hpp>

#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/structure/nested_codebook.hpp>
#include <sluice/codebook/structure/unit_rows.hpp>
#include <sluice/codebook/vector_quantizer.hpp>

#include "../../layer/plain_checks.hpp"
#include "../codebook_checks.hpp"

using namespace sluice;

namespace {

constexpr index_t pyramid_width = 3;

template <typename Scalar>
auto drawn_level(std::uint64_t seed, commitment_loss loss = {}) {
  vector_quantizer level{learned_codes<Scalar>{9, pyramid_width}, loss};
  level.codebook().table().assign(test::random_matrix<Scalar>(9, pyramid_width, seed));
  return level;
}

using plain_pyramid = pyramid_quantizer<vector_quantizer<learned_codes<float>>>;
static_assert(!is_causal<plain_pyramid> && is_token_mixer<plain_pyramid> && is_token_mixer<unit_rows<plain_pyramid>>);

}  // namespace

TEMPLATE_TEST_CASE("pyramid_quantizer: a coarse code a cell, then a code a token for what is left", "[codebook][structure]", float, double) {
  using S = TestType;
  // Two images of 3 x 4: cells of 2 x 2, and 1 x 2 in the last row.
  pyramid_quantizer q{std::vector{drawn_level<S>(1), drawn_level<S>(2)}, {2, 1}, {.height = 3, .width = 4}};
  const matrix<S> x = test::random_matrix<S>(24, pyramid_width, 4);
  matrix<S> y(24, pyramid_width), decoded(24, pyramid_width), trained(24, pyramid_width);
  matrix<index_t> ids(24, 2);
  typename decltype(q)::workspace workspace;
  typename decltype(q)::tape tape;
  q.encode(x, ids, workspace);
  q.forward(x, y, workspace);
  q.decode(ids, decoded, workspace);
  q.forward(x, trained, tape);
  CHECK(test::same_bits(y, decoded));
  CHECK(test::same_bits(y, trained));
  const auto top = q.stage(0).codebook().table().to_matrix(), bottom = q.stage(1).codebook().table().to_matrix();
  for (index_t image = 0; image < 2; ++image)
    for (index_t row = 0; row < 3; ++row)
      for (index_t column = 0; column < 4; ++column) {
        const index_t t = 12 * image + 4 * row + column;
        CAPTURE(t);
        Eigen::Matrix<S, 1, Eigen::Dynamic> mean = Eigen::Matrix<S, 1, Eigen::Dynamic>::Zero(pyramid_width);
        S count = 0;
        for (index_t r = row / 2 * 2; r < std::min<index_t>(3, row / 2 * 2 + 2); ++r)
          for (index_t c = column / 2 * 2; c < column / 2 * 2 + 2; ++c) mean += x.row(12 * image + 4 * r + c), count += 1;
        index_t best = 0;
        (top.rowwise() - mean / count).rowwise().squaredNorm().minCoeff(&best);
        CHECK(ids(t, 0) == best);
        (bottom.rowwise() - (x.row(t) - top.row(best))).rowwise().squaredNorm().minCoeff(&best);
        CHECK(ids(t, 1) == best);
        CHECK((y.row(t) - top.row(ids(t, 0)) - bottom.row(ids(t, 1))).norm() < test::bound<S>(2, 4));
      }
}

TEST_CASE("pyramid_quantizer: gradients are those of differences, hidden tokens left out", "[codebook][structure][gradient]") {
  constexpr index_t T = 8;
  const commitment_loss loss{.encoder = 0.7, .codebook = 0};
  const std::vector stages{unit_rows{drawn_level<double>(1, loss)}, unit_rows{drawn_level<double>(2, loss)}};
  const token_grid grid{.height = 2, .width = 4};
  pyramid_quantizer q{stages, {2, 1}, grid};
  matrix<double> x = test::random_matrix<double>(T, pyramid_width, 4), dy = test::random_matrix<double>(T, pyramid_width, 5);
  std::vector<std::uint8_t> mask(T, 1);
  mask[3] = 0;
  const auto r = test::train_once(q, x, dy, {.token_mask = mask});
  decltype(q)::tape tape;
  matrix<double> y(T, pyramid_width);
  q.forward(x, y, tape, {.training = true, .token_mask = mask});
  const auto surrogate = [&](const matrix<double>& at) {
    double sum = 0;
    matrix<double> left = at, then = x, out = matrix<double>::Zero(T, pyramid_width);
    for (index_t j = 0; j < 2; ++j) {
      const index_t side = q.side(j), cells = grid.cells(side);
      matrix<double> means = matrix<double>::Zero(cells, pyramid_width), means_then = means, value = means;
      std::vector<double> count(as_size(cells), 0);
      std::vector<index_t> code(as_size(cells), 0);
      for (index_t t = 0; t < T; ++t) {
        if (!mask[as_size(t)]) continue;
        const index_t c = grid.cell(t, side);
        means.row(c) += left.row(t), means_then.row(c) += then.row(t), count[as_size(c)] += 1, code[as_size(c)] = tape.ids(t, j);
      }
      const double seen = static_cast<double>(cells) - (side == 1 ? 1 : 0);
      for (index_t c = 0; c < cells; ++c) {
        if (count[as_size(c)] == 0) continue;
        const Eigen::RowVectorXd q_c = stages[as_size(j)].quantizer().codebook().table().to_matrix().row(code[as_size(c)]);
        const Eigen::RowVectorXd z = means.row(c).normalized();
        value.row(c) = z + q_c - means_then.row(c).normalized();
        sum += 0.7 * (z - q_c).squaredNorm() / (seen * pyramid_width);
        for (index_t t = 0; t < T; ++t)
          if (grid.cell(t, side) == c) then.row(t) -= q_c;
      }
      for (index_t t = 0; t < T; ++t) out.row(t) += value.row(grid.cell(t, side)), left.row(t) -= value.row(grid.cell(t, side));
    }
    for (index_t t = 0; t < T; ++t)
      if (mask[as_size(t)]) sum += out.row(t).dot(dy.row(t));
    return sum;
  };
  matrix<double> at = x;
  for (index_t i = 0; i < x.size(); ++i)
    CHECK(r.dx.data()[i] == Approx(test::slope_at(at.data()[i], [&] { return surrogate(at); })).margin(1e-8));
}

TEST_CASE("pyramid_quantizer: every promise of a layer, and what does not fit", "[codebook][structure][conformance]") {
  const vector_quantizer level{moving_average_codes<double>{9, pyramid_width}};
  pyramid_quantizer q{std::vector(3, level), {4, 2, 1}, {.height = 1, .width = 2}};
  initialize(q, 3);
  const auto report = check_layer(q, {.tokens = 38});
  INFO(report.describe());
  CHECK(report.passed());
  CHECK_THROWS_WITH((pyramid_quantizer{std::vector(2, level), {1}, {}}), Catch::Contains("each of 2 stages"));
  CHECK_THROWS_WITH((pyramid_quantizer{std::vector(1, level), {0}, {}}), Catch::Contains("side 0"));
  decltype(q)::workspace workspace;
  matrix<double> y(3, pyramid_width);
  CHECK_THROWS_WITH(q.forward(matrix<double>::Zero(3, pyramid_width), y, workspace), Catch::Contains("3 tokens are no images of 1 x 2"));
}

TEMPLATE_TEST_CASE("nested_codebook: numbers of every level are made of those of any finer one", "[codebook][structure]", float, double) {
  using S = TestType;
  matrix<S> codes = test::random_matrix<S>(200, 4, 1);
  codes(7, 2) = quiet_nan<S>();
  const nested_codebook<S> nested(codes, {50, 10, 1}, {.random = random_source{3}});
  REQUIRE(nested.levels() == 4);
  for (index_t level = 1; level < 4; ++level) {
    CHECK(nested.map(level)[7] == no_code);
    for (index_t c = 0; c < 200; ++c)
      for (index_t d = 0; d < 200; ++d)  // together in a finer level, together in this one
        if (nested.map(level - 1)[as_size(c)] == nested.map(level - 1)[as_size(d)])
          REQUIRE(nested.map(level)[as_size(c)] == nested.map(level)[as_size(d)]);
    vector_quantizer nearest{nested.codes(level)};
    typename decltype(nearest)::workspace workspace;
    matrix<index_t> ids(nested.size(level - 1), 1);
    nearest.encode(nested.table(level - 1), ids, workspace);
    for (index_t c = 0; c < 200; ++c)
      if (c != 7) CHECK(nested.map(level)[as_size(c)] == ids(nested.map(level - 1)[as_size(c)], 0));
  }
  matrix<index_t> ids(2, 2);
  ids << 3, no_code, 199, 0;
  nested.coarsen(ids, 2, ids);
  CHECK(ids(0, 0) == nested.map(2)[3]);
  CHECK(ids(0, 1) == no_code);
  CHECK(ids(1, 0) == nested.map(2)[199]);
  ids(0, 0) = 200;
  CHECK_THROWS_WITH(nested.coarsen(ids, 1, ids), Catch::Contains("token 0 has the code 200"));
  CHECK_THROWS_WITH(nested_codebook<S>(codes, {50, 50}), Catch::Contains("50 codes has none of 50"));
}

TEST_CASE("nested_codebook: with weights the one code is the mean of the tokens", "[codebook][structure]") {
  const matrix<double> codes = test::random_matrix<double>(20, 3, 1);
  std::vector<double> weights(20);
  Eigen::RowVectorXd mean = Eigen::RowVectorXd::Zero(3);
  double total = 0;
  for (index_t c = 0; c < 20; ++c) weights[as_size(c)] = static_cast<double>(c), mean += static_cast<double>(c) * codes.row(c), total += static_cast<double>(c);
  const nested_codebook<double> nested(codes, {5, 1}, {.random = random_source{3}, .weights = weights});
  CHECK((nested.table(2) - mean / total).norm() < 1e-13);
}
