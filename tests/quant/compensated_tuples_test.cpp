#include <sluice/quant/compensated_tuples.hpp>

#include "support.hpp"

#include <array>

using namespace sluice;

namespace {

/// Inputs that depend on one another, and their second moments.
matrix<double> tuple_moments(index_t tokens, index_t inputs, std::uint64_t seed) {
  const matrix<double> x =
      test::random_matrix<double>(tokens, inputs, seed) * test::random_matrix<double>(inputs, inputs, seed + 1);
  return x.transpose() * x / static_cast<double>(tokens);
}

double output_error(const matrix<float>& w, const matrix<float>& q, const matrix<double>& h) {
  const matrix<double> error = (w - q).cast<double>();
  return (error * h).cwiseProduct(error).sum();
}

}  // namespace

TEST_CASE("compensated_tuples: as many entries as there are tuples, and nothing is lost", "[quant][tuples]") {
  const matrix<float> w = test::random_matrix<float>(4, 6, 1);
  const inverse_factor factor(tuple_moments(20, 6, 2));
  for (const index_t d : {1, 2, 3}) {
    const auto codes =
        compensated_tuples(w, factor, {.codes = 4 * 6 / d, .tile_inputs = d, .group_inputs = 0, .block = 6});
    CHECK(test::same_bits(codes.to_matrix(), w));
  }
}

TEST_CASE("compensated_tuples: one tuple at a time, the plain loop", "[quant][tuples]") {
  // One group of all weights in one block: its entries come from the weights as they are.
  const auto metric = GENERATE(tuple_metric::whole, tuple_metric::conditional);
  const matrix<float> w = test::random_matrix<float>(9, 10, 3);
  const inverse_factor factor(tuple_moments(40, 10, 4));
  const auto codes = compensated_tuples<double>(
      w, factor, {.codes = 6, .tile_inputs = 2, .group_inputs = 0, .rounds = 5, .metric = metric});
  const matrix<double> book = codes.codebook(0, 0).map();
  matrix<double> left = w.cast<double>(), expected(9, 10);
  for (index_t i = 0; i < 10; i += 2)
    for (index_t r = 0; r < 9; ++r) {
      const double u00 = factor.diagonal(i), u01 = metric == tuple_metric::whole ? factor.row(i)[i + 1] : 0,
                   u11 = factor.diagonal(i + 1);
      index_t best = 0;
      double least = 1e300, e[2] = {};
      for (index_t k = 0; k < 6; ++k) {
        const double first = (left(r, i) - book(k, 0)) / u00,
                     second = (left(r, i + 1) - book(k, 1) - first * u01) / u11;
        if (const double cost = first * first + second * second; cost < least)
          best = k, least = cost, e[0] = first, e[1] = second;
      }
      CHECK(codes.index(0, r, i / 2) == best);
      expected.block(r, i, 1, 2) = book.row(best);
      for (index_t d = 0; d < 2; ++d)
        for (index_t j = i + 2; j < 10; ++j) left(r, j) -= e[d] * factor.row(i + d)[j];
    }
  CHECK(codes.to_matrix() == expected);
}

TEST_CASE("compensated_tuples: a neutral factor pushes nothing on, and each tuple goes to its nearest entry",
          "[quant][tuples]") {
  const matrix<float> w = test::random_matrix<float>(6, 11, 5);  // the last tuple has one weight
  const auto codes = compensated_tuples(w, inverse_factor(11), {.codes = 5, .tile_inputs = 2});
  const matrix<float> book = codes.codebook(0, 0).map();
  for (index_t r = 0; r < 6; ++r)
    for (index_t b = 0; b < 6; ++b) {
      const index_t width = (std::min)(index_t{2}, 11 - 2 * b);
      const auto far = [&](index_t k) {
        return (w.row(r).segment(2 * b, width) - book.row(k).head(width)).squaredNorm();
      };
      for (index_t k = 0; k < 5; ++k) CHECK(far(codes.index(0, r, b)) <= far(k) + test::bound<float>(2, 4));
    }
}

TEST_CASE("compensated_tuples: a group's entries come from what the blocks before it left", "[quant][tuples]") {
  const matrix<float> w = test::random_matrix<float>(8, 16, 6);
  const inverse_factor factor(tuple_moments(50, 16, 7));
  tuple_options o{.codes = 4, .tile_inputs = 2, .group_outputs = 4, .group_inputs = 8, .rounds = 3, .block = 8};
  const auto halves = compensated_tuples<double>(w, factor, o);
  o.block = 16;
  const auto whole = compensated_tuples<double>(w, factor, o);
  for (const index_t group : {0, 2}) CHECK(halves.codebook(group, 0).map() == whole.codebook(group, 0).map());
  for (const index_t group : {1, 3}) CHECK(halves.codebook(group, 0).map() != whole.codebook(group, 0).map());
  CHECK(whole.codebook(0, 0).map() != whole.codebook(2, 0).map());
}

TEST_CASE("compensated_tuples: what outputs lose, by what near means", "[quant][tuples]") {
  double unpushed = 0;
  std::array<double, 4> pushed{};
  for (std::uint64_t seed = 10; seed < 16; ++seed) {
    const matrix<float> w = test::random_matrix<float>(32, 32, seed);
    const matrix<double> h = tuple_moments(100, 32, seed + 100);
    const inverse_factor factor(h);
    tuple_options o{.codes = 16, .tile_inputs = 2, .rounds = 20};
    unpushed += output_error(w, compensated_tuples(w, inverse_factor(32), o).to_matrix(), h);
    for (const auto metric :
         {tuple_metric::whole, tuple_metric::plain, tuple_metric::conditional, tuple_metric::released}) {
      o.metric = metric;
      pushed[static_cast<std::size_t>(metric)] += output_error(w, compensated_tuples(w, factor, o).to_matrix(), h);
    }
  }
  WARN("output error of tuples of 2 at 2 bits a weight: nearest, nothing pushed on "
       << unpushed << "; whole " << pushed[0] << ", plain " << pushed[1] << ", conditional " << pushed[2]
       << ", released " << pushed[3]);
  for (const double error : pushed) CHECK(error < 0.8 * unpushed);
  for (std::size_t i = 1; i < 4; ++i) CHECK(pushed[0] < pushed[i]);
}

