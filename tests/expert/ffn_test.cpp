#include <sluice/expert/ffn.hpp>
#include <sluice/expert/gated_ffn.hpp>

#include <sluice/core/numeric.hpp>
#include <sluice/train/conformance.hpp>
#include <sluice/train/initialize.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

/// A user's own, written for single numbers only: no vector type fits.
struct softplus {
  static double value(double z) { return std::log1p(std::exp(-std::abs(z))) + (z > 0 ? z : 0); }
  static double derivative(double z) { return 1 / (1 + std::exp(-z)); }
};
static_assert(Activation<softplus, double>);

/// A user's own as templates: it runs on vectors.
struct square {
  template <typename V>
  static V value(V z) {
    return z * z;
  }
  template <typename V>
  static V derivative(V z) {
    return z + z;
  }
};

template <typename Expert>
void check_all(Expert expert) {
  initialize(expert, 7);
  for_each_parameter(expert, [](const std::string&, auto& p) {
    if (p.role() == parameter_role::vector)
      for (index_t i = 0; i < p.size(); ++i) p.data()[i] += 0.25 * static_cast<double>(i % 5);  // biases start at zero
  });
  const auto report = check_expert(expert);
  INFO(report.describe());
  CHECK(report.passed());
}

matrix<double> row(std::initializer_list<double> numbers) {
  matrix<double> m(1, static_cast<index_t>(numbers.size()));
  std::copy(numbers.begin(), numbers.end(), m.data());
  return m;
}
void set(parameter<double>& p, std::initializer_list<double> numbers) {
  REQUIRE(p.size() == static_cast<index_t>(numbers.size()));
  p.fill([&](index_t i) { return numbers.begin()[i]; });
}

}  // namespace

TEST_CASE("ffn: gradients and every promise of an expert, for every activation", "[expert][gradient]") {
  check_all(ffn<double, relu>(6, 9));
  check_all(ffn<double, relu>(6, 9, {.outputs = 4, .bias = true}));
  check_all(ffn<double, gelu>(6, 9, {.bias = true}));
  check_all(ffn<double, gelu_tanh>(6, 9));
  check_all(ffn<double, silu>(5, 17, {.outputs = 3}));
  check_all(ffn<double, sigmoid>(6, 9));
  check_all(ffn<double, softplus>(6, 9, {.bias = true}));
  check_all(ffn<double, square>(6, 9, {.bias = true}));
}

TEST_CASE("gated_ffn: gradients and every promise of an expert, for every activation", "[expert][gradient]") {
  check_all(swiglu<double>(6, 9));
  check_all(swiglu<double>(6, 9, {.outputs = 4, .bias = true, .hidden_scale = true}));
  check_all(geglu<double>(6, 9, {.bias = true}));
  check_all(gated_ffn<double, gelu_tanh>(5, 17, {.hidden_scale = true}));
  check_all(reglu<double>(6, 9));
  check_all(gated_ffn<double, sigmoid>(6, 9));
  check_all(gated_ffn<double, softplus>(6, 9, {.bias = true}));
}

TEST_CASE("ffn: a worked example", "[expert]") {
  // x = (1, -2), W1 = ((1, 0), (0, 1), (1, 1)), b1 = (0, 3, 0):  z = (1, 1, -1), a = (1, 1, 0) with ReLU
  // W2 = ((1, 2, 3)), b2 = 10:  y = 1 + 2 + 0 + 10 = 13;  dy = 2:  da = (2, 4, 6), dz = (2, 4, 0), dx = (2, 4)
  ffn<double> expert(2, 3, {.outputs = 1, .bias = true});
  set(expert.up(), {1, 0, 0, 1, 1, 1});
  set(expert.up_bias(), {0, 3, 0});
  set(expert.down(), {1, 2, 3});
  set(expert.down_bias(), {10});
  const matrix<double> x = row({1, -2});
  matrix<double> y(1, 1), dx(1, 2), saved(1, expert.saved_columns());
  expert.forward(x, y, saved);
  CHECK(y(0, 0) == 13);
  expert.backward(x, row({2}), saved, dx);
  CHECK(dx == row({2, 4}));
  CHECK(expert.up().gradient_matrix() == (matrix<double>(3, 2) << 2, -4, 4, -8, 0, 0).finished());
  CHECK(expert.up_bias().gradient_matrix() == (matrix<double>(3, 1) << 2, 4, 0).finished());
  CHECK(expert.down().gradient_matrix() == row({2, 2, 0}));
  CHECK(expert.down_bias().gradient()[0] == 2);
}

