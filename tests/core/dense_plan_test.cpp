#include <sluice/core/dense_plan.hpp>

#include <sluice/core/concepts.hpp>
#include <sluice/core/statistics.hpp>

#include "../support.hpp"

using namespace sluice;

static_assert(RoutedPlan<dense_plan<float>> && explain_plan<dense_plan<double>>());

TEST_CASE("dense_plan: rows go expert by expert, and within an expert token by token", "[core][dense_plan]") {
  dense_plan<float> p;
  p.reset(4, 2);
  CHECK(p.by_expert().experts() == 0);  // not before finish()
  p.add(0);
  p.add(3);
  p.mark_invalid(2);
  p.finish();
  for (index_t e = 0; e < 2; ++e)
    for (index_t j = 0; j < 2; ++j) p.weight(e, j) = static_cast<float>(10 * e + j + 1);
  CHECK((p.tokens() == 4 && p.experts() == 2 && p.rows() == 4 && p.most_rows() == 8));
  REQUIRE(p.routed_tokens().size() == 2);
  CHECK((p.invalid_tokens().size() == 1 && p.invalid_tokens()[0] == 2));
  const routed_rows<float> rows = p.routed();
  const index_t tokens[] = {0, 3, 0, 3};
  const float weights[] = {1, 2, 11, 12};
  for (index_t i = 0; i < 4; ++i) {
    CHECK(rows.token(i) == tokens[i]);
    CHECK(rows.weight(i) == weights[i]);
    CHECK(rows.input_scale(i) == 1);
  }
  CHECK((rows.by_expert.of(1).begin == 2 && rows.by_expert.of(1).end == 4 && p.row(1, 1) == 3));
  matrix<float> dense(4, 2);
  dense << 1, 11, 0, 0, 0, 0, 2, 12;
  CHECK(p.dense_weights() == dense);

  routing_statistics statistics;
  statistics.count(p, 1);
  CHECK((statistics.tokens == 3 && statistics.assignments == 4 && statistics.load[0] == 2 && statistics.dropped == 0));
}

TEST_CASE("dense_plan: is laid out again exactly when other tokens are routed", "[core][dense_plan]") {
  dense_plan<double> p;
  const auto lay_out = [&](index_t tokens, index_t experts, const std::vector<index_t>& routed) {
    p.reset(tokens, experts);
    for (const index_t t : routed) p.add(t);
    p.finish();
    const auto n = static_cast<index_t>(routed.size());
    bool is_right = p.rows() == experts * n && p.by_expert().experts() == experts;
    for (index_t e = 0; e < experts; ++e) {
      const row_range own = p.by_expert().of(e);
      is_right = is_right && own.begin == e * n && own.size() == n;
      for (index_t j = 0; j < n; ++j) is_right = is_right && p.routed().token(e * n + j) == routed[as_size(j)];
    }
    return is_right;
  };
  CHECK(lay_out(5, 3, {0, 1, 2, 3, 4}));
  const index_t* tokens = p.routed().tokens;
  CHECK(lay_out(5, 3, {0, 1, 2, 3, 4}));
  CHECK(lay_out(5, 3, {0, 1, 3, 4}));
  CHECK(lay_out(5, 3, {0, 1, 2, 4}));  // as many, but others
  CHECK(lay_out(4, 3, {0, 1, 2, 3}));
  CHECK(lay_out(5, 2, {0, 1, 2, 3, 4}));
  CHECK(lay_out(2, 6, {0, 1}));  // as many rows, for other experts
  CHECK(lay_out(3, 4, {0, 1, 2}));
  CHECK(lay_out(0, 3, {}));
  CHECK(lay_out(5, 3, {}));
  CHECK(lay_out(5, 3, {4}));
  CHECK(p.routed().tokens == tokens);  // in the memory of the first, the largest

  dense_plan<double> copy = p;
  copy.weight(2, 0) = 7;
  p.weight(2, 0) = 1;
  CHECK((copy.dense_weights()(4, 2) == 7 && copy.routed().tokens != p.routed().tokens));
}

TEST_CASE("dense_plan: what is outside T is refused", "[core][dense_plan]") {
  dense_plan<float> p;
  CHECK_THROWS_WITH(p.reset(3, 0), "sluice: a plan needs T >= 0 and E >= 1, not T = 3 and E = 0");
  CHECK_THROWS_AS(p.reset(index_t(1) << 40, index_t(1) << 40), std::invalid_argument);
  p.reset(3, 2);
  p.add(3);
  CHECK_THROWS_WITH(p.finish(), "sluice: a plan cannot route token 3 with T = 3");
  p.reset(3, 2);
  p.mark_invalid(-1);
  CHECK_THROWS_WITH(p.finish(), "sluice: a plan cannot route token -1 with T = 3");
}
