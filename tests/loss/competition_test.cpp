#include <sluice/loss/competition.hpp>

#include <sluice/router/over_training/compete.hpp>
#include <sluice/router/tokens_choose/top_k.hpp>
#include <sluice/train/initialize.hpp>

#include "any_loss.hpp"

using namespace sluice;

// What they compute is tested with the router, in tests/router/over_training/compete_test.cpp.
TEST_CASE("competition losses: every promise of a loss", "[loss][competition][conformance]") {
  compete_router router{top_k_router<double>{6, 5, {.top_k = 2}}, {.frequency = 1}};
  initialize(router, 3);
  // A target that stays as it is would be no derivative.
  test::check_loss_promises("imitation", imitation_loss{.winners = 0.5, .through_target = true}, router);
  test::check_loss_promises("diversity", diversity_loss{}, router);
  test::check_loss_promises("balance", contest_balance{}, router);
}
