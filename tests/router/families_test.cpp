// What all routers promise, for those in which experts choose tokens, tokens are mixed, or the number of experts is learned.
#include <sluice/router/every_expert/soft_moe.hpp>
#include <sluice/router/experts_choose/expert_choice.hpp>
#include <sluice/router/over_training/dselect_k.hpp>
#include <sluice/router/threshold/relu.hpp>
#include <sluice/train/initialize.hpp>

#include "any_router.hpp"
#include "support.hpp"

using namespace sluice;

namespace {

template <typename Router>
void check_promises(Router router) {
  initialize(router, 3);
  const conformance_report report = test::conformance(router);
  INFO(report.describe());
  CHECK(report.passed());
}

}  // namespace

TEMPLATE_TEST_CASE("families: expert choice keeps every promise", "[router][expert_choice]", float, double) {
  using S = TestType;
  using noisy = expert_choice_router<S, linear_gate<S>, gaussian_noise<S>>;
  check_promises(expert_choice_router<S>{16, 8, {.scores = expert_choice_router<S>::score::sigmoid}});
  check_promises(noisy{linear_gate<S>{16, 8}, {}, gaussian_noise<S>{2}});
}

TEMPLATE_TEST_CASE("families: ReLU keeps every promise", "[router][relu]", float, double) {
  check_promises(relu_router<TestType>{16, 8});
}

TEMPLATE_TEST_CASE("families: Soft MoE keeps every promise", "[router][soft_moe]", float, double) {
  using S = TestType;
  check_promises(soft_moe_router<S>{16, 8, {.slots_per_expert = 2}});
  check_promises(soft_moe_router<S, no_norm<S>, rms_norm<S>>{16, 8, {.slots_per_expert = 2, .noise_std = S(0.1)}});
}

TEMPLATE_TEST_CASE("families: DSelect-k keeps every promise", "[router][dselect_k]", float, double) {
  using S = TestType;
  check_promises(dselect_k_router<S>{16, 6, {.selectors = 3}});
  check_promises(dselect_k_router<S, static_selectors<S>>{16, 8});
}
