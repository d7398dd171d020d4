/// Filters on the pieces of a row, added up by class: the smallest convolutional classifier.
///
///   x [n, P d], a row P pieces of d numbers (patches of an image)   weight [C m, d]   bias [C m]   y [n,C]
///   z[p,f] = <weight[f], piece p> + bias[f]    y[c] = sum over pieces p and the m filters f of class c of phi(z[p,f])
///   dz[p,f] = phi'(z[p,f]) dy[c];   dweight += dz^T pieces;   dbias += sums of dz;   dx's piece p = dz[p] weight
///
///   pooled_filters<float, cube> expert(4, 50, 2, 8);      four patches of width 50, two classes of eight filters each
///   pooled_filters<float> linear(4, 50, 2, 8);            phi(z) = z
///
/// Where a piece stands in its row means nothing. With cubes it is the expert of the cluster study, which such experts
/// solve together and linear ones do not (examples/router_study trains both). Rows do not see each other, n may be 0;
/// NaN stays in its row. Initial values: normal with deviation 1/sqrt(d), bias zero.
/// Chen, Deng, Wu, Gu, Li 2022, "Towards Understanding Mixture of Experts in Deep Learning", arXiv:2208.02813.
#pragma once

#include <sluice/core/checked_size.hpp>
#include <sluice/core/concepts.hpp>
#include <sluice/kernel/activation.hpp>
#include <sluice/kernel/gemm.hpp>
#include <sluice/kernel/vector_math.hpp>

#include <algorithm>
#include <cmath>
#include <utility>

namespace sluice::inline SLUICE_ISA {

template <FloatOrDouble Scalar, typename Phi = no_activation>
class pooled_filters {
  static_assert(Activation<Phi, Scalar>, "sluice: pooled_filters needs static value(z) and derivative(z)");

public:
  using scalar = Scalar;

  /// Throws std::invalid_argument unless all of them are at least 1.
  pooled_filters(index_t pieces, index_t width, index_t classes, index_t filters_a_class)
      : pieces_(pieces), filters_a_class_(filters_a_class) {
    if (pieces < 1 || width < 1 || classes < 1 || filters_a_class < 1)
      throw_invalid("pooled_filters needs pieces, width, classes and filters >= 1, not ", pieces, ", ", width, ", ",
                    classes, " and ", filters_a_class);
    const index_t filters = checked_product(classes, filters_a_class);
    checked_product(pieces, (std::max)(width, filters));
    weight_ = {
        {filters, width}, parameter_role::weight, initial_values::normal(1 / std::sqrt(static_cast<double>(width)))};
    bias_ = {{filters}, parameter_role::vector};
  }

  index_t pieces() const noexcept { return pieces_; }
  index_t inputs() const noexcept { return pieces_ * weight_.cols(); }
  index_t outputs() const noexcept { return weight_.rows() / filters_a_class_; }
  /// z, and room for phi(z) or dz.
  index_t saved_columns() const noexcept { return 2 * pieces_ * weight_.rows(); }

  void forward(tokens_in<Scalar> x, tokens_out<Scalar> y, tokens_out<Scalar> saved) const {
    const index_t filters = weight_.rows(), width = weight_.cols(), numbers = pieces_ * filters;
    for (index_t r = 0; r < x.rows(); ++r) {
      Scalar *const z = &saved(r, 0), *const a = z + numbers;
      for (index_t p = 0; p < pieces_; ++p) std::copy_n(bias_.data(), filters, z + p * filters);
      kernel::multiply_nt(pieces_, filters, width, x.data() + r * x.outerStride(), width, weight_.data(), width, z,
                          filters, kernel::write::accumulate);
      kernel::transform(
          numbers, [](const auto& v) { return Phi::value(v); }, a, static_cast<const Scalar*>(z));
      for (index_t c = 0; c < outputs(); ++c) {
        Scalar sum = 0;
        for_class(c, [&](index_t i) { sum += a[i]; });
        y(r, c) = sum;
      }
    }
  }

  void backward(tokens_in<Scalar> x, tokens_in<Scalar> dy, tokens_out<Scalar> saved, tokens_out<Scalar> dx) {
    const index_t filters = weight_.rows(), width = weight_.cols(), numbers = pieces_ * filters;
    Scalar* const dweight = weight_.is_learned() ? weight_.gradient().data() : nullptr;
    Scalar* const dbias = bias_.is_learned() ? bias_.gradient().data() : nullptr;
    for (index_t r = 0; r < x.rows(); ++r) {
      Scalar *const z = &saved(r, 0), *const dz = z + numbers;
      kernel::transform(
          numbers, [](const auto& v) { return Phi::derivative(v); }, dz, static_cast<const Scalar*>(z));
      for (index_t c = 0; c < outputs(); ++c) for_class(c, [&](index_t i) { dz[i] *= dy(r, c); });
      kernel::multiply_nn(pieces_, width, filters, dz, filters, std::as_const(weight_).data(), width, &dx(r, 0), width);
      if (dweight != nullptr)
        kernel::multiply_tn(filters, width, pieces_, dz, filters, x.data() + r * x.outerStride(), width, dweight, width,
                            kernel::write::accumulate);
      if (dbias != nullptr)
        for (index_t p = 0; p < pieces_; ++p) kernel::add_scaled(Scalar(1), dz + p * filters, dbias, filters);
    }
  }

  parameter<Scalar>& weight() noexcept { return weight_; }
  parameter<Scalar>& bias() noexcept { return bias_; }

  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.weight_);
    visit("bias", self.bias_);
  }

private:
  /// f(place of z[p,f]) for the pieces and the filters of a class.
  template <typename F>
  void for_class(index_t c, F&& f) const {
    for (index_t p = 0; p < pieces_; ++p)
      for (index_t k = 0; k < filters_a_class_; ++k) f(p * weight_.rows() + c * filters_a_class_ + k);
  }

  index_t pieces_;
  index_t filters_a_class_;
  parameter<Scalar> weight_;
  parameter<Scalar> bias_;
};

static_assert(DifferentiableExpert<pooled_filters<float, cube>>);

}  // namespace sluice::inline SLUICE_ISA
