// Every promise of a loss, tested on any loss for one router: the kit is compiled once a router.
#pragma once

#include <sluice/train/check_loss.hpp>

#include "support.hpp"

#include <functional>
#include <string>

namespace sluice::test {

/// Any loss on what this router saw, behind one type.
template <typename Router>
using any_loss = std::function<typename Router::scalar(
    const decltype(Router::tape::seen)&, const typename Router::plan&, const routing_context<typename Router::scalar>&,
    decltype(Router::tape::dseen)&)>;

/// Every promise of train/check_loss.hpp.
template <typename Router>
void check_loss_promises(const std::string& name, const any_loss<Router>& loss, const Router& router,
                         const routing_context<typename Router::scalar>& context = {}) {
  CAPTURE(name);
  const auto report = sluice::check_loss(loss, router, {.context = context, .gradients = {.most_entries = 60}});
  INFO(report.describe());
  CHECK(report.passed());
  CHECK(report.find("gradients")->result == (has_exact_gradient<Router> ? outcome::passed : outcome::skipped));
}

}  // namespace sluice::test
