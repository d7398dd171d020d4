/// Low-rank experts that all run at once: two thin products with the weights of the experts between them.
///
///   y[t] = s sum over e of w[t,e] B_e A_e x[t]        a A [E R,D]  b B^T [E R,D']  s a number, often alpha / R
///   p = x A^T [T,E R];  z[t,e,r] = s w[t,e] p[t,e,r];  y += z B^T
///   dz = dy B;  dw[t,e] = s <dz[t,e], p[t,e]>;  dp = s w dz;  dx += dp A;  dA += dp^T x;  dB^T += z^T dy
///
///   moe_layer adapters{dense_softmax_router<float>{linear_gate<float>{64, 10, {.bias = true}}},          // MoLORA
///                      joined_low_rank_bank<float>{10, 64, 4, {.scale = 4}}};
///   moe_layer adapters{top_k_router<float>{64, 10, {.top_k = 2, .weights = weighting::pre}}, ...};  // its 2 best
///
/// Where most experts have a part in most tokens this is much less work than expert by expert (adapter/low_rank.hpp in
/// a bank), for x and y are gone through once and not E times; it costs 2 T E R (D + D') operations whatever is chosen.
/// R = 1 makes one LoRA of rank E whose directions are weighed one by one (adapter/rank_one.hpp). A is expert after
/// expert, and so is B, transposed. Expert e of weight 0 gets and gives nothing, but an infinity in its B reaches all.
/// Tasks are blocks of rows, and of A and B^T for gradients: equal bits for any thread count. Tokens without experts
/// are not read. Initial values: A normal with deviation 0.02, B zero. Zadouri et al. 2023, arXiv:2309.05444 (MoLORA).
#pragma once

#include <sluice/adapter/token_weights.hpp>
#include <sluice/core/checked_size.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/expert/gathered_rows.hpp>
#include <sluice/kernel/linear.hpp>

