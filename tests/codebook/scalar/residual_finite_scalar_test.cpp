#include <sluice/codebook/scalar/residual_finite_scalar.hpp>

#include <sluice/codebook/structure/projected.hpp>

#include "../codebook_checks.hpp"
#include "../quantizer_calls.hpp"

using namespace sluice;

TEST_CASE("residual_finite_scalar: stages by hand, their gradients added up",
          "[codebook][scalar][fsq][residual][gradient]") {
  const std::vector<index_t> levels{5, 4, 3};
  auto quantizer = residual_finite_scalar<double>(levels, 3);
  CHECK((quantizer.inputs() == 3 && quantizer.code_columns() == 3 && quantizer.codes(1) == 60));
  const matrix<double> x = test::random_matrix<double>(60, 3, 1), dy = test::random_matrix<double>(60, 3, 2);
  const test::trained run(quantizer, x, dy);
  for (index_t t = 0; t < 60; ++t) {
    std::vector<index_t> ids(3, 0);
    index_t stride = 1;
    for (index_t d = 0; d < 3; ++d) {
      const auto L = static_cast<double>(levels[as_size(d)]);
      const double c = 1 + 1 / (L - 1), z = c * std::tanh(x(t, d) / c);
      double left = z, sum = 0, slopes = 0;
      for (int j = 0; j < 3; ++j) {
        const double scale = std::pow(L, -j), u = std::clamp(left / scale, -1.0, 1.0);
        const double level = std::floor((L - 1) * (u + 1) / 2 + 0.5);
        const double code = scale * (2 / (L - 1) * level - 1);
        ids[as_size(j)] += static_cast<index_t>(level) * stride;
        slopes += std::abs(left / scale) <= 1 ? 1 : 0;
        sum += code;
        left -= code;
      }
      stride *= levels[as_size(d)];
      CHECK(run.y(t, d) == Approx(sum).margin(1e-14));
      CHECK(run.dx(t, d) == Approx(dy(t, d) * slopes * (1 - z * z / c / c)).margin(1e-13));
    }
    for (index_t j = 0; j < 3; ++j) CHECK(run.tape.ids(t, j) == ids[as_size(j)]);
  }
  CHECK(test::same_bits(test::decoded(quantizer, test::encoded(quantizer, x)), test::inferred(quantizer, x)));
}

TEST_CASE("residual_finite_scalar: what is left over shrinks by the number of levels a stage",
          "[codebook][scalar][fsq][residual]") {
  const std::vector<index_t> levels{5, 5};
  const matrix<double> x = test::random_matrix<double>(200, 2, 3);
  double bound = 0.25;  // half a gap of five levels between -1 and 1
  for (index_t depth = 1; depth <= 4; ++depth, bound /= 5) {
    const auto quantizer = residual_finite_scalar<double>(levels, depth);
    const matrix<double> z = 1.25 * (x / 1.25).array().tanh().matrix();
    CHECK(test::largest_difference(test::inferred(quantizer, x), z) <= bound * (1 + 1e-12));
  }
}

TEST_CASE("residual_finite_scalar: every promise of a layer, and what does not fit",
          "[codebook][scalar][residual][conformance]") {
  test::check_quantizer_promises(projected_quantizer{6, residual_finite_scalar<double>({5, 4}, 2)}, 1);
  CHECK_THROWS_AS(residual_finite_scalar<float>({5, 4}, 0), std::invalid_argument);
  CHECK_THROWS_AS(residual_finite_scalar<float>({5, 1}, 2), std::invalid_argument);
  CHECK_THROWS_AS(residual_finite_scalar<float>({}, 2), std::invalid_argument);
  CHECK_THROWS_AS(residual_finite_scalar<float>({1000}, 40), std::invalid_argument);  // a scale of 0
}
