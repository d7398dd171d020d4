/// Constant expert: mixes the token with a learned vector, almost for free.
///
///   y = a1 x + a2 v,  (a1, a2) = softmax(W x)        x, y [n,D]   weight W [2,D]   value v [D]
///   s = (<dy,x>, <dy,v>),  dl = a (s - <a,s>):   dx = a1 dy + W^T dl,  dv += a2 dy,  dW += dl x^T
///
/// Each row depends on its own input only, NaN stays in its row, n may be 0. Initial values: v standard normal, W
/// uniform within 1/sqrt(D). Jin et al. 2024 (MoE++), arXiv:2410.07348.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/kernel/softmax.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class constant_expert {
public:
  using scalar = Scalar;

  /// Throws std::invalid_argument unless D >= 1.
  explicit constant_expert(index_t width) {
    if (width < 1) throw_invalid("constant_expert needs D >= 1, not ", width);
    weight_ = {{2, width}, parameter_role::weight, initial_values::uniform(1 / std::sqrt(static_cast<double>(width)))};
    value_ = {{width}, parameter_role::vector, initial_values::normal(1)};
  }

  index_t inputs() const noexcept { return value_.size(); }
  index_t outputs() const noexcept { return value_.size(); }
  /// a1 and a2 of a row.
  index_t saved_columns() const noexcept { return 2; }

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tokens_out<Scalar> saved) const {
    for (index_t r = 0; r < x.rows(); ++r) {
      const Scalar* in = x.data() + r * x.outerStride();
      Scalar* a = &saved(r, 0);
      for (index_t i = 0; i < 2; ++i) a[i] = kernel::dot(weight_.data() + i * inputs(), in, inputs());
      kernel::softmax(a, a, 2);
      kernel::copy_scaled(a[0], in, &y(r, 0), inputs());
      kernel::add_scaled(a[1], value_.data(), &y(r, 0), inputs());
    }
  }

  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tokens_out<Scalar> saved, tokens_out<Scalar> dx) {
    Scalar* dweight = weight_.gradient().data();
    Scalar* dvalue = value_.gradient().data();
    for (index_t r = 0; r < x.rows(); ++r) {
      const Scalar* in = x.data() + r * x.outerStride();
      const Scalar* upstream = dy.data() + r * dy.outerStride();
      const Scalar* a = &saved(r, 0);
      const Scalar s[2] = {kernel::dot(upstream, in, inputs()), kernel::dot(upstream, value_.data(), inputs())};
      const Scalar inner = a[0] * s[0] + a[1] * s[1];
      kernel::copy_scaled(a[0], upstream, &dx(r, 0), inputs());
      kernel::add_scaled(a[1], upstream, dvalue, inputs());
      for (index_t i = 0; i < 2; ++i) {
        const Scalar dl = a[i] * (s[i] - inner);
        kernel::add_scaled(dl, weight_.data() + i * inputs(), &dx(r, 0), inputs());
        kernel::add_scaled(dl, in, dweight + i * inputs(), inputs());
      }
    }
  }

  parameter<Scalar>& weight() noexcept { return weight_; }
  parameter<Scalar>& value() noexcept { return value_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.weight_);
    visit("value", self.value_);
  }

private:
  parameter<Scalar> weight_;
  parameter<Scalar> value_;
};

static_assert(DifferentiableExpert<constant_expert<float>>);

}  // namespace sluice::inline SLUICE_ISA
