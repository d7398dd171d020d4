#include <sluice/codebook/vector_quantizer.hpp>

#include <sluice/codebook/codes/mapped.hpp>
#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/gradient/rotation.hpp>
#include <sluice/core/half.hpp>

#include "../layer/plain_checks.hpp"
#include "codebook_checks.hpp"

using namespace sluice;

static_assert(Quantizer<vector_quantizer<learned_codes<float>>>);
static_assert(Quantizer<vector_quantizer<moving_average_codes<float>, rotation, cosine_similarity>>);

namespace {

constexpr index_t vq_tokens = 37, vq_width = 6, vq_codes = 11;

template <typename Scalar, typename... Policies>
auto drawn_quantizer(Policies... policies) {
  vector_quantizer q{learned_codes<Scalar>{vq_codes, vq_width}, policies...};
  q.codebook().table().assign(test::random_matrix<Scalar>(vq_codes, vq_width, 3));
  return q;
}

/// The nearest code of every row, in double, the lowest of equals.
template <typename Scalar>
std::vector<index_t> nearest_by_hand(const matrix<Scalar>& x, const matrix<Scalar>& codes) {
  std::vector<index_t> ids;
  for (index_t t = 0; t < x.rows(); ++t) {
    index_t best = 0;
    double least = 1e300;
    for (index_t c = 0; c < codes.rows(); ++c) {
      const double distance = (x.row(t) - codes.row(c)).template cast<double>().squaredNorm();
      if (distance < least) least = distance, best = c;
    }
    ids.push_back(best);
  }
  return ids;
}

}  // namespace

TEMPLATE_TEST_CASE("vector_quantizer: a token comes back as its nearest code", "[codebook]", float, double) {
  auto q = drawn_quantizer<TestType>();
  const matrix<TestType> x = test::random_matrix<TestType>(vq_tokens, vq_width, 1);
  matrix<TestType> y(vq_tokens, vq_width);
  typename decltype(q)::workspace workspace;
  q.forward(x, y, workspace);
  const matrix<TestType> codes = q.codebook().table().to_matrix();
  const auto expected = nearest_by_hand(x, codes);
  matrix<index_t> ids(vq_tokens, 1);
  q.encode(x, ids, workspace);
  for (index_t t = 0; t < vq_tokens; ++t) {
    CAPTURE(t);
    REQUIRE(ids(t, 0) == expected[static_cast<std::size_t>(t)]);
    CHECK(test::same_bits(y.row(t), codes.row(ids(t, 0))));
  }
  matrix<TestType> decoded(vq_tokens, vq_width), again(vq_tokens, vq_width);
  q.decode(ids, decoded, workspace);
  CHECK(test::same_bits(decoded, y));
  q.forward(y, again, workspace);
  CHECK(test::same_bits(again, y));  // idempotent
  typename decltype(q)::tape tape;
  q.forward(x, y, tape);
  CHECK(test::same_bits(decoded, y));
  CHECK(tape.usage.total() == vq_tokens);
}

TEST_CASE("vector_quantizer: both losses and the straight-through gradient", "[codebook][gradient]") {
  auto q = drawn_quantizer<double>(commitment_loss{.encoder = 0.3, .codebook = 0.7});
  const matrix<double> x = test::random_matrix<double>(vq_tokens, vq_width, 1), dy = test::random_matrix<double>(vq_tokens, vq_width, 2);
  matrix<double> y(vq_tokens, vq_width), dx(vq_tokens, vq_width);
  decltype(q)::tape tape;
  q.forward(x, y, tape);
  CHECK(tape.loss() == Approx((x - y).array().square().mean()));
  zero_gradients(q);
  q.backward(dy, dx, tape);
  const double share = 2.0 / (vq_tokens * vq_width);
  CHECK(test::largest_difference(dx, matrix<double>(dy + 0.3 * share * (x - y))) < 1e-15);
  matrix<double> expected = matrix<double>::Zero(vq_codes, vq_width);
  for (index_t t = 0; t < vq_tokens; ++t) expected.row(tape.ids(t, 0)) += 0.7 * share * (y.row(t) - x.row(t));
  CHECK(test::largest_difference(q.codebook().table().gradient_matrix(), expected) < 1e-15);
}

