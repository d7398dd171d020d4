#include <sluice/loss/importance.hpp>

#include "loss_case.hpp"

using namespace sluice;

TEST_CASE("importance_loss: fixture F", "[loss]") {
  auto c = test::fixture_f(2);
  CHECK(c.evaluate(importance_loss{}) == Approx(0.459157).margin(test::six_decimals));
  // E = 4: the unbiased variance is 4/3 of the population variance; 1e-10 on a squared mean of 1 is not visible here.
  const double biased = c.evaluate(importance_loss{});
  CHECK(c.evaluate(importance_loss{.form = variance::unbiased}) == Approx(biased * 4 / 3).epsilon(1e-9));
}

TEST_CASE("importance_loss: sparse gates of fixture F", "[loss]") {
  // Softmax over the two largest logits of each row: differences 1, 0.5, 2, 2, so the larger weights are
  // 0.731059 (e0), 0.622459 (e0), 0.880797 (e1), 0.880797 (e0) and the smaller ones go to e1, e1, e2, e3.
  // Sums (2.234315, 1.527279, 0.119203, 0.119203), mean 1, squares 1.523534 + 0.278023 + 2 x 0.775803 = 3.353163.
  auto c = test::fixture_f(2);
  const importance_loss sparse{.source = importance_source::sparse_gates};
  CHECK(c.evaluate(sparse) == Approx(3.353163 / 4).margin(1e-6));
  const importance_loss unbiased{.source = importance_source::sparse_gates, .form = variance::unbiased};
  CHECK(c.evaluate(unbiased) == Approx(3.353163 / 3).margin(1e-6));
}

TEST_CASE("importance_loss: chosen probabilities are those of all where everything is chosen", "[loss]") {
  auto c = test::fixture_f(2);
  const importance_loss chosen{.source = importance_source::chosen_probabilities};
  // One token of two experts, of which it chooses the first: shares 0.75 and 0, so the variance is the squared mean.
  test::loss_case<double> one;
  one.set_clean(matrix<double>{{std::log(0.75), std::log(0.25)}});
  one.choose(1, 1);
  CHECK(one.evaluate(chosen) == Approx(1).epsilon(1e-12));
  c.choose(4, 4);
  const double all = c.evaluate(importance_loss{});
  CHECK(c.evaluate(chosen) == Approx(all).epsilon(1e-12));
}

TEST_CASE("importance_loss: gradients equal central differences", "[loss][gradient]") {
  const auto form = GENERATE(variance::population, variance::unbiased);
  const auto source = GENERATE(importance_source::probabilities, importance_source::sparse_gates,
                               importance_source::chosen_probabilities);
  const auto logits = GENERATE(loss_logits::clean, loss_logits::noisy);
  auto c = test::random_case(11, 5, 31);
  const auto report = c.check(
      importance_loss{.coefficient = 0.7, .source = source, .form = form, .logits = logits, .cost = {1, 2, 0.5, 1, 3}});
  INFO(report.describe());
  CHECK(report.checked == 2 * 55);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("importance_loss: with latencies 3 and 1 it is zero at shares of a quarter and three", "[loss]") {
  test::loss_case<double> c;
  matrix<double> p(2, 2);
  p << .3, .7, .2, .8;
  c.set_clean(p.array().log().matrix());
  CHECK(std::abs(c.evaluate(importance_loss{.cost = {3, 1}})) < 1e-15);
  CHECK(c.evaluate(importance_loss{.cost = {1, 1}}) == Approx(.25).epsilon(1e-12));
  CHECK_THROWS_WITH(c.evaluate(importance_loss{.cost = {1}}), Catch::Matchers::Contains("1 costs for 2 experts"));
}

TEST_CASE("importance_loss: one choice a token gives sparse gates of 1 and no gradient", "[loss]") {
  auto c = test::random_case(9, 4, 5);
  c.choose(1, 9);
  // All that is left is how often each expert is chosen.
  double squares = 0;
  for (index_t e = 0; e < 4; ++e) {
    const double load = static_cast<double>(c.plan.load(e)) - 9.0 / 4;
    squares += load * load;
  }
  const double mean = 9.0 / 4;
  CHECK(c.evaluate(importance_loss{.source = importance_source::sparse_gates}) ==
        Approx(squares / 4 / (mean * mean)).margin(test::bound<double>(9)));
  CHECK(c.gradients.noisy.map().isZero(0));
  CHECK(c.gradients.clean.map().isZero(0));
}

TEST_CASE("importance_loss: one expert, and no assignment at all, have nothing to balance", "[loss]") {
  auto c = test::random_case(6, 1, 8);
  for (const auto form : {variance::population, variance::unbiased}) {
    CHECK(c.evaluate(importance_loss{.form = form}) == 0);
    CHECK(c.gradients.clean.map().isZero(0));
  }
  auto empty = test::random_case(6, 4, 8);
  empty.plan.reset(6, 4);
  empty.plan.finish();
  CHECK(empty.evaluate(importance_loss{.source = importance_source::sparse_gates}) == 0);
  CHECK(empty.gradients.noisy.map().isZero(0));
}
