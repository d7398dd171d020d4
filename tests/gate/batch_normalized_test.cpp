#include <sluice/gate/batch_normalized.hpp>

#include <sluice/gate/centred.hpp>

#include "../io/messages.hpp"
#include "gate_check.hpp"

using namespace sluice;

TEST_CASE("centred_gate: rows of mean 0 and deviation 1", "[gate][centred]") {
  centred_gate<linear_gate<double>> gate(4, 6);
  initialize(gate, 81);
  const matrix<double> centred = test::score(gate, matrix<double>(30 * test::random_matrix<double>(5, 4, 82)));
  for (index_t t = 0; t < 5; ++t) {
    CHECK(centred.row(t).mean() == Approx(0).margin(1e-14));
    CHECK(centred.row(t).squaredNorm() / 6 ==
          Approx(1).epsilon(1e-6));  // epsilon is 1e-5 of a variance of some hundred
  }
  gate.inner().weight().map().setOnes();
  CHECK(test::score(gate, matrix<double>(matrix<double>::Ones(1, 4))).isZero(0));
  const auto report = [] {
    centred_gate<linear_gate<double>> own(linear_gate<double>(5, 4, {.bias = true}));
    initialize(own, 83);
    return test::check_gate(own, test::random_matrix<double>(7, 5, 84), 85, test::training_context<double>());
  }();
  INFO(report.describe());
  CHECK(report.largest_error < 1e-6);
  CHECK_THROWS_WITH((centred_gate<linear_gate<double>>(linear_gate<double>(5, 4), 0)), test::contains("not 0"));
}

TEST_CASE("batch_normalized_gate: the batch's numbers in training - running ones at inference",
          "[gate][batch_normalized]") {
  using gate_type = batch_normalized_gate<linear_gate<double>>;
  gate_type gate(2, 2);
  gate.inner().weight().map().setIdentity();  // logits are the tokens
  matrix<double> x(4, 2), logits(4, 2);
  x << 1, 10, 3, 30, 100, 77, 5, 20;  // means 3 and 20; variances 8/3 and 200/3; the third is padding
  const std::vector<std::uint8_t> mask{1, 1, 0, 1};
  auto context = test::training_context<double>();
  context.token_mask = mask;
  gate_type::tape tape;
  gate.forward(x, context, logits, tape);
  CHECK(logits(0, 0) == Approx(-2 / std::sqrt(8 / 3. + 1e-5)).epsilon(1e-14));
  CHECK(logits(1, 1) == Approx(10 / std::sqrt(200 / 3. + 1e-5)).epsilon(1e-14));
  CHECK(logits(3, 1) == 0);
  gate.after_step({}, tape);
  CHECK(gate.mean().data()[0] == Approx(0.3).epsilon(1e-14));
  CHECK(gate.mean().data()[1] == Approx(2).epsilon(1e-14));
  CHECK(gate.variance().data()[0] == Approx(0.9 + 0.1 * 4).epsilon(1e-14));  // unbiased: 8/2
  CHECK(gate.variance().data()[1] == Approx(0.9 + 0.1 * 100).epsilon(1e-14));
  gate.forward(x.topRows(1), {}, logits.topRows(1), tape);
  CHECK(logits(0, 0) == Approx(0.7 / std::sqrt(1.3 + 1e-5)).epsilon(1e-14));
  gate.after_step({}, tape);  // an inference call teaches nothing
  CHECK(gate.mean().data()[0] == Approx(0.3).epsilon(1e-14));
  // A token whose logits are infinite is left out of the sums; one token alone leaves the running numbers alone.
  x(2, 0) = std::numeric_limits<double>::infinity();
  context.token_mask = {};
  gate.forward(x, context, logits, tape);
  CHECK(logits(0, 0) == Approx(-2 / std::sqrt(8 / 3. + 1e-5)).epsilon(1e-14));
  gate.forward(x.topRows(1), context, logits.topRows(1), tape);
  CHECK(logits.row(0).isZero(0));
  gate.after_step({}, tape);
  CHECK(gate.mean().data()[0] == Approx(0.3).epsilon(1e-14));
  CHECK_THROWS_WITH(gate_type(linear_gate<double>(2, 2), {.epsilon = 1e-5, .momentum = 2}), test::contains("not 2"));
}

TEST_CASE("batch_normalized_gate: gradients equal central differences", "[gate][batch_normalized][gradient]") {
  for (const bool training : {true, false}) {
    batch_normalized_gate<linear_gate<double>> gate(5, 4);
    initialize(gate, 91);
    gate.variance().fill([](index_t e) { return 0.5 + double(e); });
    auto context = test::training_context<double>();
    context.training = training;
    const auto report = test::check_gate(gate, test::random_matrix<double>(7, 5, 92), 93, context);
    INFO(report.describe());
    CHECK(report.checked == 35 + 20);
    CHECK(report.largest_error < 1e-6);
  }
}
