/// The conformance kit: every promise that routers and experts make, tested on yours in one call.
///
///   const conformance_report report = check_router(my_router<double>{16, 8});
///   std::cout << report.describe();
///   return report.passed() ? 0 : 1;
///
/// check_router puts the router into a layer of small smooth experts and runs it on random tokens. Tested are
///   valid plans for 0, 1, many, equal, huge and infinite tokens; experts of a token distinct          (every router)
///   equal bits for equal calls and for 1, 2, 3 and 8 threads; no randomness in inference              (every router)
///   padding reaches nothing; kept and dropped choices add up                                          (every router)
///   a NaN token gets NaN, and reaches no parameter's gradient and no other token's                    (every router)
///   a token's route depends on that token alone: permuted tokens, equal tokens, NaN beside it         (if causal)
///   outputs and gradients equal those of the readable reference; gradients are added, by a second     (every router)
///   backward call too
///   gradients of x, parameters and signals equal central differences                                  (if exact, in double)
/// check_expert does the same for an expert: rows on their own, outputs overwritten, nothing written elsewhere, exact
/// gradients that add. A property that does not apply is skipped, and its line says why. Initialise parameters first: a
/// router whose weights are all zero has nothing but ties. A router that needs more than x finds it in options.context,
/// whose spans describe options.tokens tokens; learned routers whose E is large are better checked with a small one.
#pragma once

#include <sluice/train/conformance/call_properties.hpp>
#include <sluice/train/conformance/expert_properties.hpp>
#include <sluice/train/conformance/gradient_properties.hpp>
#include <sluice/train/conformance/route_properties.hpp>

namespace sluice::inline SLUICE_ISA {

/// Throws std::invalid_argument if the options do not fit; what the router does wrong is in the report.
template <typename Router>
conformance_report check_router(const Router& router,
                                const router_check_options<typename Router::scalar>& options = {}) {
  static_assert(explain_router<Router>());
  using scalar = typename Router::scalar;
  detail::router_probe<Router> probe(router, options);
  conformance_report report;
  report.add("zero tokens", [&] { return detail::zero_tokens(probe); });
  report.add("valid plans", [&] { return detail::valid_plans(probe); });
  report.add("equal tokens", [&] { return detail::equal_tokens(probe); });
  report.add("token permutation", [&] { return detail::permutation(probe); });
  report.add("NaN token", [&] { return detail::spoiled_token(probe, quiet_nan<scalar>(), true); });
  report.add("infinite token",
             [&] { return detail::spoiled_token(probe, std::numeric_limits<scalar>::infinity(), false); });
  report.add("conservation", [&] { return detail::conservation(probe); });
  report.add("repetition", [&] { return detail::repetition(probe); });
  report.add("thread counts", [&] { return detail::thread_counts(probe); });
  report.add("shared by threads", [&] { return detail::shared_by_threads(probe); });
  report.add("inference draws nothing", [&] { return detail::inference_draws_nothing(probe); });
  report.add("calls change no parameter", [&] { return detail::changes_no_parameter(probe); });
  report.add("padding", [&] { return detail::padding(probe); });
  report.add("readable reference", [&] { return detail::readable_reference(probe); });
  report.add("gradients are added", [&] { return detail::gradients_are_added(probe); });
  report.add("NaN in gradients", [&] { return detail::nan_in_gradients(probe); });
  report.add("backward again", [&] { return detail::backward_again(probe); });
  report.add("gradients in training", [&] { return detail::gradients(probe, true); });
  report.add("gradients without training", [&] { return detail::gradients(probe, false); });
  report.add("after_step", [&] { return detail::own_step(probe); });
  return report;
}

/// Throws std::invalid_argument if the options do not fit; what the expert does wrong is in the report.
template <typename Expert>
conformance_report check_expert(const Expert& expert, const expert_check_options& options = {}) {
  static_assert(explain_expert<Expert>());
  detail::expert_probe<Expert> probe(expert, options);
  conformance_report report;
  report.add("zero rows", [&] { return detail::zero_rows(probe); });
  report.add("rows on their own", [&] { return detail::rows_alone(probe); });
  report.add("NaN row", [&] { return detail::nan_row(probe); });
  report.add("repetition", [&] { return detail::expert_repetition(probe); });
  report.add("outputs are overwritten", [&] { return detail::overwrites(probe); });
  report.add("borders", [&] { return detail::borders(probe); });
  report.add("calls change no parameter", [&] { return detail::expert_keeps_parameters(probe); });
  report.add("gradients", [&] { return detail::expert_gradients(probe); });
  report.add("gradients are added", [&] { return detail::expert_gradients_add(probe); });
  report.add("backward again", [&] { return detail::expert_backward_again(probe); });
  return report;
}

}  // namespace sluice::inline SLUICE_ISA
