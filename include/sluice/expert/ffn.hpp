/// Two-layer feed-forward expert: y = W2 phi(W1 x + b1) + b2.
///
///   x [n,D]  up W1 [H,D]  up_bias b1 [H]  down W2 [D',H]  down_bias b2 [D']  y [n,D'], n may be 0
///   dz = (dy W2) * phi'(z);  dx = dz W1;  dW2 += dy^T a;  dW1 += dz^T x;  db2, db1 += column sums
///
/// Biases are optional. Storage says how W1 and W2 are kept (kernel/storage.hpp). Each row depends on its own input
/// only, NaN stays in its row. Initial values: normal with deviation 1/sqrt(fan-in) if no other is given, biases zero.
/// Fedus, Zoph, Shazeer 2022, arXiv:2101.03961 (with ReLU).
#pragma once

#include <sluice/expert/grouped_alone.hpp>
#include <sluice/kernel/activation.hpp>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, Activation<Scalar> Phi = relu, MapStorage Storage = full_precision<Scalar>>
class ffn : public grouped_expert<ffn<Scalar, Phi, Storage>, Scalar> {
public:
  using scalar = Scalar;
  using storage = Storage;
  using vector = kernel::simd<Scalar>;
  static constexpr int first_maps = 1;
  struct options {
    index_t outputs = 0;  ///< D'; 0 means D
    bool bias = false;
    bool output_bias = true;   ///< false: if there are biases, b1 alone
    bool zero_output = false;  ///< W2 starts at zero: what is added beside other layers then changes nothing at first
    double deviation = 0;      ///< of the first values of W1 and W2; 0: 1/sqrt(fan-in)
    double output_deviation = 0;  ///< of W2's, if not as W1's
  };

  /// Throws std::invalid_argument unless D, H and D' are at least 1.
  ffn(index_t inputs, index_t hidden, options o = {}) : has_bias_(o.bias), has_output_bias_(o.bias && o.output_bias) {
    const index_t outputs = o.outputs == 0 ? inputs : o.outputs;
    if (inputs < 1 || hidden < 1 || outputs < 1)
      throw_invalid("ffn needs D, H, D' >= 1, not ", inputs, ", ", hidden, ", ", outputs);
    up_ = {hidden, inputs, detail::initial_of_map(inputs, o.deviation)};
    const double down_deviation = o.output_deviation == 0 ? o.deviation : o.output_deviation;
    down_ = {outputs, hidden,
             o.zero_output ? initial_values::constant(0) : detail::initial_of_map(hidden, down_deviation)};
    if (has_bias_) up_bias_ = detail::vector_in_lanes<Scalar>(hidden);
    if (has_output_bias_) down_bias_ = detail::vector_in_lanes<Scalar>(outputs);
  }

  index_t inputs() const noexcept { return up_.inputs(); }
  index_t hidden() const noexcept { return up_.outputs(); }
  index_t outputs() const noexcept { return down_.outputs(); }

  auto& up() noexcept { return up_.weight(); }
  auto& down() noexcept { return down_.weight(); }
  parameter<Scalar>& up_bias() noexcept { return up_bias_; }
  const parameter<Scalar>& up_bias() const noexcept { return up_bias_; }
  parameter<Scalar>& down_bias() noexcept { return down_bias_; }

  /// The same expert with its weights rounded to another storage.
  template <MapStorage Other>
  ffn<Scalar, Phi, Other> stored_as(const Other& format = {}) const {
    return stored_as<Other>([&](int) { return format; });
  }
  /// The same, to what format(matrix) says, 0 for up and 1 for down.
  template <MapStorage Other, std::invocable<int> Format>
  ffn<Scalar, Phi, Other> stored_as(const Format& format) const {
    ffn<Scalar, Phi, Other> other(inputs(), hidden(),
                                  {.outputs = outputs(), .bias = has_bias_, .output_bias = has_output_bias_});
    other.up_ = up_.template stored_as<Other>(format(0));
    other.down_ = down_.template stored_as<Other>(format(1));
    other.up_bias_ = up_bias_;
    other.down_bias_ = down_bias_;
    return other;
  }

  // ---- what a bank runs (expert/grouped_rows.hpp) ---------------------------------------

  const linear_map<Storage>& first_map(int) const noexcept { return up_; }
  linear_map<Storage>& first_map(int) noexcept { return up_; }
  const linear_map<Storage>& last_map() const noexcept { return down_; }
  linear_map<Storage>& last_map() noexcept { return down_; }
  const Scalar* output_bias() const noexcept { return has_output_bias_ ? down_bias_.data() : nullptr; }
  Scalar* output_bias_gradient() { return has_output_bias_ ? down_bias_.gradient().data() : nullptr; }

  vector activate(index_t column, const std::array<vector, 1>& z) const {
    return detail::value_of<Phi, Scalar>(with_bias(column, z[0]));
  }
  void activate_backward(index_t column, std::array<vector, 1>& z, const vector& dh) {
    z[0] = dh * detail::derivative_of<Phi, Scalar>(with_bias(column, z[0]));
    if (has_bias_) detail::add_lanes<Scalar>(up_bias_.gradient().data() + column, z[0]);
  }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("up", self.up_);
    if (self.has_bias_) visit("up_bias", self.up_bias_);
    visit("down", self.down_);
    if (self.has_output_bias_) visit("down_bias", self.down_bias_);
  }

private:
  template <FloatOrDouble S, Activation<S> P, MapStorage W>
  friend class ffn;

  vector with_bias(index_t column, const vector& z) const {
    return has_bias_ ? z + kernel::load(up_bias_.data() + column) : z;
  }

  bool has_bias_, has_output_bias_;
  linear_map<Storage> up_, down_;
  parameter<Scalar> up_bias_, down_bias_;
};

static_assert(MadeOfLinearMaps<ffn<float>> && DifferentiableExpert<ffn<float>>);
static_assert(MadeOfLinearMaps<ffn<double, gelu>>);
static_assert(DifferentiableExpert<ffn<float, relu, bfloat16_storage>>);  // passes gradients on

}  // namespace sluice::inline SLUICE_ISA
