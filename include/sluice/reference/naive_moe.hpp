/// The readable mixture layer that every other one is compared with: dense matrices, plain loops, one row at a time.
///
///   a plan written out: S columns, one per row that an expert sees; Disp, Comb [T,S]; expert[s]
///   Z = Disp^T X  [S,D]      U[s] = f_expert[s](Z[s])  [S,D']      Y = Comb U  [T,D']
///   dU = Comb^T dY      dComb = dY U^T      dZ[s] = f'(Z[s])^T dU[s]      dX = Disp dZ      dDisp = X dZ^T
///
/// A sparse or dense plan has one column a row, in plan order: Disp holds its input scale, Comb its weight, so
/// dComb(token(i), i) is the gradient of weight i. A soft plan has one column a slot and group. Token and column that
/// do not meet (zero in both matrices) are left out of sums, so NaN stays where it is. Invalid tokens meet nothing and
/// get NaN. Slow on purpose.
#pragma once

#include <sluice/core/concepts.hpp>
#include <sluice/core/numeric.hpp>
#include <sluice/core/soft_plan.hpp>

#include <algorithm>
#include <array>
#include <vector>

namespace sluice::inline SLUICE_ISA::reference {

/// A plan as dense matrices.
template <FloatOrDouble Scalar>
struct written_plan {
  matrix<Scalar> dispatch;      ///< [T,S]
  matrix<Scalar> combine;       ///< [T,S]
  std::vector<index_t> expert;  ///< [S]
  std::vector<index_t> invalid;

