#include <sluice/codebook/structure/product.hpp>
#include <sluice/codebook/structure/shared_product.hpp>

#include <sluice/codebook/assign/transport.hpp>
#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/gradient/rotation.hpp>
#include <sluice/codebook/structure/modality.hpp>
#include <sluice/codebook/structure/projected.hpp>
#include <sluice/codebook/structure/residual.hpp>
#include <sluice/codebook/structure/soft_clamped.hpp>
#include <sluice/codebook/structure/unit_rows.hpp>
#include <sluice/codebook/vector_quantizer.hpp>

#include "../../layer/plain_checks.hpp"
#include "../codebook_checks.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
auto drawn_part(index_t width, std::uint64_t seed) {
  vector_quantizer part{learned_codes<Scalar>{7, width}};
  part.codebook().table().assign(test::random_matrix<Scalar>(7, width, seed));
  return part;
}

using plain_part = vector_quantizer<learned_codes<float>>;
static_assert(Quantizer<product_quantizer<plain_part>> && Quantizer<shared_product_quantizer<plain_part>>);
static_assert(Quantizer<product_quantizer<residual_quantizer<shared_product_quantizer<plain_part>>>>);

/// What one inside says of tokens that see each other, all that hold it say too.
template <typename Q>
constexpr bool says_what_its_parts_say(bool causal, bool mixes) {
  const auto says = [&]<typename Outer>(const Outer*) {
    return is_causal<Outer> == causal && is_token_mixer<Outer> == mixes;
  };
  return says(static_cast<const product_quantizer<Q>*>(nullptr)) &&
      says(static_cast<const shared_product_quantizer<Q>*>(nullptr)) &&
      says(static_cast<const residual_quantizer<Q>*>(nullptr)) &&
      says(static_cast<const modality_quantizer<Q>*>(nullptr)) && says(static_cast<const unit_rows<Q>*>(nullptr)) &&
      says(static_cast<const soft_clamped<Q>*>(nullptr)) &&
      says(static_cast<const projected_quantizer<Q>*>(nullptr));
}

/// Looks at other tokens, later ones too.
struct mixing_part : plain_part {
  static constexpr bool causal = false, mixes_tokens = true;
};
using transported_part = vector_quantizer<learned_codes<float>, transport_assignment>;
static_assert(says_what_its_parts_say<plain_part>(true, false));
static_assert(says_what_its_parts_say<transported_part>(false, false));
static_assert(says_what_its_parts_say<mixing_part>(false, true));
static_assert(says_what_its_parts_say<unit_rows<mixing_part>>(false, true));

}  // namespace

TEMPLATE_TEST_CASE("product_quantizer: every part is a quantiser of its own columns", "[codebook][structure]", float, double) {
  using S = TestType;
  product_quantizer pq{std::vector{drawn_part<S>(2, 1), drawn_part<S>(4, 2), drawn_part<S>(3, 3)}};
  REQUIRE(pq.inputs() == 9);
  const matrix<S> x = test::random_matrix<S>(20, 9, 4), dy = test::random_matrix<S>(20, 9, 5);
  const auto r = test::train_once(pq, x, dy);
  matrix<S> y(20, 9), decoded(20, 9);
  matrix<index_t> ids(20, 3);
  typename decltype(pq)::workspace workspace;
  pq.forward(x, y, workspace);
  pq.encode(x, ids, workspace);
  pq.decode(ids, decoded, workspace);
  CHECK(test::same_bits(y, r.y));
  CHECK(test::same_bits(y, decoded));
  index_t first = 0;
  for (index_t m = 0; m < 3; ++m) {
    auto part = pq.part(m);
    const index_t width = part.inputs();
    const matrix<S> own_x = x.middleCols(first, width), own_dy = dy.middleCols(first, width);
    const auto own = test::train_once(part, own_x, own_dy);
    CHECK(test::same_bits(y.middleCols(first, width), own.y));
    CHECK(test::same_bits(r.dx.middleCols(first, width), own.dx));
    CHECK(test::same_bits(r.gradients[as_size(m)], own.gradients[0]));
    first += width;
  }
  CHECK_THROWS_WITH(product_quantizer(std::vector<plain_part>{}), Catch::Contains("needs one"));
}

