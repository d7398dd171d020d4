/// Softmax cross-entropy: the loss of a classifier, of a language model's next token, and its gradient.
///
///   logits [T,C], labels [T], p = softmax(logits) row by row, s = label_smoothing
///   target q[t,c] = (1 - s) [c = label t] + s / C
///   loss = sum over rows of -sum over c of q log p, over the number of labelled rows N if it is a mean
///   dlogits [T,C] = (p - q) / N, or p - q
///
///   const softmax_cross_entropy<float> objective{.label_smoothing = 0.1};
///   const auto result = objective(logits, labels, dlogits);   // result.loss, result.accuracy()
///
/// A row whose label is `ignored` counts nowhere, its logits are not read and its gradient is zero: padding, prompts. A
/// row with NaN among its logits makes the loss NaN, so that nobody misses it, is counted in `invalid`, and its
/// gradient is zero, so that the parameters survive it; the other rows' gradients stay as they are by a bit. Infinite
/// logits are values: equal +infinities share the probability, a label at -infinity costs +infinity. A tie for the
/// largest logit goes to the lowest class. Without labelled rows (T = 0 too) the loss is 0. Sums run in double, in the
/// order of the rows. dlogits may be logits.
///
/// probability_cross_entropy reads probabilities instead of logits: those of a dense mixture whose experts put out
/// probabilities (expert/softmax_output.hpp), p = sum over e of w[e] pi[e], the multinomial logistic mixture of
/// experts.
///   loss = mean over rows of -log p[label],  dp[t,c] = -[c = label t] / (N p[t,c])
/// From there the layer gives a gate of logits l the gradient w[e] - rho[e], rho[e] = w[e] pi[e][label] / p[label]
/// being how responsible expert e is. A label of probability 0 costs +infinity and has no gradient; all else is as
/// above.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/softmax.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

namespace sluice::inline SLUICE_ISA {

/// What the loss of a batch comes to.
struct cross_entropy_result {
  double loss = 0;
  index_t labelled = 0;  ///< rows that count
  index_t correct = 0;   ///< of these, rows whose largest logit is the label's
  index_t invalid = 0;   ///< of these, rows with NaN

  double accuracy() const noexcept {
    return labelled == 0 ? 0 : static_cast<double>(correct) / static_cast<double>(labelled);
  }
};

/// Mean or sum over the labelled rows.
enum class reduction { mean, sum };

namespace detail {

/// Rows whose label is not `ignored`. Throws std::invalid_argument unless every row has a label, which is that or a
/// class, and dout has the shape of out.
template <FloatOrDouble Scalar>
index_t count_labels(tokens_in<Scalar> out, std::span<const index_t> labels, index_t ignored, tokens_out<Scalar> dout) {
  if (dout.rows() != out.rows() || dout.cols() != out.cols())
    throw_invalid("cross-entropy of logits [", out.rows(), ", ", out.cols(), "] needs dlogits of that shape, not [",
                  dout.rows(), ", ", dout.cols(), "]");
  if (static_cast<index_t>(labels.size()) != out.rows())
    throw_invalid("cross-entropy of logits [", out.rows(), ", ", out.cols(), "] needs a label a row, not ",
                  labels.size());
  index_t labelled = 0;
  for (std::size_t t = 0; t < labels.size(); ++t) {
    if (labels[t] == ignored) continue;
    if (labels[t] < 0 || labels[t] >= out.cols())
      throw_invalid("label ", labels[t], " of row ", t, " is not one of the ", out.cols(), " classes");
    ++labelled;
  }
  return labelled;
}

/// What the sum over rows is multiplied by.
inline double row_share(reduction over_rows, index_t labelled) {
  return over_rows == reduction::mean ? 1 / static_cast<double>((std::max<index_t>)(labelled, 1)) : 1;
}

}  // namespace detail

template <FloatOrDouble Scalar>
struct softmax_cross_entropy {
  double label_smoothing = 0;  ///< 0 .. 1, shared by all classes
  index_t ignored = -1;        ///< the label of rows that do not count
  reduction over_rows = reduction::mean;

