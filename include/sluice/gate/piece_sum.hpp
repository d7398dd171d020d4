/// A gate that reads the sum of the pieces of a token: patches of an image in one row, say.
///
///   x [T, P d], a row P pieces of d numbers      logits = G(sum over p of piece p)      every piece of dx += dG
///
///   piece_sum_gate gate{linear_gate<float>{50, 8}, /*pieces=*/4};      a filter an expert, summed over four patches
///
/// For a linear gate without bias that is the sum of every piece's own logits. NaN stays in its row. T = 0 is fine.
/// Chen, Deng, Wu, Gu, Li 2022, arXiv:2208.02813, routes so.
#pragma once

#include <sluice/core/error.hpp>
#include <sluice/gate/decorator.hpp>
#include <sluice/gate/linear.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <typename Inner>
class piece_sum_gate : public gate_decorator<Inner> {
public:
  using scalar = typename Inner::scalar;
  static constexpr bool shows_nan = false;

  struct tape : decorated_tape<Inner> {
    matrix_buffer<scalar> sums;  ///< [T,d]
    matrix_buffer<scalar> dsums;
  };

  /// The inner gate reads d numbers. Throws std::invalid_argument unless P >= 1.
  piece_sum_gate(Inner inner, index_t pieces) : gate_decorator<Inner>(std::move(inner)), pieces_(pieces) {
    if (pieces < 1) throw_invalid("piece_sum_gate needs P >= 1 pieces, not ", pieces);
  }

  index_t inputs() const noexcept { return pieces_ * width(); }
  index_t pieces() const noexcept { return pieces_; }

  void forward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_out<scalar> logits, tape& t) const {
    t.sums.resize(x.rows(), width());
    context.executor.parallel_each(x.rows(), inputs(), [&](index_t token) {
      const scalar* const pieces = x.data() + token * x.outerStride();
      std::copy_n(pieces, width(), t.sums.row(token));
      for (index_t p = 1; p < pieces_; ++p)
        kernel::add_scaled(scalar(1), pieces + p * width(), t.sums.row(token), width());
    });
    this->inner().forward(t.sums.map(), context, logits, t.inner);
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<scalar> x, const routing_context<scalar>& context, tokens_in<scalar> dlogits, tape& t,
                tokens_out<scalar> dx) {
    t.dsums.set_zero(x.rows(), width());
    this->inner().backward(t.sums.map(), context, dlogits, t.inner, t.dsums.map());
    context.executor.parallel_each(x.rows(), inputs(), [&](index_t token) {
      scalar* const pieces = dx.data() + token * dx.outerStride();
      for (index_t p = 0; p < pieces_; ++p)
        kernel::add_scaled(scalar(1), t.dsums.row(token), pieces + p * width(), width());
    });
  }

private:
  index_t width() const noexcept { return this->inner().inputs(); }

  index_t pieces_;
};

static_assert(DifferentiableGate<piece_sum_gate<linear_gate<float>>>);

}  // namespace sluice::inline SLUICE_ISA
