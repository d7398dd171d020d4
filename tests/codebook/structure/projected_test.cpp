#include <sluice/codebook/structure/projected.hpp>

#include <sluice/codebook/scalar/finite_scalar.hpp>
#include <sluice/codebook/scalar/lookup_free.hpp>
#include <sluice/codebook/structure/soft_clamped.hpp>
#include <sluice/codebook/vector_quantizer.hpp>
#include <sluice/layer/sequence.hpp>

#include "../codebook_checks.hpp"
#include "../quantizer_calls.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
auto projected_fsq() {
  projected_quantizer fsq{7, finite_scalar_quantizer<Scalar>{{8, 5, 5}}};
  initialize(fsq, 3);
  for (index_t d = 0; d < 7; ++d) fsq.project_out().bias().data()[d] = static_cast<Scalar>(d + 1);
  return fsq;
}

}  // namespace

static_assert(Quantizer<decltype(projected_fsq<float>())>);
static_assert(Quantizer<projected_quantizer<projected_quantizer<finite_scalar_quantizer<float>>>>);

TEST_CASE("projected_quantizer: forward, encode and decode are those of its parts", "[codebook][structure]") {
  auto fsq = projected_fsq<double>();
  CHECK((fsq.inputs() == 7 && fsq.outputs() == 7 && fsq.code_columns() == 1 && fsq.codes(0) == 200));
  const matrix<double> x = test::random_matrix<double>(30, 7, 1), dy = test::random_matrix<double>(30, 7, 2);
  linear_layer<double>& in = fsq.project_in();
  linear_layer<double>& out = fsq.project_out();
  linear_layer<double>::tape in_tape, out_tape;
  matrix<double> z(30, 3), y(30, 7), dq(30, 3), dx(30, 7);
  in.forward(x, z, in_tape);
  finite_scalar_quantizer<double> alone = fsq.quantizer();
  const matrix<double> codes = test::inferred(alone, z);
  out.forward(codes, y, out_tape);

  const test::trained run(fsq, x, dy);
  CHECK(test::same_bits(run.y, y));
  CHECK(test::same_bits(test::inferred(fsq, x), y));
  CHECK(test::encoded(fsq, x) == test::encoded(alone, z));
  CHECK(test::same_bits(test::decoded(fsq, test::encoded(fsq, x)), y));
  CHECK(matrix<index_t>(run.tape.ids.map()) == test::encoded(fsq, x));

  const auto gradients = [&] { return std::pair(in.weight().gradient_matrix(), out.weight().gradient_matrix()); };
  const auto [in_gradient, out_gradient] = gradients();
  zero_gradients(fsq);
  out.backward(dy, dq, out_tape);
  const test::trained middle(alone, z, dq);
  in.backward(middle.dx, dx, in_tape);
  CHECK(test::same_bits(dx, run.dx));
  CHECK(test::same_bits(gradients().first, in_gradient));
  CHECK(test::same_bits(gradients().second, out_gradient));
}

TEST_CASE("projected_quantizer: what decode has no code for stays zero behind a bias", "[codebook][structure]") {
  auto fsq = projected_fsq<float>();
  matrix<index_t> ids(3, 1);
  ids << 17, no_code, 199;
  const matrix<float> y = test::decoded(fsq, ids);
  CHECK(y.row(1).isZero(0));
  CHECK(!y.row(0).isZero(0));
  matrix<float> x = test::random_matrix<float>(3, 7, 3);
  x(1, 5) = quiet_nan<float>();
  CHECK(test::encoded(fsq, x)(1, 0) == no_code);
  CHECK(is_nan(test::inferred(fsq, x)(1, 0)));
  std::vector<std::uint8_t> mask{1, 0, 1};
  CHECK(test::inferred(fsq, x, {.token_mask = mask}).row(1).isZero(0));
  CHECK(test::encoded(fsq, x, {.token_mask = mask})(1, 0) == no_code);
  ids(0, 0) = 200;
  CHECK_THROWS_AS(test::decoded(fsq, ids), std::invalid_argument);
}

TEST_CASE("projected_quantizer: every promise of a layer, with losses and with learned codes",
          "[codebook][structure][conformance]") {
  test::check_quantizer_promises(projected_fsq<double>(), 1);
  test::check_quantizer_promises(
      projected_quantizer{5, lookup_free_quantizer<double>{4, {.inverse_temperature = 1}}, {.bias = false}}, 2);
  test::check_quantizer_promises(projected_quantizer{6, vector_quantizer{learned_codes<double>{9, 3}}}, 4);
}

TEST_CASE("projected_quantizer: names, losses, and what does not fit", "[codebook][structure]") {
  projected_quantizer vq{6, vector_quantizer{learned_codes<float>{9, 3}}, {.bias = false}};
  std::vector<std::string> names;
  for_each_parameter(vq, [&](const std::string& name, const auto&) { names.push_back(name); });
  CHECK(names == std::vector<std::string>{"project_in.weight", "project_out.weight", "quantizer.codebook"});
  initialize(vq, 1);
  const matrix<float> x = test::random_matrix<float>(8, 6, 4), dy = test::random_matrix<float>(8, 6, 5);
  const test::trained run(vq, x, dy);
  CHECK(run.tape.loss() > 0);
  CHECK(run.tape.loss() == run.tape.inner.loss());
  CHECK_THROWS_AS((projected_quantizer{0, finite_scalar_quantizer<float>{{4, 4}}}), std::invalid_argument);
  CHECK_THROWS_AS((projected_quantizer{linear_layer<float>{6, 3}, finite_scalar_quantizer<float>{{4, 4}},
                                       linear_layer<float>{2, 6}}),
                  std::invalid_argument);
  // Layers of one's own, here to a width that is not that of x.
  const projected_quantizer own{sequence{linear_layer<float>{6, 2}}, finite_scalar_quantizer<float>{{4, 4}},
                                sequence{linear_layer<float>{2, 5}}};
  CHECK((own.inputs() == 6 && own.outputs() == 5));
}

TEST_CASE("projected_quantizer: gradients of the projections, against differences with the choice taken out",
          "[codebook][structure][gradient]") {
  // y = out(squash(in(x))) differs from the quantiser by what is rounded away, a constant where no level changes.
  auto fsq = projected_fsq<double>();
  const matrix<double> x = test::random_matrix<double>(6, 7, 6), dy = test::random_matrix<double>(6, 7, 7);
  const test::trained run(fsq, x, dy);
  const auto ids = test::encoded(fsq, x);
  const auto surrogate = [&] {
    linear_layer<double>::workspace ws;
    matrix<double> z(6, 3), y(6, 7);
    fsq.project_in().forward(x, z, ws);
    matrix<double> q(6, 3);
    for (index_t t = 0; t < 6; ++t)
      for (index_t d = 0; d < 3; ++d) {
        const auto& rounding = fsq.quantizer().rounding(d);
        const double position = rounding.position(z(t, d));
        const index_t level = fsq.quantizer().level(ids(t, 0), d);
        const double levels = static_cast<double>(rounding.levels() / 2);
        q(t, d) = rounding.code(level) + position / levels;
      }
    fsq.project_out().forward(q, y, ws);
    return (y.array() * dy.array()).sum();
  };
  const auto& weight = fsq.project_in().weight();
  for (index_t i = 0; i < weight.size(); i += 2) {
    const double analytic = std::as_const(fsq.project_in().weight()).gradient()[as_size(i)];
    CHECK(analytic == Approx(test::slope_at(fsq.project_in().weight().data()[i], surrogate)).margin(1e-8));
  }
}
