#include <sluice/kernel/dispatch.hpp>
#include <sluice/kernel/soft_dispatch.hpp>

#include "../guarded.hpp"
#include "../random_plans.hpp"
#include "../support.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
double inner(const matrix<Scalar>& a, const matrix<Scalar>& b) {
  double sum = 0;
  for (index_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a.data()[i]) * static_cast<double>(b.data()[i]);
  return sum;
}
template <typename Scalar>
double inner_size(const matrix<Scalar>& a, const matrix<Scalar>& b) {
  return inner<Scalar>(a.cwiseAbs(), b.cwiseAbs());
}

/// The four kernels of one plan on random numbers.
template <typename Plan>
struct pass {
  using scalar = typename Plan::scalar;
  matrix<scalar> x, dy, outputs, drows_in;  // given
  matrix<scalar> rows, y, doutputs, dx;     // computed
  typename Plan::gradient dplan;

  pass(const Plan& plan, index_t width, index_t out_width, executor_ref executor = {})
      : x(test::random_matrix<scalar>(plan.tokens(), width, 1)),
        dy(test::random_matrix<scalar>(plan.tokens(), out_width, 2)),
        outputs(test::random_matrix<scalar>(plan.rows(), out_width, 3)),
        drows_in(test::random_matrix<scalar>(plan.rows(), width, 4)),
        rows(plan.rows(), width),
        y(plan.tokens(), out_width),
        doutputs(plan.rows(), out_width),
        dx(matrix<scalar>::Zero(plan.tokens(), width)) {
    dispatch(plan, x, rows, executor);
    combine(plan, outputs, y, executor);
    combine_backward(plan, dy, outputs, doutputs, dplan, executor);
    dispatch_backward(plan, x, drows_in, dx, dplan, executor);
  }

  /// combine and dispatch are linear, so <A a, b> = <a, A^T b>; and they are linear in the plan's own numbers, so the
  /// sum of number times gradient is the same product once more. All bounds: terms of the longest sum, times sizes.
  template <typename WeightSum, typename ScaleSum>
  void check_adjoints(const Plan& plan, WeightSum weight_sum, ScaleSum scale_sum) const {
    const double terms = static_cast<double>(plan.tokens() + plan.rows() + x.cols() + dy.cols());
    const double unit = 8 * terms * static_cast<double>(std::numeric_limits<scalar>::epsilon());
    const double forward = inner(y, dy);
    const double size = inner_size(y, dy) + inner_size(outputs, doutputs);
    CHECK(std::abs(forward - inner(outputs, doutputs)) <= unit * size);
    CHECK(std::abs(forward - weight_sum(dplan)) <= unit * size);
    const double other = inner(rows, drows_in);
    const double other_size = inner_size(rows, drows_in) + inner_size(x, dx);
    CHECK(std::abs(other - inner(x, dx)) <= unit * other_size);
    CHECK(std::abs(other - scale_sum(dplan)) <= unit * other_size);
  }
};

template <typename Scalar>
void check_sparse(const sparse_plan<Scalar>& plan, index_t width, index_t out_width) {
  const pass<sparse_plan<Scalar>> p(plan, width, out_width);
  const auto sum_of = [&](auto numbers, const buffer<Scalar>& gradient) {
    double sum = 0;
    for (index_t i = 0; i < plan.size(); ++i) sum += static_cast<double>(numbers(i)) * static_cast<double>(gradient[i]);
    return sum;
  };
  p.check_adjoints(
      plan, [&](const auto& d) { return sum_of([&](index_t i) { return plan.weight(i); }, d.weight); },
      [&](const auto& d) {
        if (!plan.has_input_scale()) return inner(p.rows, p.drows_in);
        return sum_of([&](index_t i) { return plan.input_scale(i); }, d.input_scale);
      });
}

template <typename Scalar>
void check_soft(const soft_plan<Scalar>& plan, index_t width, index_t out_width) {
  const pass<soft_plan<Scalar>> p(plan, width, out_width);
  const auto sum_of = [](const matrix_buffer<Scalar>& a, const matrix_buffer<Scalar>& b) {
    return inner<Scalar>(a.map(), b.map());
  };
  p.check_adjoints(
      plan, [&](const auto& d) { return sum_of(plan.combine(), d.combine); },
      [&](const auto& d) { return sum_of(plan.dispatch(), d.dispatch); });
}

const std::vector<index_t> three_groups{0, 5, 5, 23};

}  // namespace

