#include <sluice/quant/low_rank_codes.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

/// Every parameter's gradient against differences of 1/2 |W - target|^2.
template <typename Codes>
void check_slopes_of(Codes& codes, const matrix<double>& target) {
  codes.backward(codes.to_matrix() - target);
  const auto loss = [&] { return 0.5 * (codes.to_matrix() - target).squaredNorm(); };
  for_each_parameter(codes, [&](const std::string& name, parameter<double>& p) {
    CAPTURE(name);
    for (index_t i = 0; i < p.size(); ++i)
      CHECK(std::abs(test::slope_at(p.data()[i], loss) - p.gradient()[as_size(i)]) < 1e-6 * (1 + target.squaredNorm()));
  });
}

}  // namespace

TEST_CASE("low_rank_codes: as many codes as tiles is the best factorisation of that rank", "[quant][low_rank]") {
  const matrix<double> w = test::random_matrix<double>(6, 12, 1);
  const tile_shape tile{1, 4};
  const matrix<double> tiles = to_tiles<double>(w, tile);
  const kernel::small_svd svd(matrix<double>(tiles.transpose() * tiles));
  for (const index_t r : {1, 2, 3, 4}) {
    const low_rank_codes<double> codes(w, tile, {.codes = 18, .width = r, .random = random_source(2)});
    const double left_out = svd.s.bottomRows(4 - r).sum();
    CHECK(std::abs((codes.to_matrix() - w).squaredNorm() - left_out) < 1e-9);
    const low_rank_error error =
        low_rank_error_of<double>(w, tile, {.codes = 18, .width = r, .random = random_source(2)});
    CHECK(std::abs(error.left_out - left_out) < 1e-9);
    CHECK(error.clustered < 1e-9);
  }
}

TEST_CASE("low_rank_codes: the whole width with P = I is plain vector quantisation", "[quant][low_rank]") {
  const matrix<double> w = test::random_matrix<double>(10, 8, 3);
  low_rank_codes<double> codes(w, {1, 2}, {.codes = 5, .width = 2, .random = random_source(4)});
  codes.lift().map().setIdentity();
  codes.assign(w);
  const matrix<double> tiles = to_tiles<double>(w, {1, 2}), book = codes.codebook().map(),
                       decoded = to_tiles<double>(codes.to_matrix(), {1, 2});
  for (index_t t = 0; t < tiles.rows(); ++t) {
    CHECK(decoded.row(t) == book.row(codes.ids()[as_size(t)]));
    for (index_t k = 0; k < 5; ++k)
      CHECK((tiles.row(t) - decoded.row(t)).squaredNorm() <= (tiles.row(t) - book.row(k)).squaredNorm() + 1e-12);
  }
}

TEST_CASE("low_rank_codes: gradients are slopes, training lowers the error", "[quant][low_rank][gradient]") {
  const matrix<double> w = test::random_matrix<double>(5, 9, 5);  // tiles of 4: the last ones padded
  low_rank_codes<double> codes(w, {1, 4}, {.codes = 4, .width = 2, .random = random_source(6)});
  codes.lift().map() += 0.4 * test::random_matrix<double>(4, 2, 13);
  const double before = (codes.to_matrix() - w).squaredNorm();
  check_slopes_of(codes, w);
  for (int step = 0; step < 50; ++step) {
    zero_gradients(codes);
    codes.backward(codes.to_matrix() - w);
    for_each_parameter(codes, [](const std::string&, parameter<double>& p) { p.map() -= 0.02 * p.gradient_map(); });
    codes.assign(w);
  }
  CHECK((codes.to_matrix() - w).squaredNorm() < 0.9 * before);
}

TEST_CASE("low_rank_codes: the width is where both errors together are least", "[quant][low_rank]") {
  // Tiles along two directions, and a little of everything else.
  const matrix<double> w = Eigen::Map<const matrix<double>>(
      matrix<double>(test::random_matrix<double>(200, 2, 7) * test::random_matrix<double>(2, 4, 8) +
                     0.01 * test::random_matrix<double>(200, 4, 9))
          .data(),
      50, 16);
  const low_rank_options few{.codes = 8, .random = random_source(10)};
  const index_t chosen = low_rank_width<double>(w, {1, 4}, few);
  low_rank_options o = few;
  double least = 1e300;
  index_t best = 0;
  for (o.width = 1; o.width <= 4; ++o.width)
    if (const double error = low_rank_error_of<double>(w, {1, 4}, o).total(); error < least)
      least = error, best = o.width;
  CHECK(chosen == best);
  CHECK(chosen >= 2);  // one direction leaves too much out
}

TEST_CASE("low_rank_codes: plain codes decode alike, zeros, equal bits for any thread count, what it needs",
          "[quant][low_rank]") {
  const matrix<float> w = test::random_matrix<float>(9, 16, 11);
  const low_rank_options o{.codes = 6, .width = 3, .random = random_source(12)};
  const low_rank_codes<float> codes(w, {3, 2}, o);
  CHECK(test::same_bits(codes.plain().to_matrix(), codes.to_matrix()));
  codes.plain().validate();
  test::shuffled_threads threads(3);
  CHECK(test::same_bits(low_rank_codes<float>(w, {3, 2}, o, threads).to_matrix(), codes.to_matrix()));
  CHECK(low_rank_codes<float>(matrix<float>::Zero(9, 16), {3, 2}, o).to_matrix().isZero());
  CHECK_THROWS_WITH(low_rank_codes<float>(w, {1, 2}, o), Catch::Matchers::Contains("a width of 1 to 2"));
  CHECK_THROWS_AS(low_rank_codes<float>(matrix<float>(0, 4), {1, 4}, o), std::invalid_argument);
  matrix<float> broken = w;
  broken(2, 2) = quiet_nan<float>();
  CHECK_THROWS_WITH(low_rank_codes<float>(broken, {3, 2}, o), Catch::Matchers::Contains("NaN"));
  low_rank_codes<float> other = codes;
  CHECK_THROWS_AS(other.backward(w.leftCols(3)), std::invalid_argument);
}
