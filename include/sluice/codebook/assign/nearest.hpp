/// Every token gets the code that the metric says is nearest; the lowest of equals.
#pragma once

#include <sluice/codebook/quantized_batch.hpp>

namespace sluice::inline SLUICE_ISA {

struct nearest_code {
  using role = assignment_role;

  /// ids [T,1] of batch.x, hidden tokens included: theirs are dropped by the caller.
  template <typename Scalar, typename Memory>
  void assign(const quantized_batch<Scalar>& batch, tokens_out<index_t> ids, Memory&) const {
    nearest_codes(batch.x, batch.search, ids, static_cast<Scalar*>(nullptr), batch.scratch, batch.context.executor);
  }
};

}  // namespace sluice::inline SLUICE_ISA