TEST_CASE("vector_quantizer: without losses the gradient is dy itself", "[codebook][gradient]") {
  auto q = drawn_quantizer<float>(commitment_loss{.encoder = 0, .codebook = 0});
  const matrix<float> x = test::random_matrix<float>(vq_tokens, vq_width, 1), dy = test::random_matrix<float>(vq_tokens, vq_width, 2);
  const auto r = test::train_once(q, x, dy);
  CHECK(test::same_bits(r.dx, dy));
  CHECK(r.gradients[0].isZero(0));
}

TEST_CASE("vector_quantizer: gradients of the losses are those of differences", "[codebook][gradient]") {
  // sg: the encoder's term sees the codes as they were, the codebook's the tokens as they were; away from borders of
  // cells each is a square of its own.
  auto q = drawn_quantizer<double>(commitment_loss{.encoder = 0, .codebook = 1});
  const matrix<double> x = test::random_matrix<double>(vq_tokens, vq_width, 1), none = matrix<double>::Zero(vq_tokens, vq_width);
  const auto r = test::train_once(q, x, none);
  decltype(q)::tape tape;
  matrix<double> y(vq_tokens, vq_width);
  double* codes = q.codebook().table().data();
  const auto loss = [&] {
    q.forward(x, y, tape);
    return tape.loss();
  };
  for (const index_t i : {index_t(0), index_t(7), vq_codes * vq_width - 1})
    CHECK(r.gradients[0].data()[i] == Approx(test::slope_at(codes[i], loss)).margin(1e-9));
}

TEST_CASE("vector_quantizer: every promise of a layer", "[codebook][conformance]") {
  test::check_quantizer_promises(vector_quantizer{learned_codes<double>{vq_codes, vq_width}}, 4);
  test::check_quantizer_promises(vector_quantizer{moving_average_codes<double>{vq_codes, vq_width}, rotation{}}, 5);
  test::check_quantizer_promises(vector_quantizer{mapped_codes<double>{vq_codes, vq_width, 4, {.bias = true}}, cosine_similarity{}}, 6);
}

TEST_CASE("vector_quantizer: of equal codes the lowest, and the other dies", "[codebook][ties]") {
  auto q = drawn_quantizer<float>();
  matrix<float> codes = q.codebook().table().to_matrix();
  codes.row(9) = codes.row(2);
  q.codebook().table().assign(codes);
  const matrix<float> x = codes.row(9);
  matrix<index_t> ids(1, 1);
  decltype(q)::workspace workspace;
  q.encode(x, ids, workspace);
  CHECK(ids(0, 0) == 2);
}

TEST_CASE("vector_quantizer: codes in another order are other numbers for the same output", "[codebook]") {
  auto q = drawn_quantizer<float>();
  auto turned = q;
  turned.codebook().table().assign(q.codebook().table().to_matrix().colwise().reverse());
  const matrix<float> x = test::random_matrix<float>(vq_tokens, vq_width, 8);
  matrix<index_t> ids(vq_tokens, 1), turned_ids(vq_tokens, 1);
  decltype(q)::workspace workspace;
  q.encode(x, ids, workspace);
  turned.encode(x, turned_ids, workspace);
  for (index_t t = 0; t < vq_tokens; ++t) CHECK(turned_ids(t, 0) == vq_codes - 1 - ids(t, 0));
}

