/// Tokens of length 1 before a quantiser, and, where wanted, an output of length 1: the cosine forms of codebooks.
///
///   z = x / max(|x|, smallest)     q, ids = inner(z)     y = q, or q / max(|q|, smallest)
///   dx goes back through each normalisation that was made: |x| and |q| are no constants there
///
///   unit_rows cosine{vector_quantizer{moving_average_codes<float>{512, 64, {.unit_length = true}}}};
///   unit_rows both{vector_quantizer{learned_codes<float>{512, 64}, cosine_similarity{}, rotation{}}, {.outputs = true}};
///
/// Losses compare z with the inner quantiser's codes. With the metric cosine_similarity alone only the search is
/// normalised, losses and gradients are those of x itself. A zero token is z = 0, whose nearest code is the shortest.
/// Yu et al. 2021, "Vector-quantized Image Modeling with Improved VQGAN", section 3.2.
#pragma once

#include <sluice/codebook/structure/quantizer_decorator.hpp>
#include <sluice/kernel/row_norm.hpp>

#include <utility>

namespace sluice::inline SLUICE_ISA {

struct unit_rows_options {
  bool outputs = false;
  double smallest = 1e-6;  ///< rows shorter than this are divided by it
};

namespace detail {

template <typename Scalar>
struct unit_rows_memory {
  typename unit_norm<Scalar>::tape before, after;
};

}  // namespace detail

template <Quantizer Inner>
class unit_rows
    : public quantizer_decorator<unit_rows<Inner>, Inner, detail::unit_rows_memory<typename Inner::scalar>> {
  using base = quantizer_decorator<unit_rows, Inner, detail::unit_rows_memory<typename Inner::scalar>>;
  using memory = detail::unit_rows_memory<typename Inner::scalar>;
  friend base;

public:
  using typename base::context_type;
  using typename base::scalar;
  using typename base::tape;

  /// Throws std::invalid_argument unless smallest > 0.
  explicit unit_rows(Inner inner, unit_rows_options o = {})
      : base(std::move(inner)), options_(o), norm_(0, 0, static_cast<scalar>(o.smallest)) {
    if (!is_above(o.smallest, 0.0)) throw_invalid("unit_rows needs smallest > 0, not ", o.smallest);
  }

  const unit_rows_options& options() const noexcept { return options_; }

private:
  void before(tokens_in<scalar> x, tokens_out<scalar> z, memory& m, const context_type& context) const {
    norm_.forward(x, z, m.before, context.executor);
  }
  void after(tokens_in<scalar> q, tokens_out<scalar> y, memory& m, const executor_ref& executor) const {
    if (options_.outputs)
      norm_.forward(q, y, m.after, executor);
    else
      y = q;
  }
  void after_backward(tokens_in<scalar> dy, tokens_out<scalar> dq, tape& t) {
    if (!options_.outputs) {
      dq = dy;
      return;
    }
    dq.setZero();
    norm_.backward(std::as_const(t.q).map(), dy, t.after, dq, t.context.executor);
  }
  void before_backward(tokens_in<scalar> dz, tokens_out<scalar> dx, tape& t) {
    norm_.backward(t.kept.x(), dz, t.before, dx, t.context.executor);
  }

  unit_rows_options options_;
  unit_norm<scalar> norm_;
};

}  // namespace sluice::inline SLUICE_ISA
