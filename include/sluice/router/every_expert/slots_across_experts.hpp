/// A norm of Soft MoE's slots: each number of a slot is divided by its length over the experts.
///
///   y[e,s,d] = x[e,s,d] / (n[s,d] + added),   n[s,d] = sqrt(sum over e of x[e,s,d]^2)        rows e P + s of x [E P,D]
///   dx[e] += (dy[e] - x[e] <x, dy> / (n (n + added))) / (n + added), sums over e
///
///   soft_moe_router<float, no_norm<float>, slots_across_experts<float>> router{D, E, {}, no_norm<float>{}, {P}};
///
/// As released for mixtures of adapters; Soft MoE's authors have unit_norm, the length over d. Where n is 0, y is 0 and
/// dx gets dy / added. Cappellazzo et al. 2024, arXiv:2402.00828 (Soft-MoA).
#pragma once

#include <sluice/router/every_expert/soft_moe.hpp>

#include <cassert>
#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class slots_across_experts {
public:
  using scalar = Scalar;
  struct tape {
    matrix_buffer<Scalar> length;  ///< n [P,D]
  };

  /// Throws std::invalid_argument unless P >= 1 and added > 0.
  explicit slots_across_experts(index_t slots_per_expert, Scalar added = Scalar(1e-6))
      : slots_(slots_per_expert), added_(added) {
    if (slots_per_expert < 1 || !is_above(added, 0))
      throw_invalid("slots_across_experts needs slots >= 1 and added > 0, not ", slots_per_expert, " and ", added);
  }

  /// P, which the router has to have as well.
  index_t slots_per_expert() const noexcept { return slots_; }

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tape& t, const executor_ref&) const {
    t.length.set_zero(slots_, x.cols());
    for (index_t r = 0; r < x.rows(); ++r)
      for (index_t d = 0; d < x.cols(); ++d) t.length(r % slots_, d) += x(r, d) * x(r, d);
    for (index_t i = 0; i < t.length.size(); ++i) t.length.data()[i] = std::sqrt(t.length.data()[i]);
    for (index_t r = 0; r < x.rows(); ++r)
      for (index_t d = 0; d < x.cols(); ++d) y(r, d) = x(r, d) / (t.length(r % slots_, d) + added_);
  }

  /// All rows at once.
  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tape& t, tokens_out<Scalar> dx, const executor_ref&,
                [[maybe_unused]] index_t first = 0) {
    assert(first == 0);
    for (index_t s = 0; s < slots_; ++s)
      for (index_t d = 0; d < x.cols(); ++d) {
        const Scalar n = t.length(s, d), divisor = n + added_;
        Scalar inner = 0;
        for (index_t r = s; r < x.rows(); r += slots_) inner += x(r, d) * dy(r, d);
        if (n > 0) inner /= n * divisor;
        for (index_t r = s; r < x.rows(); r += slots_) dx(r, d) += (dy(r, d) - x(r, d) * inner) / divisor;
      }
  }

private:
  index_t slots_;
  Scalar added_;
};

static_assert(DifferentiableRouter<soft_moe_router<float, no_norm<float>, slots_across_experts<float>>>);

}  // namespace sluice::inline SLUICE_ISA
