/// One linear map as an expert: y = W x + b.
///
///   x [n,D]  weight W [D',D]  bias b [D']  y [n,D'], n may be 0
///   dx = dy W;  dW += dy^T x;  db += column sums of dy
///
/// What mixtures of projections are made of: outputs of attention heads, low-rank updates, classifiers. The bias is
/// optional. Storage says how W is kept (kernel/storage.hpp). NaN stays in its row. Initial values: normal with
/// deviation 1/sqrt(D), bias zero.
#pragma once

#include <sluice/expert/grouped_alone.hpp>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, MapStorage Storage = full_precision<Scalar>>
class linear_expert : public grouped_expert<linear_expert<Scalar, Storage>, Scalar> {
public:
  using scalar = Scalar;
  static constexpr int first_maps = 0;
  struct options {
    bool bias = false;
  };

  /// Throws std::invalid_argument unless D and D' are at least 1.
  linear_expert(index_t inputs, index_t outputs, options o = {}) : has_bias_(o.bias) {
    if (inputs < 1 || outputs < 1) throw_invalid("linear_expert needs D, D' >= 1, not ", inputs, ", ", outputs);
    map_ = {outputs, inputs};
    if (has_bias_) bias_ = detail::vector_in_lanes<Scalar>(outputs);
  }

  index_t inputs() const noexcept { return map_.inputs(); }
  index_t outputs() const noexcept { return map_.outputs(); }

  auto& weight() noexcept { return map_.weight(); }
  parameter<Scalar>& bias() noexcept { return bias_; }

  /// The same expert with its weights rounded to another storage.
  template <MapStorage Other>
  linear_expert<Scalar, Other> stored_as(const Other& format = {}) const {
    return stored_as<Other>([&](int) { return format; });
  }
  /// The same, to what format(matrix) says, of 0 alone.
  template <MapStorage Other, std::invocable<int> Format>
  linear_expert<Scalar, Other> stored_as(const Format& format) const {
    linear_expert<Scalar, Other> other(inputs(), outputs(), {.bias = has_bias_});
    other.map_ = map_.template stored_as<Other>(format(0));
    other.bias_ = bias_;
    return other;
  }

  // ---- what a bank runs (expert/grouped_rows.hpp) ---------------------------------------

  const linear_map<Storage>& last_map() const noexcept { return map_; }
  linear_map<Storage>& last_map() noexcept { return map_; }
  const Scalar* output_bias() const noexcept { return has_bias_ ? bias_.data() : nullptr; }
  Scalar* output_bias_gradient() { return has_bias_ ? bias_.gradient().data() : nullptr; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.map_);
    if (self.has_bias_) visit("bias", self.bias_);
  }

private:
  template <FloatOrDouble S, MapStorage W>
  friend class linear_expert;

  bool has_bias_;
  linear_map<Storage> map_;
  parameter<Scalar> bias_;
};

static_assert(MadeOfLinearMaps<linear_expert<float>> && DifferentiableExpert<linear_expert<float>>);

}  // namespace sluice::inline SLUICE_ISA