  /// Overwrites dlogits. Throws std::invalid_argument, before anything is written, if shapes do not fit or a label is
  /// neither a class nor `ignored`.
  cross_entropy_result operator()(tokens_in<Scalar> logits, std::span<const index_t> labels,
                                  tokens_out<Scalar> dlogits) const {
    if (!is_between(label_smoothing, 0, 1))
      throw_invalid("label_smoothing is a share between 0 and 1, not ", label_smoothing);
    cross_entropy_result result;
    result.labelled = detail::count_labels<Scalar>(logits, labels, ignored, dlogits);
    const double share = detail::row_share(over_rows, result.labelled);
    for (index_t t = 0; t < logits.rows(); ++t)
      add_row(logits.data() + t * logits.outerStride(), labels[static_cast<std::size_t>(t)],
              dlogits.data() + t * dlogits.outerStride(), logits.cols(), share, result);
    result.loss = result.invalid > 0 ? quiet_nan<double>() : result.loss * share;
    return result;
  }

private:
  void add_row(const Scalar* logits, index_t label, Scalar* gradient, index_t classes, double share,
               cross_entropy_result& result) const {
    if (label == ignored || any_nan(logits, classes)) {
      result.invalid += label != ignored;
      std::fill_n(gradient, classes, Scalar(0));
      return;
    }
    result.correct += kernel::arg_max(logits, classes) == label;
    const auto e = kernel::sum_exponentials(logits, classes);
    const double log_sum = std::log(static_cast<double>(e.sum));
    // Equal to the maximum means 0, also where both are infinite and the difference would be NaN.
    const auto log_probability = [&](index_t c) {
      const bool largest = order_key(logits[c]) == order_key(e.maximum);
      return (largest ? 0.0 : static_cast<double>(logits[c]) - static_cast<double>(e.maximum)) - log_sum;
    };
    const double rest = label_smoothing / static_cast<double>(classes);
    result.loss -= (1 - label_smoothing) * log_probability(label);
    if (rest > 0)
      for (index_t c = 0; c < classes; ++c) result.loss -= rest * log_probability(c);

    kernel::softmax(logits, gradient, classes);
    for (index_t c = 0; c < classes; ++c) {
      const double target = rest + (c == label ? 1 - label_smoothing : 0);
      gradient[c] = static_cast<Scalar>((static_cast<double>(gradient[c]) - target) * share);
    }
  }
};

template <FloatOrDouble Scalar>
struct probability_cross_entropy {
  index_t ignored = -1;  ///< the label of rows that do not count
  reduction over_rows = reduction::mean;

  /// Overwrites dp, which may be p. Throws std::invalid_argument as softmax_cross_entropy does.
  cross_entropy_result operator()(tokens_in<Scalar> p, std::span<const index_t> labels, tokens_out<Scalar> dp) const {
    cross_entropy_result result;
    result.labelled = detail::count_labels<Scalar>(p, labels, ignored, dp);
    const double share = detail::row_share(over_rows, result.labelled);
    for (index_t t = 0; t < p.rows(); ++t) {
      const index_t label = labels[static_cast<std::size_t>(t)];
      const Scalar* row = p.data() + t * p.outerStride();
      const bool counts = label != ignored, is_invalid = counts && any_nan(row, p.cols());
      result.invalid += is_invalid;
      const double own = counts && !is_invalid ? static_cast<double>(row[label]) : 1;
      if (counts && !is_invalid) {
        result.correct += kernel::arg_max(row, p.cols()) == label;
        result.loss -= own > 0 ? std::log(own) : -std::numeric_limits<double>::infinity();
      }
      Scalar* gradient = dp.data() + t * dp.outerStride();
      std::fill_n(gradient, p.cols(), Scalar(0));
      if (counts && !is_invalid && own > 0) gradient[label] = static_cast<Scalar>(-share / own);
    }
    result.loss = result.invalid > 0 ? quiet_nan<double>() : result.loss * share;
    return result;
  }
};

}  // namespace sluice::inline SLUICE_ISA
