#include <sluice/codebook/repair/expire_codes.hpp>

#include <sluice/codebook/codes/counted.hpp>
#include <sluice/codebook/codes/moving_average.hpp>
#include <sluice/codebook/structure/product.hpp>
#include <sluice/codebook/structure/residual.hpp>
#include <sluice/codebook/structure/unit_rows.hpp>
#include <sluice/codebook/vector_quantizer.hpp>
#include <sluice/train/adamw.hpp>

#include "../codebook_checks.hpp"

#include <set>

using namespace sluice;

namespace {

constexpr index_t expired_width = 3, expired_codes = 8;

/// Codes far away from all tokens but for the first two.
template <typename Codes>
auto lonely_quantizer(Codes codes, expire_codes repair) {
  vector_quantizer q{std::move(codes), repair};
  matrix<double> table = test::random_matrix<double>(expired_codes, expired_width, 3);
  table.bottomRows(expired_codes - 2).array() += 100;
  q.codebook().table().assign(table);
  return q;
}

template <typename Q>
void step(Q& q, typename Q::tape& tape, const matrix<double>& x, routing_context<double> context = {}) {
  context.training = true;
  matrix<double> y(x.rows(), x.cols());
  q.forward(x, y, tape, context);
  q.after_step(tape);
}

}  // namespace

TEST_CASE("expire_codes: codes that nobody chose become different tokens of the batch", "[codebook]") {
  auto q = lonely_quantizer(moving_average_codes<double>{expired_codes, expired_width, {.decay = 0.5}}, expire_codes{.threshold = 1});
  const matrix<double> x = test::random_matrix<double>(40, expired_width, 1);
  decltype(q)::tape tape;
  step(q, tape, x, {.random = random_source{1}});
  REQUIRE(tape.replaced.size() == expired_codes - 2);
  std::set<index_t> taken;
  for (const index_t c : tape.replaced) {
    CHECK(c >= 2);
    index_t token = 0;
    while (token < 40 && !test::same_bits(x.row(token), q.codebook().table().to_matrix().row(c))) ++token;
    REQUIRE(token < 40);
    CHECK(taken.insert(token).second);
    CHECK(q.codebook().sizes().value()[as_size(c)] == 1);
  }
  step(q, tape, x, {.random = random_source{2}});
  CHECK(tape.usage.used() == expired_codes);
}

TEST_CASE("expire_codes: hidden tokens are no candidates, and a batch without tokens changes nothing",
          "[codebook][nan]") {
  auto q =
      lonely_quantizer(moving_average_codes<double>{expired_codes, expired_width, {.decay = 0.5}}, expire_codes{.threshold = 1, .noise = 0});
  matrix<double> x = test::random_matrix<double>(6, expired_width, 1);
  x.row(1).setConstant(quiet_nan<double>());
  const std::vector<std::uint8_t> mask = {1, 1, 0, 0, 0, 0};
  decltype(q)::tape tape;
  step(q, tape, x, {.random = random_source{1}, .token_mask = mask});
  CHECK(tape.replaced.size() > 0);
  const matrix<double> codes = q.codebook().table().to_matrix();
  for (const index_t c : tape.replaced) CHECK(test::same_bits(codes.row(c), x.row(0)));
  const std::vector<std::uint8_t> nobody(6, 0);
  step(q, tape, x, {.token_mask = nobody});
  CHECK(tape.replaced.empty());
  CHECK(test::same_bits(q.codebook().table().to_matrix(), codes));
}

TEST_CASE("expire_codes: a small batch is repeated with noise, so that no two codes are the same", "[codebook]") {
  auto q =
      lonely_quantizer(moving_average_codes<double>{expired_codes, expired_width, {.decay = 0.5}}, expire_codes{.threshold = 1, .noise = 0.01});
  const matrix<double> x = test::random_matrix<double>(3, expired_width, 1);
  decltype(q)::tape tape;
  step(q, tape, x, {.random = random_source{1}});
  const matrix<double> codes = q.codebook().table().to_matrix();
  for (index_t a = 0; a < tape.replaced.size(); ++a) {
    const Eigen::RowVectorXd code = codes.row(tape.replaced[a]);
    CHECK((x.rowwise() - code).rowwise().norm().minCoeff() <= 0.01);
    for (index_t b = 0; b < a; ++b)
      CHECK_FALSE(test::same_bits(codes.row(tape.replaced[b]), codes.row(tape.replaced[a])));
  }
}

