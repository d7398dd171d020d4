#include <sluice/codebook/scalar/binary_spherical.hpp>

#include <sluice/codebook/structure/unit_rows.hpp>

#include "../codebook_checks.hpp"
#include "../quantizer_calls.hpp"

using namespace sluice;

TEST_CASE("binary_spherical: codes of unit length, a gradient scaled as they are", "[codebook][scalar][bsq]") {
  binary_spherical_quantizer<double> bsq{9, {.group = 3, .zeta = 0}};
  const matrix<double> x = test::random_matrix<double>(20, 9, 1).rowwise().normalized(),
                       dy = test::random_matrix<double>(20, 9, 2);
  const test::trained run(bsq, x, dy);
  for (index_t t = 0; t < 20; ++t) {
    CHECK(run.y.row(t).norm() == Approx(1));
    index_t id = 0;
    for (index_t d = 0; d < 9; ++d) {
      CHECK((run.y(t, d) > 0) == (x(t, d) > 0));
      id = 2 * id + (x(t, d) > 0 ? 1 : 0);
    }
    CHECK(run.tape.ids(t, 0) == id);
  }
  CHECK(test::largest_difference(run.dx, matrix<double>(dy / 3)) < 1e-15);
  CHECK(run.tape.loss() == 0);
  CHECK(test::same_bits(test::inferred(bsq, run.y), run.y));
  // A column a group, and codes of +-1.
  const binary_spherical_quantizer<double> columns{9, {.columns = 3, .group = 3, .length = 3}};
  const matrix<index_t> parts = test::encoded(columns, x);
  CHECK(columns.codes(2) == 8);
  for (index_t t = 0; t < 20; ++t) CHECK(run.tape.ids(t, 0) == (parts(t, 0) * 8 + parts(t, 1)) * 8 + parts(t, 2));
  CHECK(test::same_bits(test::inferred(columns, x), matrix<double>(run.y.array().sign())));
}

TEST_CASE("binary_spherical: the loss is what its weights say", "[codebook][scalar][bsq]") {
  const matrix<double> x = test::random_matrix<double>(15, 8, 3).rowwise().normalized(),
                       none = matrix<double>::Zero(15, 8);
  binary_spherical_quantizer<double> bsq{
      8, {.group = 4, .beta = 0.25, .gamma0 = 0.9, .gamma = 1.4, .zeta = 0.6, .inverse_temperature = 2}};
  const test::trained run(bsq, x, none);
  const auto& entropy = run.tape.entropy;
  CHECK(run.tape.commitment == Approx((x - run.y).squaredNorm() / 15).epsilon(1e-12));
  CHECK(run.tape.loss() ==
        Approx(0.25 * run.tape.commitment + 0.6 * (0.9 * entropy.per_sample - 1.4 * entropy.batch) / 2).epsilon(1e-12));
  CHECK((entropy.mean_probabilities().rows() == 2 && entropy.mean_probabilities().cols() == 16));
}

TEST_CASE("binary_spherical: every promise of a layer, alone and behind the sphere",
          "[codebook][scalar][bsq][conformance]") {
  test::check_quantizer_promises(binary_spherical_quantizer<double>{6, {.group = 2, .beta = 0.1}}, 1);
  test::check_quantizer_promises(unit_rows{binary_spherical_quantizer<double>{6, {.group = 3, .beta = 0.1}}}, 2);
}

TEST_CASE("binary_spherical: what does not fit is refused", "[codebook][scalar][bsq]") {
  using options = binary_spherical_quantizer<float>::options;
  const auto with = [](index_t inputs, options o) { return binary_spherical_quantizer<float>(inputs, o); };
  CHECK_THROWS_AS(with(0, {}), std::invalid_argument);
  CHECK_THROWS_AS(with(6, {.group = 4}), std::invalid_argument);
  CHECK_THROWS_AS(with(6, {.columns = 4}), std::invalid_argument);
  CHECK_THROWS_AS(with(63, {}), std::invalid_argument);
  CHECK(with(64, {.columns = 2, .group = 8}).codes(1) == index_t(1) << 32);
  CHECK_THROWS_AS(with(6, {.length = 0}), std::invalid_argument);
  CHECK_THROWS_AS(with(6, {.inverse_temperature = 0}), std::invalid_argument);
}
