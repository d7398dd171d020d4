/// A low-rank expert: y = s B A x, the update of a linear map that LoRA learns beside it.
///
///   x [n,D]  a A [R,D]  b B [D',R]  s a number, often alpha / R  y [n,D'], n may be 0
///   p = A x;  dp = s B^T dy;  dx = A^T dp;  dA += dp x^T;  dB += s dy p^T
///
///   moe_layer adapters{top_k_router<float>{64, 8}, expert_bank<low_rank_expert<float>>{8, 64, 4, {.scale = 4}}};
///   adapted_layer layer{dense_layer{linear_expert<float>{64, 64}}, adapters};  // adapter/adapted.hpp: W x beside them
///
/// It is made of linear maps, so a bank of many runs on the grouped kernels, whatever the routing, and is stored as any
/// other expert. Each row depends on its own input only, NaN stays in its row. Initial values: A uniform in
/// +-1/sqrt(D), B zero, so that nothing changes at first and the first gradient of A is zero.
/// Hu et al. 2022, arXiv:2106.09685 (LoRA).
#pragma once

#include <sluice/expert/grouped_alone.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, MapStorage Storage = full_precision<Scalar>>
class low_rank_expert : public grouped_expert<low_rank_expert<Scalar, Storage>, Scalar> {
public:
  using scalar = Scalar;
  using storage = Storage;
  using vector = kernel::simd<Scalar>;
  static constexpr int first_maps = 1;
  struct options {
    index_t outputs = 0;  ///< D'; 0 means D
    Scalar scale = 1;     ///< s
  };

  /// Throws std::invalid_argument unless D, R and D' are at least 1 and s is finite.
  low_rank_expert(index_t inputs, index_t rank, options o = {}) : scale_(o.scale) {
    const index_t outputs = o.outputs == 0 ? inputs : o.outputs;
    if (inputs < 1 || rank < 1 || outputs < 1 || !is_finite(o.scale))
      throw_invalid("low_rank_expert needs D, R, D' >= 1 and a finite scale, not ", inputs, ", ", rank, ", ", outputs,
                    ", ", o.scale);
    a_ = {rank, inputs, initial_values::uniform(1 / std::sqrt(static_cast<double>(inputs)))};
    b_ = {outputs, rank, initial_values::constant(0)};
  }

  index_t inputs() const noexcept { return a_.inputs(); }
  index_t rank() const noexcept { return a_.outputs(); }
  index_t outputs() const noexcept { return b_.outputs(); }
  Scalar scale() const noexcept { return scale_; }

  auto& a() noexcept { return a_.weight(); }
  const auto& a() const noexcept { return a_.weight(); }
  auto& b() noexcept { return b_.weight(); }
  const auto& b() const noexcept { return b_.weight(); }

  /// The same expert with its weights rounded to another storage.
  template <MapStorage Other>
  low_rank_expert<Scalar, Other> stored_as(const Other& format = {}) const {
    return stored_as<Other>([&](int) { return format; });
  }
  /// The same, to what format(matrix) says, 0 for A and 1 for B.
  template <MapStorage Other, std::invocable<int> Format>
  low_rank_expert<Scalar, Other> stored_as(const Format& format) const {
    low_rank_expert<Scalar, Other> other(inputs(), rank(), {.outputs = outputs(), .scale = scale_});
    other.a_ = a_.template stored_as<Other>(format(0));
    other.b_ = b_.template stored_as<Other>(format(1));
    return other;
  }

  // ---- what a bank runs (expert/grouped_rows.hpp) ------------------------------------------------------------------

  const linear_map<Storage>& first_map(int) const noexcept { return a_; }
  linear_map<Storage>& first_map(int) noexcept { return a_; }
  const linear_map<Storage>& last_map() const noexcept { return b_; }
  linear_map<Storage>& last_map() noexcept { return b_; }
  const Scalar* output_bias() const noexcept { return nullptr; }
  Scalar* output_bias_gradient() noexcept { return nullptr; }

  vector activate(index_t, const std::array<vector, 1>& z) const { return vector(scale_) * z[0]; }
  void activate_backward(index_t, std::array<vector, 1>& z, const vector& dh) { z[0] = vector(scale_) * dh; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("a", self.a_);
    visit("b", self.b_);
  }

private:
  template <FloatOrDouble S, MapStorage W>
  friend class low_rank_expert;

  Scalar scale_;
  linear_map<Storage> a_, b_;
};

static_assert(MadeOfLinearMaps<low_rank_expert<float>> && DifferentiableExpert<low_rank_expert<float>>);

}  // namespace sluice::inline SLUICE_ISA
