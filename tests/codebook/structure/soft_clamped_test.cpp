#include <sluice/codebook/structure/soft_clamped.hpp>

#include <sluice/codebook/scalar/finite_scalar.hpp>
#include <sluice/codebook/scalar/lookup_free.hpp>

#include "../codebook_checks.hpp"
#include "../quantizer_calls.hpp"

using namespace sluice;

TEST_CASE("soft_clamped: the inner quantiser of c tanh(x / c), and the gradient through it",
          "[codebook][structure][gradient]") {
  using fsq = finite_scalar_quantizer<double, symmetric_rounding<double, hard_tanh>>;
  fsq inner{{5, 4, 3}};
  const std::vector<double> bounds{1.25, 1.5, 2};
  soft_clamped clamped{inner, bounds};
  matrix<double> x = 3 * test::random_matrix<double>(40, 3, 1), dy = test::random_matrix<double>(40, 3, 2), z(40, 3);
  x(0, 0) = std::numeric_limits<double>::infinity();
  for (index_t t = 0; t < 40; ++t)
    for (index_t d = 0; d < 3; ++d) z(t, d) = bounds[as_size(d)] * std::tanh(x(t, d) / bounds[as_size(d)]);
  const test::trained run(clamped, x, dy);
  const test::trained alone(inner, z, dy);
  CHECK(test::same_bits(run.y, alone.y));
  CHECK(test::encoded(clamped, x) == test::encoded(inner, z));
  CHECK(test::same_bits(test::decoded(clamped, test::encoded(clamped, x)), run.y));
  for (index_t t = 0; t < 40; ++t)
    for (index_t d = 0; d < 3; ++d) {
      const double u = z(t, d) / bounds[as_size(d)];
      CHECK(run.dx(t, d) == Approx(alone.dx(t, d) * (1 - u * u)).margin(1e-14));
    }
}

TEST_CASE("soft_clamped: every promise of a layer, and what does not fit", "[codebook][structure][conformance]") {
  test::check_quantizer_promises(soft_clamped{lookup_free_quantizer<double>{4, {.inverse_temperature = 1}}, 1.5}, 1);
  using lfq = lookup_free_quantizer<float>;
  CHECK_THROWS_AS((soft_clamped{lfq{4}, 0.0f}), std::invalid_argument);
  CHECK_THROWS_AS((soft_clamped{lfq{4}, std::vector<float>{1, 1, 1}}), std::invalid_argument);
  CHECK_THROWS_AS((soft_clamped{lfq{2}, std::vector<float>{1, quiet_nan<float>()}}), std::invalid_argument);
}
