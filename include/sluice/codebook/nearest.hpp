/// The best code of every token: kernel/best_code.hpp spread over an executor.
///
///   x [T,D], keys [C,D] -> ids [T] in column 0, scores [T]        no_code and NaN for tokens without a code
///
/// Rows are cut into chunks; neither chunks nor threads change a bit. No T x C matrix is ever in memory. Nothing is
/// allocated once warm.
#pragma once

#include <sluice/codebook/code_search.hpp>
#include <sluice/core/executor.hpp>

namespace sluice::inline SLUICE_ISA {

/// What a search works in; one a thread that calls.
template <FloatOrDouble Scalar>
struct nearest_scratch {};

/// scores may be null. Throws std::invalid_argument if shapes do not fit.
template <FloatOrDouble Scalar>
void nearest_codes(tokens_in<Scalar> x, const code_search<Scalar>& search, tokens_out<index_t> ids, Scalar* scores,
                   nearest_scratch<Scalar>&, const executor_ref& executor = {}) {
  if (x.cols() != search.width() || ids.rows() != x.rows() || ids.cols() < 1)
    throw_invalid("a search for codes of width ", search.width(), " needs x [T, D] and ids [T, 1], not [", x.rows(), ", ",
                  x.cols(), "] and [", ids.rows(), ", ", ids.cols(), "]");
  constexpr index_t rows_a_task = 64;
  const kernel::code_keys<Scalar> keys = search.keys();
  executor.parallel_blocks(x.rows(), rows_a_task, keys.count * keys.width / 4, [&](index_t begin, index_t end) {
    kernel::best_code(x.data() + begin * x.outerStride(), x.outerStride(), end - begin, keys,
                      ids.data() + begin * ids.outerStride(), ids.outerStride(),
                      scores == nullptr ? nullptr : scores + begin);
  });
}

}  // namespace sluice::inline SLUICE_ISA
