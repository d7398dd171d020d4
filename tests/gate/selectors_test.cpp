#include <sluice/gate/selectors.hpp>

#include <sluice/train/initialize.hpp>

#include "support.hpp"

using namespace sluice;

TEST_CASE("selectors: the static gate gives its parameters", "[gate][selectors]") {
  static_selectors<double> gate(5, 2, 3, 1.0);
  initialize(gate, 3);
  matrix<double> codes(1, 6), mixing(1, 2);
  gate.forward(matrix<double>(0, 5), {}, codes, mixing);
  for (index_t i = 0; i < 6; ++i) CHECK(codes(0, i) == gate.codes().data()[i]);
  for (index_t i = 0; i < 2; ++i) CHECK(mixing(0, i) == gate.mixing().data()[i]);
  matrix<double> dx = matrix<double>::Zero(0, 5);
  gate.backward(matrix<double>(0, 5), {}, codes, mixing, dx);
  gate.backward(matrix<double>(0, 5), {}, codes, mixing, dx);
  for (index_t i = 0; i < 6; ++i) CHECK(gate.codes().gradient()[std::size_t(i)] == 2 * codes(0, i));
  CHECK(gate.mixing().gradient()[1] == 2 * mixing(0, 1));
}

TEST_CASE("selectors: the linear gate is linear in each token", "[gate][selectors]") {
  linear_selectors<float> gate(5, 2, 3, 1.0F);
  initialize(gate, 5);
  const matrix<float> x = test::random_matrix<float>(7, 5, 6);
  matrix<float> codes(7, 6), mixing(7, 2);
  gate.forward(x, {}, codes, mixing);
  for (index_t t = 0; t < 7; ++t) {
    for (index_t j = 0; j < 6; ++j) {
      double z = gate.code_bias().data()[j];
      for (index_t d = 0; d < 5; ++d) z += double(x(t, d)) * double(gate.code_weight().map()(j, d));
      CHECK(std::abs(codes(t, j) - z) <= test::bound<float>(5));
    }
    for (index_t i = 0; i < 2; ++i) {
      double a = gate.mixing_bias().data()[i];
      for (index_t d = 0; d < 5; ++d) a += double(x(t, d)) * double(gate.mixing_weight().map()(i, d));
      CHECK(std::abs(mixing(t, i) - a) <= test::bound<float>(5));
    }
  }
}

TEST_CASE("selectors: initial values", "[gate][selectors]") {
  linear_selectors<double> gate(40, 4, 5, 3.0);
  initialize(gate, 7);
  const auto check = [](const parameter<double>& p, double bound) {
    double largest = 0;
    double smallest = 0;
    for (const double v : p.value()) largest = std::max(largest, v), smallest = std::min(smallest, v);
    CHECK(largest <= bound);
    CHECK(smallest >= -bound);
    CHECK(largest > 0.3 * bound);  // at least four uniform numbers: not all in a third of the range
    CHECK(smallest < -0.3 * bound);
  };
  check(gate.code_weight(), 0.03);
  check(gate.code_bias(), 0.03);
  check(gate.mixing_weight(), 0.05);
  static_selectors<double> fixed(1, 20, 5, 3.0);
  initialize(fixed, 8);
  check(fixed.codes(), 0.03);
  check(fixed.mixing(), 0.05);
}

TEST_CASE("selectors: without bits there are no codes to learn", "[gate][selectors]") {
  linear_selectors<double> gate(4, 2, 0, 1.0);
  std::vector<std::string> names;
  for_each_parameter(gate, [&](const std::string& name, parameter<double>&) { names.push_back(name); });
  CHECK(names == std::vector<std::string>{"mixing_weight", "mixing_bias"});
}
