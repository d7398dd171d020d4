/// Kolmogorov-Arnold map: every output is a sum over inputs of learned functions of one number, splines and an
/// activation.
///
///   y [n,out] = phi(x) Wb^T + B(x) Ws^T        phi number by number;   B(x) [n, in·G] the B-splines of every number
///   B[i,0] = 1 for knot[i] <= z < knot[i+1]
///   B[i,k] = (z - knot[i]) / (knot[i+k] - knot[i]) B[i,k-1]
///            + (knot[i+k+1] - z) / (knot[i+k+1] - knot[i+1]) B[i+1,k-1]
///   dB[i,k]/dz = k (B[i,k-1] / (knot[i+k] - knot[i]) - B[i+1,k-1] / (knot[i+k+1] - knot[i+1]))
///
/// G = intervals + order splines of an order, 3 for cubic, over equal intervals of [low, high], extended by `order`
/// intervals on both sides; beyond them all are 0 and phi is left. Or knots of your own, intervals + 2 order + 1 of
/// them, ascending. No bias. Parameters: base Wb [out,in], spline Ws [out, in·G], the splines of an input together.
/// NaN stays in its row. n = 0 is fine. Initial values: normal with deviation 1/sqrt(in), and 0.1/sqrt(in).
/// Liu et al. 2024, "KAN: Kolmogorov-Arnold Networks", arXiv:2404.19756, in the form without a loop over functions.
#pragma once

#include <sluice/core/checked_size.hpp>
#include <sluice/core/error.hpp>
#include <sluice/kernel/activation.hpp>
#include <sluice/kernel/linear.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, typename Phi = relu>
class spline_map {
  static_assert(Activation<Phi, Scalar>, "sluice: spline_map needs static value(z) and derivative(z)");

public:
  using scalar = Scalar;
  struct tape {
    matrix_buffer<Scalar> active;   ///< [n,in] phi(x)
    matrix_buffer<Scalar> splines;  ///< [n, in·G]
    matrix_buffer<Scalar> slopes;   ///< [n, in·G] their derivatives
    matrix_buffer<Scalar> dactive;
    matrix_buffer<Scalar> dsplines;
  };
  struct options {
    index_t intervals = 3;
    index_t order = 3;
    double low = -1;
    double high = 1;
    std::vector<double> knots{};  ///< in place of equal intervals
  };

  /// Throws std::invalid_argument unless in, out >= 1, intervals are 1 to 2^20, order is 1 to 8, low < high, and the
  /// knots ascend.
  spline_map(index_t inputs, index_t outputs, options o = {}) : order_(o.order), knots_(std::move(o.knots)) {
    if (inputs < 1 || outputs < 1 || o.intervals < 1 || o.intervals > most_intervals || o.order < 1 ||
        o.order > most_order)
      throw_invalid("spline_map needs in, out >= 1, intervals from 1 to ", index_t(most_intervals),
                    " and an order from 1 to ", index_t(most_order), ", not ", inputs, ", ", outputs, ", ", o.intervals,
                    " and ", o.order);
    if (knots_.empty() && (!is_finite(o.low) || !is_finite(o.high) || !(o.low < o.high)))
      throw_invalid("spline_map needs finite low < high, not ", o.low, " and ", o.high);
    const index_t count = o.intervals + 2 * o.order + 1;
    if (knots_.empty())
      for (index_t i = 0; i < count; ++i)
        knots_.push_back(o.low +
                         static_cast<double>(i - o.order) * (o.high - o.low) / static_cast<double>(o.intervals));
    bool ascends = static_cast<index_t>(knots_.size()) == count;
    for (std::size_t i = 0; i < knots_.size(); ++i)
      ascends &= is_finite(knots_[i]) && (i == 0 || knots_[i - 1] < knots_[i]);
    if (!ascends) throw_invalid("spline_map needs ", count, " ascending knots; it has ", knots_.size());
    const double deviation = 1 / std::sqrt(static_cast<double>(inputs));
    base_ = {{outputs, inputs}, parameter_role::weight, initial_values::normal(deviation)};
    spline_ = {
        {outputs, checked_product(inputs, splines())}, parameter_role::weight, initial_values::normal(0.1 * deviation)};
  }

