/// A loss on tokens that say little of their own sequence: MixPHM's other term, beside adapter/redundancy.hpp.
///
///   s[t,b] = <x[t], c[b]>      tokens x [T,D], a vector c of what each of the B sequences is about [B,D]
///   loss   = coefficient * ( mean over t and sequences b that are not its own of softplus(s[t,b]) - log 2
///                          + mean over t of softplus(-s[t,own]) - log 2 )
///   dx[t]  = sum over b of ds[t,b] c[b];  dc[b] = sum over t of ds[t,b] x[t]
///
/// It is minus a lower bound of the mutual information of tokens and contexts, by the Jensen-Shannon divergence: at most
/// 0 where tokens are known by their sequence, 0 where all scores are. What c is made of is the caller's: a mean of the
/// tokens, an encoder's answer. Padding and tokens that hold NaN do not count; without tokens the loss is 0, and of one
/// sequence there are no others. Sums go token by token. Jiang, Zheng 2023, arXiv:2303.01239 (MixPHM); Nowozin, Cseke,
/// Tomioka 2016, arXiv:1606.00709.
#pragma once

#include <sluice/core/buffer.hpp>
#include <sluice/core/context.hpp>
#include <sluice/core/error.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/kernel/logistic.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <numbers>

namespace sluice::inline SLUICE_ISA {

/// Of one call; keeps its memory.
template <FloatOrDouble Scalar>
class context_information {
public:
  /// The loss for the sequences of the context. Throws std::invalid_argument if shapes do not fit.
  Scalar evaluate(tokens_in<Scalar> x, tokens_in<Scalar> about, const routing_context<Scalar>& context,
                  Scalar coefficient = 1) {
    check_context(context, x.rows());
    const index_t sequences = context.sequence_count();
    if (about.rows() != sequences || about.cols() != x.cols())
      throw_invalid("tokens [", x.rows(), ", ", x.cols(), "] of ", sequences,
                    " sequences need [B, D] of what these are about, not [", about.rows(), ", ", about.cols(), "]");
    index_t count = 0;
    own_.assign(x.rows(), -1);
    for (index_t s = 0; s < sequences; ++s)
      for (index_t t = context.sequence(s, x.rows()).begin; t < context.sequence(s, x.rows()).end; ++t) {
        if (context.is_padding(t) || any_nan(row(x, t), x.cols())) continue;
        own_[t] = s;
        ++count;
      }
    dscores_.set_zero(x.rows(), sequences);
    const auto tokens = static_cast<Scalar>(count), others = tokens * static_cast<Scalar>(sequences - 1);
    constexpr Scalar log_two = std::numbers::ln2_v<Scalar>;
    Scalar of_own = 0, of_others = 0;
    for (index_t t = 0; t < x.rows(); ++t)
      for (index_t s = 0; own_[t] >= 0 && s < sequences; ++s) {
        const Scalar score = kernel::dot(row(x, t), row(about, s), x.cols());
        const bool is_own = own_[t] == s;
        (is_own ? of_own : of_others) += kernel::softplus(is_own ? -score : score) - log_two;
        dscores_(t, s) = coefficient * (is_own ? -kernel::logistic(-score) / tokens : kernel::logistic(score) / others);
      }
    return coefficient * ((count > 0 ? of_own / tokens : Scalar(0)) + (others > 0 ? of_others / others : Scalar(0)));
  }

  /// Adds the gradients of the last evaluation.
  void backward(tokens_in<Scalar> x, tokens_in<Scalar> about, tokens_out<Scalar> dx, tokens_out<Scalar> dabout) const {
    for (index_t t = 0; t < dscores_.rows(); ++t)
      for (index_t s = 0; own_[t] >= 0 && s < dscores_.cols(); ++s) {
        kernel::add_scaled(dscores_(t, s), row(about, s), dx.data() + t * dx.outerStride(), x.cols());
        kernel::add_scaled(dscores_(t, s), row(x, t), dabout.data() + s * dabout.outerStride(), x.cols());
      }
  }

private:
  static const Scalar* row(tokens_in<Scalar> m, index_t r) { return m.data() + r * m.outerStride(); }

  buffer<index_t> own_;            ///< [T] the sequence, -1 for who does not count
  matrix_buffer<Scalar> dscores_;  ///< [T,B]
};

}  // namespace sluice::inline SLUICE_ISA
