#include <sluice/loss/entropy.hpp>

#include "loss_case.hpp"

using namespace sluice;

TEST_CASE("entropy_loss: even probabilities give its minimum", "[loss]") {
  test::loss_case<double> c;
  c.set_clean(matrix<double>::Zero(3, 4));
  CHECK(c.evaluate(entropy_loss{.coefficient = 1}) == Approx(-1.386294).margin(test::six_decimals));
  CHECK(c.gradients.clean.map().isZero(test::bound<double>(4)));
}

TEST_CASE("entropy_loss: fixture F", "[loss]") {
  // q = (0.481849, 0.341700, 0.100159, 0.076292): -0.351810 - 0.366925 - 0.230465 - 0.196314.
  auto c = test::fixture_f(1);
  CHECK(c.evaluate(entropy_loss{.coefficient = 1}) == Approx(-1.145514).margin(4 * test::six_decimals));
}

TEST_CASE("entropy_loss: gradients equal central differences", "[loss][gradient]") {
  const auto logits = GENERATE(loss_logits::clean, loss_logits::noisy);
  const auto coefficient = GENERATE(0.5, -0.5);
  auto c = test::random_case(9, 5, 95);
  const auto report = c.check(entropy_loss{.coefficient = coefficient, .logits = logits});
  INFO(report.describe());
  CHECK(report.checked == 90);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("entropy_loss: an expert of probability zero adds nothing", "[loss]") {
  test::loss_case<double> c;
  matrix<double> logits = test::random_matrix<double>(4, 3, 97);
  logits.col(1).setConstant(-std::numeric_limits<double>::infinity());
  c.set_clean(logits);
  const double value = c.evaluate(entropy_loss{.coefficient = 1});
  const matrix<double> gradient = c.gradients.clean.map();
  test::loss_case<double> two;
  matrix<double> rest(4, 2);
  rest << logits.col(0), logits.col(2);
  two.set_clean(rest);
  CHECK(value == Approx(two.evaluate(entropy_loss{.coefficient = 1})).epsilon(1e-13));
  CHECK(gradient.col(1).isZero(0));
  CHECK(gradient.allFinite());
}

TEST_CASE("entropy_loss: LIMoE's worked example", "[loss]") {
  test::loss_case<double> c;
  matrix<double> p(2, 3);
  p << .9, .1, 1e-4, .2, .7, .1;
  c.set_clean(p.array().log().matrix());
  const auto value = [&](entropy_loss loss) {
    loss.coefficient = 1;
    return c.evaluate(loss);
  };
  CHECK(std::abs(value({.of = entropy_of::tokens}) - .563945) < 2 * test::six_decimals);
  CHECK(std::abs(value({}) + .845232) < 2 * test::six_decimals);
  CHECK(std::abs(value({.threshold = std::log(3)}) - .253381) < 2 * test::six_decimals);
  CHECK(value({.threshold = .8}) == 0);
  CHECK(c.gradients.clean.map().isZero(0));
  c.set_clean(matrix<double>::Zero(2, 3));
  CHECK(value({.threshold = std::log(3) - 1e-9}) == 0);
}

TEST_CASE("entropy_loss: a modality's tokens are a batch of their own", "[loss][gradient]") {
  const auto of = GENERATE(entropy_of::mean, entropy_of::tokens);
  const entropy_loss own{.coefficient = .7, .of = of, .threshold = 5, .modality = 1};
  auto c = test::random_case(9, 5, 95);
  c.mask.assign(9, 1);
  c.mask[4] = 0;
  const std::vector<index_t> modality{0, 1, 1, 0, 1, 0, 0, 1, 1};
  test::loss_case<double> alone;
  matrix<double> logits(4, 5);
  logits << c.seen.clean.map().row(1), c.seen.clean.map().row(2), c.seen.clean.map().row(7), c.seen.clean.map().row(8);
  alone.set_clean(logits);
  entropy_loss all = own;
  all.modality = -1;
  auto context = c.context();
  CHECK_THROWS_WITH(own(c.seen, c.plan, context, c.gradients), Catch::Matchers::Contains("modality_ids"));
  context.modality_ids = modality;
  c.gradients.zero_like(c.seen);
  CHECK(own(c.seen, c.plan, context, c.gradients) == Approx(alone.evaluate(all)).epsilon(1e-14));
  index_t row = 0;
  for (index_t t = 0; t < 9; ++t) {
    const bool counts = modality[static_cast<std::size_t>(t)] == 1 && t != 4;
    const matrix<double> expected =
        counts ? matrix<double>(alone.gradients.clean.map().row(row++)) : matrix<double>::Zero(1, 5);
    CHECK(test::largest_difference(matrix<double>(c.gradients.clean.map().row(t)), expected) <= test::bound<double>(5));
  }
  context.modality_ids = {};
  entropy_loss none = own;
  none.modality = 7;
  context.modality_ids = modality;
  CHECK(none(c.seen, c.plan, context, c.gradients) == 0);
}

TEST_CASE("entropy_loss: gradients of thresholds and of tokens equal central differences", "[loss][gradient]") {
  const auto loss = GENERATE(entropy_loss{.coefficient = .5, .of = entropy_of::tokens},
                             entropy_loss{.coefficient = .5, .logits = loss_logits::noisy, .threshold = 5});
  auto c = test::random_case(9, 5, 95);
  c.groups = {0, 4, 9};
  const auto report = c.check(loss);
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("entropy_loss: parts of the experts have values of their own whose mean is the loss", "[loss][gradient]") {
  const auto of = GENERATE(entropy_of::mean, entropy_of::tokens);
  auto c = test::random_case(9, 6, 95);
  const double together = c.evaluate(entropy_loss{.coefficient = 0.5, .of = of, .parts = 2});
  const matrix<double> logits = c.seen.clean.map(), gradient = c.gradients.clean.map();
  double mean = 0;
  for (index_t part = 0; part < 2; ++part) {
    test::loss_case<double> alone;
    alone.set_clean(matrix<double>(logits.middleCols(3 * part, 3)));
    mean += alone.evaluate(entropy_loss{.coefficient = 0.25, .of = of});
    CHECK(test::largest_difference(matrix<double>(gradient.middleCols(3 * part, 3)),
                                   matrix<double>(alone.gradients.clean.map())) < test::bound<double>(3));
  }
  CHECK(together == Approx(mean).epsilon(1e-12));
  CHECK_THROWS_WITH(c.evaluate(entropy_loss{.parts = 4}), Catch::Matchers::Contains("6 experts into 4"));
}