#include <algorithm>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class joined_low_rank_bank : public gathered_rows_bank<joined_low_rank_bank<Scalar>, Scalar> {
public:
  using scalar = Scalar;
  struct options {
    index_t outputs = 0;  ///< D'; 0 means D
    Scalar scale = 1;     ///< s
  };
  struct tape {
    token_weights<Scalar> weights;  ///< [T,E]
    matrix_buffer<Scalar> p;        ///< [T,E R] A x
    matrix_buffer<Scalar> z;        ///< [T,E R] weighed
    matrix_buffer<Scalar> dweights;
    matrix_buffer<Scalar> dp;
  };

  /// Throws std::invalid_argument unless E, D, R and D' are at least 1 and s is finite.
  joined_low_rank_bank(index_t experts, index_t inputs, index_t rank, options o = {})
      : experts_(experts), rank_(rank), scale_(o.scale) {
    const index_t outputs = o.outputs == 0 ? inputs : o.outputs;
    if (experts < 1 || inputs < 1 || rank < 1 || outputs < 1 || !is_finite(o.scale))
      throw_invalid("joined_low_rank_bank needs E, D, R, D' >= 1 and a finite scale, not ", experts, ", ", inputs, ", ",
                    rank, ", ", outputs, ", ", o.scale);
    a_ = {{checked_product(experts, rank), inputs}, parameter_role::weight, initial_values::normal(0.02)};
    b_ = {{experts * rank, outputs}, parameter_role::weight};
  }

  index_t experts() const noexcept { return experts_; }
  index_t inputs() const noexcept { return a_.cols(); }
  index_t outputs() const noexcept { return b_.cols(); }
  index_t rank() const noexcept { return rank_; }
  parameter<Scalar>& a() noexcept { return a_; }
  parameter<Scalar>& b() noexcept { return b_; }

  void forward_routed(tokens_in<Scalar> x, const routed_rows<Scalar>& rows, tokens_out<Scalar> y, tape& t,
                      const executor_ref& executor) const {
    t.weights.spread(rows, x.rows());
    t.p.resize(x.rows(), a_.rows());
    t.z.resize(x.rows(), a_.rows());
    t.weights.for_each_run([&](index_t first, index_t last) {
      const index_t count = last - first;
      auto z = t.z.map().middleRows(first, count);
      linear_forward<Scalar>(x.middleRows(first, count), a_, t.p.map().middleRows(first, count), executor);
      weigh(t.p, t, first, last, t.z);
      linear_backward_inputs<Scalar>(b_, z, y.middleRows(first, count), executor);  // B lies transposed
    });
  }

  /// For the last forward_routed with this tape, any number of times: adds into dx and the gradients, and writes for
  /// every row the gradients of its weight and of its input scale where the pointers are not null.
  void backward_routed(tokens_in<Scalar> x, const routed_rows<Scalar>& rows, tokens_in<Scalar> dy,
                       tokens_out<Scalar> dx, tape& t, Scalar* dweight, Scalar* dinput_scale,
                       const executor_ref& executor) {
    t.dp.resize(x.rows(), a_.rows());
    t.dweights.resize(x.rows(), experts_);
    t.weights.for_each_run([&](index_t first, index_t last) {
      const index_t count = last - first;
      const auto upstream = dy.middleRows(first, count), seen = x.middleRows(first, count);
      auto dp = t.dp.map().middleRows(first, count);
      linear_forward<Scalar>(upstream, b_, dp, executor);
      add_to_gradient(upstream, b_, t.z.map().middleRows(first, count), executor);
      for (index_t token = first; token < last; ++token)
        for (index_t e = 0; e < experts_; ++e)
          t.dweights(token, e) = scale_ * kernel::dot(t.dp.row(token) + e * rank_, t.p.row(token) + e * rank_, rank_);
      weigh(t.dp, t, first, last, t.dp);
      linear_backward_inputs<Scalar>(a_, dp, dx.middleRows(first, count), executor);
      add_to_gradient(seen, a_, dp, executor);
    });
    t.weights.gather(rows, t.dweights, dweight, dinput_scale);
  }

  index_t workspace_bytes(index_t rows, bool training) const {
    const index_t numbers = experts_ + 2 * a_.rows() + (training ? experts_ + a_.rows() : 0);
    return rows * numbers * static_cast<index_t>(sizeof(Scalar));
  }

  /// The bank as it is: it has no storage but full precision.
  template <typename Storage>
  joined_low_rank_bank stored_as() const {
    return *this;
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("a", self.a_);
    visit("b", self.b_);
  }

private:
  /// to[t,e,r] = s w[t,e] from[t,e,r], and 0 where the weight is, whatever `from` holds.
  void weigh(const matrix_buffer<Scalar>& from, const tape& t, index_t first, index_t last,
             matrix_buffer<Scalar>& to) const {
    for (index_t token = first; token < last; ++token)
      for (index_t e = 0; e < experts_; ++e) {
        const Scalar w = scale_ * t.weights.row(token)[e];
        for (index_t i = e * rank_; i < (e + 1) * rank_; ++i) to(token, i) = w == 0 ? Scalar(0) : w * from(token, i);
      }
  }

  static void add_to_gradient(tokens_in<Scalar> x, parameter<Scalar>& weight, tokens_in<Scalar> dy,
                              const executor_ref& executor) {
    if (!weight.is_learned()) return;
    weight.ensure_gradient();
    executor.parallel_blocks(
        weight.rows(), detail::linear_weight_block, x.rows() * weight.cols() / 4,
        [&](index_t begin, index_t end) { linear_backward_weight<Scalar>(x, weight, dy, begin, end); });
  }

  index_t experts_;
  index_t rank_;
  Scalar scale_;
  parameter<Scalar> a_;
  parameter<Scalar> b_;
};

static_assert(RoutedBank<joined_low_rank_bank<float>> && DifferentiableBank<joined_low_rank_bank<float>>);

}  // namespace sluice::inline SLUICE_ISA
