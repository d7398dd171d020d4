// What a rule may do: look at the context wherever it computes, set k by the step, choose for a whole group.
#include <sluice/router/choice_rule.hpp>

#include <sluice/gate/linear.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/router/token_choice.hpp>
#include <sluice/train/initialize.hpp>

#include "batch_rule.hpp"
#include "token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

/// Softmax over the experts that the token's modality may see (expert e belongs to modality e mod 2), weights `pre`.
/// One expert a token until step 10, then two.
struct modality_rule {
  static bool sees(const choice_row<double>& row, index_t e) {
    return e % 2 == row.context.modality_ids[static_cast<std::size_t>(row.token)];
  }

  index_t top_k() const { return 2; }
  index_t top_k(const routing_context<double>& context) const { return context.step < 10 ? 1 : 2; }
  void validate_call(const choice_call<double>& call) const {
    if (call.tokens > 0 && call.context.modality_ids.empty())
      throw_invalid("modality_rule needs routing_context.modality_ids");
  }
  void score(const choice_row<double>& row, double* scores) const {
    for (index_t e = 0; e < row.experts; ++e)
      scores[e] = sees(row, e) ? row.logits[e] : -std::numeric_limits<double>::infinity();
    kernel::softmax(scores, scores, row.experts);
  }
  index_t choose(const choice_row<double>& row, index_t* ids) const {
    kernel::top_k(row.scores, row.experts, row.k, ids);
    return std::find_if(ids, ids + row.k, [&](index_t e) { return !sees(row, e); }) - ids;
  }
  void weigh(const choice_row<double>& row, std::span<const index_t> ids, double* weights) const {
    for (const index_t e : ids) *weights++ = row.scores[e];
  }
  void backward(const choice_row<double>& row, const weighed_experts<double>& weighed, double* dlogits) const {
    double inner = 0;
    for (std::size_t j = 0; j < weighed.ids.size(); ++j) {
      inner += weighed.weights[j] * weighed.dweights[j];
      dlogits[weighed.ids[j]] += weighed.weights[j] * weighed.dweights[j];
    }
    for (index_t e = 0; e < row.experts; ++e)
      if (sees(row, e)) dlogits[e] -= row.scores[e] * inner;
  }
};

struct says_so : test::balanced_rule<double> {
  static constexpr bool causal = true;
};

/// Weighs by what the assignment left: half more than the token's number.
struct weighing_rule : test::balanced_rule<double> {
  void assign(const choice_batch<double>& batch, choice_table<double>& choices, tape& t) const {
    test::balanced_rule<double>::assign(batch, choices, t);
    for (const index_t token : batch.routable) choices.weights(token)[0] = 0.5 + static_cast<double>(token);
  }
  void weigh(const choice_row<double>&, std::span<const index_t>, double*) const {}
};

template <typename Scalar>
using balanced_router = token_choice_router<linear_gate<Scalar>, test::balanced_rule<Scalar>>;
using given_balanced = token_choice_router<copy_gate<double>, test::balanced_rule<double>>;

std::vector<index_t> experts_of(const sparse_plan<double>& plan) {
  std::vector<index_t> experts;
  for (index_t t = 0; t < plan.tokens(); ++t)
    experts.push_back(plan.of_token(t).empty() ? no_expert : plan.expert(plan.of_token(t)[0]));
  return experts;
}

}  // namespace

TEST_CASE("choice_rule: a rule sees the context of its token in score, choose, weigh and backward",
          "[router][choice_rule]") {
  const token_choice_router<copy_gate<double>, modality_rule> router(copy_gate<double>(4, 4), {});
  const matrix<double> logits = test::fixture_f<double>();
  const std::vector<index_t> modalities{0, 1, 1, 0};
  routing_context<double> context;
  context.modality_ids = modalities;
  context.step = 10;
  const auto result = test::route(router, logits, context);
  REQUIRE(result.plan.size() == 8);
  for (index_t t = 0; t < 4; ++t) {
    const index_t m = modalities[static_cast<std::size_t>(t)];
    const double first = 1 / (1 + std::exp(logits(t, m + 2) - logits(t, m)));  // of the two experts m and m + 2
    const matrix<double> dense = result.plan.dense_weights();
    CHECK(std::abs(dense(t, m) - first) <= 4 * test::bound<double>(2));
    CHECK(std::abs(dense(t, m + 2) - (1 - first)) <= 4 * test::bound<double>(2));
  }
  CHECK_THROWS_WITH(test::route(router, logits), test::contains("modality_ids"));
}

TEST_CASE("choice_rule: a schedule sets k by the step, and a call's own k goes first", "[router][choice_rule]") {
  const token_choice_router<copy_gate<double>, modality_rule> router(copy_gate<double>(6, 6), {});
  const matrix<double> logits = test::random_matrix<double>(5, 6, 3);
  const std::vector<index_t> modalities(5, 1);
  routing_context<double> context;
  context.modality_ids = modalities;
  context.step = 9;
  CHECK(test::route(router, logits, context).plan.size() == 5);
  CHECK(test::route(router, logits, context).tape.seen.top_k == 1);
  context.step = 10;
  CHECK(test::route(router, logits, context).plan.size() == 10);
  context.top_k = 3;
  CHECK(test::route(router, logits, context).plan.size() == 15);
  context.top_k = 5;  // only three experts are to be seen
  CHECK(test::route(router, logits, context).plan.size() == 15);
}

