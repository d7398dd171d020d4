#include <sluice/loss/load.hpp>

#include "loss_case.hpp"

using namespace sluice;

namespace {

double cv2(const std::vector<double>& v, double divisor_less) {
  double mean = 0;
  for (const double x : v) mean += x / static_cast<double>(v.size());
  double squares = 0;
  for (const double x : v) squares += (x - mean) * (x - mean);
  return squares / (static_cast<double>(v.size()) - divisor_less) / (mean * mean);
}

double normal_cdf(double u) { return std::erfc(-u / std::sqrt(2.0)) / 2; }

/// Learned noise: deviations between 0.3 and 1.3.
test::loss_case<double> learned_case(index_t tokens, index_t experts, index_t k, std::uint64_t seed) {
  test::loss_case<double> c;
  c.set_clean(test::random_matrix<double>(tokens, experts, seed));
  const matrix<double> spread = test::random_matrix<double>(tokens, experts, seed + 2);
  c.set_learned_noise(test::random_matrix<double>(tokens, experts, seed + 1),
                      (0.3 + 1 / (1 + (-spread.array()).exp())).matrix());
  c.choose(k, tokens);
  return c;
}

}  // namespace

TEST_CASE("load_loss: fixture F with fixed noise", "[loss]") {
  auto c = test::fixture_f(2);
  matrix<double> draws(4, 4);
  draws << 0.4, -0.8, 0.2, 1.0,  //
      -0.6, 0.8, 0.2, -1.0,      //
      0.2, -0.4, 0.6, 0.0,       //
      -1.0, 0.4, 0.0, 0.2;
  c.set_fixed_noise(draws, 0.25);
  c.choose(2, 4);
  CHECK(c.evaluate(load_loss{}) == Approx(0.610809).margin(test::six_decimals));
}

TEST_CASE("load_loss: one row with learned noise", "[loss]") {
  // k = 1, noisy (1.0, 0.4, 0.2): the threshold of the chosen expert is 0.4, of the others 1.0.
  test::loss_case<double> c;
  matrix<double> clean(1, 3), deviation(1, 3), noisy(1, 3);
  clean << 0.9, 0.5, 0.1;
  deviation << 0.2, 0.3, 0.25;
  noisy << 1.0, 0.4, 0.2;
  c.set_clean(clean);
  c.set_learned_noise((noisy - clean).cwiseQuotient(deviation), deviation);
  c.choose(1, 1);
  // P = Phi(2.5), Phi(-5/3), Phi(-3.6).
  const load_loss loss{.noise = load_form::learned_noise, .form = variance::unbiased};
  CHECK(c.evaluate(loss) == Approx(cv2({0.993790, 0.047790, 0.000159}, 1)).margin(1e-5));
}

TEST_CASE("load_loss: Tutel's form compares probabilities with logits", "[loss]") {
  auto c = test::random_case(7, 4, 12);
  std::vector<double> load(4, 0);
  for (index_t t = 0; t < 7; ++t) {
    double p[4];
    index_t ids[2];
    kernel::softmax(c.seen.clean.row(t), p, 4);
    kernel::top_k(c.seen.noisy().row(t), 4, 2, ids);
    for (std::size_t e = 0; e < 4; ++e) load[e] += normal_cdf((p[e] - c.seen.noisy()(t, ids[1])) / 0.5);
  }
  const load_loss loss{.noise = load_form::scores_over_logits, .form = variance::unbiased};
  CHECK(c.evaluate(loss) == Approx(cv2(load, 1)).epsilon(1e-9));
}