TEMPLATE_TEST_CASE("shared_product_quantizer: parts are rows of one batch", "[codebook][structure]", float, double) {
  using S = TestType;
  shared_product_quantizer pq{drawn_part<S>(3, 1), 4};
  REQUIRE(pq.inputs() == 12);
  const matrix<S> x = test::random_matrix<S>(10, 12, 4), dy = test::random_matrix<S>(10, 12, 5);
  const auto r = test::train_once(pq, x, dy);
  auto part = pq.part();
  const matrix<S> cut_x = Eigen::Map<const matrix<S>>(x.data(), 40, 3), cut_dy = Eigen::Map<const matrix<S>>(dy.data(), 40, 3);
  const auto own = test::train_once(part, cut_x, cut_dy);
  CHECK(test::same_bits(Eigen::Map<const matrix<S>>(r.y.data(), 40, 3), own.y));
  CHECK(test::same_bits(Eigen::Map<const matrix<S>>(r.dx.data(), 40, 3), own.dx));
  CHECK(test::same_bits(r.gradients[0], own.gradients[0]));
  // Rows, ids and outputs that lie in wider matrices.
  matrix<S> wide(10, 20), wide_y(10, 20);
  matrix<index_t> ids = matrix<index_t>::Constant(10, 6, 77);
  wide.middleCols(3, 12) = x;
  typename decltype(pq)::workspace workspace;
  pq.encode(wide.middleCols(3, 12), ids.middleCols(1, 4), workspace);
  pq.decode(ids.middleCols(1, 4), wide_y.middleCols(2, 12), workspace);
  CHECK(test::same_bits(wide_y.middleCols(2, 12), r.y));
  CHECK((ids.col(0).array() == 77).all());
  CHECK_THROWS_WITH(shared_product_quantizer(drawn_part<S>(3, 1), 0), Catch::Contains("not 0"));
}

TEST_CASE("shared_product_quantizer: one step of learning a call, and groups keep their tokens", "[codebook][structure]") {
  shared_product_quantizer pq{vector_quantizer{moving_average_codes<double>{5, 2, {.decay = 0.5}}}, 3};
  initialize(pq, 1);
  const double before = pq.part().codebook().sizes().to_matrix().sum();
  const matrix<double> x = test::random_matrix<double>(8, 6, 4);
  test::train_once(pq, x, x);
  CHECK(pq.part().codebook().sizes().to_matrix().sum() == Approx(0.5 * before + 0.5 * 24));
  // Two items, of which dropout leaves one with a stage less.
  const std::vector<index_t> items{0, 3, 8};
  const std::vector<double> draws{0.4, 0.4, 0.6};
  shared_product_quantizer rq{residual_quantizer{std::vector(2, drawn_part<double>(2, 1)), {.dropout = 0.5}}, 3};
  decltype(rq)::tape tape;
  matrix<double> y(8, 6);
  rq.forward(x, y, tape, {.training = true, .random = random_source{1}.replay(prefix_dropout_site, draws), .groups = items});
  for (index_t t = 0; t < 8; ++t)
    for (index_t m = 0; m < 3; ++m) CHECK((tape.ids(t, 2 * m + 1) == no_code) == (t < 3));
}

TEST_CASE("product_quantizer: every promise of a layer", "[codebook][structure][conformance]") {
  const vector_quantizer part{moving_average_codes<double>{7, 3}, rotation{}};
  test::check_quantizer_promises(product_quantizer{std::vector(2, part)}, 1);
  test::check_quantizer_promises(shared_product_quantizer{part, 2}, 2);
  test::check_quantizer_promises(product_quantizer{std::vector(2, residual_quantizer{part, 2})}, 3);
  test::check_quantizer_promises(residual_quantizer{std::vector(2, shared_product_quantizer{part, 2})}, 4);
  product_quantizer own{std::vector{drawn_part<float>(2, 1), drawn_part<float>(4, 2)}};
  shared_product_quantizer shared{drawn_part<float>(2, 1), 3};
  test::check_spoiled_token(own);
  test::check_spoiled_token(shared);
}