TEST_CASE("dispatch, combine: a sparse plan by hand", "[kernel][dispatch]") {
  sparse_plan<double> plan;
  plan.reset(3, 2);
  plan.add(0, 1, 0.5, 0, 2.0);  // row 1
  plan.add(0, 0, 0.25, 1);      // row 0
  plan.add(2, 1, -1, 0);        // row 2
  plan.finish();
  const matrix<double> x = (matrix<double>(3, 2) << 1, 2, 3, 4, 5, 6).finished();
  matrix<double> rows(3, 2);
  dispatch(plan, x, rows, {});
  CHECK(rows == (matrix<double>(3, 2) << 1, 2, 2, 4, 5, 6).finished());
  const matrix<double> outputs = (matrix<double>(3, 1) << 8, 4, 3).finished();
  matrix<double> y(3, 1);
  combine(plan, outputs, y, {});
  CHECK(y == (matrix<double>(3, 1) << 0.5 * 4 + 0.25 * 8, 0, -3).finished());

  const matrix<double> dy = (matrix<double>(3, 1) << 10, 20, 30).finished();
  matrix<double> doutputs(3, 1);
  sparse_plan_gradient<double> dplan;
  combine_backward(plan, dy, outputs, doutputs, dplan, {});
  CHECK(doutputs == (matrix<double>(3, 1) << 2.5, 5, -30).finished());
  CHECK(dplan.weight[0] == 80);
  CHECK(dplan.weight[1] == 40);
  CHECK(dplan.weight[2] == 90);
  const matrix<double> drows = (matrix<double>(3, 2) << 1, 1, 2, 2, 3, 3).finished();
  matrix<double> dx = matrix<double>::Constant(3, 2, 100);
  dispatch_backward(plan, x, drows, dx, dplan, {});
  CHECK(dx == (matrix<double>(3, 2) << 105, 105, 100, 100, 103, 103).finished());  // added: 1 * 1 + 2 * 2
  CHECK(dplan.input_scale[1] == 1 * 2 + 2 * 2);
}

TEMPLATE_TEST_CASE("dispatch, combine: sparse plans and their adjoints", "[kernel][dispatch][gradient]", float,
                   double) {
  struct shape {
    index_t tokens, experts, width, out_width;
  };
  const auto s = GENERATE(shape{1, 1, 1, 1}, shape{7, 3, 5, 4}, shape{40, 8, 17, 33}, shape{100, 5, 64, 16});
  for (const bool scale_inputs : {false, true})
    check_sparse(test::random_sparse_plan<TestType>(s.tokens, s.experts, 6, scale_inputs), s.width, s.out_width);
}

TEMPLATE_TEST_CASE("dispatch, combine: soft plans and their adjoints", "[kernel][dispatch][gradient]", float, double) {
  struct shape {
    index_t tokens, experts, slots, width, out_width;
  };
  const auto s = GENERATE(shape{1, 1, 1, 1, 1}, shape{23, 3, 1, 5, 4}, shape{23, 2, 4, 17, 33}, shape{23, 40, 1, 8, 8});
  check_soft(test::random_soft_plan<TestType>(s.tokens, s.experts, s.slots, 6), s.width, s.out_width);
  if (s.tokens == 23)
    check_soft(test::random_soft_plan<TestType>(s.tokens, s.experts, s.slots, 6, three_groups), s.width, s.out_width);
}

TEMPLATE_TEST_CASE("dispatch, combine: soft plans equal sums over the tokens and slots of each group",
                   "[kernel][dispatch]", float, double) {
  const auto slots = GENERATE(index_t(1), index_t(3));
  for (const std::vector<index_t>& borders : {std::vector<index_t>{}, three_groups}) {
    const auto plan = test::random_soft_plan<TestType>(23, 4, slots, 8, borders);
    const pass<soft_plan<TestType>> p(plan, 6, 5);
    matrix<TestType> rows = matrix<TestType>::Zero(plan.rows(), 6);
    matrix<TestType> y = matrix<TestType>::Zero(23, 5);
    for (index_t t = 0; t < 23; ++t)
      for (index_t s = 0; s < plan.slot_count(); ++s) {
        const index_t row = plan.row(plan.group_of(t), s);
        rows.row(row) += plan.dispatch()(t, s) * p.x.row(t);
        y.row(t) += plan.combine()(t, s) * p.outputs.row(row);
      }
    const TestType size = 4 * 4;  // products of two normal numbers
    CHECK(test::largest_difference(p.rows, rows) <= test::bound<TestType>(23, size));
    CHECK(test::largest_difference(p.y, y) <= test::bound<TestType>(plan.slot_count(), size));
  }
}

TEMPLATE_TEST_CASE("dispatch, combine: equal bits for every thread count", "[kernel][dispatch][determinism]", float,
                   double) {
  const auto check = [](const auto& plan) {
    const pass serial(plan, 19, 21);
    for (const int threads : {1, 2, 3, 8}) {
      test::shuffled_threads pool(threads);
      const pass parallel(plan, 19, 21, pool);
      CHECK(test::same_bits(parallel.rows, serial.rows));
      CHECK(test::same_bits(parallel.y, serial.y));
      CHECK(test::same_bits(parallel.doutputs, serial.doutputs));
      CHECK(test::same_bits(parallel.dx, serial.dx));
    }
  };
  check(test::random_sparse_plan<TestType>(150, 6, 9, true));
  check(test::random_soft_plan<TestType>(150, 6, 7, 9));
}

