#include <sluice/loss/dselect.hpp>

#include <sluice/core/numeric.hpp>
#include <sluice/core/sparse_plan.hpp>
#include <sluice/router/over_training/dselect_k.hpp>
#include <sluice/train/initialize.hpp>

#include "any_loss.hpp"

using namespace sluice;

namespace {

struct evaluated {
  double value;
  matrix<double> gradient;
};

selector_signals<double> signals_of(const matrix<double>& selectors, index_t count, index_t experts) {
  selector_signals<double> seen;
  seen.experts = experts;
  seen.selectors.resize(selectors.rows(), count * experts);
  seen.selectors.map() = selectors;
  seen.mixing.set_zero(selectors.rows(), count);
  seen.counted.assign(selectors.rows(), 1);
  return seen;
}

template <typename Loss>
evaluated evaluate(const Loss& loss, const selector_signals<double>& seen,
                   const routing_context<double>& context = {}) {
  selector_gradients<double> gradients;
  gradients.zero_like(seen);
  const double value = loss(seen, sparse_plan<double>{}, context, gradients);
  CHECK((gradients.mixing.map().array() == 0).all());
  return {value, gradients.selectors.map()};
}

/// The selectors of the worked example, E = 4, k = 2.
matrix<double> example() {
  matrix<double> r(1, 8);
  r << .297, .055, .54675, .10125, 0, 0, .5, .5;
  return r;
}

}  // namespace

TEST_CASE("dselect losses: the worked example", "[loss][dselect]") {
  const evaluated e = evaluate(dselect_entropy<>{.coefficient = {1.0, 1.0}}, signals_of(example(), 2, 4));
  // r1 rounded to five decimals in the example: |d entropy / d r| is below 4 here, so below 4 * 4 * 5e-6.
  CHECK(std::abs(e.value - 1.775216) < 8e-5);
  CHECK(std::abs(e.gradient(0, 0) - (-std::log(.297001) - .297 / .297001)) <= test::bound<double>(4));
  CHECK(std::abs(e.gradient(0, 4) + std::log(1e-6)) <= test::bound<double>(4, 14));
  // E = 3: the fourth code is out of reach. 1 / .89875 + 1 / .5
  matrix<double> three(1, 6);
  three << .297, .055, .54675, 0, 0, .5;
  const evaluated p = evaluate(dselect_reachability{}, signals_of(three, 2, 3));
  CHECK(std::abs(p.value - 3.112656) < 1e-5);
  CHECK(std::abs(p.gradient(0, 1) + 1 / (.89875 * .89875)) <= test::bound<double>(4, 2));
  CHECK(std::abs(p.gradient(0, 3) + 4) <= test::bound<double>(4, 4));
}

TEST_CASE("dselect losses: sums over rows, the mean divides", "[loss][dselect]") {
  const matrix<double> rows = example().replicate(5, 1);
  selector_signals<double> seen = signals_of(rows, 2, 4);
  const double one = evaluate(dselect_entropy<>{.coefficient = {0.3, 0.3}}, signals_of(example(), 2, 4)).value;
  CHECK(std::abs(evaluate(dselect_entropy<>{.coefficient = {0.3, 0.3}}, seen).value - 5 * one) <=
        test::bound<double>(40));
  seen.counted[2] = 0;  // padding or NaN
  seen.selectors.map().row(2).setConstant(quiet_nan<double>());
  const evaluated sum = evaluate(dselect_entropy<>{.coefficient = {0.3, 0.3}}, seen);
  CHECK(std::abs(sum.value - 4 * one) <= test::bound<double>(40));
  CHECK(sum.gradient.row(2).isZero(0));
  const evaluated mean = evaluate(dselect_entropy<>{.coefficient = {0.3, 0.3}, .mean_over_rows = true}, seen);
  CHECK(std::abs(mean.value - one) <= test::bound<double>(40));
  CHECK(std::abs(mean.gradient(0, 0) - sum.gradient(0, 0) / 4) <= test::bound<double>(4));

  selector_signals<double> three = signals_of(matrix<double>::Constant(4, 6, 0.25), 2, 3);
  three.counted[0] = 0;
  CHECK(std::abs(evaluate(dselect_reachability{}, three).value - 3 * 2 / 0.75) <= test::bound<double>(12, 8));
  CHECK(std::abs(evaluate(dselect_reachability{.mean_over_rows = true}, three).value - 2 / 0.75) <=
        test::bound<double>(12, 8));
  three.counted.fill(0);
  CHECK(evaluate(dselect_reachability{.mean_over_rows = true}, three).value == 0);
}