TEST_CASE("gated_ffn: the worked example of SwiGLU", "[expert]") {
  // Computed with an independent script; given with six decimals.
  swiglu<double> expert(2, 3);
  set(expert.gate(), {1, 0, 0.5, -0.5, 0, 1});
  set(expert.up(), {0, 1, 1, 1, 2, 0});
  set(expert.down(), {1, 0, -1, 0, 2, 1});
  const matrix<double> x = row({1, -2});
  matrix<double> y(1, 2), dx(1, 2), saved(1, expert.saved_columns());
  expert.forward(x, y, saved);
  const double printed = 5.1e-7;
  CHECK(test::largest_difference(y, row({-0.985305, -2.929535})) <= printed);
  expert.backward(x, row({1, 1}), saved, dx);
  CHECK(test::largest_difference(dx, row({-0.443912, 4.225076})) <= printed);
  const matrix<double> da = row({-1.855341, -2.082588, 0}), db = row({0.731059, 2.452723, 0}),
                       h = row({-1.462117, -1.226362, -0.476812});
  CHECK(test::largest_difference(matrix<double>(expert.gate().gradient_matrix()), matrix<double>(da.transpose() * x)) <=
        2 * printed);
  CHECK(test::largest_difference(matrix<double>(expert.up().gradient_matrix()), matrix<double>(db.transpose() * x)) <=
        2 * printed);
  CHECK(test::largest_difference(matrix<double>(expert.down().gradient_matrix()),
                                 matrix<double>(row({1, 1}).transpose() * h)) <= printed);
}

TEMPLATE_TEST_CASE("ffn, gated_ffn: equal plain loops in long double", "[expert]", float, double) {
  const index_t n = 13, inputs = 21, hidden = 34, outputs = 8;
  ffn<TestType, gelu> plain(inputs, hidden, {.outputs = outputs, .bias = true});
  gated_ffn<TestType, silu> gated(inputs, hidden, {.outputs = outputs, .bias = true, .hidden_scale = true});
  initialize(plain, 1);
  initialize(gated, 2);
  const matrix<TestType> x = test::random_matrix<TestType>(n, inputs, 3);
  matrix<TestType> y(n, outputs), z(n, outputs), saved(n, plain.saved_columns()), gated_saved(n, gated.saved_columns());
  plain.forward(x, y, saved);
  gated.forward(x, z, gated_saved);
  const auto product = [&](parameter<TestType>& w, parameter<TestType>& b, index_t r,
                           const std::vector<long double>& in) {
    long double sum = static_cast<long double>(b.data()[r]);
    for (std::size_t c = 0; c < in.size(); ++c)
      sum += static_cast<long double>(w.data()[w.layout().place(r, static_cast<index_t>(c))]) * in[c];
    return sum;
  };
  // Hidden values are below 8 here, so are the outputs' terms.
  const auto bound = static_cast<long double>(test::bound<TestType>(inputs + hidden, 8));
  for (index_t t = 0; t < n; ++t) {
    const std::vector<long double> in(&x(t, 0), &x(t, 0) + inputs);
    std::vector<long double> a, h;
    for (index_t j = 0; j < hidden; ++j) {
      const long double up = product(plain.up(), plain.up_bias(), j, in);
      a.push_back(up * 0.5L * std::erfc(-up / std::sqrt(2.0L)));
      const long double gate = product(gated.gate(), gated.gate_bias(), j, in);
      h.push_back(gate / (1 + std::exp(-gate)) * product(gated.up(), gated.up_bias(), j, in) *
                  static_cast<long double>(gated.hidden_scale().data()[j]));
    }
    for (index_t o = 0; o < outputs; ++o) {
      CHECK(std::abs(static_cast<long double>(y(t, o)) - product(plain.down(), plain.down_bias(), o, a)) <= bound);
      CHECK(std::abs(static_cast<long double>(z(t, o)) - product(gated.down(), gated.down_bias(), o, h)) <= bound);
    }
  }
}

