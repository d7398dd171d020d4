/// How well tokens agree with their codes, sequence by sequence: quality by what a codebook of good examples can say.
///
///   score[s] = mean over the tokens of sequence s of  x . y / (|x| |y|)   or   |x - y|^2 / D
///
///   quantizer.forward(x, y, workspace, context);                 // learned from good examples; nothing is learned here
///   code_agreement<float>(x, y, scores, context);                // high where x is as they were
///
/// Give what the quantiser itself sees: for a projected one, the rows between the projections. Padding, and tokens that
/// hold NaN, are left out; a sequence without others has the score NaN. A zero row agrees with nothing: 0. Tokens are
/// added up in order.
/// Fu et al. 2024, "Self-Supervised Speech Quality Estimation and Enhancement Using Only Clean Speech".
#pragma once

#include <sluice/core/context.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

namespace sluice::inline SLUICE_ISA {

enum class agreement { cosine, squared_distance };

/// A score a sequence of the context (one, if it has none). Throws std::invalid_argument if shapes do not fit.
template <FloatOrDouble Scalar>
void code_agreement(tokens_in<Scalar> x, tokens_in<Scalar> y, std::span<Scalar> scores,
                    const routing_context<Scalar>& context = {}, agreement measure = agreement::cosine) {
  if (x.rows() != y.rows() || x.cols() != y.cols() || static_cast<index_t>(scores.size()) != context.sequence_count())
    throw_invalid("code_agreement of x [", x.rows(), ", ", x.cols(), "] with y [", y.rows(), ", ", y.cols(),
                  "] was given ", scores.size(), " scores for ", context.sequence_count(), " sequences");
  check_context(context, x.rows());
  const index_t width = x.cols();
  for (index_t s = 0; s < context.sequence_count(); ++s) {
    Scalar sum = 0;
    index_t counted = 0;
    const token_range tokens = context.sequence(s, x.rows());
    for (index_t t = tokens.begin; t < tokens.end; ++t) {
      const Scalar *a = x.data() + t * x.outerStride(), *b = y.data() + t * y.outerStride();
      if (context.is_padding(t) || any_nan(a, width) || any_nan(b, width)) continue;
      ++counted;
      if (measure == agreement::cosine) {
        const Scalar lengths = std::sqrt(kernel::dot(a, a, width)) * std::sqrt(kernel::dot(b, b, width));
        sum += kernel::dot(a, b, width) / (std::max)(lengths, (std::numeric_limits<Scalar>::min)());
      } else {
        Scalar error = 0;
        for (index_t i = 0; i < width; ++i) error += (a[i] - b[i]) * (a[i] - b[i]);
        sum += error / static_cast<Scalar>(width);
      }
    }
    scores[as_size(s)] = counted == 0 ? quiet_nan<Scalar>() : sum / static_cast<Scalar>(counted);
  }
}

}  // namespace sluice::inline SLUICE_ISA