TEST_CASE("dselect losses: gradients equal central differences", "[loss][dselect][gradient]") {
  matrix<double> r = (test::random_matrix<double>(3, 10, 3).array().abs() * 0.2).matrix();
  r(1, 2) = 0.7;
  const auto check = [&](const auto& loss) {
    const evaluated at = evaluate(loss, signals_of(r, 2, 5));
    for (index_t i = 0; i < r.size(); ++i) {
      matrix<double> moved = r;
      moved.data()[i] += 1e-6;
      const double above = evaluate(loss, signals_of(moved, 2, 5)).value;
      moved.data()[i] -= 2e-6;
      const double numeric = (above - evaluate(loss, signals_of(moved, 2, 5)).value) / 2e-6;
      CHECK(std::abs(at.gradient.data()[i] - numeric) < 1e-6 * std::max(1.0, std::abs(numeric)));
    }
  };
  check(dselect_entropy<>{.coefficient = {0.3, 0.3}});
  check(dselect_reachability{.coefficient = 0.7});
  check(dselect_reachability{.coefficient = 0.7, .smallest_reach = 5});  // everything on the tangent
}

TEST_CASE("dselect losses: reachability costs nothing if every code has an expert", "[loss][dselect]") {
  for (const index_t experts : {1, 2, 4, 8}) {
    const evaluated e =
        evaluate(dselect_reachability{}, signals_of(matrix<double>::Constant(2, 2 * experts, 0.01), 2, experts));
    CHECK(e.value == 0);
    CHECK(e.gradient.isZero(0));
  }
}

TEST_CASE("dselect losses: no mass on any expert gives finite numbers that pull it back", "[loss][dselect]") {
  const evaluated e =
      evaluate(dselect_reachability{.smallest_reach = 1e-4}, signals_of(matrix<double>::Zero(1, 3), 1, 3));
  CHECK(e.value == 2e4);
  for (index_t i = 0; i < 3; ++i) CHECK(std::abs(e.gradient(0, i) + 1e8) <= 1e8 * test::bound<double>(2));
  const evaluated h =
      evaluate(dselect_entropy<>{.coefficient = {1.0, 1.0}}, signals_of(matrix<double>::Zero(1, 3), 1, 3));
  CHECK(h.value == 0);
  CHECK(h.gradient.allFinite());
}

TEST_CASE("dselect losses: the entropy's coefficient follows its schedule", "[loss][dselect]") {
  const coefficient_ramp ramp{.first = 0, .last = 2, .begin = 10, .steps = 4};
  const double wanted[] = {0, 0, 0.5, 1, 1.5, 2, 2};
  for (index_t i = 0; i < 7; ++i) CHECK(ramp(i + 9) == wanted[i]);
  CHECK(coefficient_ramp{}(0) == 1e-6);
  CHECK(coefficient_ramp{}(1000) == 1e-6);

  const auto seen = signals_of(example(), 2, 4);
  const double full = evaluate(dselect_entropy<>{.coefficient = {1.0, 1.0}}, seen).value;
  routing_context<double> context;
  context.step = 12;
  CHECK(std::abs(evaluate(dselect_entropy<>{.coefficient = ramp}, seen, context).value - full) <=
        test::bound<double>(16));
  const auto own = [](index_t step) { return double(step) / 4; };  // any callable
  CHECK(std::abs(evaluate(dselect_entropy<decltype(own)>{own}, seen, context).value - 3 * full) <=
        test::bound<double>(16, 6));
  context.step = 0;
  const evaluated off = evaluate(dselect_entropy<>{.coefficient = ramp}, seen, context);
  CHECK(off.value == 0);
  CHECK(off.gradient.isZero(0));
  CHECK_THROWS_WITH(evaluate(dselect_entropy<>{.coefficient = {quiet_nan<double>()}}, seen, context),
                    Catch::Matchers::Contains("finite coefficient, not nan"));
  CHECK_THROWS_WITH(evaluate(dselect_reachability{.coefficient = quiet_nan<double>()}, seen, context),
                    Catch::Matchers::Contains("finite coefficient, not nan"));
  CHECK_THROWS_WITH(evaluate(dselect_reachability{.smallest_reach = 0}, seen, context),
                    Catch::Matchers::Contains("smallest reach > 0, not 0"));
}

TEST_CASE("dselect losses: every promise of a loss", "[loss][dselect][conformance]") {
  dselect_k_router<double> router{6, 5};
  initialize(router, 3);
  test::check_loss_promises("entropy", dselect_entropy<>{.coefficient = {0.3, 0.3}}, router);
  test::check_loss_promises("reachability", dselect_reachability{.coefficient = 0.7}, router);
}
