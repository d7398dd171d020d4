#include <sluice/loss/dynmoe.hpp>

#include <sluice/router/threshold/dynmoe.hpp>
#include <sluice/train/gradient_check.hpp>
#include <sluice/train/initialize.hpp>

#include "any_loss.hpp"

using namespace sluice;

namespace {

struct routed {
  sparse_plan<double> plan;
  top_any_router<double>::tape tape;
};

routing_context<double> training() {
  routing_context<double> context;
  context.training = true;
  return context;
}

/// Value of a loss, its gradient left in the router's parameters and in dx.
double evaluate(top_any_router<double>& router, const dynmoe_loss& loss, const matrix<double>& x,
                const routing_context<double>& context, routed& r, matrix<double>& dx) {
  router.route(x, context, r.plan, r.tape);
  r.tape.dseen.zero_like(r.tape.seen);
  const double value = loss(r.tape.seen, r.plan, context, r.tape.dseen);
  sparse_plan<double>::gradient dplan;
  dplan.weight.assign(r.plan.size(), 0.0);
  zero_gradients(router);
  dx = matrix<double>::Zero(x.rows(), x.cols());
  router.backward(x, context, r.plan, dplan, r.tape, dx);
  return value;
}

/// The four terms written down again, with active as numbers so that the straight-through substitute can be put in. B
/// is passed apart because the estimator holds it constant.
double load_term(const matrix<double>& active, const matrix<double>& constant) {
  const double E = static_cast<double>(active.cols());
  double served = 0;
  for (index_t t = 0; t < constant.rows(); ++t) served += constant.row(t).sum() > 0;
  if (served == 0) return 0;
  double sum = 0;
  for (index_t e = 0; e < active.cols(); ++e) {
    double a = 0;
    for (index_t t = 0; t < active.rows(); ++t)
      if (constant.row(t).sum() > 0) a += active(t, e) / active.row(t).sum() / served;
    sum += a * constant.col(e).sum() / served;
  }
  return E * E * sum / E;
}

}  // namespace

TEST_CASE("dynmoe loss: diversity and simplicity by hand", "[loss][dynmoe]") {
  // Representations (1,0) and (.6,.8): the cosine .6 stands twice, sqrt(2 * .36) = .848528; both have length 1.
  top_any_router<double> router(2, 2);
  const double w[] = {1, 0, 0.6, 0.8};
  std::copy_n(w, 4, router.gate().sim_matrix().data());
  const matrix<double> x = test::random_matrix<double>(3, 2, 1);
  routed r;
  matrix<double> dx;
  CHECK(evaluate(router, {.coefficient = 1, .simplicity = 0, .load = 0, .efficiency = 0}, x, training(), r, dx) ==
        Approx(0.6 * std::sqrt(2.0)));
  CHECK(evaluate(router, {.coefficient = 1, .diversity = 0, .load = 0, .efficiency = 0}, x, training(), r, dx) ==
        Approx(1));
  router.live().data()[1] = 0;  // only live experts should differ, but all should be short
  CHECK(evaluate(router, {.coefficient = 1, .simplicity = 0, .load = 0, .efficiency = 0}, x, training(), r, dx) == 0);
  CHECK(evaluate(router, {.coefficient = 1, .diversity = 0, .load = 0, .efficiency = 0}, x, training(), r, dx) ==
        Approx(1));
  CHECK(evaluate(router, {.coefficient = 0}, x, training(), r, dx) == 0);
}

