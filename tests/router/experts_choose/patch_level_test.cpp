#include <sluice/router/experts_choose/patch_level.hpp>

#include "router/router_table.hpp"
#include "router/token_choice_support.hpp"

using namespace sluice;
using test::copy_gate;

namespace {

const test::table_router pmoe_in_table("pmoe_router", [] {
  return test::made(pmoe_router<double>{6, 4, 12}, {.training_capacity = 12});
});

using given_pmoe = pmoe_router<double, copy_gate<double>>;

/// One expert that scores four patches 2, -1, 0.5 and 1.
matrix<double> worked_patches() {
  matrix<double> logits(4, 1);
  logits << 2, -1, 0.5, 1;
  return logits;
}

given_pmoe given_patches(index_t experts, index_t patches, patch_gate form) {
  return {copy_gate<double>(experts, experts), patches, form};
}

}  // namespace

TEST_CASE("pmoe: the worked example", "[router][pmoe]") {
  const auto check = [](patch_gate form, double first, double second) {
    const auto plan = test::route(given_patches(1, 2, form), worked_patches()).plan;
    REQUIRE(plan.size() == 2);
    CHECK(plan.token(0) == 0);
    CHECK(plan.token(1) == 3);
    const bool on_input = form != patch_gate::even;
    for (index_t i = 0; i < 2; ++i) {
      const double weight = on_input ? plan.input_scale(i) : plan.weight(i);
      CHECK(std::abs(weight - (i == 0 ? first : second)) < test::printed);
      CHECK((on_input ? plan.weight(i) : plan.input_scale(i)) == 1);
    }
  };
  check(patch_gate::over_taken, 0.731059, 0.268941);
  check(patch_gate::over_patches, 0.609460, 0.224208);
  check(patch_gate::even, 1, 1);
}

TEST_CASE("pmoe: images are apart, and as many patches as there are is every patch", "[router][pmoe]") {
  const matrix<double> logits = test::random_matrix<double>(9, 3, 241);
  const std::vector<index_t> borders{0, 4, 4, 9};
  routing_context<double> context;
  context.groups = borders;
  const auto form = GENERATE(patch_gate::over_taken, patch_gate::over_patches);
  const auto two = test::route(given_patches(3, 2, form), logits, context).plan;
  CHECK(two.size() == 12);
  const auto all = test::route(given_patches(3, 99, form), logits, context).plan;
  CHECK(all.size() == 27);
  for (index_t e = 0; e < 3; ++e) {
    double image[2] = {0, 0};
    const row_range own = all.by_expert().of(e);
    for (index_t i = own.begin; i < own.end; ++i) image[all.token(i) >= 4] += all.input_scale(i);
    for (const double sum : image) CHECK(std::abs(sum - 1) <= test::bound<double>(5));
  }
}

TEST_CASE("pmoe: gradients equal central differences", "[router][pmoe][gradient]") {
  const std::vector<index_t> borders{0, 5, 5, 11};
  const std::vector<std::uint8_t> mask{1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1};
  auto context = test::training();
  context.groups = borders;
  context.token_mask = mask;
  const auto form = GENERATE(patch_gate::over_taken, patch_gate::over_patches, patch_gate::even);
  const auto report = test::check_router_gradients(pmoe_router<double>(5, 4, 3, form), 11, 242, context);
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("pmoe: equal scores, infinities, padding, NaN, no patch", "[router][pmoe][ties]") {
  const auto form = GENERATE(patch_gate::over_taken, patch_gate::over_patches);
  matrix<double> logits = matrix<double>::Zero(5, 2);
  logits(3, 1) = std::numeric_limits<double>::infinity();
  logits(1, 0) = quiet_nan<double>();
  const std::vector<std::uint8_t> mask{0, 1, 1, 1, 1};
  routing_context<double> context;
  context.token_mask = mask;
  const auto plan = test::route(given_patches(2, 2, form), logits, context).plan;
  REQUIRE(plan.size() == 4);
  CHECK(plan.token(0) == 2);
  CHECK(plan.token(1) == 3);
  CHECK(std::abs(plan.input_scale(0) - (form == patch_gate::over_taken ? 0.5 : 1 / 3.0)) <= test::bound<double>(3));
  CHECK(plan.token(2) == 3);
  CHECK(plan.input_scale(2) == 1);
  CHECK(plan.input_scale(3) == 0);
  CHECK(plan.invalid_tokens().size() == 1);
  CHECK(test::route(given_patches(2, 2, form), matrix<double>(0, 2)).plan.size() == 0);
}

TEST_CASE("pmoe: keeps every promise", "[router][pmoe]") {
  pmoe_router<double> router(16, 4, 5, GENERATE(patch_gate::over_taken, patch_gate::over_patches, patch_gate::even));
  initialize(router, 3);
  const conformance_report report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
}

TEST_CASE("pmoe: refuses what makes no sense", "[router][pmoe]") {
  CHECK_THROWS_WITH(given_patches(2, 0, patch_gate::even), test::contains("0"));
  using router = expert_choice_router<double>;
  CHECK_THROWS_WITH(router(3, 2, {.scores = router::score::even, .cap = {.most = 1}}), test::contains("cap"));
}