  index_t tokens() const { return dispatch.rows(); }
  index_t columns() const { return dispatch.cols(); }
};

template <RoutedPlan Plan>
written_plan<typename Plan::scalar> write_out(const Plan& plan) {
  using scalar = typename Plan::scalar;
  const routed_rows<scalar> rows = plan.routed();
  written_plan<scalar> dense;
  dense.dispatch = matrix<scalar>::Zero(plan.tokens(), plan.rows());
  dense.combine = matrix<scalar>::Zero(plan.tokens(), plan.rows());
  for (const auto& [expert, begin, end] : rows.by_expert)
    for (index_t i = begin; i < end; ++i) {
      dense.dispatch(rows.token(i), i) = rows.input_scale(i);
      dense.combine(rows.token(i), i) = rows.weight(i);
      dense.expert.push_back(expert);
    }
  dense.invalid.assign(plan.invalid_tokens().begin(), plan.invalid_tokens().end());
  return dense;
}

template <std::floating_point Scalar>
written_plan<Scalar> write_out(const soft_plan<Scalar>& plan) {
  written_plan<Scalar> dense;
  dense.dispatch = matrix<Scalar>::Zero(plan.tokens(), plan.rows());
  dense.combine = matrix<Scalar>::Zero(plan.tokens(), plan.rows());
  dense.expert.resize(static_cast<std::size_t>(plan.rows()));
  dense.invalid.assign(plan.invalid_tokens().begin(), plan.invalid_tokens().end());
  for (index_t g = 0; g < static_cast<index_t>(plan.groups().size()); ++g)
    for (index_t s = 0; s < plan.slot_count(); ++s)
      dense.expert[static_cast<std::size_t>(plan.row(g, s))] = s / plan.slots_per_expert();
  for (index_t t = 0; t < plan.tokens(); ++t) {
    if (std::find(dense.invalid.begin(), dense.invalid.end(), t) != dense.invalid.end()) continue;
    for (index_t s = 0; s < plan.slot_count(); ++s) {
      dense.dispatch(t, plan.row(plan.group_of(t), s)) = plan.dispatch()(t, s);
      dense.combine(t, plan.row(plan.group_of(t), s)) = plan.combine()(t, s);
    }
  }
  return dense;
}

namespace detail {

/// A batch of one row, for the expert that is referred to.
inline expert_rows one_row_for(const index_t& expert, index_t experts) {
  static constexpr std::array<index_t, 2> offsets{0, 1};
  return {experts, {&expert, 1}, offsets};
}

}  // namespace detail

template <FloatOrDouble Scalar>
struct forward_result {
  written_plan<Scalar> plan;
  matrix<Scalar> z;  ///< [S,D] what the experts saw
  matrix<Scalar> u;  ///< [S,D'] what they said
  matrix<Scalar> y;  ///< [T,D']
};

template <FloatOrDouble Scalar>
struct backward_result {
  matrix<Scalar> dx;         ///< [T,D], without the router's own share
  matrix<Scalar> ddispatch;  ///< [T,S]
  matrix<Scalar> dcombine;   ///< [T,S]
};

/// y for a plan, a bank of experts and x. Every expert is called with one row at a time.
template <typename Plan, ExpertBank Bank>
forward_result<typename Bank::scalar> forward(const Plan& plan, const Bank& bank,
                                              const matrix<typename Bank::scalar>& x) {
  using scalar = typename Bank::scalar;
  forward_result<scalar> r;
  r.plan = write_out(plan);
  const index_t columns = r.plan.columns();
  r.z = matrix<scalar>::Zero(columns, bank.inputs());
  r.u = matrix<scalar>::Zero(columns, bank.outputs());
  r.y = matrix<scalar>::Zero(x.rows(), bank.outputs());
  for (index_t s = 0; s < columns; ++s) {
    for (index_t t = 0; t < x.rows(); ++t)
      for (index_t d = 0; d < bank.inputs(); ++d)
        if (r.plan.dispatch(t, s) != scalar(0)) r.z(s, d) += r.plan.dispatch(t, s) * x(t, d);
    typename Bank::tape tape;
    bank.forward(r.z.row(s), detail::one_row_for(r.plan.expert[static_cast<std::size_t>(s)], bank.experts()),
                 r.u.row(s), tape, {});
    for (index_t t = 0; t < x.rows(); ++t)
      for (index_t d = 0; d < bank.outputs(); ++d)
        if (r.plan.combine(t, s) != scalar(0)) r.y(t, d) += r.plan.combine(t, s) * r.u(s, d);
  }
  for (const index_t t : r.plan.invalid)
    for (index_t d = 0; d < bank.outputs(); ++d) r.y(t, d) = quiet_nan<scalar>();
  return r;
}

/// All gradients for the y of `r`; those of the experts' parameters are added to the bank's.
template <DifferentiableBank Bank>
backward_result<typename Bank::scalar> backward(const forward_result<typename Bank::scalar>& r, Bank& bank,
                                                const matrix<typename Bank::scalar>& x,
                                                const matrix<typename Bank::scalar>& dy) {
  using scalar = typename Bank::scalar;
  const index_t columns = r.plan.columns();
  ensure_gradients(bank);
  backward_result<scalar> b;
  b.dx = matrix<scalar>::Zero(x.rows(), bank.inputs());
  b.ddispatch = matrix<scalar>::Zero(x.rows(), columns);
  b.dcombine = matrix<scalar>::Zero(x.rows(), columns);
  for (index_t s = 0; s < columns; ++s) {
    matrix<scalar> du = matrix<scalar>::Zero(1, bank.outputs());
    matrix<scalar> dz = matrix<scalar>::Zero(1, bank.inputs());
    for (index_t t = 0; t < x.rows(); ++t)
      for (index_t d = 0; d < bank.outputs(); ++d) {
        if (r.plan.combine(t, s) != scalar(0)) du(0, d) += r.plan.combine(t, s) * dy(t, d);
        b.dcombine(t, s) += dy(t, d) * r.u(s, d);
      }
    typename Bank::tape tape;
    matrix<scalar> u(1, bank.outputs());
    const auto row = detail::one_row_for(r.plan.expert[static_cast<std::size_t>(s)], bank.experts());
    bank.forward(r.z.row(s), row, u, tape, {});
    bank.backward(r.z.row(s), row, du, dz, tape, {});
    for (index_t t = 0; t < x.rows(); ++t)
      for (index_t d = 0; d < bank.inputs(); ++d) {
        if (r.plan.dispatch(t, s) != scalar(0)) b.dx(t, d) += r.plan.dispatch(t, s) * dz(0, d);
        b.ddispatch(t, s) += x(t, d) * dz(0, d);
      }
  }
  return b;
}

}  // namespace sluice::inline SLUICE_ISA::reference
