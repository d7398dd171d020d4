#include <sluice/quant/compensated_signs.hpp>

#include <sluice/quant/sign_codes.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

matrix<double> sign_moments() {
  matrix<double> x(5, 6);
  x << 1, .4, 2, .5, -1, .2, .8, -.3, 1, 1, .4, .9, -1, .6, .5, -.7, .1, -.5, .3, 1, -1, .2, .6, .3, 2, -.2, 1.5, 1,
      -.8, 1.1;
  return x.transpose() * x;
}

matrix<float> sign_weights() {
  matrix<float> w(2, 6);
  w << .5F, -.2F, .9F, -.4F, .3F, -.1F, -1.1F, .3F, .2F, .6F, -.7F, .8F;
  return w;
}

}  // namespace

TEST_CASE("compensated_signs: the sweep by elimination, in blocks, in steps, by activity, and with one group",
          "[quant][compensated_signs]") {
  // In NumPy, from the inverse of H + 0.05 mean(diag H) itself.
  const auto check = [](compensated_sign_options o, bool by_activity, std::array<float, 12> expected) {
    const inverse_factor factor(sign_moments(), {.damping = 0.05, .order_by_activity = by_activity});
    const grouped_codes codes = compensated_signs(sign_weights(), factor, o);
    codes.validate();
    CHECK(codes.bits == 1);
    const matrix<float> q = codes.to_matrix();
    for (index_t i = 0; i < q.size(); ++i) CHECK(std::abs(q.data()[i] - expected[as_size(i)]) < 1e-6F);
  };
  check({.group = 2, .block = 2}, false,
        {0.35F, -0.35F, 0.6124306F, -0.6124306F, -0.23200806F, 0.23200806F, -0.7F, 0.7F, 0.31813757F, 0.31813757F,
         -0.47660712F, 0.47660712F});
  check({.group = 2, .block = 4, .step = 1}, false,
        {0.35F, -0.35F, 0.65F, -0.65F, -0.29414698F, 0.29414698F, -0.7F, 0.7F, 0.4F, 0.4F, -0.33375534F, 0.33375534F});
  check({.group = 4, .block = 2}, true,
        {0.475F, -0.20314843F, 0.475F, -0.475F, -0.20314843F, 0.475F, -0.675F, 0.2321096F, 0.675F, -0.675F, 0.2321096F,
         0.675F});
  check({.group = 0, .block = 2, .step = 1}, false,
        {0.4F, -0.4F, 0.4F, -0.4F, -0.4F, 0.4F, -0.61666667F, 0.61666667F, 0.61666667F, 0.61666667F, 0.61666667F,
         0.61666667F});
}

TEST_CASE("compensated_signs: with a neutral factor plain sign codes, dead inputs, threads, what does not fit",
          "[quant][compensated_signs]") {
  const matrix<float> w = test::random_matrix<float>(70, 37, 5);
  for (const index_t group : {0, 8, 37}) {
    const grouped_codes plain = sign_codes(w, group),
                        swept = compensated_signs(w, inverse_factor(37), {.group = group});
    CHECK(swept.codes == plain.codes);
    CHECK(test::same_bits(swept.scales, plain.scales));
    CHECK(test::same_bits(swept.minima, plain.minima));
  }
  const matrix<double> x = test::random_matrix<double>(90, 37, 6);
  matrix<double> h = x.transpose() * x;
  h.row(4).setZero();
  h.col(4).setZero();
  const inverse_factor factor(h);
  const grouped_codes alone = compensated_signs(w, factor, {.group = 8, .block = 16});
  test::shuffled_threads threads(2);
  const grouped_codes shared = compensated_signs(w, factor, {.group = 8, .block = 16}, threads);
  CHECK(alone.codes == shared.codes);
  CHECK(test::same_bits(alone.scales, shared.scales));
  CHECK((alone.codes.col(4).array() == 1).all());
  CHECK(compensated_signs(matrix<float>(0, 37), factor).to_matrix().rows() == 0);
  CHECK(compensated_signs(matrix<float>(3, 0), inverse_factor(0)).to_matrix().cols() == 0);
  CHECK_THROWS_AS(compensated_signs(w, inverse_factor(36)), std::invalid_argument);
  CHECK_THROWS_AS(compensated_signs(w, factor, {.block = 6, .step = 4}), std::invalid_argument);
}
