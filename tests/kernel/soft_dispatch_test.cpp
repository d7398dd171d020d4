#include <sluice/kernel/soft_dispatch.hpp>

#include "support.hpp"

using namespace sluice;

namespace {

struct batch {
  index_t tokens;
  index_t experts;
  index_t slots_per_expert;
  std::vector<index_t> borders;
};

template <typename Scalar>
soft_plan<Scalar> random_plan(const batch& b) {
  routing_context<Scalar> context;
  context.groups = b.borders;
  soft_plan<Scalar> plan;
  plan.reset(b.tokens, b.experts, b.slots_per_expert, context);
  plan.dispatch().map() = test::random_matrix<Scalar>(b.tokens, plan.slot_count(), 3);
  plan.combine().map() = test::random_matrix<Scalar>(b.tokens, plan.slot_count(), 4);
  return plan;
}

batch some_batch() {
  return GENERATE(batch{1, 1, 1, {0, 1}}, batch{9, 4, 3, {0, 9}}, batch{70, 40, 1, {0, 70}},
                  batch{70, 3, 1, {0, 20, 20, 69, 70}}, batch{50, 3, 5, {0, 1, 34, 50}}, batch{40, 2, 37, {0, 40}},
                  batch{40, 2, 37, {0, 15, 40}});
}

/// [T, rows]: m[t,s] at the row of slot s of t's group, else 0.
template <typename Scalar>
matrix<double> spread(const soft_plan<Scalar>& plan, const matrix_buffer<Scalar>& m) {
  matrix<double> out = matrix<double>::Zero(plan.tokens(), plan.rows());
  for (index_t t = 0; t < plan.tokens(); ++t)
    for (index_t s = 0; s < plan.slot_count(); ++s) out(t, plan.row(plan.group_of(t), s)) = double(m(t, s));
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("soft_dispatch: dispatch, combine and adjoints are products with the written-out plan",
                   "[kernel][soft_dispatch]", float, double) {
  using S = TestType;
  const batch b = some_batch();
  CAPTURE(b.tokens, b.experts, b.slots_per_expert, b.borders.size());
  const index_t D = 5;
  const auto plan = random_plan<S>(b);
  const matrix<S> x = test::random_matrix<S>(b.tokens, D, 5);
  const matrix<S> f = test::random_matrix<S>(plan.rows(), D, 6);
  const matrix<double> disp = spread(plan, plan.dispatch());
  const matrix<double> comb = spread(plan, plan.combine());
  const double eps = test::bound<S>(std::max(b.tokens, plan.slot_count()), S(16));  // products of two normal numbers below 4

  matrix<S> z(plan.rows(), D), y(b.tokens, D), dz(plan.rows(), D), dx = matrix<S>::Constant(b.tokens, D, 3);
  dispatch<S>(plan, x, z, {});
  CHECK((z.template cast<double>() - disp.transpose() * x.template cast<double>()).cwiseAbs().maxCoeff() <= eps);
  combine<S>(plan, f, y, {});
  CHECK((y.template cast<double>() - comb * f.template cast<double>()).cwiseAbs().maxCoeff() <= eps);

  soft_plan_gradient<S> gradient;
  combine_backward<S>(plan, x, f, dz, gradient, {});
  CHECK((dz.template cast<double>() - comb.transpose() * x.template cast<double>()).cwiseAbs().maxCoeff() <= eps);
  dispatch_backward<S>(plan, x, f, dx, gradient, {});
  CHECK(((dx.template cast<double>() - disp * f.template cast<double>()).array() - 3).cwiseAbs().maxCoeff() <= eps);
  for (index_t t = 0; t < b.tokens; ++t)
    for (index_t s = 0; s < plan.slot_count(); ++s) {
      double product = 0;
      for (index_t d = 0; d < D; ++d) product += double(x(t, d)) * double(f(plan.row(plan.group_of(t), s), d));
      CHECK(std::abs(double(gradient.combine(t, s)) - product) <= eps);
      CHECK(std::abs(double(gradient.dispatch(t, s)) - product) <= eps);
    }
}

TEST_CASE("soft_dispatch: a token left out is not read, an invalid one gets NaN", "[kernel][soft_dispatch]") {
  auto plan = random_plan<float>({50, 3, 5, {0, 1, 34, 50}});
  matrix<float> x = test::random_matrix<float>(50, 4, 7);
  const matrix<float> f = test::random_matrix<float>(plan.rows(), 4, 8);
  for (const index_t t : {0, 33, 40, 41}) x.row(t).setConstant(quiet_nan<float>());
  plan.leave_out(0);
  plan.leave_out(33);
  plan.mark_invalid(40);
  plan.mark_invalid(41);
  matrix<float> z(plan.rows(), 4), y(50, 4), dx = matrix<float>::Zero(50, 4);
  soft_plan_gradient<float> gradient;
  dispatch<float>(plan, x, z, {});
  CHECK(z.allFinite());
  CHECK(z.row(plan.row(0, 0)).isZero(0));  // a slot of the first group, which has no other token
  combine<float>(plan, f, y, {});
  CHECK(y.row(0).isZero(0));
  CHECK(y.row(33).isZero(0));
  CHECK(is_nan(y(40, 0)));
  CHECK(is_nan(y(41, 3)));
  combine_backward<float>(plan, x, f, z, gradient, {});
  CHECK(z.allFinite());
  CHECK(gradient.combine.map().allFinite());
  dispatch_backward<float>(plan, x, f, dx, gradient, {});
  CHECK(dx.allFinite());
  CHECK(gradient.dispatch.map().allFinite());
}

TEST_CASE("soft_dispatch: equal bits for every thread count", "[kernel][soft_dispatch][determinism]") {
  const batch b = some_batch();
  const auto plan = random_plan<float>(b);
  const matrix<float> x = test::random_matrix<float>(b.tokens, 21, 9);
  const auto run = [&](executor_ref executor) {
    matrix<float> all = matrix<float>::Zero(plan.rows() + b.tokens, 21);
    dispatch<float>(plan, x, all.topRows(plan.rows()), executor);
    combine<float>(plan, matrix<float>(all.topRows(plan.rows())), all.bottomRows(b.tokens), executor);
    return all;
  };
  const matrix<float> serial = run({});
  for (const int threads : {2, 3, 8}) {
    test::shuffled_threads pool(threads);
    CHECK(test::same_bits(run(pool), serial));
  }
}
