#include <sluice/loss/sparsity.hpp>

#include <sluice/loss/importance.hpp>

#include "loss_case.hpp"

using namespace sluice;

TEST_CASE("sparsity_loss: SpeechMoE's worked example, with the mean importance loss", "[loss]") {
  test::loss_case<double> c;
  matrix<double> p(2, 3);
  p << .7, .2, .1, .1, .1, .8;
  c.set_clean(p.array().log().matrix());
  CHECK(std::abs(c.evaluate(sparsity_loss{.coefficient = 1}) - 1.295871) < test::six_decimals);
  CHECK(1 + c.evaluate(importance_loss{}) == Approx(1.155).epsilon(1e-12));
}

TEST_CASE("sparsity_loss: from one for one-hot rows to the root of E for even ones", "[loss]") {
  test::loss_case<double> c;
  c.set_clean(matrix<double>::Zero(3, 4));
  CHECK(c.evaluate(sparsity_loss{.coefficient = 1}) == Approx(2).epsilon(1e-8));
  matrix<double> sure = matrix<double>::Zero(3, 4);
  sure.col(2).setConstant(1000);
  c.set_clean(sure);
  CHECK(c.evaluate(sparsity_loss{.coefficient = 1}) == Approx(1).epsilon(1e-8));
  CHECK(c.gradients.clean.map().isZero(test::bound<double>(4)));
}

TEST_CASE("sparsity_loss: gradients equal central differences", "[loss][gradient]") {
  const auto logits = GENERATE(loss_logits::clean, loss_logits::noisy);
  auto c = test::random_case(9, 5, 95);
  c.mask.assign(9, 1);
  c.mask[3] = 0;
  const auto report = c.check(sparsity_loss{.coefficient = .6, .logits = logits});
  INFO(report.describe());
  CHECK(report.checked == 90);
  CHECK(report.largest_error < 1e-6);
}