TEST_CASE("compensated_tuples: entries of 8 bits, scales of 4", "[quant][tuples]") {
  const matrix<float> w = test::random_matrix<float>(8, 32, 8);
  const inverse_factor factor(tuple_moments(60, 32, 9));
  const auto codes = compensated_tuples(w, factor,
                                        {.codes = 8,
                                         .tile_inputs = 2,
                                         .group_outputs = 4,
                                         .group_inputs = 16,
                                         .rounds = 5,
                                         .bits = 8,
                                         .scale_inputs = 8});
  for (index_t group = 0; group < 4; ++group) {
    const matrix<float> book = codes.codebook(group, 0).map();
    const float step = book.cwiseAbs().maxCoeff() / 127;
    CHECK(((book / step) - (book / step).array().rint().matrix()).cwiseAbs().maxCoeff() < 1e-4F);
  }
  // Sixteen steps between the least and the greatest of a group.
  const matrix<float> logs = codes.scales().map().array().log10();
  for (index_t row : {0, 4})
    for (index_t column : {0, 2}) {
      const matrix<float> group = logs.block(row, column, 4, 2);
      const float least = group.minCoeff(), step = (group.maxCoeff() - least) / 15;
      const matrix<float> places = (group.array() - least) / step;
      CHECK((places - places.array().rint().matrix()).cwiseAbs().maxCoeff() < 1e-3F);
    }
  CHECK(test::same_bits(codes.to_matrix(), codes.plain().to_matrix()));

  matrix<float> zeros = w;
  zeros.topRows(4).setZero();
  const auto some =
      compensated_tuples(zeros, factor, {.codes = 8, .group_outputs = 4, .group_inputs = 16, .scale_inputs = 8});
  CHECK(some.to_matrix().topRows(4).isZero());
  CHECK(some.to_matrix().allFinite());
}

TEST_CASE("compensated_tuples: dead inputs, nothing seen, zeros, one code, empty matrices", "[quant][tuples]") {
  const matrix<float> w = test::random_matrix<float>(5, 8, 10);
  matrix<double> h = tuple_moments(30, 8, 11);
  h.row(3).setZero();
  h.col(3).setZero();
  CHECK(compensated_tuples(w, inverse_factor(h), {.codes = 4}).to_matrix().allFinite());
  const auto unseen = compensated_tuples(w, inverse_factor(matrix<double>::Zero(8, 8)), {.codes = 4});
  CHECK(test::same_bits(unseen.to_matrix(), compensated_tuples(w, inverse_factor(8), {.codes = 4}).to_matrix()));
  CHECK(compensated_tuples(matrix<float>(matrix<float>::Zero(5, 8)), inverse_factor(h), {.codes = 4})
            .to_matrix()
            .isZero());
  const auto one = compensated_tuples(w, inverse_factor(8), {.codes = 1, .tile_inputs = 1});
  CHECK(std::abs(one.to_matrix()(0, 0) - w.mean()) < 1e-6F);
  CHECK(one.to_matrix().isConstant(one.to_matrix()(0, 0), 0));
  CHECK(compensated_tuples(matrix<float>(0, 8), inverse_factor(8)).to_matrix().rows() == 0);
  CHECK(compensated_tuples(matrix<float>(5, 0), inverse_factor(0)).to_matrix().cols() == 0);
}

TEST_CASE("compensated_tuples: equal bits for any thread count", "[quant][tuples]") {
  const matrix<float> w = test::random_matrix<float>(150, 24, 12);
  const inverse_factor factor(tuple_moments(60, 24, 13));
  for (const index_t group : {index_t{0}, index_t{30}}) {
    const tuple_options o{.codes = 8, .tile_inputs = 2, .group_outputs = group, .group_inputs = 12, .rounds = 4};
    const matrix<float> serial = compensated_tuples(w, factor, o).to_matrix();
    for (const int count : {2, 3}) {
      test::shuffled_threads threads(count);
      CHECK(test::same_bits(serial, compensated_tuples(w, factor, o, threads).to_matrix()));
    }
  }
}

TEST_CASE("compensated_tuples: what it needs", "[quant][tuples]") {
  matrix<float> w = test::random_matrix<float>(4, 8, 14);
  const inverse_factor factor(tuple_moments(30, 8, 15));
  CHECK_THROWS_AS(compensated_tuples(w, inverse_factor(7)), std::invalid_argument);
  CHECK_THROWS_AS(compensated_tuples(w, factor, {.codes = 0}), std::invalid_argument);
  CHECK_THROWS_AS(compensated_tuples(w, factor, {.tile_inputs = 3}), std::invalid_argument);
  CHECK_THROWS_WITH(compensated_tuples(w, factor, {.scale_inputs = 3}), Catch::Matchers::Contains("whole tiles of 2"));
  CHECK_THROWS_WITH(compensated_tuples(w, inverse_factor(tuple_moments(30, 8, 15), {.order_by_activity = true})),
                    Catch::Matchers::Contains("neighbouring inputs"));
  CHECK_THROWS_AS(compensated_tuples(w, factor, {.bits = 1}), std::invalid_argument);
  w(2, 5) = std::numeric_limits<float>::infinity();
  CHECK_THROWS_AS(compensated_tuples(w, factor), std::invalid_argument);
}