TEMPLATE_TEST_CASE("gated_ffn: slices of the hidden units sum to the whole", "[expert]", float, double) {
  const index_t inputs = 10, hidden = 24, slices = 4, part = hidden / slices;
  gated_ffn<TestType, silu> whole(inputs, hidden);
  initialize(whole, 5);
  const matrix<TestType> x = test::random_matrix<TestType>(9, inputs, 6);
  matrix<TestType> y(9, inputs), saved(9, whole.saved_columns()), sum = matrix<TestType>::Zero(9, inputs);
  whole.forward(x, y, saved);
  for (index_t s = 0; s < slices; ++s) {
    gated_ffn<TestType, silu> slice(inputs, part);
    slice.gate().assign(whole.gate().to_matrix().middleRows(s * part, part));
    slice.up().assign(whole.up().to_matrix().middleRows(s * part, part));
    slice.down().assign(whole.down().to_matrix().middleCols(s * part, part));
    matrix<TestType> out(9, inputs), own(9, slice.saved_columns());
    slice.forward(x, out, own);
    sum += out;
  }
  CHECK(test::largest_difference(y, sum) <= test::bound<TestType>(inputs + hidden, 4));
}

TEMPLATE_TEST_CASE("ffn, gated_ffn: NaN stays in its row, forward and backward", "[expert]", float, double) {
  const auto check = [](auto expert) {
    initialize(expert, 1);
    matrix<TestType> x = test::random_matrix<TestType>(6, 5, 2);
    x(2, 3) = quiet_nan<TestType>();
    const matrix<TestType> dy = test::random_matrix<TestType>(6, 5, 3);
    matrix<TestType> y(6, 5), dx(6, 5), saved(6, expert.saved_columns());
    expert.forward(x, y, saved);
    expert.backward(x, dy, saved, dx);
    for (index_t r = 0; r < 6; ++r) {
      CHECK(any_nan(&y(r, 0), 5) == (r == 2));
      CHECK(any_nan(&dx(r, 0), 5) == (r == 2));
    }
    for (index_t c = 0; c < 5; ++c) CHECK(is_nan(y(2, c)));
  };
  check(ffn<TestType, gelu>(5, 8));
  check(gated_ffn<TestType, silu>(5, 8));
}

TEST_CASE("ffn, gated_ffn: rows of zeros and dead units have zero gradients", "[expert]") {
  ffn<double> expert(3, 4, {.bias = true});
  initialize(expert, 1);
  expert.up_bias().map().setConstant(-100);  // every unit is dead
  const matrix<double> x = test::random_matrix<double>(5, 3, 2);
  matrix<double> y(5, 3), dx(5, 3), saved(5, expert.saved_columns());
  expert.forward(x, y, saved);
  expert.backward(x, x, saved, dx);
  CHECK(y.isZero(0));
  CHECK(dx.isZero(0));
  CHECK(expert.up().gradient_matrix().isZero(0));
  CHECK(expert.down().gradient_matrix().isZero(0));
  CHECK_FALSE(expert.down_bias().gradient_matrix().isZero(0));

  swiglu<double> gated(3, 4);
  initialize(gated, 1);
  matrix<double> gated_saved(5, gated.saved_columns());
  gated.forward(matrix<double>::Zero(5, 3), y, gated_saved);
  gated.backward(matrix<double>::Zero(5, 3), x, gated_saved, dx);
  CHECK(y.isZero(0));
  CHECK(dx.isZero(0));
  CHECK(gated.gate().gradient_matrix().isZero(0));
}

TEST_CASE("ffn, gated_ffn: widths below one are refused", "[expert]") {
  CHECK_THROWS_WITH(ffn<float>(0, 4), "sluice: ffn needs D, H, D' >= 1, not 0, 4, 0");
  CHECK_THROWS_WITH(swiglu<float>(4, 0), "sluice: gated_ffn needs D, H, D' >= 1, not 4, 0, 4");
  CHECK_THROWS_AS(ffn<float>(4, 4, {.outputs = -1}), std::invalid_argument);
}

TEST_CASE("ffn, gated_ffn: parameters, names and counts", "[expert]") {
  ffn<float> plain(4, 6, {.outputs = 5, .bias = true});
  CHECK(parameter_count(plain) == 4 * 6 + 6 + 6 * 5 + 5);
  swiglu<float> gated(4, 6);
  CHECK(parameter_count(gated) == 3 * 4 * 6);
  std::vector<std::string> names;
  for_each_parameter(gated, [&](const std::string& name, auto&) { names.push_back(name); });
  CHECK(names == std::vector<std::string>{"gate", "up", "down"});
}
