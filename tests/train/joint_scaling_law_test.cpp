#include <sluice/train/joint_scaling_law.hpp>

#include "../support.hpp"

using namespace sluice;

TEST_CASE("joint_scaling_law: experts that count", "[train][scaling_law]") {
  const joint_scaling_law law;
  CHECK(law.counted_experts(1) == Approx(law.start).epsilon(1e-12));
  const double expected[][2] = {{2, 3.0556}, {4, 5.0005}, {8, 8.8124}, {16, 16.139}, {32, 29.704}};
  double before = law.start;
  for (const auto& [experts, counted] : expected) {
    CHECK(law.counted_experts(experts) == Approx(counted).epsilon(5e-5));
    CHECK(law.counted_experts(experts) > before);
    before = law.counted_experts(experts);
  }
  CHECK(law.counted_experts(1e12) < law.most);
}

TEST_CASE("joint_scaling_law: the law at fixed experts and its values", "[train][scaling_law]") {
  const joint_scaling_law law;
  struct row {
    double experts, m, mu, n, nu;
  };
  for (const row& r : {row{1, 30.399, -.1818, 53.843, -.1964}, row{8, 21.841, -.1676, 119.840, -.2339},
                       row{32, 16.545, -.1557, 234.629, -.2653}}) {
    const auto got = law.at(r.experts);
    CHECK(got.m == Approx(r.m).epsilon(1e-4));
    CHECK(got.mu == Approx(r.mu).margin(5e-5));
    CHECK(got.n == Approx(r.n).epsilon(1e-4));
    CHECK(got.nu == Approx(r.nu).margin(5e-5));
  }
  CHECK(law.loss(1e9, 2e10, 8) == Approx(2.5088).margin(5e-5));
  CHECK(law.loss(1.1e9, 1.6e10, 1) == Approx(2.5884).margin(5e-5));
}

TEST_CASE("joint_scaling_law: the best model for so many operations", "[train][scaling_law]") {
  const joint_scaling_law law;
  struct row {
    double operations, experts, parameters, tokens;
  };
  for (const row& r : {row{1e20, 1, 1.73e9, 9.7e9}, row{1e20, 8, .99e9, 16.8e9}, row{1e20, 32, .67e9, 24.7e9},
                       row{1e21, 1, 5.71e9, 29.2e9}, row{1e21, 8, 3.79e9, 44.0e9}, row{1e21, 32, 2.88e9, 57.9e9},
                       row{1e22, 1, 18.9e9, 88.3e9}, row{1e22, 8, 14.5e9, 115e9}, row{1e22, 32, 12.3e9, 136e9}}) {
    const auto best = law.optimum(r.operations, r.experts);
    CHECK(best.active_parameters == Approx(r.parameters).epsilon(0.01));
    CHECK(best.tokens == Approx(r.tokens).epsilon(0.01));
    CHECK(6 * best.active_parameters * best.tokens == Approx(r.operations).epsilon(1e-12));
    // Nothing near it is better.
    const double loss = law.loss(best.active_parameters, best.tokens, r.experts);
    for (const double factor : {0.9, 1.1})
      CHECK(law.loss(best.active_parameters * factor, best.tokens / factor, r.experts) > loss);
  }
  CHECK(law.loss(law.optimum(1e21, 32).active_parameters, law.optimum(1e21, 32).tokens, 32) <
        law.loss(law.optimum(1e21, 8).active_parameters, law.optimum(1e21, 8).tokens, 8));
}

TEST_CASE("joint_scaling_law: counts parameters, refuses nonsense", "[train][scaling_law]") {
  const auto of = [](index_t experts) { return mixture_parameters{.width = 1024, .blocks = 16, .experts = experts}; };
  CHECK(of(8).active() == Approx(321.0e6).epsilon(5e-4));
  CHECK(of(1).total() == of(1).active());
  CHECK(of(8).total() == Approx(1.378e9).epsilon(5e-4));
  CHECK(of(32).total() == Approx(5.002e9).epsilon(5e-4));
  const joint_scaling_law law;
  CHECK_THROWS_WITH(law.loss(0, 1e9, 8), Catch::Contains("active parameters >= 1, not 0"));
  CHECK_THROWS_AS(law.counted_experts(0), std::invalid_argument);
}