TEST_CASE("dynmoe loss: representation terms have exact gradients", "[loss][dynmoe][gradient]") {
  top_any_router<double> router(5, 6);
  initialize(router, 3);
  router.live().data()[2] = 0;
  matrix<double> x = test::random_matrix<double>(4, 5, 4);
  const dynmoe_loss loss{.coefficient = 0.7, .diversity = 1.3, .simplicity = 2.1, .load = 0, .efficiency = 0};
  routed r;
  matrix<double> dx;
  evaluate(router, loss, x, training(), r, dx);
  const auto report = check_gradients(router, {{"x", test::span_of(x), test::span_of(std::as_const(dx))}}, [&] {
    const matrix<double> w = router.gate().sim_matrix().map();
    matrix<double> q = w.rowwise().normalized();
    double squares = 0;
    for (index_t a = 0; a < 6; ++a)
      for (index_t b = 0; b < 6; ++b)
        if (a != 2 && b != 2) squares += std::pow(q.row(a).dot(q.row(b)) - (a == b), 2);
    return 0.7 * (1.3 * std::sqrt(squares) + 2.1 * w.rowwise().norm().mean());
  });
  INFO(report.describe());
  CHECK(report.checked == 30 + 6 + 20);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("dynmoe loss: load and efficiency, value and straight-through gradient", "[loss][dynmoe][gradient]") {
  top_any_router<double> router(5, 6, {.temperature = 0.4, .learn_temperature = true});
  initialize(router, 5);
  const matrix<double> g = test::random_matrix<double>(1, 6, 6);
  for (index_t e = 0; e < 6; ++e) router.threshold().data()[e] = 0.6 + 0.2 * g(0, e);
  matrix<double> x = test::random_matrix<double>(11, 5, 7);
  const dynmoe_loss loss{.coefficient = 2, .diversity = 0, .simplicity = 0, .load = 1.5, .efficiency = 0.8};
  routed r;
  matrix<double> dx;
  const double value = evaluate(router, loss, x, training(), r, dx);
  const matrix<double> active = r.tape.seen.active.map();
  const matrix<double> scores = r.tape.seen.scores.map();
  const buffer<double> thresholds = r.tape.seen.thresholds;
  REQUIRE(active.rowwise().sum().minCoeff() == 0);  // someone is unserved
  REQUIRE(active.rowwise().sum().maxCoeff() > 1);
  CHECK(value == Approx(2 * (1.5 * load_term(active, active) + 0.8 * active.mean())));

  sparse_plan<double> plan;
  top_any_router<double>::tape tape;
  const auto report = check_gradients(router, {{"x", test::span_of(x), test::span_of(std::as_const(dx))}}, [&] {
    router.route(x, training(), plan, tape);
    matrix<double> substitute = active;
    for (index_t t = 0; t < 11; ++t)
      for (index_t e = 0; e < 6; ++e)
        if (active(t, e) == 1)
          substitute(t, e) += tape.seen.scores(t, e) - tape.seen.thresholds[e] - (scores(t, e) - thresholds[e]);
    return 2 * (1.5 * load_term(substitute, active) + 0.8 * substitute.mean());
  });
  INFO(report.describe());
  CHECK(report.checked == 30 + 6 + 1 + 55);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("dynmoe loss: where the norm is 0 its gradient is 0", "[loss][dynmoe]") {
  // Rows without a common column are orthogonal to the last bit, but the squares of a unit row need not add up to 1: a norm
  // of such rounding noise would have a gradient of full size.
  top_any_router<double> router(10, 5);
  const double pairs[5][2] = {{1, 2}, {1, 3}, {2, 3}, {3, 7}, {5, 7}};
  for (index_t e = 0; e < 5; ++e) std::copy_n(pairs[e], 2, router.gate().sim_matrix().data() + e * 10 + 2 * e);
  const matrix<double> x = test::random_matrix<double>(3, 10, 1);
  routed r;
  matrix<double> dx;
  CHECK(evaluate(router, {.coefficient = 1, .simplicity = 0, .load = 0, .efficiency = 0}, x, training(), r, dx) == 0);
  for (const double v : router.gate().sim_matrix().gradient()) CHECK(v == 0);

  // A representation of zeros has no direction: nothing is NaN, and its product with itself is 0 instead of 1.
  std::fill_n(router.gate().sim_matrix().data(), 10, 0.0);
  const double lengths = std::sqrt(10.0) + std::sqrt(13.0) + std::sqrt(58.0) + std::sqrt(74.0);
  CHECK(evaluate(router, {.coefficient = 1, .load = 0, .efficiency = 0}, x, training(), r, dx) ==
        Approx(1 + lengths / 5));
  CHECK_FALSE(any_nan(router.gate().sim_matrix().gradient().data(), 50));
}

TEST_CASE("dynmoe loss: nobody served, padding, nothing", "[loss][dynmoe]") {
  top_any_router<double> router(3, 4, {.temperature = 0.5});
  initialize(router, 9);
  const matrix<double> x = test::random_matrix<double>(8, 3, 10);
  const dynmoe_loss both{.coefficient = 1, .diversity = 0, .simplicity = 0};
  routed r;
  matrix<double> dx;
  const std::uint8_t mask[] = {1, 0, 1, 1, 0, 1, 1, 1};
  auto context = training();
  context.token_mask = mask;
  const double masked = evaluate(router, both, x, context, r, dx);
  CHECK(masked > 0);
  CHECK(dx.row(1).isZero(0));
  matrix<double> shorter(6, 3);
  for (index_t t = 0, i = 0; t < 8; ++t)
    if (mask[t]) shorter.row(i++) = x.row(t);
  CHECK(evaluate(router, both, shorter, training(), r, dx) == masked);

  std::fill_n(router.threshold().data(), 4, 2.0);  // above every cosine
  CHECK(evaluate(router, both, x, training(), r, dx) == 0);
  CHECK(evaluate(router, both, matrix<double>(0, 3), training(), r, dx) == 0);
  CHECK_THROWS_WITH(evaluate(router, dynmoe_loss{.coefficient = 1, .load = quiet_nan<double>()}, x, training(), r, dx),
                    Catch::Matchers::Contains("finite coefficient, not nan"));
}

TEST_CASE("dynmoe loss: every promise of a loss", "[loss][dynmoe][conformance]") {
  top_any_router<double> router{6, 5};
  initialize(router, 3);
  // Diversity and simplicity are of the representations themselves: they have a value without tokens too.
  test::check_loss_promises("dynmoe", dynmoe_loss{.coefficient = 1, .diversity = 0, .simplicity = 0}, router);
}