TEST_CASE("expire_codes: learned codes that are counted are replaced too, and optimisers forget them", "[codebook]") {
  auto q = lonely_quantizer(counted_codes{learned_codes<double>{expired_codes, expired_width}, {.decay = 0.5}}, expire_codes{.threshold = 1});
  const matrix<double> x = test::random_matrix<double>(40, expired_width, 1);
  matrix<double> y(40, expired_width), dx(40, expired_width);
  adamw<double> optimizer{{}};
  decltype(q)::tape tape;
  routing_context<double> context{.training = true, .random = random_source{1}};
  q.forward(x, y, tape, context);
  q.backward(matrix<double>::Ones(40, expired_width), dx, tape);
  q.codebook().table().gradient_map().setOnes();
  optimizer.step(q);
  q.after_step(tape);
  REQUIRE(tape.replaced.size() == expired_codes - 2);
  forget_replaced(optimizer, q, tape);
  index_t arrays = 0;
  for_each_parameter(optimizer, [&](const std::string& name, const parameter<double>& p) {
    if (p.rows() != expired_codes) return;
    ++arrays;
    CAPTURE(name);
    CHECK((p.to_matrix().topRows(2).array() != 0).all());
    CHECK(p.to_matrix().bottomRows(expired_codes - 2).isZero(0));
  });
  CHECK(arrays == 2);
}

TEST_CASE("expire_codes: every promise of a layer", "[codebook][conformance]") {
  test::check_quantizer_promises(vector_quantizer{counted_codes{learned_codes<double>{expired_codes, expired_width}}, expire_codes{}}, 5);
}

TEST_CASE("expire_codes and counted_codes: what does not fit is refused with its numbers", "[codebook]") {
  CHECK_THROWS_WITH(lonely_quantizer(moving_average_codes<double>{expired_codes, expired_width}, expire_codes{.threshold = -1}),
                    Catch::Contains("not -1"));
  CHECK_THROWS_WITH(counted_codes(learned_codes<double>{expired_codes, expired_width}, {.decay = 1}), Catch::Contains("not 1"));
}

TEST_CASE("forget_replaced: codes are found wherever in a structure they are", "[codebook][structure]") {
  const vector_quantizer stage{counted_codes{learned_codes<double>{4, 2}, {.decay = 0.5}}, expire_codes{.threshold = 1}};
  product_quantizer q{std::vector(2, unit_rows{residual_quantizer{std::vector(2, stage)}})};
  initialize(q, 1);
  const matrix<double> x = test::random_matrix<double>(3, 4, 1);
  matrix<double> y(3, 4), dx(3, 4);
  adamw<double> optimizer{{}};
  decltype(q)::tape tape;
  q.forward(x, y, tape, {.training = true, .random = random_source{1}});
  q.backward(matrix<double>::Ones(3, 4), dx, tape);
  for_each_parameter(q, [](const std::string&, auto& p) {
    if (p.is_learned()) p.gradient_map().setOnes();
  });
  optimizer.step(q);
  q.after_step(tape);
  forget_replaced(optimizer, q, tape);
  index_t expected = 0, found = 0, forgotten = 0;
  for (const auto& part : tape.parts)
    for (const auto& one : part.inner.stages) expected += one.replaced.size();
  q.for_each_replaced(tape, [&](const parameter<double>& table, index_t code) {
    ++found;
    CHECK((table.rows() == 4 && code >= 0 && code < 4));
  });
  for_each_parameter(optimizer, [&](const std::string&, const parameter<double>& p) {
    for (index_t r = 0; p.rows() == 4 && r < 4; ++r) forgotten += p.to_matrix().row(r).isZero(0);
  });
  CHECK(expected > 0);
  CHECK(found == expected);
  CHECK(forgotten == 2 * expected);  // both moments
}
