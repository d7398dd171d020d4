/// Experts that scale their input: vectors of D numbers, mixed first and then multiplied by x.
///
///   f_e(x) = x * l_e, number by number        vectors L [H,E,D], H = 1 unless there are heads
///   v[t] = sum over e of w[t,e] l_e;  y[t] += x[t] * v[t]
///   dv = x * dy;  dL += w^T dv;  dw = dv L^T;  dx += dy * v
///
///   moe_layer scales{dense_softmax_router<float>{linear_gate<float>{64, 20, {.bias = true}}},            // MoV
///                    scaling_bank<float>{20, 64}};
///   moe_layer scales{top_k_router<float>{64, 20, {.top_k = 2, .weights = weighting::pre}}, ...};   // only its 2 best
///
/// One expert of weight 1 is (IA)^3. With heads a token is one head's part of a row: x is [T H, D], row t belongs to
/// head t mod H, all heads share the router and each has vectors of its own. An x of [T, H D] lies in memory as it has
/// to. It costs 2 T E D operations whatever is chosen. All vectors are in every token's sum: an infinity in one reaches
/// all tokens, even with weight 0. Tasks are blocks of rows, and columns of L for its gradient: equal bits for any
/// thread count. Tokens without experts are not read. Initial values: 1, so that nothing changes at first where weights
/// sum to 1. Zadouri et al. 2023, arXiv:2309.05444 (MoV); Liu et al. 2022, arXiv:2205.05638 ((IA)^3).
#pragma once

#include <sluice/adapter/token_weights.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/expert/gathered_rows.hpp>
#include <sluice/kernel/gemm.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class scaling_bank : public gathered_rows_bank<scaling_bank<Scalar>, Scalar> {
public:
  using scalar = Scalar;
  struct options {
    index_t heads = 1;  ///< H
  };
  struct tape {
    token_weights<Scalar> weights;  ///< [T,E]
    matrix_buffer<Scalar> mixed;    ///< [T,D] v
    matrix_buffer<Scalar> dweights;
    matrix_buffer<Scalar> dmixed;
  };

  /// Throws std::invalid_argument unless E, D and H are at least 1.
  scaling_bank(index_t experts, index_t inputs, options o = {}) : heads_(o.heads), experts_(experts) {
    if (experts < 1 || inputs < 1 || heads_ < 1)
      throw_invalid("scaling_bank needs E, D, H >= 1, not ", experts, ", ", inputs, ", ", heads_);
    vectors_ = {{heads_, experts, inputs}, parameter_role::vector, initial_values::constant(1)};
  }

  index_t experts() const noexcept { return experts_; }
  index_t inputs() const noexcept { return vectors_.cols() / experts_; }
  index_t outputs() const noexcept { return inputs(); }
  index_t heads() const noexcept { return heads_; }
  parameter<Scalar>& vectors() noexcept { return vectors_; }  ///< L

  void forward_routed(tokens_in<Scalar> x, const routed_rows<Scalar>& rows, tokens_out<Scalar> y, tape& t,
                      const executor_ref& executor) const {
    t.weights.spread(rows, x.rows());
    t.mixed.resize(x.rows(), inputs());
    for_each_block(t, executor, [&](index_t begin, index_t end) {
      for_each_head(begin, end, [&](index_t head, index_t first, index_t count) {
        kernel::multiply_nn(count, inputs(), experts_, t.weights.row(first), heads_ * experts_, vectors_of(head),
                            inputs(), t.mixed.row(first), heads_ * inputs());
      });
      for (index_t token = begin; token < end; ++token)
        add_products(x.data() + token * x.outerStride(), t.mixed.row(token), y.data() + token * y.outerStride());
    });
  }

  /// For the last forward_routed with this tape, any number of times: adds into dx and the gradients, and writes for
  /// every row the gradients of its weight and of its input scale where the pointers are not null.
  void backward_routed(tokens_in<Scalar> x, const routed_rows<Scalar>& rows, tokens_in<Scalar> dy,
                       tokens_out<Scalar> dx, tape& t, Scalar* dweight, Scalar* dinput_scale,
                       const executor_ref& executor) {
    t.dmixed.set_zero(x.rows(), inputs());
    t.dweights.resize(x.rows(), experts_);
    for_each_block(t, executor, [&](index_t begin, index_t end) {
      for (index_t token = begin; token < end; ++token) {
        const Scalar* upstream = dy.data() + token * dy.outerStride();
        add_products(x.data() + token * x.outerStride(), upstream, t.dmixed.row(token));
        add_products(upstream, t.mixed.row(token), dx.data() + token * dx.outerStride());
      }
      for_each_head(begin, end, [&](index_t head, index_t first, index_t count) {
        kernel::multiply_nt(count, experts_, inputs(), t.dmixed.row(first), heads_ * inputs(), vectors_of(head),
                            inputs(), t.dweights.row(first), heads_ * experts_);
      });
    });
    if (vectors_.is_learned()) add_to_vectors(t, executor);
    t.weights.gather(rows, t.dweights, dweight, dinput_scale);
  }

  index_t workspace_bytes(index_t rows, bool training) const {
    return rows * (experts_ + inputs()) * static_cast<index_t>(sizeof(Scalar)) * (training ? 2 : 1);
  }

  /// The bank as it is: vectors stay in full precision.
  template <typename Storage>
  scaling_bank stored_as() const {
    return *this;
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("vectors", self.vectors_);
  }

private:
  const Scalar* vectors_of(index_t head) const noexcept { return vectors_.data() + head * vectors_.cols(); }

  /// f(begin, end) for blocks of tokens that have experts.
  template <typename F>
  void for_each_block(const tape& t, const executor_ref& executor, F&& f) const {
    constexpr index_t rows_per_task = 64;
    t.weights.for_each_run([&](index_t first, index_t last) {
      executor.parallel_blocks(last - first, rows_per_task, experts_ * inputs() / 4,
                               [&](index_t begin, index_t end) { f(first + begin, first + end); });
    });
  }

  /// f(head, first row, count) for the rows of each head among begin .. end: first, first + H, ...
  template <typename F>
  void for_each_head(index_t begin, index_t end, F&& f) const {
    for (index_t first = begin; first < (std::min)(begin + heads_, end); ++first)
      f(first % heads_, first, (end - first + heads_ - 1) / heads_);
  }

  /// out += a * b, number by number.
  void add_products(const Scalar* a, const Scalar* b, Scalar* out) const {
    kernel::transform(
        inputs(), [](const auto& u, const auto& v, const auto& w) { return u * v + w; }, out, a, b, out);
  }

  /// A task has columns of L, and all tokens in order. Those without experts are zero in dv.
  void add_to_vectors(tape& t, const executor_ref& executor) {
    constexpr index_t columns_per_task = 64;
    const index_t tokens = t.weights.tokens();
    Scalar* const gradient = vectors_.gradient().data();
    executor.parallel_blocks(inputs(), columns_per_task, tokens * experts_ / 4, [&](index_t begin, index_t end) {
      for_each_head(0, tokens, [&](index_t head, index_t first, index_t count) {
        kernel::multiply_tn(experts_, end - begin, count, t.weights.row(first), heads_ * experts_,
                            t.dmixed.row(first) + begin, heads_ * inputs(), gradient + head * vectors_.cols() + begin,
                            inputs(), kernel::write::accumulate);
      });
    });
  }

  index_t heads_;
  index_t experts_;
  parameter<Scalar> vectors_;
};

static_assert(RoutedBank<scaling_bank<float>> && DifferentiableBank<scaling_bank<float>>);

}  // namespace sluice::inline SLUICE_ISA