TEST_CASE("load_loss: gradients equal central differences", "[loss][gradient]") {
  const auto form = GENERATE(variance::population, variance::unbiased);
  const auto fixed = GENERATE(load_form::fixed_noise, load_form::scores_over_logits, load_form::logits_over_scores);
  const auto k = GENERATE(index_t(1), index_t(3), index_t(5));
  auto c = test::random_case(11, 5, 41);
  c.choose(k, 11);
  const auto report = c.check(load_loss{.coefficient = 0.6, .noise = fixed, .form = form, .cost = {1, 2, 0.5, 1, 3}});
  INFO(report.describe());
  CHECK(report.checked == 110);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("load_loss: gradients of learned noise equal central differences", "[loss][gradient]") {
  const auto k = GENERATE(index_t(1), index_t(2), index_t(4));
  auto c = learned_case(11, 5, k, 51);
  const auto report = c.check(load_loss{.noise = load_form::learned_noise, .form = variance::unbiased});
  INFO(report.describe());
  CHECK(report.checked == 165);
  CHECK(report.largest_error < 1e-6);
}

TEST_CASE("load_loss: with k = E learned noise counts and has no gradient", "[loss]") {
  auto c = learned_case(6, 3, 3, 61);
  c.plan.weights()[0] = 0;  // one assignment of expert 0 without weight
  const load_loss loss{.noise = load_form::learned_noise};
  CHECK(c.evaluate(loss) == Approx(cv2({5, 6, 6}, 0)).epsilon(1e-12));
  CHECK(c.gradients.clean.map().isZero(0));
  CHECK(c.gradients.noisy.map().isZero(0));
  CHECK(c.gradients.noise_std.map().isZero(0));
}

TEST_CASE("load_loss: ShiftAddViT's form compares logits with probabilities, and costs weigh loads", "[loss]") {
  auto c = test::random_case(7, 3, 12);
  c.choose(1, 7);
  std::vector<double> load(3, 0);
  for (index_t t = 0; t < 7; ++t) {
    double p[3];
    kernel::softmax(c.seen.noisy().row(t), p, 3);
    std::vector<double> sorted(p, p + 3);
    std::sort(sorted.rbegin(), sorted.rend());
    for (index_t e = 0; e < 3; ++e)
      load[static_cast<std::size_t>(e)] +=
          normal_cdf((c.seen.clean(t, e) - (c.seen.noisy()(t, e) > sorted[1] ? sorted[1] : sorted[0])) / 0.5);
  }
  load[0] *= 6, load[1] *= 4;
  const load_loss loss{.noise = load_form::logits_over_scores, .form = variance::unbiased, .cost = {6, 4, 1}};
  CHECK(c.evaluate(loss) == Approx(cv2(load, 1)).epsilon(1e-9));
  CHECK_THROWS_WITH(c.evaluate(load_loss{.cost = {1, 2}}), Catch::Matchers::Contains("2 costs for 3 experts"));
}

TEST_CASE("load_loss: without noise it counts if it is told to", "[loss]") {
  auto c = test::random_case(6, 3, 7);
  c.seen.has_noise = false;
  c.choose(1, 6);
  const load_loss loss{.counts_without_noise = true, .cost = {6, 4, 1}};
  CHECK(c.evaluate(loss) ==
        Approx(cv2({double(c.plan.load(0)), double(c.plan.load(1)), double(c.plan.load(2))}, 0)).epsilon(1e-12));
  CHECK(c.gradients.clean.map().isZero(0));
}

TEST_CASE("load_loss: without noise it reads nothing", "[loss]") {
  auto c = test::random_case(6, 3, 7);
  c.seen.has_noise = false;
  c.seen.clean.map().setConstant(quiet_nan<double>());
  for (const auto noise : {load_form::fixed_noise, load_form::learned_noise, load_form::scores_over_logits}) {
    CHECK(c.evaluate(load_loss{.noise = noise}) == 0);
    CHECK(c.gradients.clean.map().isZero(0));
  }
}

TEST_CASE("load_loss: noise of another form is refused", "[loss]") {
  auto fixed = test::random_case(6, 3, 7);
  CHECK_THROWS_WITH(fixed.evaluate(load_loss{.noise = load_form::learned_noise}),
                    Catch::Matchers::Contains("learned noise"));
  auto learned = learned_case(6, 3, 2, 7);
  CHECK_THROWS_WITH(learned.evaluate(load_loss{}), Catch::Matchers::Contains("one deviation > 0"));
  CHECK_THROWS_AS(learned.evaluate(load_loss{.noise = load_form::scores_over_logits}), std::invalid_argument);
}

TEST_CASE("load_loss: a deviation that rounded to zero is a step without gradient", "[loss]") {
  auto c = learned_case(5, 4, 2, 71);
  c.seen.noise_std(2, 1) = 0;
  c.seen.noisy_storage(2, 1) = c.seen.clean(2, 1);
  c.choose(2, 5);
  const double value = c.evaluate(load_loss{.noise = load_form::learned_noise});
  CHECK(std::isfinite(value));
  CHECK(c.gradients.noise_std(2, 1) == 0);
  CHECK(c.gradients.clean.map().allFinite());
  CHECK(c.gradients.noisy.map().allFinite());
}

TEST_CASE("load_loss: of equal logits the lower index sets the threshold", "[loss][ties]") {
  test::loss_case<double> c;
  c.set_clean(matrix<double>::Zero(1, 4));
  c.set_fixed_noise(matrix<double>::Zero(1, 4), 1);
  c.choose(2, 1);
  // tau is the second largest of four zeros: expert 1. All q are 1/2, so the loss is 0 and so is its gradient; with a
  // fifth expert far below, the threshold's gradient shows whom it went to.
  CHECK(c.evaluate(load_loss{}) == 0);
  matrix<double> logits(1, 5);
  logits << 0, 0, 0, 0, -3;
  c.set_clean(logits);
  c.set_fixed_noise(matrix<double>::Zero(1, 5), 1);
  c.choose(2, 1);
  c.evaluate(load_loss{});
  for (index_t e = 0; e < 5; ++e) {
    CAPTURE(e);
    CHECK((c.gradients.noisy(0, e) != 0) == (e == 1));
  }
}