  index_t inputs() const noexcept { return base_.cols(); }
  index_t outputs() const noexcept { return base_.rows(); }
  /// G: splines an input.
  index_t splines() const noexcept { return static_cast<index_t>(knots_.size()) - order_ - 1; }

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tape& t, const executor_ref& executor) const {
    const index_t G = splines();
    t.active.resize(x.rows(), inputs());
    t.splines.resize(x.rows(), inputs() * G);
    t.slopes.resize(x.rows(), inputs() * G);
    executor.parallel_each(x.rows(), 64 * inputs() * G, [&](index_t r) {
      for (index_t d = 0; d < inputs(); ++d) {
        t.active(r, d) = Phi::value(x(r, d));
        evaluate(x(r, d), t.splines.row(r) + d * G, t.slopes.row(r) + d * G);
      }
    });
    linear_forward<Scalar>(t.active.map(), base_, y, executor);
    linear_forward<Scalar>(t.splines.map(), spline_, y, executor, kernel::write::accumulate);
  }

  /// Adds into dx and into the gradients.
  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tape& t, tokens_out<Scalar> dx,
                const executor_ref& executor) {
    const index_t G = splines();
    t.dactive.set_zero(x.rows(), inputs());
    t.dsplines.set_zero(x.rows(), inputs() * G);
    linear_backward<Scalar>(t.active.map(), base_, dy, t.dactive.map(), executor);
    linear_backward<Scalar>(t.splines.map(), spline_, dy, t.dsplines.map(), executor);
    executor.parallel_each(x.rows(), 4 * inputs() * G, [&](index_t r) {
      for (index_t d = 0; d < inputs(); ++d) {
        Scalar sum = t.dactive(r, d) * Phi::derivative(x(r, d));
        for (index_t g = d * G; g < (d + 1) * G; ++g) sum += t.dsplines(r, g) * t.slopes(r, g);
        dx(r, d) += sum;
      }
    });
  }

  parameter<Scalar>& base() noexcept { return base_; }
  parameter<Scalar>& spline() noexcept { return spline_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("base", self.base_);
    visit("spline", self.spline_);
  }

private:
  static constexpr index_t most_order = 8;
  static constexpr index_t most_intervals = index_t(1) << 20;

  Scalar knot(index_t i) const { return static_cast<Scalar>(knots_[static_cast<std::size_t>(i)]); }

  /// The splines at z and their slopes. Of one order at most order + 1 are not 0: those that reach z's interval.
  void evaluate(Scalar z, Scalar* values, Scalar* slopes) const {
    const index_t G = splines();
    std::fill_n(values, G, Scalar(0));
    std::fill_n(slopes, G, Scalar(0));
    index_t at = 0;  // knot[at] <= z < knot[at + 1]
    const auto intervals = static_cast<index_t>(knots_.size()) - 1;
    while (at < intervals && !(z >= knot(at) && z < knot(at + 1))) ++at;
    if (at == intervals) return;
    Scalar lower[most_order + 2] = {};  // of the order before, splines at - k + 1 .. at, with a 0 behind
    Scalar own[most_order + 2] = {};
    own[0] = 1;
    for (index_t k = 1; k <= order_; ++k) {
      std::copy_n(own, k + 1, lower);
      for (index_t j = 0; j <= k; ++j) {  // spline i = at - k + j
        const index_t i = at - k + j;
        const Scalar left = j > 0 ? lower[j - 1] : Scalar(0), right = j < k ? lower[j] : Scalar(0);
        Scalar value = 0, slope = 0;
        if (i >= 0 && i + k < static_cast<index_t>(knots_.size())) {
          const Scalar share = left / (knot(i + k) - knot(i));
          value += (z - knot(i)) * share;
          slope += share;
        }
        if (i + 1 >= 0 && i + k + 1 < static_cast<index_t>(knots_.size())) {
          const Scalar share = right / (knot(i + k + 1) - knot(i + 1));
          value += (knot(i + k + 1) - z) * share;
          slope -= share;
        }
        own[j] = value;
        if (k == order_ && i >= 0 && i < G) {
          values[i] = value;
          slopes[i] = static_cast<Scalar>(k) * slope;
        }
      }
    }
  }

  index_t order_;
  std::vector<double> knots_;
  parameter<Scalar> base_;
  parameter<Scalar> spline_;
};

}  // namespace sluice::inline SLUICE_ISA
