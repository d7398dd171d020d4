#include <sluice/gate/jitter.hpp>

#include <sluice/gate/cosine.hpp>

#include "gate_check.hpp"

using namespace sluice;

namespace {

template <template <typename> class Jitter>
Jitter<linear_gate<double>> jittered(double epsilon) {
  Jitter<linear_gate<double>> gate(3, 2, epsilon);
  gate.inner().weight().map() << 1, 2, 3, -1, 0.5, 0.25;
  return gate;
}

// Draws at positions t*D + d, or t*E + e: numbers in (0, 1).
const std::vector<double> draws{0.5, 0.0, 1.0, 0.25, 0.75, 0.5};

routing_context<double> replay(random_site site) {
  auto context = test::training_context<double>();
  context.random.replay(site, draws);
  return context;
}

const matrix<double> x = test::random_matrix<double>(2, 3, 41);

}  // namespace

TEST_CASE("jitter: three different things", "[gate]") {
  const double epsilon = 0.4;
  Eigen::Matrix<double, 6, 1> u;
  u << 1.0, 0.6, 1.4, 0.8, 1.2, 1.0;
  const matrix<double> clean = test::score(jittered<jittered_gate>(0).inner(), x);

  SECTION("of the router's input") {
    const auto gate = jittered<jittered_gate>(epsilon);
    const matrix<double> factors = Eigen::Map<const matrix<double>>(u.data(), 2, 3);
    const matrix<double> expected = test::score(gate.inner(), matrix<double>(x.cwiseProduct(factors)));
    CHECK(test::largest_difference(test::score(gate, x, replay(input_jitter_site)), expected) <
          test::bound<double>(3, 10));
  }
  SECTION("added to the logits") {
    const matrix<double> expected = clean + Eigen::Map<const matrix<double>>(u.data(), 2, 2);
    const auto found = test::score(jittered<added_jitter_gate>(epsilon), x, replay(logit_jitter_site));
    CHECK(test::largest_difference(found, expected) < test::bound<double>(1, 10));
  }
  SECTION("multiplied with the logits") {
    const matrix<double> expected = clean.cwiseProduct(Eigen::Map<const matrix<double>>(u.data(), 2, 2));
    const auto found = test::score(jittered<scaled_jitter_gate>(epsilon), x, replay(logit_jitter_site));
    CHECK(test::largest_difference(found, expected) < test::bound<double>(1, 10));
  }
}

TEMPLATE_TEST_CASE("jitter: inference and epsilon 0 are the inner gate, bit for bit", "[gate]",
                   jittered_gate<linear_gate<float>>, added_jitter_gate<linear_gate<float>>,
                   scaled_jitter_gate<linear_gate<float>>) {
  TestType gate(5, 4, 0.1);
  initialize(gate, 43);
  const matrix<float> tokens = test::random_matrix<float>(9, 5, 44);
  const matrix<float> clean = test::score(gate.inner(), tokens);
  CHECK(test::same_bits(test::score(gate, tokens), clean));
  CHECK_FALSE(test::same_bits(test::score(gate, tokens, test::training_context<float>()), clean));
  TestType still(5, 4, 0);
  initialize(still, 43);
  CHECK(test::same_bits(test::score(still, tokens, test::training_context<float>()), clean));
  // A tape that was used in training does not jitter the backward pass of an inference call.
  typename TestType::tape tape;
  const matrix<float> dlogits = test::random_matrix<float>(9, 4, 45);
  test::pull_back(gate, tokens, dlogits, test::training_context<float>(), tape);
  typename linear_gate<float>::tape plain;
  CHECK(test::same_bits(test::pull_back(gate, tokens, dlogits, {}, tape),
                        test::pull_back(gate.inner(), tokens, dlogits, {}, plain)));
}

TEMPLATE_TEST_CASE("jitter: gradients equal central differences", "[gate][gradient]",
                   jittered_gate<cosine_gate<double>>, added_jitter_gate<cosine_gate<double>>,
                   scaled_jitter_gate<cosine_gate<double>>) {
  TestType gate(5, 4, 0.3);
  initialize(gate, 47);
  const auto report =
      test::check_gate(gate, test::random_matrix<double>(6, 5, 48), 49, test::training_context<double>());
  INFO(report.describe());
  CHECK(report.checked == 30 + 20 + 1);
  CHECK(report.largest_error < 1e-6);
}

TEMPLATE_TEST_CASE("jitter: executors, NaN, no tokens", "[gate]", jittered_gate<linear_gate<float>>,
                   added_jitter_gate<linear_gate<float>>, scaled_jitter_gate<linear_gate<float>>) {
  TestType gate(13, 7, 0.1);
  initialize(gate, 51);
  test::check_gate_promises(gate, 52);
}

TEST_CASE("jitter: factors stay within epsilon of 1 and differ between sites and steps", "[gate]") {
  matrix_buffer<double> input, logit, next;
  auto context = test::training_context<double>();
  detail::draw_factors(context, input_jitter_site, 100, 10, 0.25, input);
  detail::draw_factors(context, logit_jitter_site, 100, 10, 0.25, logit);
  context.random = context.random.at_step(1);
  detail::draw_factors(context, input_jitter_site, 100, 10, 0.25, next);
  CHECK(input.map().minCoeff() >= 0.75);
  CHECK(input.map().maxCoeff() <= 1.25);
  // 1,000 uniform draws: the mean has deviation 0.5 / sqrt(12,000); five of them.
  CHECK(std::abs(input.map().mean() - 1) < 5 * 0.5 / std::sqrt(12000.0));
  CHECK((input.map() - logit.map()).cwiseAbs().minCoeff() > 0);
  CHECK((input.map() - next.map()).cwiseAbs().minCoeff() > 0);
}

TEST_CASE("jitter: epsilon below 0 or from 1 up is refused", "[gate]") {
  CHECK_THROWS_AS(jittered_gate<linear_gate<float>>(3, 2, -0.1), std::invalid_argument);
  CHECK_THROWS_AS(jittered_gate<linear_gate<float>>(3, 2, 1.0), std::invalid_argument);
  CHECK_THROWS_AS(added_jitter_gate<linear_gate<float>>(3, 2, 2.0), std::invalid_argument);
}