TEST_CASE("vector_quantizer: metrics differ in what they call near", "[codebook]") {
  matrix<float> codes(3, 2);
  codes << 1, 0, 0, 3, -1, 0.1F;
  const auto id_of = [&](auto metric) {
    vector_quantizer q{learned_codes<float>{3, 2}, metric};
    q.codebook().table().assign(codes);
    const matrix<float> x = (matrix<float>(1, 2) << 1, 0.8F).finished();
    matrix<index_t> ids(1, 1);
    typename decltype(q)::workspace workspace;
    q.encode(x, ids, workspace);
    return ids(0, 0);
  };
  CHECK(id_of(squared_distance{}) == 0);
  CHECK(id_of(cosine_similarity{}) == 0);
  CHECK(id_of(inner_product{}) == 1);
}

TEST_CASE("vector_quantizer: NaN chooses nothing, and codes of NaN are never chosen", "[codebook][nan]") {
  auto q = drawn_quantizer<float>();
  test::check_spoiled_token(q);
  matrix<float> codes = q.codebook().table().to_matrix();
  codes(0, 3) = quiet_nan<float>();
  q.codebook().table().assign(codes);
  const matrix<float> x = test::random_matrix<float>(vq_tokens, vq_width, 8);
  matrix<index_t> ids(vq_tokens, 1);
  decltype(q)::workspace workspace;
  q.encode(x, ids, workspace);
  for (index_t t = 0; t < vq_tokens; ++t) CHECK(ids(t, 0) > 0);
}

TEST_CASE("vector_quantizer: what does not fit is refused with its numbers", "[codebook]") {
  auto q = drawn_quantizer<float>();
  decltype(q)::workspace workspace;
  matrix<index_t> ids(2, 1);
  matrix<float> y(2, vq_width);
  ids << 0, vq_codes;
  CHECK_THROWS_WITH(q.decode(ids, y, workspace), Catch::Contains("token 1 has the code 11 in column 0, which has 11"));
  ids << no_code, 3;
  q.decode(ids, y, workspace);
  CHECK(y.row(0).isZero(0));
  CHECK_THROWS_AS(q.encode(matrix<float>::Zero(2, vq_width + 1), ids, workspace), std::invalid_argument);
  CHECK_THROWS_AS(learned_codes<float>(0, 3), std::invalid_argument);
  CHECK_THROWS_AS(vector_quantizer(learned_codes<float>(2, 3), commitment_loss{.encoder = -1}), std::invalid_argument);
  const vector_quantizer nobody_set{learned_codes<float>{vq_codes, vq_width}};
  CHECK_THROWS_WITH(nobody_set.encode(matrix<float>::Zero(2, vq_width), ids, workspace),
                    Catch::Contains("\"codebook\"") && Catch::Contains("initialize"));
}

TEST_CASE("vector_quantizer: codes rounded to 16 bits change few choices, and only between codes as near",
          "[codebook]") {
  vector_quantizer q{learned_codes<float>{64, 8}};
  q.codebook().table().assign(test::random_matrix<float>(64, 8, 3));
  const matrix<float> x = test::random_matrix<float>(2000, 8, 1), codes = q.codebook().table().to_matrix();
  matrix<index_t> before(2000, 1), after(2000, 1);
  decltype(q)::workspace ws;
  q.encode(x, before, ws);
  q.codebook().table().fill([&](index_t i) { return to_float(round_to<bfloat16>(codes.data()[i])); });
  q.encode(x, after, ws);
  index_t changed = 0;
  for (index_t t = 0; t < 2000; ++t) {
    if (before(t, 0) == after(t, 0)) continue;
    ++changed;
    // A code moves by at most 2^-9 of its length, and so does its distance.
    const float near = (x.row(t) - codes.row(before(t, 0))).norm(), next = (x.row(t) - codes.row(after(t, 0))).norm();
    const float moved = 0x1p-9F * (codes.row(before(t, 0)).norm() + codes.row(after(t, 0)).norm());
    CHECK(next - near <= moved * 1.01F);
  }
  CHECK(changed > 0);
  CHECK(changed <= 20);
}