TEST_CASE("choice_rule: gradients of a softmax that the context masks", "[router][choice_rule][gradient]") {
  const token_choice_router<linear_gate<double>, modality_rule> router(linear_gate<double>(4, 6), {});
  const std::vector<index_t> modalities{0, 1, 1, 0, 1, 0, 0, 1};
  routing_context<double> context = test::training();
  context.modality_ids = modalities;
  context.top_k = 2;
  const auto report = test::check_router_gradients(router, 8, 91, context);
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("choice_rule: experts can be assigned to all tokens of a group together", "[router][choice_rule]") {
  const given_balanced router(copy_gate<double>(4, 4), {});
  // Room for one token an expert. By size: (2,1) 3, (3,0) 2.5, then what is left over, (1,2) 0.5 and (0,3) -1.
  const auto plan = test::route(router, test::fixture_f<double>()).plan;
  CHECK(experts_of(plan) == std::vector<index_t>{3, 2, 1, 0});
  for (index_t t = 0; t < 4; ++t)
    CHECK(plan.weight(plan.of_token(t)[0]) ==
          kernel::logistic(test::fixture_f<double>()(t, experts_of(plan)[static_cast<std::size_t>(t)])));

  const matrix<double> x = test::random_matrix<double>(30, 4, 5);
  const auto loads = test::route(router, x).plan;
  CHECK(loads.size() == 30);
  for (index_t e = 0; e < 4; ++e) CHECK(loads.load(e) <= 8);  // ceil(30 / 4)
  CHECK(test::route(router, matrix<double>(0, 4)).plan.size() == 0);
}

TEST_CASE("choice_rule: an assignment may come with weights", "[router][choice_rule]") {
  const token_choice_router<copy_gate<double>, weighing_rule> router(copy_gate<double>(4, 4), {});
  const auto plan = test::route(router, test::fixture_f<double>()).plan;
  CHECK(experts_of(plan) == std::vector<index_t>{3, 2, 1, 0});
  for (index_t t = 0; t < 4; ++t) CHECK(plan.weight(plan.of_token(t)[0]) == 0.5 + static_cast<double>(t));
}

TEST_CASE("choice_rule: an assignment meets neither padding nor NaN, and each group has its own",
          "[router][choice_rule]") {
  const given_balanced router(copy_gate<double>(3, 3), {.k = 2});
  matrix<double> x = test::random_matrix<double>(13, 3, 5);
  const std::vector<index_t> borders{0, 5, 5, 13};
  std::vector<std::uint8_t> mask(13, 1);
  mask[1] = mask[7] = 0;
  x(1, 0) = x(3, 2) = x(12, 1) = quiet_nan<double>();
  routing_context<double> context;
  context.groups = borders;
  context.token_mask = mask;
  const auto together = test::route(router, x, context);
  CHECK(std::vector<index_t>(together.plan.invalid_tokens().begin(), together.plan.invalid_tokens().end()) ==
        std::vector<index_t>{3, 12});
  for (const index_t t : {1, 3, 7, 12}) {
    CHECK(together.plan.of_token(t).empty());
    CHECK(together.tape.choices.expert[2 * t] == no_expert);
  }
  // The same tokens alone, a call for each group.
  const std::vector<std::vector<index_t>> alone{{0, 2, 4}, {5, 6, 8, 9, 10, 11}};
  for (const auto& tokens : alone) {
    matrix<double> rows(static_cast<index_t>(tokens.size()), 3);
    for (std::size_t i = 0; i < tokens.size(); ++i) rows.row(static_cast<index_t>(i)) = x.row(tokens[i]);
    const matrix<double> expected = test::route(router, rows).plan.dense_weights();
    const matrix<double> found = together.plan.dense_weights();
    for (std::size_t i = 0; i < tokens.size(); ++i)
      CHECK(test::same_bits(matrix<double>(found.row(tokens[i])),
                            matrix<double>(expected.row(static_cast<index_t>(i)))));
  }
}

TEST_CASE("choice_rule: a rule may assign in training and choose token by token at inference",
          "[router][choice_rule]") {
  const given_balanced router(copy_gate<double>(4, 4), {.balanced_at_inference = false});
  CHECK(experts_of(test::route(router, test::fixture_f<double>()).plan) == std::vector<index_t>{0, 0, 1, 0});
  CHECK(experts_of(test::route(router, test::fixture_f<double>(), test::training()).plan) ==
        std::vector<index_t>{3, 2, 1, 0});
}

TEST_CASE("choice_rule: who looks at other tokens is not causal", "[router][choice_rule]") {
  STATIC_REQUIRE_FALSE(is_causal_rule<test::balanced_rule<double>, double>);
  STATIC_REQUIRE(is_causal_rule<says_so, double>);
  STATIC_REQUIRE(is_causal_rule<modality_rule, double>);
  STATIC_REQUIRE_FALSE(balanced_router<double>::causal);
  STATIC_REQUIRE(token_choice_router<copy_gate<double>, modality_rule>::causal);
}

TEST_CASE("choice_rule: an assigning router keeps every promise", "[router][choice_rule]") {
  balanced_router<double> router(linear_gate<double>(8, 5), {.k = 2});
  initialize(router, 3);
  const auto report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
}
