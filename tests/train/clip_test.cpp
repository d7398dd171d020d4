#include <sluice/train/clip.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

template <typename Scalar>
struct pair_of_arrays {
  parameter<Scalar> weight{{2}, parameter_role::weight};
  parameter<Scalar> bias{{1}, parameter_role::vector};
  parameter<Scalar> state{{1}, parameter_role::state};

  pair_of_arrays() {
    weight.gradient()[0] = 3;
    weight.gradient()[1] = 4;
    bias.gradient()[0] = 12;
    state.gradient()[0] = 100;
  }
  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
    visit("state", self.state);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("clip: a long gradient is cut to the length asked for, a short one stays", "[train][clip]", float,
                   double) {
  pair_of_arrays<TestType> model;  // 3, 4, 12 -> 13
  CHECK(gradient_norm(model) == 13);
  CHECK(clip_gradient_norm(model, 20) == 13);
  CHECK(model.weight.gradient()[1] == 4);
  CHECK(clip_gradient_norm(model, 6.5) == 13);
  CHECK(model.weight.gradient()[0] == TestType(1.5));
  CHECK(model.weight.gradient()[1] == 2);
  CHECK(model.bias.gradient()[0] == 6);
  CHECK(model.state.gradient()[0] == 100);
}

TEST_CASE("clip: frozen parameters and missing gradients do not count", "[train][clip]") {
  pair_of_arrays<double> model;
  model.bias.set_frozen(true);
  CHECK(clip_gradient_norm(model, 1) == 5);
  CHECK(model.bias.gradient()[0] == 12);
  CHECK(model.weight.gradient()[0] == Approx(0.6));
  parameter<double> without({5}, parameter_role::weight);
  CHECK(clip_gradient_norm(without, 1) == 0);
  CHECK_FALSE(without.has_gradient());
}

TEST_CASE("clip: a norm that is no finite number scales nothing", "[train][clip]") {
  const double bad = GENERATE(quiet_nan<double>(), std::numeric_limits<double>::infinity());
  pair_of_arrays<double> model;
  model.bias.gradient()[0] = bad;
  const double norm = clip_gradient_norm(model, 1);
  CHECK((is_nan(norm) || order_key(norm) == order_key(std::numeric_limits<double>::infinity())));
  CHECK(model.weight.gradient()[0] == 3);
  CHECK(model.weight.gradient()[1] == 4);
}

TEST_CASE("clip: long arrays are summed in blocks, in double", "[train][clip]") {
  // 10^5 equal numbers: a float sum of squares in one go would be off by far more than the bound of one block.
  const index_t n = 100000;
  parameter<float> p({n}, parameter_role::weight);
  for (float& g : p.gradient()) g = 0.1f;
  const double exact = std::sqrt(static_cast<double>(n)) * static_cast<double>(0.1f);
  CHECK(std::abs(gradient_norm(p) - exact) <=
        exact * 8 * 1024 * static_cast<double>(std::numeric_limits<float>::epsilon()));
  CHECK(gradient_norm(p) == gradient_norm(p));
}

TEST_CASE("clip: the limit has to be positive", "[train][clip]") {
  pair_of_arrays<double> model;
  CHECK_THROWS_AS(clip_gradient_norm(model, 0), std::invalid_argument);
  CHECK_THROWS_AS(clip_gradient_norm(model, std::numeric_limits<double>::infinity()), std::invalid_argument);
  CHECK_THROWS_AS(clip_gradient_norm(model, -1), std::invalid_argument);
}