TEST_CASE("combine: a weight of zero leaves infinite and NaN rows out", "[kernel][dispatch]") {
  sparse_plan<double> plan;
  plan.reset(1, 3);
  plan.add(0, 0, 0, 0);
  plan.add(0, 1, 0, 1);
  plan.add(0, 2, 2, 2);
  plan.finish();
  matrix<double> outputs(3, 1);
  outputs << quiet_nan<double>(), std::numeric_limits<double>::infinity(), 3;
  matrix<double> y(1, 1);
  combine(plan, outputs, y, {});
  CHECK(y(0, 0) == 6);
}

TEMPLATE_TEST_CASE("combine: invalid tokens get NaN in every column, tokens without experts zero", "[kernel][dispatch]",
                   float, double) {
  sparse_plan<TestType> plan;
  plan.reset(4, 2);
  plan.add(0, 1, 1);
  plan.mark_invalid(2);
  plan.finish();
  const matrix<TestType> outputs = matrix<TestType>::Ones(1, 5);
  matrix<TestType> y = matrix<TestType>::Constant(4, 5, 9);
  combine(plan, outputs, y, {});
  for (index_t c = 0; c < 5; ++c) {
    CHECK(y(0, c) == 1);
    CHECK(y(1, c) == 0);
    CHECK(is_nan(y(2, c)));
    CHECK(y(3, c) == 0);
  }
}

TEMPLATE_TEST_CASE("soft plans: a token that is left out reaches no slot, whatever it holds", "[kernel][dispatch]",
                   float, double) {
  auto plan = test::random_soft_plan<TestType>(6, 2, 2, 3);
  plan.leave_out(1);
  plan.mark_invalid(4);
  matrix<TestType> x = test::random_matrix<TestType>(6, 3, 1);
  x.row(1).setConstant(quiet_nan<TestType>());
  x.row(4).setConstant(quiet_nan<TestType>());
  matrix<TestType> rows(4, 3), y(6, 3), drows(4, 3), dx = matrix<TestType>::Zero(6, 3);
  dispatch(plan, x, rows, {});
  CHECK_FALSE(any_nan(rows.data(), rows.size()));
  combine(plan, rows, y, {});
  CHECK(y.row(1).isZero(0));
  for (index_t c = 0; c < 3; ++c) CHECK(is_nan(y(4, c)));
  CHECK_FALSE(any_nan(&y(0, 0), 3));
  soft_plan_gradient<TestType> dplan;
  combine_backward(plan, x, rows, drows, dplan, {});
  CHECK_FALSE(any_nan(drows.data(), drows.size()));
  CHECK_FALSE(any_nan(dplan.combine.data(), dplan.combine.size()));
  dispatch_backward(plan, x, rows, dx, dplan, {});
  CHECK_FALSE(any_nan(dx.data(), dx.size()));
  CHECK(dx.row(1).isZero(0));
  CHECK_FALSE(any_nan(dplan.dispatch.data(), dplan.dispatch.size()));
}

TEMPLATE_TEST_CASE("dispatch, combine: nothing is read or written outside of x, rows and y", "[kernel][dispatch]",
                   float, double) {
  using test::guard;
  for (const index_t width : {1, 3, 8, 15, 16, 17, 33}) {
    const auto check = [&](const auto& plan) {
      for (const guard where : {guard::before, guard::behind}) {
        test::guarded_array<TestType> x(plan.tokens() * width, where, 1), rows(plan.rows() * width, where),
            y(plan.tokens() * width, where), drows(plan.rows() * width, where), dx(plan.tokens() * width, where);
        const auto view = [&](test::guarded_array<TestType>& a, index_t n) {
          return matrix_map<TestType>(a.data(), n, width);
        };
        typename std::remove_cvref_t<decltype(plan)>::gradient dplan;
        dispatch(plan, view(x, plan.tokens()), view(rows, plan.rows()), {});
        combine(plan, view(rows, plan.rows()), view(y, plan.tokens()), {});
        combine_backward(plan, view(y, plan.tokens()), view(rows, plan.rows()), view(drows, plan.rows()),
                                   dplan, {});
        dispatch_backward(plan, view(x, plan.tokens()), view(drows, plan.rows()), view(dx, plan.tokens()),
                                    dplan, {});
        CHECK_FALSE(any_nan(dx.data(), dx.size()));
      }
    };
    check(test::random_sparse_plan<TestType>(9, 4, 2, true));
    check(test::random_soft_plan<TestType>(9, 2, 3, 2));
  }
}

TEST_CASE("dispatch, combine: no tokens", "[kernel][dispatch]") {
  check_sparse(test::random_sparse_plan<double>(0, 3, 1), 4, 4);
  check_soft(test::random_soft_plan<double>(0, 3, 2, 1), 4, 4);
}
