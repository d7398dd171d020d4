/// Tucker cores: small matrices that score a pair of keys by r numbers of each, and the rank-one view that is searched
/// by.
///
///   core C [M, heads, r, r]   score_m(s1, s2) = s1^T C[m,h] s2,   s1, s2 [r]   sum over m: C[h]
///   u, v [heads, r]           leading singular vectors of C[h]: s1 and s2 are ranked by <s1, u> and <s2, v>
///   penalty = mean over heads and the singular values s of C[h] after the first of max(s - margin, 0)²
///
/// The nearest matrix of rank one ranks pairs by a product of one number a half; the penalty pulls C[h] towards it. u
/// and v are states: update() makes them anew from the cores, before training and now and then within it, with the sign
/// of both that leaves them nearer to what they were: the other one would search among the least scores. At first all
/// their numbers are alike. Initial values: cores even in 0 .. 1, where u and v have no number below 0. Sums for the
/// singular values are made in double. Huang et al. 2024, "Ultra-Sparse Memory Network", arXiv:2411.12364.
#pragma once

#include <sluice/core/parameter.hpp>
#include <sluice/kernel/small_svd.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <cmath>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar>
class tucker_cores {
public:
  using scalar = Scalar;

  /// Throws std::invalid_argument unless every count is at least 1.
  tucker_cores(index_t cores, index_t heads, index_t rank) {
    if (heads < 1 || rank < 1 || cores < 1)
      throw_invalid("Tucker cores need M, heads, r >= 1, not ", cores, ", ", heads, ", ", rank);
    core_ = {{cores, heads, rank, rank}, parameter_role::weight, initial_values::computed([](index_t, double draw) {
               return draw;
             })};
    u_ = {{heads, rank}, parameter_role::state, initial_values::constant(1 / std::sqrt(static_cast<double>(rank)))};
    v_ = u_;
  }

  index_t cores() const noexcept { return core_.shape()[0]; }
  index_t heads() const noexcept { return core_.shape()[1]; }
  index_t rank() const noexcept { return core_.shape()[2]; }

  /// By which the keys of a half (0, 1) are ranked.
  const Scalar* leading(index_t head, index_t half) const { return (half == 0 ? u_ : v_).data() + head * rank(); }

  Scalar score(index_t m, index_t head, const Scalar* s1, const Scalar* s2) const {
    Scalar sum = 0;
    for (index_t a = 0; a < rank(); ++a) sum += s1[a] * kernel::dot(core_.data() + place(m, head, a, 0), s2, rank());
    return sum;
  }
  Scalar summed_score(index_t head, const Scalar* s1, const Scalar* s2) const {
    Scalar sum = 0;
    for (index_t m = 0; m < cores(); ++m) sum += score(m, head, s1, s2);
    return sum;
  }

  /// For dscores [M] of a pair: writes the gradients of s1 and s2 [r].
  void backward(index_t head, const Scalar* s1, const Scalar* s2, const Scalar* dscores, Scalar* ds1,
                Scalar* ds2) const {
    const index_t r = rank();
    for (index_t a = 0; a < r; ++a) {
      ds1[a] = ds2[a] = 0;
      for (index_t m = 0; m < cores(); ++m)
        for (index_t b = 0; b < r; ++b) {
          ds1[a] += dscores[m] * core_.data()[place(m, head, a, b)] * s2[b];
          ds2[a] += dscores[m] * core_.data()[place(m, head, b, a)] * s1[b];
        }
    }
  }
  /// Adds to dcore, the gradient of the cores, what belongs to a head: heads may add at once.
  void add_gradient(index_t head, const Scalar* s1, const Scalar* s2, const Scalar* dscores, Scalar* dcore) const {
    for (index_t m = 0; m < cores(); ++m)
      for (index_t a = 0; a < rank(); ++a)
        for (index_t b = 0; b < rank(); ++b) dcore[place(m, head, a, b)] += dscores[m] * s1[a] * s2[b];
  }

  /// coefficient × value of the penalty; adds coefficient × gradient to that of the cores.
  double penalty(double coefficient, double margin) {
    const index_t r = rank();
    if (r < 2) return 0;
    const double share = coefficient / static_cast<double>(heads() * (r - 1));
    double value = 0;
    for (index_t h = 0; h < heads(); ++h) {
      const kernel::small_svd svd(summed(h));
      for (index_t i = 1; i < r; ++i) {
        const double over = svd.s(i, 0) - margin;
        if (!(over > 0)) continue;
        value += share * over * over;
        for (index_t m = 0; m < cores(); ++m)
          for (index_t a = 0; a < r; ++a)
            for (index_t b = 0; b < r; ++b)
              core_.gradient()[as_size(place(m, h, a, b))] +=
                  static_cast<Scalar>(2 * share * over * svd.u(a, i) * svd.v(b, i));
      }
    }
    return value;
  }

  /// u and v become the leading singular vectors of the summed cores as they are now. Which sign is nearer goes by sums
  /// of absolute differences.
  void update() {
    for (index_t h = 0; h < heads(); ++h) {
      const kernel::small_svd svd(summed(h));
      const auto distance = [&](double sign) {
        double sum = 0;
        for (index_t a = 0; a < rank(); ++a)
          sum += (std::abs)(sign * svd.u(a, 0) - static_cast<double>(leading(h, 0)[a])) +
                 (std::abs)(sign * svd.v(a, 0) - static_cast<double>(leading(h, 1)[a]));
        return sum;
      };
      const double sign = distance(-1) < distance(1) ? -1 : 1;
      for (index_t a = 0; a < rank(); ++a) {
        u_.data()[h * rank() + a] = static_cast<Scalar>(sign * svd.u(a, 0));
        v_.data()[h * rank() + a] = static_cast<Scalar>(sign * svd.v(a, 0));
      }
    }
  }

  parameter<Scalar>& array() noexcept { return core_; }
  parameter<Scalar>& row_vectors() noexcept { return u_; }
  parameter<Scalar>& column_vectors() noexcept { return v_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("core", self.core_);
    visit("u", self.u_);
    visit("v", self.v_);
  }

private:
  index_t place(index_t m, index_t head, index_t a, index_t b) const noexcept {
    return ((m * heads() + head) * rank() + a) * rank() + b;
  }
  matrix<double> summed(index_t head) const {
    matrix<double> sum = matrix<double>::Zero(rank(), rank());
    for (index_t m = 0; m < cores(); ++m)
      sum += const_matrix_map<Scalar>(core_.data() + place(m, head, 0, 0), rank(), rank()).template cast<double>();
    return sum;
  }

  parameter<Scalar> core_;
  parameter<Scalar> u_, v_;
};

}  // namespace sluice::inline SLUICE_ISA
