/// What must hold between equal calls, whatever the conformance kit looks at: a router, a gate, a loss or a layer.
/// run(batch, tape, executor) makes one call and gives results that == compares bit for bit.
#pragma once

#include <sluice/core/executor.hpp>
#include <sluice/train/conformance/batch.hpp>
#include <sluice/train/conformance/plan_words.hpp>
#include <sluice/train/conformance/report.hpp>

#include <string>

namespace sluice::inline SLUICE_ISA::detail {

/// The first call with a tape, the next after another batch has left its numbers there, one with a new tape.
template <typename Tape, typename Batch, typename Run>
property_result equal_with_used_tapes(const Batch& b, const Batch& other, Run&& run, const std::string& when = {}) {
  Tape used, fresh;
  const auto first = run(b, used, executor_ref());
  run(other, used, executor_ref());
  if (!(first == run(b, used, executor_ref()))) return fail("a used tape gives other bits than a new one" + when);
  if (!(first == run(b, fresh, executor_ref()))) return fail("the same call gives other bits" + when);
  return pass("with fresh and used tapes");
}

template <typename Tape, typename Batch, typename Run>
property_result equal_with_all_threads(const Batch& b, Run&& run) {
  Tape t;
  const auto serial = run(b, t, executor_ref());
  for (const int threads : {1, 2, 3, 8}) {
    backward_threads pool(threads);
    if (!(serial == run(b, t, executor_ref(pool)))) return fail(std::to_string(threads) + " threads give other bits");
  }
  return pass("equal bits with 1, 2, 3 and 8 threads");
}

/// calls() calls the object in every way there is.
template <typename Object, typename Calls>
property_result keeps_parameters(const Object& object, Calls&& calls) {
  const auto before = parameter_values(object);
  calls();
  return equal_bits(before, parameter_values(object)) ? pass("weights and states stay as they are")
                                                      : fail("a call changed a weight or a state");
}

}  // namespace sluice::inline SLUICE_ISA::detail
