#include <sluice/train/gradient_check.hpp>

#include "../support.hpp"

using namespace sluice;

namespace {

/// f = sum over i of a_i^2 x_i, with gradients 2 a x and a^2.
struct quadratic {
  parameter<double> a{{4}, parameter_role::weight, initial_values::constant(1.5)};
  parameter<double> state{{1}, parameter_role::state};
  std::vector<double> x{1, -2, 0.5, 3};
  std::vector<double> dx;

  quadratic() {
    for (std::size_t i = 0; i < 4; ++i) {
      a.gradient()[i] = 2 * 1.5 * x[i];
      dx.push_back(1.5 * 1.5);
    }
  }
  double operator()() const {
    double sum = 0;
    for (std::size_t i = 0; i < 4; ++i) sum += a.value()[i] * a.value()[i] * x[i];
    return sum;
  }
  template <typename Self, typename Visitor>
  static void visit_parameters(Self& self, Visitor&& visit) {
    visit("a", self.a);
    visit("state", self.state);
  }
};

}  // namespace

TEST_CASE("check_gradients: right gradients of parameters and inputs are found right", "[train][gradient_check]") {
  quadratic f;
  const auto report = check_gradients(f, {{"x", f.x, f.dx}}, f);
  INFO(report.describe());
  CHECK(report.checked == 8);  // the state is no learned array
  CHECK(report.skipped == 0);
  CHECK(report.largest_error < 1e-8);
}

TEST_CASE("check_gradients: one wrong entry is found and named, and nothing is left changed",
          "[train][gradient_check]") {
  quadratic f;
  SECTION("of a parameter") {
    f.a.gradient()[2] += 0.1;
    const auto report = check_gradients(f, {{"x", f.x, f.dx}}, f);
    CHECK(report.name == "a");
    CHECK(report.position == 2);
    CHECK(report.analytic == 1.6);
    CHECK(report.numeric == Approx(1.5));
    CHECK(report.largest_error == Approx(0.1 / 1.6).epsilon(1e-6));
    CHECK(report.describe().find("a[2]: analytic 1.6, numeric 1.5") == 0);
  }
  SECTION("of an input") {
    f.dx[3] = -f.dx[3];
    const auto report = check_gradients(f, {{"x", f.x, f.dx}}, f);
    CHECK(report.name == "x");
    CHECK(report.position == 3);
    CHECK(report.largest_error == Approx(2));
  }
  SECTION("that is NaN") {
    f.dx[1] = quiet_nan<double>();
    const auto report = check_gradients(f, {{"x", f.x, f.dx}}, f);
    CHECK(report.name == "x");
    CHECK(report.position == 1);
    CHECK(report.largest_error > 1e300);
  }
  CHECK(f.x == std::vector<double>{1, -2, 0.5, 3});
  CHECK(f.a.data()[2] == 1.5);
}

TEST_CASE("check_gradients: small entries are compared on the given scale", "[train][gradient_check]") {
  quadratic f;
  f.x[0] = 0;  // the gradient of a[0] is 0
  f.a.gradient()[0] = 1e-4;
  CHECK(check_gradients(f, {}, f, {.scale = 1}).largest_error < 2e-4);
  CHECK(check_gradients(f, {}, f, {.scale = 1e-6}).largest_error == Approx(1).epsilon(1e-4));
}

TEST_CASE("check_gradients: entries without a derivative are skipped, and put back", "[train][gradient_check]") {
  quadratic f;
  f.a.gradient()[1] = 77;  // wrong, but the objective sees no derivative there
  const auto report = check_gradients(f, {{"x", f.x, f.dx}}, [&]() -> std::optional<double> {
    if (f.a.data()[1] > 1.5) return std::nullopt;
    return f();
  });
  CHECK(report.skipped == 1);
  CHECK(report.checked == 7);
  CHECK(report.largest_error < 1e-8);
  CHECK(f.a.data()[1] == 1.5);
}

TEST_CASE("check_gradients: a throwing objective leaves the numbers as they were", "[train][gradient_check]") {
  quadratic f;
  CHECK_THROWS_AS(check_gradients(f, {}, [&]() -> double { throw std::runtime_error("no"); }), std::runtime_error);
  const auto one = [] { return 1.0; };
  for (const double bad :
       {0.0, -1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    CHECK_THROWS_WITH(check_gradients(f, {}, one, {.step = bad}), Catch::Matchers::Contains("step and scale > 0"));
    CHECK_THROWS_WITH(check_gradients(f, {}, one, {.scale = bad}), Catch::Matchers::Contains("step and scale > 0"));
  }
  CHECK_THROWS_WITH(check_gradients(f, {}, one, {.most_entries = -1}), Catch::Matchers::Contains("0.01 and -1"));
  for (const double v : f.a.value()) CHECK(v == 1.5);
}

TEST_CASE("check_gradients: at most as many entries as asked for, spread over the array", "[train][gradient_check]") {
  std::vector<double> x(103, 1.0);
  const std::vector<double> dx(103, 1.0);
  std::vector<std::size_t> seen;
  quadratic none;
  const auto objective = [&] {
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      sum += x[i];
      if (x[i] > 1) seen.push_back(i);
    }
    return sum;
  };
  struct empty {
  } model;
  const auto report = check_gradients(model, {{"x", x, dx}}, objective, {.most_entries = 10});
  CHECK(report.checked <= 10);
  CHECK(report.checked >= 9);
  CHECK(seen.front() == 0);
  CHECK(seen.back() > 80);
}
