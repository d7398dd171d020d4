#include <sluice/codebook/structure/unit_rows.hpp>

#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/gradient/rotation.hpp>
#include <sluice/codebook/vector_quantizer.hpp>

#include "../../layer/plain_checks.hpp"
#include "../codebook_checks.hpp"

using namespace sluice;

static_assert(Quantizer<unit_rows<vector_quantizer<learned_codes<float>>>>);

namespace {

constexpr index_t unit_rows_width = 5;

template <typename Scalar>
auto drawn_unit_rows(unit_rows_options o, commitment_loss loss) {
  unit_rows q{vector_quantizer{learned_codes<Scalar>{9, unit_rows_width}, cosine_similarity{}, loss}, o};
  q.quantizer().codebook().table().assign(test::random_matrix<Scalar>(9, unit_rows_width, 3));
  return q;
}

}  // namespace

TEMPLATE_TEST_CASE("unit_rows: the size of a token changes nothing, and outputs have length 1 where wanted", "[codebook][structure]", float,
                   double) {
  using S = TestType;
  for (const bool outputs : {false, true}) {
    auto q = drawn_unit_rows<S>({.outputs = outputs}, {});
    const matrix<S> codes = q.quantizer().codebook().table().to_matrix();
    matrix<S> x = test::random_matrix<S>(30, unit_rows_width, 1), y(30, unit_rows_width), trained(30, unit_rows_width), decoded(30, unit_rows_width);
    typename decltype(q)::workspace workspace;
    typename decltype(q)::tape tape;
    matrix<index_t> ids(30, 1), scaled(30, 1);
    q.encode(x, ids, workspace);
    q.encode(4 * x, scaled, workspace);
    CHECK(ids == scaled);
    q.forward(x, y, workspace);
    q.forward(x, trained, tape);
    q.decode(ids, decoded, workspace);
    CHECK(test::same_bits(y, trained));
    CHECK(test::same_bits(y, decoded));
    for (index_t t = 0; t < 30; ++t) {
      Eigen::Matrix<S, 1, Eigen::Dynamic> expected = codes.row(ids(t, 0));
      if (outputs) expected.normalize();
      CHECK((y.row(t) - expected).norm() <= test::bound<S>(unit_rows_width, 2));
      index_t best = 0;
      (codes.rowwise().normalized() * x.row(t).transpose()).maxCoeff(&best);
      CHECK(ids(t, 0) == best);
    }
  }
}

TEST_CASE("unit_rows: gradients go through both normalisations", "[codebook][structure][gradient]") {
  // Straight-through: y = z + sg[q - z], then y / |y|; its loss: |z - sg[q]|^2.
  auto q = drawn_unit_rows<double>({.outputs = true}, {.encoder = 0.7});
  const matrix<double> x = test::random_matrix<double>(6, unit_rows_width, 1), dy = test::random_matrix<double>(6, unit_rows_width, 2);
  const auto r = test::train_once(q, x, dy);
  decltype(q)::workspace workspace;
  matrix<index_t> ids(6, 1);
  q.encode(x, ids, workspace);
  const matrix<double> codes = q.quantizer().codebook().table().to_matrix(), unit = x.rowwise().normalized();
  const auto surrogate = [&](const matrix<double>& at) {
    double sum = 0;
    for (index_t t = 0; t < 6; ++t) {
      const auto code = codes.row(ids(t, 0));
      const Eigen::RowVectorXd z = at.row(t).normalized();
      sum += (z + code - unit.row(t)).normalized().dot(dy.row(t)) + 0.7 * (z - code).squaredNorm() / (6 * unit_rows_width);
    }
    return sum;
  };
  matrix<double> at = x;
  for (index_t i = 0; i < x.size(); ++i)
    CHECK(r.dx.data()[i] == Approx(test::slope_at(at.data()[i], [&] { return surrogate(at); })).margin(1e-8));
}

TEST_CASE("unit_rows: every promise of a layer", "[codebook][structure][conformance]") {
  using inner = vector_quantizer<moving_average_codes<double>, rotation>;
  const inner averaged{moving_average_codes<double>{9, unit_rows_width, {.unit_length = true}}, rotation{}};
  test::check_quantizer_promises(unit_rows{averaged}, 4);
  test::check_quantizer_promises(unit_rows{averaged, {.outputs = true}}, 5);
  test::check_quantizer_promises(unit_rows{unit_rows{averaged, {.outputs = true}}}, 6);
}

TEST_CASE("unit_rows: zero tokens are finite, NaN chooses nothing, options are checked", "[codebook][structure][nan]") {
  auto q = drawn_unit_rows<float>({.outputs = true}, {});
  test::check_spoiled_token(q);
  const matrix<float> none = matrix<float>::Zero(3, unit_rows_width), dy = test::random_matrix<float>(3, unit_rows_width, 2);
  const auto r = test::train_once(q, none, dy);
  CHECK(r.y.allFinite());
  CHECK(r.dx.allFinite());
  CHECK_THROWS_WITH(drawn_unit_rows<float>({.smallest = 0}, {}), Catch::Contains("smallest > 0, not 0"));
}
