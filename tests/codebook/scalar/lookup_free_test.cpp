#include <sluice/codebook/scalar/lookup_free.hpp>

#include <sluice/codebook/structure/unit_rows.hpp>

#include "../codebook_checks.hpp"
#include "../quantizer_calls.hpp"

using namespace sluice;

TEST_CASE("lookup_free: signs, their ids and a straight gradient", "[codebook][scalar][lfq]") {
  lookup_free_quantizer<double> lfq{3, {.codebooks = 2, .scale = 0.5, .entropy_weight = 0, .commitment_weight = 0}};
  CHECK((lfq.inputs() == 6 && lfq.code_columns() == 2 && lfq.codes(0) == 8));
  matrix<double> x(2, 6);
  x << 1, -2, 0.1, -1, -1, 3, 0, -0.0, 1e-300, 5, 5, 0;  // zero of either sign is not positive
  const matrix<double> dy = test::random_matrix<double>(2, 6, 1);
  const test::trained run(lfq, x, dy);
  matrix<double> expected(2, 6);
  expected << 1, -1, 1, -1, -1, 1, -1, -1, 1, 1, 1, -1;
  CHECK(test::same_bits(run.y, matrix<double>(0.5 * expected)));
  CHECK(test::same_bits(run.dx, dy));
  CHECK(run.tape.loss() == 0);
  matrix<index_t> ids(2, 2);
  ids << 5, 1, 1, 6;
  CHECK(test::encoded(lfq, x) == ids);
  CHECK(test::same_bits(test::decoded(lfq, ids), run.y));
  CHECK(test::same_bits(test::inferred(lfq, run.y), run.y));  // quantising twice is quantising once
  matrix<index_t> again(2, 2);
  lfq.ids_of_codes(run.y, again);
  CHECK(again == ids);
}

TEST_CASE("lookup_free: every id is decoded to what has it", "[codebook][scalar][lfq]") {
  const lookup_free_quantizer<float> lfq{7};
  matrix<index_t> ids(128, 1);
  for (index_t i = 0; i < 128; ++i) ids(i, 0) = i;
  const matrix<float> codes = test::decoded(lfq, ids);
  CHECK(test::encoded(lfq, codes) == ids);
  for (index_t i = 0; i < 128; ++i)
    for (index_t d = 0; d < 7; ++d) CHECK(codes(i, d) == (i >> (6 - d) & 1 ? 1.0f : -1.0f));
}

TEST_CASE("lookup_free: commitment and entropies are means over numbers and codebooks", "[codebook][scalar][lfq]") {
  const matrix<double> x = test::random_matrix<double>(11, 6, 2), dy = matrix<double>::Zero(11, 6);
  const lookup_free_quantizer<double>::options weights{.codebooks = 2,
                                                       .scale = 0.7,
                                                       .entropy_weight = 0.3,
                                                       .diversity_gamma = 2,
                                                       .commitment_weight = 0.4,
                                                       .inverse_temperature = 1.5};
  lookup_free_quantizer<double> lfq{3, weights};
  const test::trained run(lfq, x, dy);
  // A codebook alone has the losses of its half.
  double value = 0;
  for (index_t m = 0; m < 2; ++m) {
    auto own = weights;
    own.codebooks = 1;
    lookup_free_quantizer<double> half{3, own};
    value +=
        test::trained(half, matrix<double>(x.middleCols(3 * m, 3)), matrix<double>(dy.leftCols(3))).tape.loss() / 2;
  }
  CHECK(run.tape.loss() == Approx(value).epsilon(1e-12));
  CHECK(run.tape.commitment == Approx((x - run.y).squaredNorm() / 11).epsilon(1e-12));
  CHECK(run.tape.loss() ==
        Approx(0.3 / 2 * (run.tape.entropy.per_sample - 2 * run.tape.entropy.batch) + 0.4 / 6 * run.tape.commitment)
            .epsilon(1e-12));

  // The loss is smooth where no sign changes.
  matrix<double> at = x;
  typename lookup_free_quantizer<double>::tape tape;
  matrix<double> y(11, 6);
  const auto loss = [&] {
    lfq.forward(at, y, tape);
    return tape.loss();
  };
  for (index_t i = 0; i < x.size(); i += 5)
    CHECK(run.dx.data()[i] == Approx(test::slope_at(at.data()[i], loss)).margin(1e-8));
}

TEST_CASE("lookup_free: hidden tokens have no part in any loss", "[codebook][scalar][lfq][nan]") {
  lookup_free_quantizer<double> lfq{4, {.inverse_temperature = 2}};
  matrix<double> x = test::random_matrix<double>(6, 4, 3), dy = test::random_matrix<double>(6, 4, 4);
  x(2, 1) = quiet_nan<double>();
  std::vector<std::uint8_t> mask(6, 1);
  mask[4] = 0;
  x.row(4).setConstant(quiet_nan<double>());
  const test::trained run(lfq, x, dy, {.token_mask = mask});
  matrix<double> seen(4, 4), dseen(4, 4);
  for (index_t to = 0; const index_t t : {0, 1, 3, 5}) seen.row(to) = x.row(t), dseen.row(to++) = dy.row(t);
  const test::trained alone(lfq, seen, dseen);
  CHECK(run.tape.loss() == Approx(alone.tape.loss()).epsilon(1e-12));
  for (index_t from = 0; const index_t t : {0, 1, 3, 5})
    CHECK(test::largest_difference(matrix<double>(run.dx.row(t)), matrix<double>(alone.dx.row(from++))) < 1e-14);
  CHECK((run.dx.row(2).isZero(0) && run.dx.row(4).isZero(0)));
  CHECK((run.tape.ids(2, 0) == no_code && run.tape.ids(4, 0) == no_code));
  CHECK((run.y.row(4).isZero(0) && is_nan(run.y(2, 0))));
}

TEST_CASE("lookup_free: every promise of a layer, alone and on a sphere", "[codebook][scalar][lfq][conformance]") {
  test::check_quantizer_promises(lookup_free_quantizer<double>{5, {.codebooks = 2, .inverse_temperature = 1}}, 1);
  test::check_quantizer_promises(
      unit_rows{lookup_free_quantizer<double>{4, {.scale = 0.5, .inverse_temperature = 3}}, {.smallest = 1e-12}}, 2);
}

TEST_CASE("lookup_free: what does not fit is refused", "[codebook][scalar][lfq]") {
  using options = lookup_free_quantizer<float>::options;
  const auto with = [](index_t bits, options o) { return lookup_free_quantizer<float>(bits, o); };
  CHECK_THROWS_AS(with(0, {}), std::invalid_argument);
  CHECK_THROWS_AS(with(31, {}), std::invalid_argument);
  CHECK_THROWS_AS(with(63, {.entropy_weight = 0}), std::invalid_argument);
  CHECK(with(62, {.entropy_weight = 0}).codes(0) == index_t(1) << 62);
  CHECK_THROWS_AS(with(4, {.codebooks = 0}), std::invalid_argument);
  CHECK_THROWS_AS(with(4, {.scale = 0}), std::invalid_argument);
  CHECK_THROWS_AS(with(4, {.entropy_weight = quiet_nan<double>()}), std::invalid_argument);
  CHECK_THROWS_AS(with(4, {.inverse_temperature = 0}), std::invalid_argument);
}
